"""The gate: conditions under which a calibration can act on a policy, each a number and its bound, and the verdict.

A calibration adds a term to the recall side of the advantage, or to its precision side, or to both. Each term has to
follow what it is added to, must not count words, and has to measure the quality of the reasoning, which one sampled
answer hardly shows. The answer has to read the reasoning at all. And the terms have to be heavy enough to change the
update, and light enough to leave recall and precision in charge. The bounds are ours, from comparing such measures with
what training then gave (docs/diagnosis.md).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mer_r1.evaluation.diagnosis.statistics import Correlation
from mer_r1.evaluation.intervals import Interval, number_text

OBJECTIVE, WORDS, REASONING, COSINE = 0.1, 0.15, 0.35, (0.80, 0.97)
"""Bounds: least correlation of a term with recall or precision, largest with the number of words (of either sign),
least with the F1 that the reasoning leads to, and the cosine of the advantages with those of AD."""

Terms = Mapping[str, Mapping[str, Correlation]]
"""Side ("recall", "precision") -> measure -> correlation of that side's term with it."""


@dataclass(frozen=True)
class Check:
    """One condition.

    Attributes:
        name: what is measured, such as "recall side: number of words".
        value: the number; None where it cannot be measured.
        low: its value less two standard errors, or the lower end of its interval; None if unknown.
        high: the same above it.
        bound: the condition in signs, such as "|r| < 0.15".
        passed: whether the value meets it.
        close: whether low and high lie on different sides of the bound, so that more clips may change the result.
        meaning: in plain words, what follows if it is not met.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    bound: str
    passed: bool
    close: bool
    meaning: str


@dataclass(frozen=True)
class Diagnosis:
    """What the rollouts of a policy show about its reasoning and about a calibration.

    An `Interval` holds a mean over clips with its 95 % bootstrap interval; differences are paired by clip.

    Attributes:
        settings: what was measured and how: numbers of clips, rollouts per prompt and answers per reasoning, the
            sampling, the method's choices.
        left_out: clips without gold labels that a wheel can place.
        reasoned: share of the slow rollouts that have a reasoning and then an answer; the others give no answers
            behind a reasoning.
        answers: measure -> "slow", "fast", "difference" (slow - fast) -> interval, over sampled answers: `precision`,
            `recall`, `f1`, `well_formed`, `words` (their number), `repeated` (share of answers that name a word twice)
            and `unplaced` (share of answers with a phrase that no wheel places).
        exchange: "own", "other", "difference" (own - other) -> interval: F1 of answers behind the policy's own
            reasoning about a clip, and behind its reasoning about another clip.
        explained: "f1", "recall", "precision" -> share of the variance within a prompt that the reasoning explains.
        ceiling: largest correlation that any measure can have with the mean F1 of the answers behind a reasoning, which
            holds the noise of sampling them.
        confidence: "correct", "incorrect" -> "slow", "fast", "difference" -> interval of C(k) / sum of C(j) over the
            wheel's categories j, at the first word that a wheel places.
        below: share of the correct categories in which slow confidence is below fast, there.
        terms: side -> measure -> correlation within groups, of `recall`, `precision` (as rewarded), `words`,
            `reasoning` (mean F1 of the answers behind it) and `sharpness` (its negative entropy).
        cosine: cosine of the method's advantages with those of AD.
        weight: share of the advantages' variance that the terms bring.
        checks: the conditions.
        verdict: what they mean together, in one sentence.
        seconds: wall time.
    """

    settings: dict[str, Any]
    left_out: int
    reasoned: float
    answers: dict[str, dict[str, Interval]]
    exchange: dict[str, Interval]
    explained: dict[str, Interval]
    ceiling: Interval
    confidence: dict[str, dict[str, Interval]]
    below: Interval
    terms: dict[str, dict[str, Correlation]]
    cosine: Interval
    weight: Interval
    checks: tuple[Check, ...]
    verdict: str
    seconds: float

    @property
    def can_act(self) -> bool:
        """Whether every condition is met."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as a JSON object."""
        terms = {side: {name: r._asdict() for name, r in found.items()} for side, found in self.terms.items()}
        return asdict(self) | {"terms": terms, "can_act": self.can_act}


