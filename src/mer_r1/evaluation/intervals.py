"""Bootstrap intervals: how much a score may vary by the choice of clips; and how numbers are printed.

The clips at hand are one draw from all possible clips. Drawing from them again and again, with replacement, shows how
much a score varies from draw to draw; the middle 95 % of these scores is the interval (percentile bootstrap, Efron and
Tibshirani 1993, chapter 13). No shape of distribution is assumed, which suits F1: many clips score exactly 0 or 1.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from mer_r1.errors import UserError

Array = NDArray[np.float64]
DASH = "–"
_CHUNK = 4_000_000  # drawn clips held at once: 32 MB


class Interval(TypedDict):
    """A score over `n` clips with its 95 % interval; None without clips, and no interval for a single one."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def bootstrap(values: Iterable[float], *, seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean and 95 % bootstrap interval; NaN values are left out.

    Args:
        values: one number per clip.
        seed: random seed; equal seeds and lengths draw the same clips.
        resamples: how many times the clips are drawn.

    >>> bootstrap([0.5, 0.5, 0.5])
    {'mean': 0.5, 'low': 0.5, 'high': 0.5, 'n': 3}
    """
    return bootstraps({"": values}, seed=seed, resamples=resamples)[""]


def bootstraps(columns: Mapping[str, Iterable[float]], *, seed: int = 0, resamples: int = 2000) -> dict[str, Interval]:
    """`bootstrap` of several measures; clips are drawn once for all that have the same number of values."""
    if resamples < 1:
        raise UserError(f"resamples: expected at least 1, got {resamples}")
    arrays = {name: np.asarray(list(values), dtype=np.float64) for name, values in columns.items()}
    arrays = {name: array[~np.isnan(array)] for name, array in arrays.items()}
    means: dict[str, list[Array]] = {name: [] for name in arrays}
    for n in {len(array) for array in arrays.values()} - {0, 1}:
        same = [name for name, array in arrays.items() if len(array) == n]
        for drawn in draws(n, seed, resamples):
            for name in same:
                means[name].append(arrays[name][drawn].mean(axis=1))
    return {name: _mean_interval(array, means[name]) for name, array in arrays.items()}


def _mean_interval(array: Array, means: Sequence[Array]) -> Interval:
    if len(array) < 2:
        return {"mean": float(array[0]) if len(array) else None, "low": None, "high": None, "n": len(array)}
    return interval_of(float(array.mean()), np.concatenate(means), len(array))


def draws(n: int, seed: int | Sequence[int], resamples: int) -> Iterator[NDArray[np.int64]]:
    """Draw `n` of `n` clips with replacement, `resamples` times.

    Yields:
        Blocks of draws, (draws, n), of indices in [0, n); so many that 32 MB are not exceeded.
    """
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    for start in range(0, resamples, rows):
        yield generator.integers(0, n, (min(rows, resamples - start), n))


def interval_of(value: float, samples: Array, n: int) -> Interval:
    """A score over `n` clips with the middle 95 % of its samples; None where it is NaN, no interval for one clip."""
    if math.isnan(value):
        return {"mean": None, "low": None, "high": None, "n": n}
    known = samples[~np.isnan(samples)]
    if n < 2 or not len(known):
        return {"mean": value, "low": None, "high": None, "n": n}
    low, high = np.quantile(known, (0.025, 0.975))
    return {"mean": value, "low": float(low), "high": float(high), "n": n}


def known_mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None if there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def number_text(value: float | None, digits: int = 3, signed: bool = False, scale: float = 1) -> str:
    """A number times `scale` with so many decimals; a dash for None, NaN and infinity.

    >>> number_text(0.12345), number_text(0.12345, 1, signed=True, scale=100), number_text(None)
    ('0.123', '+12.3', '–')
    """
    if value is None or not math.isfinite(value):
        return DASH
    return format(scale * value, f"{'+' if signed else ''}.{digits}f")


def interval_text(
    entry: Mapping[str, Any], digits: int = 3, signed: bool = False, scale: float = 1, gap: str = " "
) -> str:
    """A mean with its interval, `0.50 [0.45, 0.55]`, where there is one.

    Any of `mean`, `low` and `high` in `entry` may be None; `gap` stands between mean and interval. The other arguments
    are those of `number_text`.
    """
    mean, low, high = (number_text(entry[key], digits, signed, scale) for key in ("mean", "low", "high"))
    return mean if DASH in (mean, low) else f"{mean}{gap}[{low}, {high}]"
