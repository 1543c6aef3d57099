"""Rewards: how a sampled completion is turned into numbers for reinforcement learning.

Thin adapters to the contract of TRL, `(prompts, completions, **columns) -> list[float | None]`: a completion is parsed
(`thinking`), its labels are compared with the gold labels of the column `labels` on the emotion wheels (`metrics`), and
one number is picked. Recall and precision are separate rewards, because MER-R1 trains them as two objectives; F1 is the
baseline's single reward; format is 1 for a well-formed completion, else 0 (the authors' fork weighs it 0.1).

A row without gold labels, or whose gold no wheel can place, gives None, which the trainer leaves out; it is never a
silent 0. The share of such rows is logged as `unscorable`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from mer_r1.emotions.metrics import SetScores, wheel_scores
from mer_r1.emotions.thinking import answer_word_spans, format_completion, parse
from mer_r1.emotions.two_answers import parse_twice
from mer_r1.emotions.wheels import Taxonomy, builtin, parse_labels
from mer_r1.errors import UserError

OBJECTIVES = ("precision", "recall", "f1")
Completion = str | Sequence[Mapping[str, Any]]


class SetReward:
    """Reward of one objective on chosen wheels: picklable, and named as TRL wants it.

    Args:
        objective: "precision", "recall" or "f1".
        taxonomy: Wheels and words; None means the built-in ones.
        level: Ring of the wheels, 1 or 2.
    """

    def __init__(
        self, objective: Literal["precision", "recall", "f1"], taxonomy: Taxonomy | None = None, level: int = 1
    ) -> None:
        if objective not in OBJECTIVES:
            raise UserError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
        self.objective = objective
        self.taxonomy = taxonomy
        self.level = level
        self.__name__ = f"{objective}_reward"

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Completion] = (),
        labels: Sequence[object] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One value in [0, 1] per completion, or None where the row cannot be scored.

        Args:
            prompts: Not used; part of TRL's contract.
            completions: B·G completions: texts, or lists of chat messages.
            labels: B·G gold label lists or label strings; None for a row without gold.
            log_metric: TRL's logger, given the share of unscorable rows.
            columns: Other columns of the data set, not used.

        Raises:
            UserError: The column `labels` is missing or has another length.
        """
        if labels is None or len(labels) != len(completions):
            found = "no such column" if labels is None else f"{len(labels)} rows"
            raise UserError(f"labels: expected gold labels for each of {len(completions)} completions, got {found}")
        rewards: list[float | None] = []
        for completion, gold in zip(completions, labels, strict=True):
            scores = score_completion(completion, gold, self.taxonomy, self.level)
            rewards.append(None if scores is None else getattr(scores, self.objective))
        if log_metric is not None and rewards:
            log_metric("unscorable", rewards.count(None) / len(rewards))
        return rewards


precision_reward = SetReward("precision")
recall_reward = SetReward("recall")
f1_reward = SetReward("f1")


class FormatReward:
    """1.0 where a completion is one think block and then one answer block, else 0.0 (see `thinking.parse`).

    Args:
        distinct_words: An answer that names a word twice is not well formed either. Labels are a set, so recall and
            precision do not mind repetition, and a small policy finds out (our option, off in the paper's setting).
    """

    def __init__(self, distinct_words: bool = False) -> None:
        self.distinct_words = distinct_words
        self.__name__ = "format_reward"

    def __call__(
        self, prompts: Sequence[Any] | None = None, completions: Sequence[Completion] = (), **columns: Any
    ) -> list[float | None]:
        """One value, 0 or 1, per completion; other columns of the data set are not used."""
        return [float(self._is_well_formed(completion_text(completion))) for completion in completions]

    def _is_well_formed(self, completion: str) -> bool:
        parsed = parse(completion)
        repeats = len(answer_word_spans(completion)) > len(parsed.labels)
        return parsed.well_formed and not (self.distinct_words and repeats)


format_reward = FormatReward()


def score_completion(
    completion: Completion, gold: object, taxonomy: Taxonomy | None = None, level: int = 1
) -> SetScores | None:
    """All three objectives of one completion, computed once and kept; None where the gold cannot be scored."""
    return _scores(completion_text(completion), tuple(parse_labels(gold)), taxonomy or builtin(), level)


def completion_text(completion: Completion) -> str:
    """The text of a completion: itself, or the joined contents of its chat messages."""
    if isinstance(completion, str):
        return completion
    return "".join(_content_text(message.get("content")) for message in completion)


def gold_earns_full_reward(labels: object, taxonomy: Taxonomy | None = None, level: int = 1) -> bool:
    """Whether answering with the gold labels themselves earns 1 for the format and for every objective.

    False where no wheel places any of them, or where they cannot be written as an answer. A training row must pass.
    """
    words = parse_labels(labels)
    try:
        completion = format_completion("", words)
    except UserError:
        return False
    scores = score_completion(completion, words, taxonomy, level)
    return parse(completion).well_formed and scores == SetScores(1.0, 1.0, 1.0)


@lru_cache(maxsize=8192)
def _scores(completion: str, gold: tuple[str, ...], taxonomy: Taxonomy, level: int) -> SetScores | None:
    """Shared by the objectives: one completion is parsed and mapped once, not once per reward function."""
    return wheel_scores(gold, parse(completion).labels, taxonomy, level)


def _content_text(content: object) -> str:
    """A message's content: text, or a list of parts of which the text ones count."""
    if isinstance(content, str):
        return content
    parts: Iterable[Any] = content if isinstance(content, Sequence) else ()
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, Mapping))


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