def judge(
    exchange: Interval, explained: Interval, ceiling: Interval, terms: Terms, cosine: Interval
) -> tuple[Check, ...]:
    """The conditions, in the order in which they matter.

    Args:
        exchange: F1 of answers behind the own reasoning less that behind another clip's, paired by clip.
        explained: share of F1's variance within a prompt that the reasoning explains.
        ceiling: largest correlation with the F1 of a reasoning that can be measured.
        terms: correlations of the terms with "recall", "precision", "words" and "reasoning".
        cosine: cosine of the method's advantages with those of AD.
    """
    checks = [_reasoning_is_read(exchange)]
    for side, found in terms.items():
        checks += [_follows_its_objective(side, found), _counts_no_words(side, found["words"])]
        checks.append(_measures_the_reasoning(side, found["reasoning"], explained, ceiling))
    return (*checks, _is_weighed(cosine))


def verdict(checks: tuple[Check, ...]) -> str:
    """What the conditions mean together, in plain words."""
    failed = [check for check in checks if not check.passed]
    close = sum(check.close for check in checks)
    doubt = f" Close to their bounds, so that more clips may change them: {close} of {len(checks)}." if close else ""
    if not failed:
        return f"The calibration can act on this model: all {len(checks)} conditions are met.{doubt}"
    why = "; ".join(check.meaning for check in failed)
    return f"The calibration cannot act on this model as it is: {why}.{doubt}"


def _reasoning_is_read(exchange: Interval) -> Check:
    value, low, high = exchange["mean"], exchange["low"], exchange["high"]
    passed = low is not None and low > 0
    cost = number_text(value, signed=True)
    meaning = (
        f"another clip's reasoning serves as well as the own (F1 {cost}), so the answer does not read its reasoning"
    )
    close = value is not None and low is not None and value > 0 >= low
    return Check("F1, own - other reasoning", value, low, high, "interval > 0", passed, close, meaning)


def _follows_its_objective(side: str, found: Mapping[str, Correlation]) -> Check:
    known = [found[name] for name in ("recall", "precision") if found[name].mean is not None]
    best = max(known, key=lambda r: r.mean or 0.0, default=Correlation(None, None, 0))
    meaning = f"the {side} side's term follows neither recall nor precision ({_r(best)}), so it adds noise to them"
    return _above(f"{side} side: recall or precision", best, OBJECTIVE, meaning)


def _counts_no_words(side: str, found: Correlation) -> Check:
    low, high = _two_errors(found)
    passed = found.mean is not None and abs(found.mean) < WORDS
    close = low is not None and high is not None and any(low < bound < high for bound in (-WORDS, WORDS))
    length = "short" if (found.mean or 0.0) < 0 else "long"
    meaning = f"the {side} side's term counts words ({_r(found)}), so it rewards {length} answers"
    name = f"{side} side: number of words"
    return Check(name, found.mean, low, high, f"|r| < {WORDS:g}", passed, close, meaning)


def _measures_the_reasoning(side: str, found: Correlation, explained: Interval, ceiling: Interval) -> Check:
    meaning = f"the {side} side's term does not measure how good a reasoning is ({_r(found)} with the F1 it leads to"
    if ceiling["high"] is not None and ceiling["high"] <= REASONING:
        share = number_text(explained["mean"], 1, scale=100)
        meaning += f"; no term could: the reasoning explains only {share} % of F1's variance within a prompt"
    return _above(f"{side} side: F1 given the reasoning", found, REASONING, f"{meaning})")


def _is_weighed(cosine: Interval) -> Check:
    value, low, high = cosine["mean"], cosine["low"], cosine["high"]
    least, most = COSINE
    passed = value is not None and least <= value <= most
    close = low is not None and high is not None and any(low < bound < high for bound in COSINE)
    meaning = "no advantages to compare with AD's: all rollouts of each prompt earn the same"
    if value is not None:
        what = "the terms outweigh recall and precision" if value < least else "the terms are too light to change it"
        meaning = f"the update has the cosine {number_text(value)} with AD's: {what}"
    return Check("advantages: cosine with AD", value, low, high, f"{least:.2f} to {most:.2f}", passed, close, meaning)


def _above(name: str, found: Correlation, bound: float, meaning: str) -> Check:
    low, high = _two_errors(found)
    passed = found.mean is not None and found.mean > bound
    close = low is not None and high is not None and low < bound < high
    return Check(name, found.mean, low, high, f"r > {bound:g}", passed, close, meaning)


def _two_errors(found: Correlation) -> tuple[float | None, float | None]:
    if found.mean is None or found.error is None:
        return None, None
    return found.mean - 2 * found.error, found.mean + 2 * found.error


def _r(found: Correlation) -> str:
    return "r unknown" if found.mean is None else f"r {found.mean:+.2f}"
