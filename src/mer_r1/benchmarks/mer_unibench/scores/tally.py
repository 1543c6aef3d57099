"""Each headline number as a formula over sums of per-clip counts, so that it can be computed again for any sample.

The mean of a column needs no more than the column. The headline numbers are not such means: a weighted F1 comes from
four counts, and the open-set F from mean precision and mean recall, wheel by wheel. But all of them are functions of
*sums over clips*. So a clip becomes a row of numbers (a tally), and the bootstrap draws clips, sums their rows, and
applies the formula to the sums. Slow and fast are drawn together: the same clips in every sample, so that hard clips
cancel out in the difference.

Two guards keep a number where the reference has NaN: a wheel on which no gold word stands is left out of the mean over
wheels, and F is 0 where precision and recall are both 0.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mer_r1.benchmarks.mer_unibench.sets import Kind
from mer_r1.emotions.metrics import set_scores
from mer_r1.evaluation.intervals import Array, draws

Sets = Sequence[frozenset[str]]


@dataclass(frozen=True)
class Tally:
    """Per-clip counts of one set of predictions.

    Attributes:
        rows: (N, K), one row per clip.
        formula: (..., K) sums over clips -> (...) values in [0, 1], NaN where nothing can be scored.
    """

    rows: Array
    formula: Callable[[Array], Array]

    def value(self) -> float:
        """The headline number over all clips."""
        return float(self.formula(self.rows.sum(axis=0)))

    def only(self, chosen: NDArray[np.bool_]) -> "Tally":
        """The tally of some of the clips; `chosen` is (N,)."""
        return Tally(self.rows[chosen], self.formula)


def word_tally(kind: Kind, gold: Sequence[Sets], predicted: Sequence[Sets]) -> Tally:
    """The tally of a discrete or an open-set data set.

    Args:
        kind: "discrete": hit rate; "open-set": mean F.
        gold: for each wheel the gold categories of each clip.
        predicted: likewise.

    Returns:
        Per wheel: scored (1 where the wheel places a gold word, else 0), then hits, or precision and recall.
    """
    columns = []
    for gold_sets, predicted_sets in zip(gold, predicted, strict=True):
        for g, p in zip(gold_sets, predicted_sets, strict=True):
            if not g:
                columns.append((0.0, 0.0, 0.0))
            elif kind == "discrete":
                columns.append((1.0, float(len(g & p)), 0.0))
            else:
                scores = set_scores(g, p)
                columns.append((1.0, scores.precision, scores.recall))
    cube = np.array(columns, dtype=np.float64).reshape(len(gold), -1, 3)
    rows = np.moveaxis(cube, 0, 1).reshape(-1, 3 * len(gold))
    return Tally(rows, _mean_hits if kind == "discrete" else _mean_f)


def sentiment_tally(gold_positive: Sequence[bool], predicted_positive: Sequence[bool]) -> Tally:
    """The tally of a sentiment set: which of the four cells (gold, predicted) each clip falls into."""
    gold, predicted = np.array(gold_positive, dtype=bool), np.array(predicted_positive, dtype=bool)
    cells = [gold & predicted, gold & ~predicted, ~gold & predicted, ~gold & ~predicted]
    return Tally(np.stack(cells, axis=-1).astype(np.float64), _waf)


def resampled(tally: Tally, seed: Sequence[int], resamples: int) -> Array:
    """The headline number of `resamples` draws of clips with replacement, (resamples,).

    Tallies of equally many clips draw the same clips with the same seed, which makes differences paired.
    """
    n = len(tally.rows)
    if n == 0:
        return np.full(resamples, np.nan)
    values = []
    for drawn in draws(n, seed, resamples):
        cells = drawn + n * np.arange(len(drawn))[:, None]
        counts = np.bincount(cells.ravel(), minlength=cells.size).reshape(cells.shape)
        values.append(tally.formula(counts @ tally.rows))
    return np.concatenate(values)


def not_nan(value: float) -> float | None:
    """None in place of NaN."""
    return None if math.isnan(value) else value


def _divided(top: Array, bottom: Array, otherwise: float = 0.0) -> Array:
    """Quotients; `otherwise` where `bottom` is 0."""
    return np.divide(top, bottom, out=np.full_like(top, otherwise), where=bottom > 0)


def _over_wheels(per_wheel: Array, scored: Array) -> Array:
    """Mean over the wheels that scored any clip; NaN where none did."""
    total = np.where(scored > 0, per_wheel, 0.0).sum(axis=-1)
    return _divided(total, (scored > 0).sum(axis=-1), np.nan)


def _mean_hits(sums: Array) -> Array:
    scored, hits = sums[..., 0::3], sums[..., 1::3]
    return _over_wheels(_divided(hits, scored), scored)


def _mean_f(sums: Array) -> Array:
    scored = sums[..., 0::3]
    precision, recall = _divided(sums[..., 1::3], scored), _divided(sums[..., 2::3], scored)
    return _over_wheels(_divided(2 * precision * recall, precision + recall), scored)


def _waf(sums: Array) -> Array:
    true_positive, false_negative, false_positive, true_negative = (sums[..., cell] for cell in range(4))
    positives, negatives = true_positive + false_negative, true_negative + false_positive
    weighted = np.zeros_like(positives)
    for n_gold, both, wrong in ((positives, true_positive, false_positive), (negatives, true_negative, false_negative)):
        weighted = weighted + n_gold * _divided(2 * both, n_gold + both + wrong)
    return _divided(weighted, positives + negatives, np.nan)
