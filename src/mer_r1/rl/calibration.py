"""Slow-fast confidence calibration: compares the policy's confidence in each category with and without its reasoning.

At an *anchor* (where a word of the answer begins) the policy gives every category k a probability: the sum over the
tokens that can begin a word of k. Renormalised over the categories of its partition, it is conditional on such a word
beginning here, so that it says which emotion and not whether one follows:

    C(k)  = sum of p(token) over the tokens that begin a word of k
    C~(k) = C(k) / sum of C(j) over the categories j of the same partition

Slow: with the rollout's own reasoning in the context. Fast: without it. With Y the gold categories, C~(Y) the sum over
them, and c the clipping bound, the formulations of the terms T+ (recall side) and T- (precision side) are:

    answer      U(k) = 1 - product over anchors of (1 - C~_slow(k)), the probability that the answer names k
                T+ = mean over k in Y of U(k)                              T- = sum over Y of U / sum of U
    reasoning   T+ = log C~_slow(Y) - log C~_fast(Y), at the first anchor; for the tokens before the answer only
    hinge       T+ = mean over k in Y of min(0, log C~_slow(k) - log C~_ref(k)), at the first anchor
                T- = min(0, log C~_ref(not Y) - log C~_slow(not Y)), ref the fast thinking of the starting policy
    difference  T+ = mean over k in Y of S_slow(k) - S_fast(k)             T- = mean over k not in Y of S_fast - S_slow
                S(k) = log(C~(k) + 1e-10), averaged over the anchors

All are larger where the reasoning serves the answer better; those in logarithms are clipped to [-c, c]. `method` adds
T+ to the recall side of the advantage and T- to the precision side.

Categories come in partitions (emotion wheels here): within one, a token belongs to at most one category; means and
sums are taken within each partition, then averaged over the partitions that can place a gold word. Nothing here knows
about emotions: any set-valued answer works.
Source: MER-R1 (arXiv 2606.27652), "slow-fast confidence calibration"; docs/paper_map.md says what each formula rests
on.
Shapes: A anchors, V vocabulary, C categories over all partitions, R rollouts (B*G), W partitions. Throughout,
`correct` (R, C) bool are the gold categories, `known` (R, C) bool those of partitions that can place a gold word (the
others do not count), `partition` (C,) is the partition of each category, `rollout` (A,) the rollout of each anchor,
and `counted` (A, C) bool says whether an anchor counts for a category.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_FLOOR = 1e-10
"""Added to C(k) before the logarithm, as in the authors' fork."""


@dataclass(frozen=True)
class CategoryTokens:
    """The tokens that can begin a word of each category.

    Attributes:
        token_ids: (N,) tokens; a token may appear once per partition.
        category: (N,) index in [0, C) of the category that the token begins.
        partition: (C,) index of the partition (wheel) of each category.
    """

    token_ids: Tensor
    category: Tensor
    partition: Tensor

    @property
    def num_categories(self) -> int:
        """C, over all partitions."""
        return self.partition.shape[0]


def category_probabilities(logits: Tensor, tokens: CategoryTokens) -> Tensor:
    """C(k): the probability that the next token begins a word of category k.

    Args:
        logits: (A, V) next-token logits at the anchors.
        tokens: which tokens begin a word of which category.

    Returns:
        (A, C) float32 probabilities in [0, 1]; within a partition they sum to at most 1.
    """
    probabilities = logits.float().softmax(dim=-1)[:, tokens.token_ids.to(logits.device)]
    zeros = probabilities.new_zeros(logits.shape[0], tokens.num_categories)
    return zeros.index_add(1, tokens.category.to(logits.device), probabilities)


def conditional(probabilities: Tensor, partition: Tensor) -> Tensor:
    """C~(k): probabilities (..., C) divided by their sum within each partition; 0 where that sum is 0.

    >>> conditional(torch.tensor([[0.25, 0.25, 0.125]]), torch.tensor([0, 0, 1])).tolist()
    [[0.5, 0.5, 1.0]]
    """
    every = torch.ones_like(probabilities, dtype=torch.bool)
    mass = partition_sum(probabilities, every, partition).index_select(-1, partition.to(probabilities.device))
    return probabilities / mass.clamp(min=LOG_FLOOR)


def confidence(probabilities: Tensor, rollout: Tensor, num_rollouts: int, counted: Tensor | None = None) -> Tensor:
    """S(k) per rollout: log(C(k) + 1e-10), averaged over the rollout's anchors.

    Args:
        probabilities: (A, C) from `category_probabilities`.
        rollout: rollout of each anchor.
        num_rollouts: R.
        counted: anchors that count for each category (`anchors.counted_anchors`); None counts all.

    Returns:
        (R, C) scores; NaN where no anchor counts (an answer without words has no confidence).
    """
    scores = (probabilities + LOG_FLOOR).log()
    counted = torch.ones_like(scores, dtype=torch.bool) if counted is None else counted
    zeros = scores.new_zeros(num_rollouts, scores.shape[1])
    total = zeros.index_add(0, rollout, torch.where(counted, scores, 0.0))
    count = zeros.index_add(0, rollout, counted.to(scores.dtype))
    return torch.where(count > 0, total / count, torch.nan)


