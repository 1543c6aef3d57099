"""How far could luck have moved a mean?

The clips at hand are one draw from all possible clips. Drawing from them again and again, with replacement, shows how
much a mean varies from draw to draw; the middle 95 % of these means is the interval. No shape of distribution is
assumed, which suits F1: many clips score exactly 0 or 1.
"""

from collections.abc import Iterable
from typing import TypedDict

import numpy as np

from mer_r1.errors import UserError

_CHUNK = 4_000_000  # resampled values held at once: 32 MB


class Interval(TypedDict):
    """A mean over `n` values with its 95 % interval; None without values, and no interval for a single one."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def bootstrap(values: Iterable[float], *, seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean and 95 % percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13); NaN values are left out.

    Args:
        values: One number per clip.
        seed: Of the resampling; equal seeds and lengths draw the same clips.
        resamples: How many times the clips are drawn again.

    >>> bootstrap([0.5, 0.5, 0.5])
    {'mean': 0.5, 'low': 0.5, 'high': 0.5, 'n': 3}
    """
    if resamples < 1:
        raise UserError(f"resamples: expected at least 1, got {resamples}")
    array = np.asarray(list(values), dtype=np.float64)
    array = array[~np.isnan(array)]
    n = len(array)
    if n < 2:
        return {"mean": float(array[0]) if n else None, "low": None, "high": None, "n": n}
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    parts = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    means = np.concatenate([array[generator.integers(0, n, (part, n))].mean(axis=1) for part in parts])
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(array.mean()), "low": float(low), "high": float(high), "n": n}
