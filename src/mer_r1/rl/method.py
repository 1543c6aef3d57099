"""The method: its choices in one place, and the advantage that it gives each rollout.

Within the G rollouts of a prompt let norm(x) = (x - mean) / standard deviation. From the rewards R (recall), P
(precision), F1 and format, and the calibration terms T+ and T- (`calibration`), the methods make the advantage A:

    f1      A = norm(F1 + w format)
    rd      A = norm(R + P + w format)
    ad      A = norm(R) + norm(P) + w norm(format)
    mer-r1  A = norm(R) + a norm(T+) + norm(P) + a norm(T-) + w norm(format)

w is `format_weight`; a is `alpha`, or whatever makes the terms hold `calibration_share` of the variance. Variants of
mer-r1 are options: `space="reward"` replaces norm(R) + a norm(T+) by norm(R + a T+), and the same for P;
`sides="recall"` leaves T- out. With `calibration="reasoning"` a norm(T+) is added at the tokens before the answer only.
Baselines of other papers sum their own rewards (`rewards`) with their own weights, then normalise once.

Nothing here knows about emotions. Source: MER-R1 (arXiv 2606.27652); docs/paper_map.md says of each formula and default
whether it is stated, taken from the authors' fork, or our reading. Shapes: R rollouts (B*G), K objectives.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:  # the choices are read without torch
    from torch import Tensor

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


SHARE = 0.15
"""Share of the advantage's variance that the terms hold if neither `calibration_share` nor `alpha` is given."""
SPREAD_FLOORS = {"answer": 0.01, "noise": 0.0}
"""Default `spread_floor` of formulations whose terms are no log-probabilities (0.05 nats for those)."""


