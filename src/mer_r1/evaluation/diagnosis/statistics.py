"""Statistics of rollouts in groups: correlations within a prompt, and what part of a variance the reasoning explains.

Everything is compared within a prompt, because advantages are: what all rollouts of a prompt share cancels there.
Intervals are over clips. Nothing here knows about emotions or models.
Shapes: B prompts (clips), G rollouts each, M answers after each reasoning. NaN marks what could not be measured.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mer_r1.evaluation.intervals import Array, Interval, draws, interval_of

MIN_SPREAD = 1e-6
"""A group with no larger standard deviation has no order; far above the rounding of float32 numbers."""
MIN_COMMON = 3
"""Least rollouts of a group with both measures; two always correlate with 1 or -1 (allowed only where G is 2)."""


class Correlation(NamedTuple):
    """A correlation within groups: mean over the groups in which both measures vary, its standard error, the groups.

    The mean is None without such a group, the standard error with fewer than two.
    """

    mean: float | None
    error: float | None
    groups: int


def within_groups(first: Array, second: Array) -> Correlation:
    """Correlation of two measures (B, G) within each group, averaged over groups.

    >>> within_groups(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]), np.array([[2.0, 4.0, 6.0], [5.0, 5.0, 5.0]]))
    Correlation(mean=1.0, error=None, groups=1)
    """
    both = ~(np.isnan(first) | np.isnan(second))
    count = both.sum(axis=1)
    one, other = (_centred(values, both) for values in (first, second))
    spreads = [np.sqrt((values**2).sum(axis=1) / np.maximum(count - 1, 1)) for values in (one, other)]
    known = (count >= min(MIN_COMMON, first.shape[1])) & (np.minimum(*spreads) > MIN_SPREAD)
    one, other = one[known], other[known]
    lengths = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    found = np.clip((one * other).sum(axis=1) / lengths, -1, 1)
    n = len(found)
    error = float(found.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return Correlation(float(found.mean()) if n else None, error, n)


def _centred(values: Array, counted: np.ndarray) -> Array:
    # (B, G) deviations from the group's mean over the counted entries; 0 for the others.
    kept = np.where(counted, values, 0.0)
    mean = kept.sum(axis=1, keepdims=True) / np.maximum(counted.sum(axis=1, keepdims=True), 1)
    return np.where(counted, kept - mean, 0.0)


def variance_parts(scores: Array) -> tuple[Array, Array]:
    """Variance of a score within each prompt: the part due to the reasoning, and the part due to sampling the answer.

    One-way random-effects analysis of variance: the variance between the means of M answers is that of the reasonings
    plus 1/M of that within, which is subtracted. So the first part is unbiased, and may be negative in one prompt.

    Args:
        scores: (B, G, M) with M at least 2, NaN where a rollout has no reasoning to continue.

    Returns:
        (B,) and (B,); NaN for a prompt with fewer than two reasonings.

    >>> [part.tolist() for part in variance_parts(np.array([[[0.0, 2.0], [4.0, 6.0]]]))]
    [[7.0], [2.0]]
    """
    known = np.asarray(np.isfinite(scores).all(axis=2))
    count = known.sum(axis=1)
    means = np.where(known, scores.mean(axis=2), 0.0)
    between = (_centred(means, known) ** 2).sum(axis=1) / np.maximum(count - 1, 1)
    within = np.where(known, scores.var(axis=2, ddof=1), 0.0).sum(axis=1) / np.maximum(count, 1)
    enough = count > 1
    reasoning = between - within / scores.shape[2]
    return np.where(enough, reasoning, np.nan), np.where(enough, within, np.nan)


def explained_share(scores: Array, seed: int = 0) -> Interval:
    """Share, in [0, 1], of a score's variance within a prompt that the reasoning explains; see `variance_parts`.

    Both parts are averaged over prompts first; the reasoning's is then clamped at 0.
    """
    return bootstrap_of(np.stack(variance_parts(scores), axis=1), _share, seed)


def ceiling(scores: Array, seed: int = 0) -> Interval:
    """Largest correlation, in [0, 1], of any measure of a reasoning with the mean score of the M answers after it.

    That mean holds the noise of sampling the answers: the ceiling is the root of its reliability, the share of its
    variance that the reasoning explains. Correlations are averaged over prompts, so it holds for them roughly.
    """
    parts = np.stack(variance_parts(scores), axis=1)
    parts[:, 1] /= scores.shape[2]
    return bootstrap_of(parts, lambda means: np.sqrt(_share(means)), seed)


def _share(parts: Array) -> Array:
    signal = np.maximum(parts[..., 0], 0.0)
    return _ratio(signal, signal + parts[..., 1])


def cosine(first: Array, second: Array, seed: int = 0) -> Interval:
    """Cosine of two advantages (B, G) over all rollouts."""
    sums = [(first * second).sum(axis=1), (first**2).sum(axis=1), (second**2).sum(axis=1)]
    return bootstrap_of(
        np.stack(sums, axis=1), lambda s: _ratio(s[..., 0], np.sqrt(np.maximum(s[..., 1] * s[..., 2], 0.0))), seed
    )


def added_share(advantages: Array, without: Array, seed: int = 0) -> Interval:
    """Share of the variance of an advantage (B, G) that a method adds to the one `without` it, in [0, 1]."""
    sums = [((advantages - without) ** 2).sum(axis=1), (without**2).sum(axis=1)]
    return bootstrap_of(np.stack(sums, axis=1), _share, seed)


def bootstrap_of(columns: Array, function: Callable[[Array], Array], seed: int = 0, resamples: int = 2000) -> Interval:
    """A function of the means of some columns over clips, with its 95 % bootstrap interval.

    Args:
        columns: (B, K) numbers of each clip; clips with a NaN are left out.
        function: maps means (..., K) to (...).
        seed: random seed.
        resamples: how many times the clips are drawn.
    """
    known = columns[~np.isnan(columns).any(axis=1)]
    if not len(known):
        return {"mean": None, "low": None, "high": None, "n": 0}
    samples = [function(known[drawn].mean(axis=1)) for drawn in draws(len(known), seed, resamples)]
    return interval_of(float(function(known.mean(axis=0))), np.concatenate(samples), len(known))


def _ratio(above: Array, below: Array) -> Array:
    # NaN where there is nothing to divide.
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)
