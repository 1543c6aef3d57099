"""The paper's claims as differences between two numbers, and whether each holds.

Every claim is a difference of test means, paired by seed (`intervals.paired`). "holds" and "does not hold" need the
whole 95 % interval on one side of 0; otherwise the claim is "undecided". A claim that something is *not* better
(sign -1) holds if it is shown to be worse, and does not hold if it is shown to be better.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mer_r1.lab.study.results.intervals import Estimate, estimate, paired, verdict

Place = tuple[str, ...]
"""Path of a number: variant, then keys such as "test", "slow", "f1"; in `CLAIMS` joined by slashes."""


@dataclass(frozen=True)
class Claim:
    """One claim: `first` - `second` is above 0 (sign 1) or not above 0 (sign -1)."""

    study: str
    text: str
    first: str
    second: str
    sign: int = 1


def _slow_f1(study: str, text: str, first: str, second: str) -> Claim:
    return Claim(study, text, f"{first}/test/slow/f1", f"{second}/test/slow/f1")


def _slow_beats_fast(study: str, variant: str, title: str, sign: int) -> Claim:
    text = f"slow F1 {'>' if sign > 0 else 'is not above'} fast F1 after {title}"
    return Claim(study, text, f"{variant}/test/slow/f1", f"{variant}/test/fast/f1", sign)


def _paradox(study: str, variant: str, title: str) -> list[Claim]:
    compared = (
        ("fast recall > slow recall", "fast", "slow", "recall"),
        ("slow precision > fast precision", "slow", "fast", "precision"),
        ("fast F1 > slow F1", "fast", "slow", "f1"),
        ("fast answers name more categories", "fast", "slow", "categories"),
    )
    return [
        Claim(study, f"{text} after {title}", f"{variant}/test/{more}/{number}", f"{variant}/test/{less}/{number}")
        for text, more, less, number in compared
    ]


CLAIMS: tuple[Claim, ...] = (
    *_paradox("paradox", "sft", "SFT"),
    _slow_beats_fast("paradox", "f1", "F1-GRPO", -1),
    *_paradox("harder", "sft-harder", "harder SFT"),
    _slow_beats_fast("harder", "f1-harder", "harder SFT and F1-GRPO", -1),
    _slow_beats_fast("harder", "mer-r1-harder", "harder SFT and MER-R1", 1),
    _slow_f1("harder", "MER-R1 ≥ F1-GRPO in slow F1, both after harder SFT", "mer-r1-harder", "f1-harder"),
    _slow_f1("parts", "RD ≥ F1-GRPO in slow F1", "rd", "f1"),
    _slow_f1("parts", "AD ≥ RD in slow F1", "ad", "rd"),
    _slow_f1("parts", "MER-R1 ≥ AD in slow F1", "mer-r1", "ad"),
    _slow_f1("parts", "MER-R1 ≥ F1-GRPO in slow F1", "mer-r1", "f1"),
    _slow_f1("parts", "F1-GRPO ≥ SFT in slow F1", "f1", "sft"),
    _slow_beats_fast("parts", "mer-r1", "MER-R1", 1),
    _slow_f1("calibration", "category level ≥ word level (A1)", "mer-r1", "word"),
    _slow_f1("calibration", "both sides ≥ recall side only (A2)", "mer-r1", "recall-side"),
    _slow_f1("calibration", "advantage space ≥ reward space (B1)", "mer-r1", "reward-space"),
    _slow_f1("calibration", "advantage space ≥ mixed (B2)", "mer-r1", "mixed-space"),
    _slow_f1("calibration", "all anchors ≥ first anchor", "mer-r1", "first-anchor"),
    _slow_beats_fast("calibration", "mer-r1", "MER-R1, in the study of calibration", 1),
    _slow_f1("anchors", "first anchor, alpha 1 ≥ AD in slow F1", "first-anchor-strong", "ad"),
    _slow_f1("anchors", "first anchor, alpha 1 ≥ MER-R1 in slow F1", "first-anchor-strong", "mer-r1"),
    _slow_f1("anchors", "first anchor, alpha 1 ≥ alpha 0.1 in slow F1", "first-anchor-strong", "first-anchor"),
    _slow_f1(
        "anchors", "category level ≥ word level (A1), first anchor, alpha 1", "first-anchor-strong", "word-strong"
    ),
    _slow_f1(
        "anchors", "advantage space ≥ reward space (B1), first anchor, alpha 1", "first-anchor-strong", "reward-strong"
    ),
    _slow_beats_fast("anchors", "first-anchor-strong", "MER-R1 with the first anchor and alpha 1", 1),
    _slow_beats_fast("baselines", "mer-r1", "MER-R1", 1),
    _slow_beats_fast("baselines", "f1", "F1-GRPO", -1),
    _slow_beats_fast("baselines", "r1-omni", "R1-Omni", -1),
    _slow_beats_fast("baselines", "affectgpt-r1", "AffectGPT-R1", -1),
    _slow_beats_fast("baselines", "videoauto-r1", "VideoAuto-R1", -1),
    _slow_f1("baselines", "MER-R1 ≥ R1-Omni in slow F1", "mer-r1", "r1-omni"),
    _slow_f1("baselines", "MER-R1 ≥ AffectGPT-R1 in slow F1", "mer-r1", "affectgpt-r1"),
    _slow_f1("baselines", "MER-R1 ≥ VideoAuto-R1 in slow F1", "mer-r1", "videoauto-r1"),
    Claim("auto", "MER-R1 auto F1 > MER-R1 fast F1", "mer-r1/auto/auto/f1", "mer-r1/auto/fast/f1"),
    Claim("auto", "MER-R1 auto F1 ≥ MER-R1 slow F1", "mer-r1/auto/auto/f1", "mer-r1/auto/slow/f1"),
    Claim("auto", "MER-R1 auto takes fewer tokens than slow", "mer-r1/auto/slow/tokens", "mer-r1/auto/auto/tokens"),
    Claim("auto", "MER-R1 auto F1 > VideoAuto-R1 auto F1", "mer-r1/auto/auto/f1", "videoauto-r1/auto/auto/f1"),
    Claim(
        "auto",
        "MER-R1 auto takes fewer tokens than VideoAuto-R1 auto",
        "videoauto-r1/auto/auto/tokens",
        "mer-r1/auto/auto/tokens",
    ),
    Claim("auto", "MER-R1 auto F1 > F1-GRPO auto F1", "mer-r1/auto/auto/f1", "f1/auto/auto/f1"),
)
"""Every claim of the studies."""


def by_seed(numbers: Mapping[str, Mapping[str, Any]], place: Place) -> dict[str, float | None]:
    """Seed -> number at a place (variant and keys); seeds without it are left out."""
    found = {}
    for seed, tree in numbers.get(place[0], {}).items():
        value: Any = tree
        for key in place[1:]:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            found[seed] = value
    return found


def estimate_at(data: Mapping[str, Any], *place: str) -> Estimate:
    """Mean and interval over seeds of the number at a place in a result of `collect.collect`."""
    return estimate(list(by_seed(data["numbers"], place).values()))


def decide(study: str, numbers: Mapping[str, Mapping[str, Any]], split: str = "test") -> list[dict[str, Any]]:
    """The claims of one study with difference, interval and verdict; `split` "val" decides them on validation clips."""
    rows = []
    for claim in [claim for claim in CLAIMS if claim.study == study]:
        places = ([split if key == "test" else key for key in p.split("/")] for p in (claim.first, claim.second))
        first, second = (by_seed(numbers, tuple(place)) for place in places)
        difference = paired(first, second)
        rows.append({"claim": claim.text, **difference, "verdict": verdict(difference, claim.sign).value})
    return rows
