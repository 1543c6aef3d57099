"""The method: its choices in one place, and the advantage that it gives each rollout.

Within the G rollouts of a prompt let norm(x) = (x - mean) / standard deviation. From the rewards R (recall), P
(precision), F1 and format, and the calibration terms Delta+ and Delta-, the methods make the advantage A of a rollout:

    f1      A = norm(F1 + w format)
    rd      A = norm(R + P + w format)
    ad      A = norm(R) + norm(P) + w norm(format)
    mer-r1  A = norm(R) + alpha norm(Delta+) + norm(P) + alpha norm(Delta-) + w norm(format)

w is `format_weight`. Variants of mer-r1 are options: `space="reward"` replaces norm(R) + alpha norm(Delta+) by
norm(R + alpha Delta+), and the same for P; `space="mixed"` does so for recall only; `sides="recall"` leaves Delta- out.
Baselines of other papers sum their own rewards (`rewards`) with their own weights, then normalise once.

Nothing here knows about emotions. Source: MER-R1 (arXiv 2606.27652); docs/paper_map.md says of each formula and default
whether it is stated, taken from the authors' fork, or our reading. Shapes: R rollouts (B*G), K objectives.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from mer_r1.rl.advantages import group_normalise, normalise_each, normalise_then_sum, sum_then_normalise


class Space(StrEnum):
    """Where the calibration terms enter the advantage."""

    ADVANTAGE = "advantage"  # each term is normalised by itself and added to the advantage (full method)
    REWARD = "reward"  # alpha * term is added to the reward and normalised with it (variant B1)
    MIXED = "mixed"  # recall's term in reward space, precision's in advantage space (variant B2; our reading)


OBJECTIVES: dict[str, dict[str, float | None]] = {
    "f1": {"format": None, "f1": 1.0},
    **{name: {"format": None, "recall": 1.0, "precision": 1.0} for name in ("rd", "ad", "mer-r1")},
    # Baselines of other papers, with their own weights (see `rewards`).
    "r1-omni": {"format": 1.0, "accuracy": 1.0},
    "affectgpt-r1": {"format": 1.0, "f1": 1.0},
    "videoauto-r1": {"twice_format": 1.0, "first_f1": 0.9, "final_f1": 1.1},
}
"""Rewards of each method and their weights; None stands for `format_weight`. Recall and precision weigh the same (our
reading)."""


@dataclass
class Method:
    """Choices of the method. The defaults are MER-R1 as docs/paper_map.md reads it.

    Attributes:
        method: "f1" (baseline), "rd" (reward disentanglement), "ad" (advantage disentanglement), "mer-r1", or a
            baseline of other papers: "r1-omni", "affectgpt-r1", "videoauto-r1".
        format_weight: weight of the format reward (0.1 in the authors' fork); baselines of other papers have their own.
        distinct_words: whether an answer that names a word twice loses the format reward (our option).
        strict_answers: whether an answer without its closing tag earns no recall, precision and F1 (our option).
        strict_labels: whether words that no wheel places and repeated words count as wrong labels in the rewards, and
            a sentence in the answer as malformed (our option; reported scores stay the official ones).
        alpha: weight of the calibration terms (0.1 is our reading).
        space: where the calibration terms enter: "advantage", "reward" (variant B1) or "mixed" (variant B2).
        sides: calibration terms that are used: "both", "recall" (variant A2) or "precision".
        anchors: words of the answer at which confidence is read: "all", averaged, or only the "first".
        confidence_level: unit of confidence: "category" (all words of a wheel sector) or "word" (variant A1).
        confidence_clip: bound of the calibration terms, in natural-log units.

    Raises:
        ValueError: a value is not one of the choices, or a number is negative or NaN.
    """

    method: str = "mer-r1"
    format_weight: float = 0.1
    distinct_words: bool = False
    strict_answers: bool = True
    strict_labels: bool = True
    alpha: float = 0.1
    space: str = "advantage"
    sides: str = "both"
    anchors: str = "all"
    confidence_level: str = "category"
    confidence_clip: float = 5.0

    ALLOWED: ClassVar[dict[str, tuple[str, ...]]] = {
        "method": tuple(OBJECTIVES),
        "space": tuple(Space),
        "sides": ("both", "recall", "precision"),
        "anchors": ("all", "first"),
        "confidence_level": ("category", "word"),
    }

    def __post_init__(self) -> None:
        """Raise for values that the method does not define."""
        for field, allowed in self.ALLOWED.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}; got {getattr(self, field)!r}")
        # Written so that NaN is refused too.
        if not (self.alpha >= 0 and self.format_weight >= 0 and self.confidence_clip > 0):
            raise ValueError("alpha and format_weight must not be negative, confidence_clip must be positive")

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the reward functions, in the order of the columns of rewards_per_func."""
        return tuple(OBJECTIVES[self.method])

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of each objective."""
        return tuple(self.format_weight if weight is None else weight for weight in OBJECTIVES[self.method].values())

    @property
    def reward_options(self) -> dict[str, bool]:
        """What the rewards refuse, as arguments of `rewards.reward_function`."""
        return {name: getattr(self, name) for name in ("distinct_words", "strict_answers", "strict_labels")}

    @property
    def calibrates(self) -> bool:
        """Whether the update uses slow and fast confidences."""
        return self.method == "mer-r1"

    @property
    def answers_twice(self) -> bool:
        """Whether completions have the form answer, think, answer (`two_answers`)."""
        return self.method == "videoauto-r1"


def method_advantages(
    method: Method,
    rewards_per_func: Tensor,
    num_generations: int,
    delta_correct: Tensor | None = None,
    delta_incorrect: Tensor | None = None,
) -> Tensor:
    """The advantage A of every rollout by the formula of the chosen method (see the top of this file).

    Args:
        method: choices.
        rewards_per_func: (R, K) rewards in the order of ``method.objectives``, NaN where unscorable.
        num_generations: G.
        delta_correct: (R,) Delta+, needed if the method calibrates; NaN counts as no information (0).
        delta_incorrect: (R,) Delta-.

    Returns:
        (R,) advantages.

    Raises:
        ValueError: if the method calibrates and a term is missing.
    """
    weights = torch.tensor(method.weights, dtype=rewards_per_func.dtype, device=rewards_per_func.device)
    if method.method not in ("ad", "mer-r1"):
        return sum_then_normalise(rewards_per_func, weights, num_generations)
    if method.method == "ad":
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
