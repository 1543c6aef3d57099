"""Slow-fast confidence calibration (SFCC): slow thinking is held against the confidence of fast thinking.

At an *anchor* (where a word of the answer begins) the policy gives every category a probability: the sum over the
tokens that can begin a word of that category. The same answer has such a probability with the rollout's own reasoning
in the context (slow) and without it (fast). Correct categories should keep or exceed their fast confidence; for
incorrect ones the suppression that slow thinking brings should stay. Each wish becomes a term that is normalised within
the group and added to its own side of the advantage: the first to recall, the second to precision.

Categories come in partitions (emotion wheels here): within one, a token belongs to at most one category; partitions are
kept apart and averaged. Nothing in this file knows about emotions: any set-valued answer works.
Source: MER-R1 (arXiv 2606.27652), "slow-fast confidence calibration"; the readings are those of ``Method`` below.
Shapes: A anchors, V vocabulary, C categories over all partitions, R rollouts (B*G).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from mer_r1.rl.advantages import group_normalise, normalise_each, normalise_then_sum, sum_then_normalise

LOG_FLOOR = 1e-10
"""S(k) = log(C(k) + 1e-10), as in the authors' fork."""


class Space(StrEnum):
    """Where the calibration terms enter."""

    ADVANTAGE = "advantage"  # the terms are normalised by themselves and added to the advantages (full method)
    REWARD = "reward"  # alpha * term is added to the reward, then normalised with it (variant B1)
    MIXED = "mixed"  # recall's term in reward space, precision's in advantage space (variant B2; our reading)


OBJECTIVES: dict[str, dict[str, float | None]] = {
    "f1": {"format": None, "f1": 1.0},
    **{name: {"format": None, "recall": 1.0, "precision": 1.0} for name in ("rd", "ad", "mer-r1")},
    # The baselines of other papers, with their own weights (`baselines`).
    "r1-omni": {"format": 1.0, "accuracy": 1.0},
    "affectgpt-r1": {"format": 1.0, "f1": 1.0},
    "videoauto-r1": {"twice_format": 1.0, "first_f1": 0.9, "final_f1": 1.1},
}
"""Of each method its rewards and their weights; None is the recipe's format weight. Recall and precision weigh the same
(our reading)."""