def partition_sum(values: Tensor, mask: Tensor, partition: Tensor) -> Tensor:
    """Sums (R, W) over the masked categories of each partition, of values (R, C), mask (R, C) and partition (C,)."""
    zeros = values.new_zeros(values.shape[0], int(partition.max()) + 1 if partition.numel() else 0)
    return zeros.index_add(1, partition.to(values.device), torch.where(mask, values, 0.0))


def partition_mean(values: Tensor, mask: Tensor, partition: Tensor) -> Tensor:
    """Mean (R,) over the masked categories of each partition, then over the partitions with at least one.

    The arguments are those of `partition_sum`; NaN where no category counts.
    """
    counts = partition_sum(torch.ones_like(values), mask, partition)
    return _over_partitions(partition_sum(values, mask, partition) / counts, counts > 0)


def known_categories(correct: Tensor, partition: Tensor) -> Tensor:
    """The categories that count, (R, C) bool: all of the partitions in which a category is correct, (R, C) bool."""
    return _holds(correct, partition)[:, partition]


def calibration_terms(
    slow: Tensor, fast: Tensor, correct: Tensor, known: Tensor, partition: Tensor, clip: float = 5.0
) -> tuple[Tensor, Tensor]:
    """T+ and T- of "difference": what the reasoning adds to correct categories and takes from incorrect ones.

    Args:
        slow: (R, C) scores with the reasoning in the context.
        fast: (R, C) scores of the same answer without it.
        correct: gold categories.
        known: categories that count.
        partition: partition of each category.
        clip: bound of both terms, in natural-log units.

    Returns:
        T+ and T-, (R,) each; NaN where a rollout has no anchor or no such category.
    """
    difference = slow - fast
    present = known & ~difference.isnan()
    delta_correct = partition_mean(difference, correct & present, partition).clamp(-clip, clip)
    delta_incorrect = partition_mean(-difference, ~correct & present, partition).clamp(-clip, clip)
    return delta_correct, delta_incorrect


def answer_terms(
    slow: Tensor, rollout: Tensor, counted: Tensor, correct: Tensor, known: Tensor, partition: Tensor
) -> tuple[Tensor, Tensor]:
    """T+ and T- of "answer": expected recall of the answer, and the share of what it is likely to name that is right.

    `slow` (A, C) are the probabilities with the reasoning in the context.

    Returns:
        (R,) each, in [0, 1]; NaN for a rollout without an anchor. A partition in which no anchor counts gives 0.
    """
    zeros = slow.new_zeros(correct.shape)
    missed = zeros.index_add(0, rollout, torch.where(counted, torch.log1p(-slow.clamp(max=1.0)), 0.0))
    named = -torch.expm1(missed)
    gold, missing = correct & known, zeros.index_add(0, rollout, counted.to(slow.dtype)).sum(dim=1) == 0
    right, whole = partition_sum(named, gold, partition), partition_sum(named, known, partition)
    share = torch.where(whole > 0, right / whole, 0.0)
    recall_side = partition_mean(named, gold, partition)
    precision_side = _over_partitions(share, _holds(gold, partition))
    return recall_side.masked_fill(missing, torch.nan), precision_side.masked_fill(missing, torch.nan)


def reasoning_term(
    slow: Tensor, fast: Tensor, correct: Tensor, known: Tensor, partition: Tensor, clip: float = 5.0
) -> Tensor:
    """T+ of "reasoning" (R,), of probabilities (R, C) at the first anchor; otherwise as `calibration_terms`.

    There, fast thinking has the same context in all rollouts of a prompt: a constant, which centring within the group
    removes. What remains says which reasoning leads to the gold categories.
    """
    gold = correct & known
    ratio = _log_mass(slow, gold, partition) - _log_mass(fast, gold, partition)
    return _over_partitions(ratio, _holds(gold, partition)).clamp(-clip, clip)


def hinge_terms(
    slow: Tensor, reference: Tensor, correct: Tensor, known: Tensor, partition: Tensor, clip: float = 5.0
) -> tuple[Tensor, Tensor]:
    """T+ and T- of "hinge" (R,), in [-clip, 0]: confidence is to keep or exceed the reference, and earns nothing above.

    Slow probabilities (R, C) at the first anchor, and those of the starting policy's fast thinking; otherwise as
    `calibration_terms`.
    """
    shortfall = ((slow + LOG_FLOOR).log() - (reference + LOG_FLOOR).log()).clamp(max=0.0)
    wrong = ~correct & known
    excess = (_log_mass(reference, wrong, partition) - _log_mass(slow, wrong, partition)).clamp(max=0.0)
    recall_side = partition_mean(shortfall, correct & known, partition)
    precision_side = _over_partitions(excess, _holds(wrong, partition))
    return recall_side.clamp(min=-clip), precision_side.clamp(min=-clip)


def _holds(mask: Tensor, partition: Tensor) -> Tensor:
    # Whether a partition has a masked category, (R, W) bool.
    return partition_sum(mask.float(), mask, partition) > 0


def _over_partitions(values: Tensor, held: Tensor) -> Tensor:
    # Mean (R,) of values (R, W) over the partitions that are held; NaN without one.
    return torch.where(held, values, torch.nan).nanmean(dim=1)


def _log_mass(probabilities: Tensor, mask: Tensor, partition: Tensor) -> Tensor:
    # Log (R, W) of the masked categories' probabilities (R, C), summed within each partition.
    return (partition_sum(probabilities, mask, partition) + LOG_FLOOR).log()
