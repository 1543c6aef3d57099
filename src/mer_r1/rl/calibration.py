"""Slow-fast confidence calibration: compares the policy's confidence in each category with and without its reasoning.

At an *anchor* (where a word of the answer begins) the policy gives every category k a probability: the sum over the
tokens that can begin a word of k. The same answer has such a probability with the rollout's own reasoning in the
context (slow) and without it (fast). With Y the gold categories and c the clipping bound:

    C(k)   = sum of p(token) over the tokens that begin a word of k
    S(k)   = log(C(k) + 1e-10), averaged over the anchors of the answer
    Delta+ = clip(mean over k in Y     of S_slow(k) - S_fast(k), -c, c)
    Delta- = clip(mean over k not in Y of S_fast(k) - S_slow(k), -c, c)

Delta+ is positive where the reasoning raises the confidence in correct categories, Delta- where it lowers the
confidence in incorrect ones. `method` adds the first to the recall side of the advantage, the second to the precision
side.

Categories come in partitions (emotion wheels here): within one, a token belongs to at most one category; a mean is
taken within each partition, then over the partitions that can place a gold word. Nothing here knows about emotions: any
set-valued answer works.
Source: MER-R1 (arXiv 2606.27652), "slow-fast confidence calibration"; docs/paper_map.md says what each formula rests
on.
Shapes: A anchors, V vocabulary, C categories over all partitions, R rollouts (B*G).
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


def confidence(probabilities: Tensor, rollout: Tensor, num_rollouts: int, anchors: str = "all") -> Tensor:
    """S(k) per rollout: log(C(k) + 1e-10), averaged over the rollout's anchors.

    Args:
        probabilities: (A, C) from `category_probabilities`.
        rollout: (A,) the rollout of each anchor, in [0, R), anchors in reading order.
        num_rollouts: R.
        anchors: "all" or "first".

    Returns:
        (R, C) scores; NaN rows for rollouts without an anchor (an answer without words has no confidence).
    """
    scores = (probabilities + LOG_FLOOR).log()
    if anchors == "first":
        is_first = torch.ones_like(rollout, dtype=torch.bool)
        is_first[1:] = rollout[1:] != rollout[:-1]
        scores, rollout = scores[is_first], rollout[is_first]
    total = scores.new_zeros(num_rollouts, scores.shape[1]).index_add(0, rollout, scores)
    count = scores.new_zeros(num_rollouts).index_add(0, rollout, torch.ones_like(rollout, dtype=scores.dtype))
    return torch.where(count[:, None] > 0, total / count[:, None], torch.nan)


def partition_mean(values: Tensor, mask: Tensor, partition: Tensor) -> Tensor:
    """Mean over the masked categories of each partition, then over the partitions with at least one.

    Args:
        values: (R, C) one number per category.
        mask: (R, C) bool, categories to average.
        partition: (C,) the partition of each category.

    Returns:
        (R,) means; NaN where no category counts.
    """
    num_partitions = int(partition.max()) + 1 if partition.numel() else 0
    index = partition.to(values.device)
    counted = values.new_zeros(values.shape[0], num_partitions).index_add(1, index, mask.to(values.dtype))
    summed = values.new_zeros(values.shape[0], num_partitions)
    summed = summed.index_add(1, index, torch.where(mask, values, 0.0))
    means = torch.where(counted > 0, summed / counted, torch.nan)
    return means.nanmean(dim=1)


def known_categories(correct: Tensor, partition: Tensor) -> Tensor:
    """The categories that count, (R, C) bool: all of the partitions in which a category is correct, (R, C) bool."""
    placed = torch.zeros(correct.shape[0], int(partition.max()) + 1, device=correct.device)
    return placed.index_add(1, partition, correct.float())[:, partition] > 0


def calibration_terms(
    slow: Tensor, fast: Tensor, correct: Tensor, known: Tensor, partition: Tensor, clip: float = 5.0
) -> tuple[Tensor, Tensor]:
    """Delta+ and Delta-: what the reasoning adds to correct categories and takes from incorrect ones.

    Delta+ = mean over correct k of S_slow(k) - S_fast(k);  Delta- = mean over incorrect k of S_fast(k) - S_slow(k).

    Args:
        slow: (R, C) scores with the reasoning in the context.
        fast: (R, C) scores of the same answer without it.
        correct: (R, C) bool, the gold categories.
        known: (R, C) bool, categories of partitions that can place at least one gold word; the others do not count.
        partition: (C,) the partition of each category.
        clip: bound of both terms, in natural-log units.

    Returns:
        Delta+ and Delta-, (R,) each; NaN where a rollout has no anchor or no such category.
    """
    difference = slow - fast
    delta_correct = partition_mean(difference, correct & known, partition).clamp(-clip, clip)
    delta_incorrect = partition_mean(-difference, ~correct & known, partition).clamp(-clip, clip)
    missing = difference.isnan().any(dim=1)
    return delta_correct.masked_fill(missing, torch.nan), delta_incorrect.masked_fill(missing, torch.nan)
