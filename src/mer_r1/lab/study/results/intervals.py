"""Student's t intervals of means over seeds, paired differences, and verdicts.

A study has about eight seeds: too few for a bootstrap, whose intervals would be too narrow. Differences between
variants are paired by seed (same cold start, same clips), and the interval is that of their mean (Student 1908). It
assumes approximately normal differences, which is justified for means over a thousand clips.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TypedDict

T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""0.975 quantiles of Student's t with 1 to 30 degrees of freedom."""
NORMAL_975 = 1.959964


class Estimate(TypedDict):
    """A mean over `n` seeds with its 95 % interval; no interval for fewer than two seeds."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


class ClaimVerdict(StrEnum):
    """Whether the interval over seeds supports a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"


def t_quantile(degrees: int) -> float:
    """0.975 quantile of Student's t; above 30 degrees of freedom a series expansion, accurate to 1e-3.

    >>> t_quantile(7)
    2.365
    """
    if degrees < 1:
        raise ValueError(f"degrees: expected at least 1, got {degrees}")
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    z = NORMAL_975
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def estimate(values: Sequence[float | None]) -> Estimate:
    """Mean and 95 % t interval; None and NaN are left out.

    >>> estimate([1.0, 2.0, 3.0])
    {'mean': 2.0, 'low': -0.484338, 'high': 4.484338, 'n': 3}
    """
    known = [value for value in values if value is not None and not math.isnan(value)]
    n = len(known)
    if n < 2:
        return {"mean": known[0] if known else None, "low": None, "high": None, "n": n}
    mean = statistics.fmean(known)
    half = t_quantile(n - 1) * statistics.stdev(known) / math.sqrt(n)
    return {"mean": round(mean, 6), "low": round(mean - half, 6), "high": round(mean + half, 6), "n": n}


def paired(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> Estimate:
    """Mean difference first - second (both seed -> number) over the common seeds."""
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    return estimate([a - b for a, b in pairs if a is not None and b is not None])


def verdict(difference: Estimate, sign: int = 1) -> ClaimVerdict:
    """Whether a difference is above 0 (with sign -1: not above 0); undecided while its interval contains 0."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None or low <= 0 <= high:
        return ClaimVerdict.UNDECIDED
    return ClaimVerdict.HOLDS if (low > 0) == (sign > 0) else ClaimVerdict.FAILS
