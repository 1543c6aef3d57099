"""The paper's claims and the bed's hypotheses as differences between two numbers, and whether each holds.

Every claim is a difference of means over clips, paired by seed (`intervals.paired`). "holds" and "does not hold" need
the whole 95 % interval on one side of the bound; otherwise the claim is "undecided". A claim that something is *not*
better (sign -1) holds if its interval is below the bound.

The hypotheses B1 to B7 are those of docs/study_plan.md, written down before any test clip was asked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mer_r1.lab.study.results.intervals import ClaimVerdict, Estimate, estimate, holm, paired, verdict
from mer_r1.lab.study.runs.variants import FORMULATIONS, STUDIES, VARIANTS

NAMES = {"f1": "F1", "exchange": "F1 owed to the reasoning"}
"""Names of numbers in claims, where the key does not say it."""


@dataclass(frozen=True)
class Claim:
    """One claim of a study: `first` - `second` is above `bound` (sign 1) or below it (sign -1).

    `first` and `second` are places such as "ad/sampled/slow/f1"; `second` is "" where a number is compared with the
    bound alone. `hypothesis` is the key of `HYPOTHESES` that the claim is a part of, "" for none.
    """

    study: str
    first: str
    second: str
    sign: int = 1
    bound: float = 0.0
    hypothesis: str = ""

    @property
    def text(self) -> str:
        """The claim in words."""
        bound = f" {'-' if self.bound < 0 else '+'} {abs(self.bound)}" if self.bound else ""
        against = f"{_named(self.second)}{bound}" if self.second else f"{self.bound}"
        return f"{_named(self.first)} {'>' if self.sign > 0 else '<'} {against}"


def _named(place: str) -> str:
    variant, kind, mode, number = place.split("/")
    return f"{'' if kind == 'diagnosis' else f'{mode} '}{NAMES.get(number, number)} of {VARIANTS[variant].title}"


HYPOTHESES = {
    "B1": "after the cold start fast is ahead of slow in F1",
    "B2": "another clip's reasoning costs at least 0.10 F1, before and after RL",
    "B3": "every kind of RL raises slow F1",
    "B4": "after MER-R1 slow is not behind fast, in each formulation",
    "B5": "AD is ahead of F1-GRPO in slow F1",
    "B6": "a formulation is ahead of AD in slow F1 (Holm-corrected)",
    "B7": "noise at equal weight is not ahead of AD",
}
"""Hypotheses of the bed. All parts have to hold, of B6 one."""
ONE_SUFFICES = "B6"
MARGIN = 0.01
"""Difference in F1 below which two policies count as level."""


def _f1(study: str, first: str, second: str, sign: int = 1, bound: float = 0.0, hypothesis: str = "") -> Claim:
    first, second = ("{}/sampled/{}/f1".format(*place.split("/")) for place in (first, second))
    return Claim(study, first, second, sign, bound, hypothesis)


def _bed() -> Iterator[Claim]:
    yield _f1("bed", "sft/fast", "sft/slow", hypothesis="B1")
    for name in ("sft", "ad", *FORMULATIONS):
        judged = name if name in FORMULATIONS else "answer"
        yield Claim("bed", f"{name}/diagnosis/{judged}/exchange", "", bound=0.1, hypothesis="B2")
    for name in STUDIES["bed"].variants[1:]:
        yield _f1("bed", f"{name}/slow", "sft/slow", hypothesis="B3")
    for name in FORMULATIONS:
        yield _f1("bed", f"{name}/slow", f"{name}/fast", bound=-MARGIN, hypothesis="B4")
    yield _f1("bed", "ad/slow", "f1/slow", hypothesis="B5")
    for name in FORMULATIONS:
        yield _f1("bed", f"{name}/slow", "ad/slow", hypothesis="B6")
    yield _f1("bed", "noise/slow", "ad/slow", sign=-1, bound=MARGIN, hypothesis="B7")


OTHERS = ("r1-omni", "affectgpt-r1", "videoauto-r1")
"""Methods of other papers."""
CLAIMS: tuple[Claim, ...] = (
    *_bed(),
    Claim("paradox", "sft/sampled/fast/recall", "sft/sampled/slow/recall"),
    Claim("paradox", "sft/sampled/slow/precision", "sft/sampled/fast/precision"),
    Claim("paradox", "sft/sampled/fast/categories", "sft/sampled/slow/categories"),
    _f1("paradox", "sft/fast", "sft/slow"),
    _f1("paradox", "f1/slow", "f1/fast", sign=-1),
    _f1("parts", "f1/slow", "sft/slow"),
    _f1("parts", "rd/slow", "f1/slow"),
    _f1("parts", "ad/slow", "rd/slow"),
    _f1("parts", "mer-r1/slow", "ad/slow"),
    _f1("parts", "mer-r1/slow", "f1/slow"),
    _f1("parts", "mer-r1/slow", "mer-r1/fast"),
    *(_f1("calibration", "answer/slow", f"{name}/slow") for name in STUDIES["calibration"].variants[1:]),
    *(_f1("baselines", f"{name}/slow", f"{name}/fast", sign=-1) for name in ("f1", *OTHERS)),
    *(_f1("baselines", "mer-r1/slow", place) for place in ("mer-r1/fast", *(f"{name}/slow" for name in OTHERS))),
    Claim("auto", "mer-r1/auto/auto/f1", "mer-r1/auto/fast/f1"),
    Claim("auto", "mer-r1/auto/auto/f1", "mer-r1/auto/slow/f1"),
    Claim("auto", "mer-r1/auto/auto/f1", "videoauto-r1/auto/auto/f1"),
    Claim("auto", "mer-r1/auto/auto/f1", "f1/auto/auto/f1"),
    Claim("auto", "mer-r1/auto/slow/tokens", "mer-r1/auto/auto/tokens"),
    Claim("auto", "videoauto-r1/auto/auto/tokens", "mer-r1/auto/auto/tokens"),
)
"""Every claim of the studies."""


def by_seed(numbers: Mapping[str, Mapping[str, Any]], place: Sequence[str]) -> dict[str, float | None]:
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


def decide(study: str, numbers: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The claims of one study, each with its difference and verdict."""
    chosen = [claim for claim in CLAIMS if claim.study == study]
    pairs = []
    for claim in chosen:
        first = by_seed(numbers, claim.first.split("/"))
        second = by_seed(numbers, claim.second.split("/")) if claim.second else dict.fromkeys(first, 0.0)
        pairs.append((first, second))
    family = [place for place, claim in enumerate(chosen) if claim.hypothesis == ONE_SUFFICES]
    found = [paired(*pair) for pair in pairs]
    for place, corrected in zip(family, holm([pairs[place] for place in family]), strict=True):
        found[place] = corrected
    return [
        {"hypothesis": claim.hypothesis, "claim": claim.text, **difference}
        | {"verdict": verdict(difference, claim.sign, claim.bound).value}
        for claim, difference in zip(chosen, found, strict=True)
    ]


def conclude(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Hypothesis -> its verdict from those of its parts, rows of `decide`."""
    found = {}
    for hypothesis in HYPOTHESES:
        parts = {row["verdict"] for row in rows if row["hypothesis"] == hypothesis}
        decisive = (ClaimVerdict.HOLDS if hypothesis == ONE_SUFFICES else ClaimVerdict.FAILS).value
        others = parts.pop() if len(parts) == 1 else ClaimVerdict.UNDECIDED.value
        found[hypothesis] = decisive if decisive in parts else others
    return found
