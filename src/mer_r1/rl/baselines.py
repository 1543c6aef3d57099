"""The rewards of the methods that MER-R1 is compared with, each trained by the same trainer on the same clips.

- R1-Omni (arXiv 2503.05379): an accuracy and a format reward, summed with equal weights. Its accuracy is 1 if the one
  emotion word of the answer is the clip's label. **Our reading for open-set answers**: on each wheel that can place a
  gold word, 1 if the answer's categories are exactly the gold ones, else 0; the mean over these wheels. For one gold
  word and one answered word this is the original reward, up to synonyms; naming more than asked for earns nothing.
- AffectGPT-R1 (arXiv 2508.01318): the evaluation metric on emotion wheels as the reward, and the format, with equal
  weights. Of one clip that metric is the F1 per wheel, averaged over the wheels: `rewards.f1_reward`. Its later version
  adds auxiliary rewards on the reasoning and length penalties; they are left out.
- VideoAuto-R1 (arXiv 2601.05175): answer, think, answer (`two_answers`). Both answers earn the task's reward, here F1,
  the reviewed one more: weights 0.9 and 1.1, format 1. It trains without a cold start; a tiny policy that has never
  seen the form cannot, so its cold start is the others' with targets in this form (`targets=twice`).

Weights and which rewards belong to which method stand in ``calibration.OBJECTIVES``.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mer_r1.emotions.metrics import wheel_scores
from mer_r1.emotions.thinking import parse
from mer_r1.emotions.two_answers import parse_twice
from mer_r1.emotions.wheels import Taxonomy, builtin, parse_labels
from mer_r1.rl.rewards import Completion, FormatReward, SetReward, completion_text

Reward = Callable[..., list[float | None]]


def reward_function(objective: str, taxonomy: Taxonomy, distinct_words: bool = False) -> Reward:
    """The reward function of an objective of `calibration.Method`.

    Args:
        objective: "format", "recall", "precision", "f1", "accuracy", "twice_format", "first_f1" or "final_f1".
        taxonomy: wheels of the set rewards.
        distinct_words: as `rewards.FormatReward`.
    """
    makers: dict[str, Callable[[], Reward]] = {
        "format": lambda: FormatReward(distinct_words),
        "twice_format": lambda: TwiceFormatReward(distinct_words),
        "accuracy": lambda: AnswerReward("accuracy", taxonomy),
        "first_f1": lambda: AnswerReward("first_f1", taxonomy),
        "final_f1": lambda: AnswerReward("final_f1", taxonomy),
    }
    return makers[objective]() if objective in makers else SetReward(objective, taxonomy)  # type: ignore[arg-type]


def set_accuracy(gold: Sequence[str], predicted: Sequence[str], taxonomy: Taxonomy) -> float | None:
    """Share of the wheels on which the predicted categories are exactly the gold ones.

    Args:
        gold: annotated words.
        predicted: answered words.
        taxonomy: wheels and words.

    Returns:
        In [0, 1]; None where no wheel places a gold word.
    """
    hits = []
    for wheel in taxonomy.wheels:
        wanted = taxonomy.categories(gold, wheel)
        if wanted:
            hits.append(wanted == taxonomy.categories(predicted, wheel))
    return sum(hits) / len(hits) if hits else None


class AnswerReward:
    """Reward of one answer of a completion, for TRL: None where the gold cannot be scored.

    Args:
        objective: "accuracy" (of the only answer), "first_f1" or "final_f1" (of two answers).
        taxonomy: wheels and words; None means the built-in ones.
    """

    def __init__(self, objective: str, taxonomy: Taxonomy | None = None) -> None:
        self.objective = objective
        self.taxonomy = taxonomy or builtin()
        self.__name__ = f"{objective}_reward"

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Completion] = (),
        labels: Sequence[object] = (),
        **columns: Any,
    ) -> list[float | None]:
        """One value in [0, 1] per completion; `labels` holds the gold words of each."""
        pairs = zip(completions, labels, strict=True)
        return [self._one(completion_text(completion), parse_labels(gold)) for completion, gold in pairs]

    def _one(self, completion: str, gold: Sequence[str]) -> float | None:
        if self.objective == "accuracy":
            return set_accuracy(gold, parse(completion).labels, self.taxonomy)
        both = parse_twice(completion)
        scores = wheel_scores(gold, both.first if self.objective == "first_f1" else both.final, self.taxonomy)
        return None if scores is None else scores.f1


class TwiceFormatReward:
    """1.0 where a completion is exactly answer, think, answer, else 0.0.

    Args:
        distinct_words: an answer that names a word twice is not well formed either, as in `rewards.FormatReward`.
    """

    def __init__(self, distinct_words: bool = False) -> None:
        self.distinct_words = distinct_words
        self.__name__ = "twice_format_reward"

    def __call__(
        self, prompts: Sequence[Any] | None = None, completions: Sequence[Completion] = (), **columns: Any
    ) -> list[float | None]:
        """One value, 0 or 1, per completion."""
        found = [parse_twice(completion_text(completion)) for completion in completions]
        return [float(both.well_formed and not (self.distinct_words and both.repeats)) for both in found]