@dataclass
class Method:
    """Choices of the method. The defaults are MER-R1 as docs/paper_map.md reads it.

    Attributes:
        method: "f1" (baseline), "rd" (reward disentanglement), "ad" (advantage disentanglement), "mer-r1", or a
            baseline of other papers: "r1-omni", "affectgpt-r1", "videoauto-r1".
        format_weight: weight of the format reward (0.1 in the authors' fork); baselines of other papers have their own.
        distinct_words: whether an answer that names a word twice loses the format reward (our option).
        known_words: whether an answer with a phrase that no wheel places loses the format reward (our option).
        absent_channels: whether a reasoning that speaks of a channel that its clip lacks, of words without a subtitle
            for instance, earns nothing (our option; `emotions.thinking` has the English words that it looks for).
        strict_answers: whether an answer without its closing tag earns no recall, precision and F1 (our option).
        strict_labels: whether words that no wheel places and repeated words count as wrong labels in the rewards, and
            a sentence in the answer as malformed (our option; reported scores stay the official ones).
        matching: how words are compared in the rewards, and what the categories of the calibration are: "wheels" and
            their sectors, "meaning" (an embedding model) and clusters of the training vocabulary, or "both".
        calibration: formulation of the calibration terms: "answer" (expected recall and precision of the answer),
            "reasoning" (gain in the gold categories' log-probability, for the tokens before the answer), "hinge"
            (shortfall against the starting policy's fast thinking), "difference" (mean log differences of slow and
            fast thinking), or "noise" (random numbers, a control).
        conditional: whether a category's confidence is renormalised over the categories of its wheel.
        anchors: words of the answer at which confidence is read: "mentions" (of a category that some wheel places, each
            once), "all", or the "first" that a wheel places; "reasoning" and "hinge" read the first of these.
        calibration_share: share of the advantage's variance that the calibration terms hold; 0.15 unless `alpha` is
            given.
        alpha: fixed weight of the calibration terms, in place of `calibration_share`.
        spread_floor: added to a term's standard deviation in its group before it divides, in the term's unit: by
            default 0.05 (nats), for "answer" 0.01 (probability), for "noise" 0.
        space: where the calibration terms enter: "advantage" (each normalised by itself), "reward" (alpha * term added
            to the reward before that is normalised, variant B1) or "mixed" (that for recall only, variant B2).
        sides: calibration terms that are used: "both", "recall" (variant A2) or "precision"; "reasoning" has a single
            term, that of recall.
        confidence_level: unit of confidence: "category" (all words of a wheel sector) or "word" (variant A1).
        confidence_clip: bound of the calibration terms that are logarithms, in natural-log units.
        one_scale: divide the advantages of a batch by their root mean square, so that methods are compared at one size.

    Raises:
        ValueError: a value is not one of the choices, a number is out of range or NaN, or choices exclude each other.
    """

    method: str = "mer-r1"
    format_weight: float = 0.1
    distinct_words: bool = False
    known_words: bool = False
    absent_channels: bool = False
    strict_answers: bool = True
    strict_labels: bool = True
    matching: str = "wheels"
    calibration: str = "answer"
    conditional: bool = True
    anchors: str = "mentions"
    calibration_share: float | None = None
    alpha: float | None = None
    spread_floor: float | None = None
    space: str = "advantage"
    sides: str = "both"
    confidence_level: str = "category"
    confidence_clip: float = 5.0
    one_scale: bool = False

    ALLOWED: ClassVar[dict[str, tuple[str, ...]]] = {
        "method": tuple(OBJECTIVES),
        "matching": ("wheels", "meaning", "both"),
        "calibration": ("answer", "reasoning", "hinge", "difference", "noise"),
        "anchors": ("mentions", "all", "first"),
        "space": ("advantage", "reward", "mixed"),
        "sides": ("both", "recall", "precision"),
        "confidence_level": ("category", "word"),
    }

    def __post_init__(self) -> None:
        """Raise for values that the method does not define."""
        for field, allowed in self.ALLOWED.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}; got {getattr(self, field)!r}")
        # Written so that NaN is refused too.
        numbers = self.alpha or 0.0, self.spread_floor or 0.0, self.format_weight
        if not (all(number >= 0 for number in numbers) and self.confidence_clip > 0):
            raise ValueError(
                "alpha, spread_floor and format_weight must not be negative, confidence_clip must be positive"
            )
        if not 0 <= (self.calibration_share or 0.0) < 1:
            raise ValueError(f"calibration_share must be at least 0 and below 1; got {self.calibration_share}")
        self._check_weight()

        if self.matching != "wheels" and "accuracy" in self.objectives:
            raise ValueError(f"matching={self.matching} has no accuracy, which method={self.method} rewards")

    def _check_weight(self) -> None:
        if self.alpha is not None and self.calibration_share is not None:
            raise ValueError("alpha and calibration_share both weigh the calibration terms: give one of them")
        if self.space != "advantage" and self.alpha is None:
            raise ValueError(f"space={self.space} adds the terms to the rewards: it needs a fixed weight, alpha")
        if self.calibration == "reasoning" and (self.space != "advantage" or self.sides == "precision"):
            raise ValueError(
                "calibration=reasoning has one term, of recall, for the advantages of the reasoning's tokens: "
                f"expected space=advantage and sides=both or recall, got space={self.space}, sides={self.sides}"
            )

    @property
    def share(self) -> float:
        """Share of the advantage's variance that the terms hold, unless `alpha` weighs them."""
        return SHARE if self.calibration_share is None else self.calibration_share

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the reward functions, in the order of the columns of rewards_per_func."""
        return tuple(OBJECTIVES[self.method])

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of each objective."""
        return tuple(self.format_weight if weight is None else weight for weight in OBJECTIVES[self.method].values())

    @property
    def reward_options(self) -> dict[str, Any]:
        """What the rewards refuse and how they compare words, as arguments of `rewards.reward_function`."""
        names = ("distinct_words", "known_words", "absent_channels", "strict_answers", "strict_labels", "matching")
        return {name: getattr(self, name) for name in names}

    @property
    def calibrates(self) -> bool:
        """Whether the update uses calibration terms."""
        return self.method == "mer-r1"

    @property
    def needs_fast(self) -> bool:
        """Whether the terms compare each rollout with the same answer without its reasoning."""
        return self.calibrates and self.calibration in ("reasoning", "difference")

    @property
    def needs_reference(self) -> bool:
        """Whether the terms compare with the starting policy's fast thinking."""
        return self.calibrates and self.calibration == "hinge"

    @property
    def answers_twice(self) -> bool:
        """Whether completions have the form answer, think, answer (`two_answers`)."""
        return self.method == "videoauto-r1"


