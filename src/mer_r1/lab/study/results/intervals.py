"""Student's t intervals of means over seeds, paired differences, and verdicts.

A study has some sixteen seeds: too few for a bootstrap, whose intervals would be too narrow. Differences between
variants are paired by seed (same cold start, same clips), and the interval is that of their mean (Student 1908). It
assumes approximately normal differences, which is justified for means over hundreds of clips.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TypedDict

TAIL = 0.025
"""Probability above a 95 % interval, and below it."""
BySeed = Mapping[str, float | None]


class Estimate(TypedDict):
    """A mean over `n` seeds with its interval (95 %, if not said otherwise); none for fewer than two seeds."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


class ClaimVerdict(StrEnum):
    """Whether the interval over seeds supports a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"


def t_quantile(degrees: int, tail: float = TAIL) -> float:
    """The number that Student's t exceeds with probability `tail`, below 0.5.

    >>> round(t_quantile(7), 3)
    2.365
    """
    from scipy import stats  # of the extra that renders and draws; it takes a second to load

    if degrees < 1:
        raise ValueError(f"degrees: expected at least 1, got {degrees}")
    return float(stats.t.isf(tail, degrees))


def estimate(values: Sequence[float | None], tail: float = TAIL) -> Estimate:
    """Mean and t interval; None and NaN are left out.

    >>> estimate([1.0, 2.0, 3.0])
    {'mean': 2.0, 'low': -0.484138, 'high': 4.484138, 'n': 3}
    """
    known = [value for value in values if value is not None and not math.isnan(value)]
    n = len(known)
    if n < 2:
        return {"mean": known[0] if known else None, "low": None, "high": None, "n": n}
    mean = statistics.fmean(known)
    half = t_quantile(n - 1, tail) * statistics.stdev(known) / math.sqrt(n)
    return {"mean": round(mean, 6), "low": round(mean - half, 6), "high": round(mean + half, 6), "n": n}


def paired(first: BySeed, second: BySeed, tail: float = TAIL) -> Estimate:
    """Mean difference first - second (both seed -> number) over the common seeds."""
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    return estimate([a - b for a, b in pairs if a is not None and b is not None], tail)


def holm(pairs: Sequence[tuple[BySeed, BySeed]]) -> list[Estimate]:
    """Paired differences of a family of claims, with intervals corrected by Holm's step-down procedure (Holm 1979).

    The clearest of m differences has an interval of 1 - 0.05 / m, the next one of 1 - 0.05 / (m - 1), and so on until
    an interval contains 0; all further ones keep its level. So the chance that any interval wrongly excludes 0 is 5 %.
    """
    found = [paired(*pair) for pair in pairs]
    left = len(pairs)
    for place in sorted(range(left), key=lambda place: -_clearness(found[place])):
        found[place] = paired(*pairs[place], tail=TAIL / left)
        left -= _clearness(found[place]) > 1
    return found


def _clearness(difference: Estimate) -> float:
    # Distance from 0 in halves of the interval: above 1 if it excludes 0.
    mean, low = difference["mean"] or 0.0, difference["low"]
    return 0.0 if low is None else abs(mean) / max(mean - low, 1e-12)


def verdict(difference: Estimate, sign: int = 1, bound: float = 0.0) -> ClaimVerdict:
    """Whether a difference is above a bound (with sign -1: not above it); undecided while its interval contains it."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None or low <= bound <= high:
        return ClaimVerdict.UNDECIDED
    return ClaimVerdict.HOLDS if (low > bound) == (sign > 0) else ClaimVerdict.FAILS