@dataclass(frozen=True)
class Method:
    """Every choice of the method in one place. The defaults are MER-R1 as METHOD.md reads it.

    Attributes:
        name: "f1" (baseline), "rd" (reward disentanglement), "ad" (advantage disentanglement), "mer-r1", or a baseline
            of other papers: "r1-omni", "affectgpt-r1", "videoauto-r1".
        format_weight: weight of the format reward (0.1 in the authors' fork); those baselines have their own.
        distinct_words: an answer that names a word twice earns no format reward (our option).
        alpha: weight of the calibration terms (0.1 to start from; our reading).
        space: where the terms enter, see `Space`.
        sides: "both", "recall" (variant A2: no precision side) or "precision".
        anchors: "all" words of the answer, averaged, or only the "first".
        level: "category" (words, synonyms and inflections of a wheel sector) or "word" (variant A1).
        clip: the terms are clipped to [-clip, clip]; natural-log units.
    """

    name: str = "mer-r1"
    format_weight: float = 0.1
    distinct_words: bool = False
    alpha: float = 0.1
    space: str = "advantage"
    sides: str = "both"
    anchors: str = "all"
    level: str = "category"
    clip: float = 5.0

    ALLOWED: ClassVar[dict[str, tuple[str, ...]]] = {
        "name": tuple(OBJECTIVES),
        "space": tuple(Space),
        "sides": ("both", "recall", "precision"),
        "anchors": ("all", "first"),
        "level": ("category", "word"),
    }

    def __post_init__(self) -> None:
        """Refuse values that the method does not define."""
        for field, allowed in self.ALLOWED.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"method.{field} must be one of {', '.join(allowed)}; got {getattr(self, field)!r}")
        if not (self.alpha >= 0 and self.format_weight >= 0 and self.clip > 0):  # so written, it refuses NaN too
            raise ValueError("method.alpha and method.format_weight must not be negative, method.clip must be positive")

    @property
    def objectives(self) -> tuple[str, ...]:
        """The reward functions, in the order of the columns of rewards_per_func."""
        return tuple(OBJECTIVES[self.name])

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of each objective."""
        return tuple(self.format_weight if weight is None else weight for weight in OBJECTIVES[self.name].values())

    @property
    def calibrates(self) -> bool:
        """Whether slow and fast confidences are used in the update."""
        return self.name == "mer-r1"

    @property
    def answers_twice(self) -> bool:
        """Whether completions have the form answer, think, answer (`two_answers`)."""
        return self.name == "videoauto-r1"


@dataclass(frozen=True)
class CategoryTokens:
    """The tokens that can begin a word of each category.

    Attributes:
        token_ids: (N,) a token may stand once per partition.
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
        tokens: what begins what.

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
    """Mean over the masked categories of each partition, then over the partitions that have any.

    Args:
        values: (R, C).
        mask: (R, C) bool, the categories that count.
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
    """The categories that count: all of those partitions that can place at least one gold word.

    Args:
        correct: (R, C) bool, the gold categories.
        partition: (C,) the partition of each category.

    Returns:
        (R, C) bool.
    """
    placed = torch.zeros(correct.shape[0], int(partition.max()) + 1, device=correct.device)
    return placed.index_add(1, partition, correct.float())[:, partition] > 0


def calibration_terms(
    slow: Tensor, fast: Tensor, correct: Tensor, known: Tensor, partition: Tensor, clip: float = 5.0
) -> tuple[Tensor, Tensor]:
    """Delta+ = mean over correct k of S_slow(k) - S_fast(k);  Delta- = mean over incorrect k of S_fast(k) - S_slow(k).

    Args:
        slow: (R, C) scores with the reasoning in the context.
        fast: (R, C) scores of the same answer without it.
        correct: (R, C) bool, the gold categories.
        known: (R, C) bool, categories of partitions that can place at least one gold word; the others do not count.
        partition: (C,) the partition of each category.
        clip: both terms are clipped to [-clip, clip].

    Returns:
        Delta+ and Delta-, (R,) each; NaN where a rollout has no anchor or no such category.
    """
    difference = slow - fast
    delta_correct = partition_mean(difference, correct & known, partition).clamp(-clip, clip)
    delta_incorrect = partition_mean(-difference, ~correct & known, partition).clamp(-clip, clip)
    missing = difference.isnan().any(dim=1)
    return delta_correct.masked_fill(missing, torch.nan), delta_incorrect.masked_fill(missing, torch.nan)


def method_advantages(
    method: Method,
    rewards_per_func: Tensor,
    num_generations: int,
    delta_correct: Tensor | None = None,
    delta_incorrect: Tensor | None = None,
) -> Tensor:
    """The advantage of every rollout, as the chosen method defines it.

    f1, rd and other papers' baselines: sum, then normalise. ad: normalise each, then sum. mer-r1: A_recall =
    norm(recall) + alpha norm(Delta+), A_precision = norm(precision) + alpha norm(Delta-), A = A_recall + A_precision
    (+ weighted norm(format)).

    Args:
        method: the choices.
        rewards_per_func: (R, K) rewards in the order of ``method.objectives``, NaN where unscorable.
        num_generations: G.
        delta_correct: (R,) Delta+, needed where the method calibrates; NaN counts as no information (0).
        delta_incorrect: (R,) Delta-.

    Returns:
        (R,) advantages.

    Raises:
        ValueError: if the method calibrates and a term is missing.
    """
    weights = torch.tensor(method.weights, dtype=rewards_per_func.dtype, device=rewards_per_func.device)
    if method.name not in ("ad", "mer-r1"):
        return sum_then_normalise(rewards_per_func, weights, num_generations)
    if method.name == "ad":
        return normalise_then_sum(rewards_per_func, weights, num_generations)
    if delta_correct is None or delta_incorrect is None:
        raise ValueError("mer-r1 needs the slow and fast confidences: delta_correct and delta_incorrect are missing")
    terms = {"recall": delta_correct, "precision": delta_incorrect}
    rewards, added = rewards_per_func.clone(), torch.zeros_like(rewards_per_func[:, 0])
    for side, term in terms.items():
        if method.sides not in ("both", side):
            continue
        if method.space == Space.REWARD or (method.space == Space.MIXED and side == "recall"):
            rewards[:, method.objectives.index(side)] += method.alpha * term.nan_to_num(0.0)
        else:
            added += method.alpha * group_normalise(term, num_generations)
    return (normalise_each(rewards, num_generations) * weights).sum(dim=1) + added