class Advantages(NamedTuple):
    """Advantages of a batch.

    Attributes:
        tokens: (R,) advantage of all tokens of each rollout.
        reasoning: (R,) what is added to it at the tokens before the answer; None for nothing.
        share: a^2 var(T) / (a^2 var(T) + var(A)): the terms' share of the variance, beside A without them.
    """

    tokens: "Tensor"
    reasoning: "Tensor | None"
    share: float


def method_advantages(
    method: Method,
    rewards_per_func: "Tensor",
    num_generations: int,
    delta_correct: "Tensor | None" = None,
    delta_incorrect: "Tensor | None" = None,
    scale_rewards: str | bool = "group",
) -> Advantages:
    """The advantage A of every rollout by the formula of the chosen method (see the top of this file).

    Shares and root mean squares are those of the rows given: pass the rollouts of all processes.

    Args:
        method: choices.
        rewards_per_func: (R, K) rewards in the order of ``method.objectives``, NaN where unscorable.
        num_generations: G.
        delta_correct: (R,) T+, needed if the method calibrates. A rollout without a term (NaN) gets the minimum of its
            group, or 0 where no rollout of the group has one.
        delta_incorrect: (R,) T-; not needed by "reasoning".
        scale_rewards: TRL's option, what divides a reward: "group" or True, "batch", "none" or False. In advantage
            space the terms are always divided by their spread in the group; in reward space they are added as they
            are, in nats or probabilities, before the reward is centred and divided.

    Raises:
        ValueError: if the method calibrates and a term is missing, or for another scale.
    """
    import torch

    from mer_r1.rl.advantages import MIN_SPREAD, normalise_then_sum, sum_then_normalise

    scale = {"True": "group", "False": "none"}.get(str(scale_rewards), str(scale_rewards))
    weights = torch.tensor(method.weights, dtype=rewards_per_func.dtype, device=rewards_per_func.device)
    together = normalise_then_sum if method.method in ("ad", "mer-r1") else sum_then_normalise
    plain = total = together(rewards_per_func, weights, num_generations, scale=scale)
    if method.calibrates:
        rewards, added = _with_terms(method, rewards_per_func, num_generations, delta_correct, delta_incorrect)
        # All groups are centred, so variances are mean squares; with none on either side the weight is 0.
        odds = plain.square().sum() / added.square().sum() * method.share / (1 - method.share)
        weight = odds.sqrt().nan_to_num(0.0, posinf=0.0) if method.alpha is None else method.alpha
        total = together(rewards, weights, num_generations, scale=scale) + weight * added
    held, rest = (total - plain).square().sum(), plain.square().sum()
    share = (held / (held + rest)).nan_to_num(0.0).item()
    if method.one_scale:
        size = total[~rewards_per_func.isnan().all(dim=1)].square().mean().sqrt().clamp(min=MIN_SPREAD)
        plain, total = plain / size, total / size
    if method.calibration == "reasoning" and method.calibrates:
        return Advantages(plain, total - plain, share)
    return Advantages(total, None, share)


def _with_terms(
    method: Method, rewards_per_func: "Tensor", num_generations: int, plus: "Tensor | None", minus: "Tensor | None"
) -> tuple["Tensor", "Tensor"]:
    # The rewards (R, K) with the terms of reward space, and the sum (R,) of the normalised terms of advantage space.
    from mer_r1.rl.advantages import group_minimum, group_normalise

    if plus is None or (minus is None and method.calibration != "reasoning"):
        raise ValueError("mer-r1 needs the calibration terms: delta_correct and delta_incorrect are missing")
    floor = SPREAD_FLOORS.get(method.calibration, 0.05) if method.spread_floor is None else method.spread_floor
    rewards, added = rewards_per_func.clone(), rewards_per_func.new_zeros(len(rewards_per_func))
    padding = rewards_per_func.isnan().all(dim=1)
    for side, term in (("recall", plus), ("precision", minus)):
        if term is None or method.sides not in ("both", side):
            continue
        filled = group_minimum(term, num_generations).masked_fill(padding, float("nan"))
        if method.space == "reward" or (method.space == "mixed" and side == "recall"):
            rewards[:, method.objectives.index(side)] += (method.alpha or 0.0) * filled.nan_to_num(0.0)
        else:
            added += group_normalise(filled, num_generations, floor)
    return rewards, added
