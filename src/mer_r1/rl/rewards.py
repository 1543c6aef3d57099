"""Rewards: functions that score a sampled completion for reinforcement learning.

Each follows TRL's contract, `(prompts, completions, **columns) -> list[float | None]`: it compares the labels of a
completion with the gold labels of the column `labels` on the emotion wheels (`emotions.metrics`), and returns one
number per completion. MER-R1 trains recall and precision as two objectives; F1 is the single reward of its baseline;
format is 1 for a well-formed completion, else 0. A row whose gold labels are missing or in no wheel gives None, which
the trainer leaves out; it never counts as 0.

Sampled answers exploit what the metrics forgive, so the rewards are stricter by default, as options of the method:

- `strict_answers`: an answer without its closing </answer>, or without an answer tag, earns 0;
- `strict_labels`: a phrase that no wheel places and a word said again are junk, and each counts as one more wrong label
  on every wheel: precision = hits / (predicted categories + junk), F1 = 2 hits / (gold + predicted categories + junk).
  A phrase of more than `MOST_LABEL_WORDS` words is a sentence and makes the completion malformed;
- `absent_channels` (off by default): a reasoning that speaks of a channel that its clip lacks earns 0, format included.
  It needs the column `absent`, the channels (`emotions.thinking.CHANNELS`) that each clip lacks.

Without junk the rewards equal `emotions.metrics.label_scores`, which evaluation reports. They compare words as the
taxonomy does (`wheels.Taxonomy.matching`); by meaning, a word that no wheel places is compared like any other, and junk
are repeated words only.

Baselines of other papers are trained by the same trainer on the same clips:

- R1-Omni (arXiv 2503.05379): accuracy and format. Its accuracy is 1 if the one emotion word of the answer is the clip's
  label; for open-set answers we read it as `set_accuracy`.
- AffectGPT-R1 (arXiv 2508.01318): the evaluation metric on emotion wheels, for one clip the F1 (`f1_reward`), and
  format. The auxiliary rewards and length penalties of its later version are left out.
- VideoAuto-R1 (arXiv 2601.05175): answer, think, answer (`emotions.two_answers`). Both answers earn F1, the reviewed
  one with the larger weight. A tiny policy that has never seen the form needs a cold start with `targets=twice`.

Which rewards a method uses, with which weights: `method.OBJECTIVES`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from mer_r1.emotions.metrics import SetScores, label_scores
from mer_r1.emotions.thinking import answer_word_spans, channels_of, format_completion, parse
from mer_r1.emotions.two_answers import answers_in, parse_twice
from mer_r1.emotions.wheels import Taxonomy, builtin, parse_labels
from mer_r1.errors import UserError

MOST_LABEL_WORDS = 5
"""Most words of a label: "at a loss for words" is in the official tables; the built-in wheels have phrases of four."""
Completion = str | Sequence[Mapping[str, Any]]
"""A text, or a list of chat messages."""
Reward = Callable[..., list[float | None]]


class SetReward:
    """Precision, recall or F1 of a completion's labels; picklable, with the `__name__` that TRL logs.

    Args:
        objective: one of `OBJECTIVES`.
        taxonomy: wheels and words; None for the built-in ones.
        level: ring of the wheels, 1 or 2.
        strict_answers: whether an answer that is not closed earns 0.
        strict_labels: whether words that no wheel places and repeated words count as wrong labels.
        absent_channels: whether a reasoning that speaks of a channel that its clip lacks earns 0.

    Raises:
        UserError: another objective.
    """

    OBJECTIVES: ClassVar[tuple[str, ...]] = ("precision", "recall", "f1")

    def __init__(
        self,
        objective: str,
        taxonomy: Taxonomy | None = None,
        level: int = 1,
        strict_answers: bool = True,
        strict_labels: bool = True,
        absent_channels: bool = False,
    ) -> None:
        if objective not in self.OBJECTIVES:
            raise UserError(f"objective: expected one of {', '.join(self.OBJECTIVES)}, got {objective!r}")
        self.objective, self.taxonomy, self.level = objective, taxonomy or builtin(), level
        self.strict = {"strict_answers": strict_answers, "strict_labels": strict_labels}
        self.absent_channels = absent_channels
        self.__name__ = f"{objective}_reward"

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Completion] = (),
        labels: Sequence[object] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        absent: Sequence[Sequence[str]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One value in [0, 1] per completion, or None where the row cannot be scored.

        Args:
            prompts: not used; part of TRL's contract.
            completions: B*G completions: texts, or lists of chat messages.
            labels: B*G gold label lists or label strings; None for a row without gold.
            log_metric: TRL's logging callback, called with the share of unscorable rows.
            absent: B*G lists of the channels that the clip lacks, for `absent_channels`.
            columns: other columns of the data set, not used.

        Raises:
            UserError: a column that is needed is missing or has another length.
        """
        if labels is None or len(labels) != len(completions):
            found = "no such column" if labels is None else f"{len(labels)} rows"
            raise UserError(f"labels: expected gold labels for each of {len(completions)} completions, got {found}")
        texts = list(map(completion_text, completions))
        lacking = absent_of(texts, absent) if self.absent_channels else [()] * len(texts)
        rows = zip(texts, labels, lacking, strict=True)
        rewards = [self._of_row(text, tuple(parse_labels(gold)), lacks) for text, gold, lacks in rows]
        if log_metric is not None and rewards:
            log_metric("unscorable", rewards.count(None) / len(rewards))
        return rewards

    def _of_row(self, completion: str, gold: tuple[str, ...], lacks: Sequence[str]) -> float | None:
        value = self._one(completion, gold)
        return value if value is None or not _speaks_of(completion, lacks) else 0.0

    def _one(self, completion: str, gold: tuple[str, ...]) -> float | None:
        scores = _scores(completion, gold, self.taxonomy, self.level, **self.strict)
        return None if scores is None else float(getattr(scores, self.objective))


class AnswerReward(SetReward):
    """Reward of one answer of a completion: "accuracy" of the only one, "first_f1" or "final_f1" of two."""

    OBJECTIVES = ("accuracy", "first_f1", "final_f1")

    def _one(self, completion: str, gold: tuple[str, ...]) -> float | None:
        which = {"accuracy": "last", "first_f1": "first", "final_f1": "second"}[self.objective]
        answer = _answer(completion, which, self.strict["strict_answers"])
        if self.objective == "accuracy":
            junk = _junk(answer, gold, self.taxonomy)[0] if self.strict["strict_labels"] else 0
            return set_accuracy(gold, parse(answer).labels, self.taxonomy, junk)
        scores = _scores(answer, gold, self.taxonomy, self.level, False, self.strict["strict_labels"])
        return None if scores is None else scores.f1


class FormatReward:
    """1.0 where a completion is one think block and then one answer block, else 0.0 (see `thinking.parse`).

    Args:
        distinct_words: whether an answer that names a word twice is malformed too. Labels are a set, so repetition
            costs neither recall nor precision, and a small policy exploits that (our option, off in the paper).
        strict_labels: whether an answer that holds a sentence is malformed too (our option).
        known: wheels of which one must place each phrase, or the answer is malformed too (our option `known_words`).
        absent_channels: whether a reasoning that speaks of a channel that its clip lacks is malformed too (our option).
    """

    NAME = "format_reward"

    def __init__(
        self,
        distinct_words: bool = False,
        strict_labels: bool = True,
        known: Taxonomy | None = None,
        absent_channels: bool = False,
    ) -> None:
        self.distinct_words, self.strict_labels, self.known = distinct_words, strict_labels, known
        self.absent_channels = absent_channels
        self.__name__ = self.NAME

    def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Completion] = (),
        absent: Sequence[Sequence[str]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One value, 0 or 1, per completion.

        Args:
            prompts: not used; part of TRL's contract.
            completions: B*G completions: texts, or lists of chat messages.
            absent: B*G lists of the channels that the clip lacks, for `absent_channels`.
            columns: other columns of the data set, not used.

        Raises:
            UserError: `absent_channels` without the column `absent`.
        """
        texts = list(map(completion_text, completions))
        lacking = absent_of(texts, absent) if self.absent_channels else [()] * len(texts)
        pairs = zip(texts, lacking, strict=True)
        return [float(self._is_well_formed(text) and not _speaks_of(text, lacks)) for text, lacks in pairs]

    def _is_well_formed(self, completion: str) -> bool:
        parsed = parse(completion)
        repeats = len(answer_word_spans(completion)) > len(parsed.labels)
        return parsed.well_formed and self._accepts(parsed.labels, repeats)

    def _accepts(self, labels: Sequence[str], repeats: bool) -> bool:
        if self.known and not all(map(self.known.knows, labels)):
            return False
        return not (self.distinct_words and repeats) and not (self.strict_labels and any(map(_is_sentence, labels)))


class TwiceFormatReward(FormatReward):
    """1.0 where a completion is exactly answer, think, answer, else 0.0 (VideoAuto-R1)."""

    NAME = "twice_format_reward"

    def _is_well_formed(self, completion: str) -> bool:
        both = parse_twice(completion)
        return both.well_formed and self._accepts((*both.first, *both.final), both.repeats)


precision_reward = SetReward("precision")
recall_reward = SetReward("recall")
f1_reward = SetReward("f1")
format_reward = FormatReward()


def reward_function(
    objective: str,
    taxonomy: Taxonomy,
    distinct_words: bool = False,
    known_words: bool = False,
    strict_answers: bool = True,
    strict_labels: bool = True,
    absent_channels: bool = False,
    matching: str = "wheels",
) -> Reward:
    """The reward function of an objective of `method.OBJECTIVES`.

    The other arguments are those of `SetReward` and `FormatReward`; `matching` is the method's.

    Raises:
        UserError: another objective, or a taxonomy that compares words in another way than the method.
    """
    if matching != taxonomy.matching:
        raise UserError(
            f"matching={matching}: words are compared by {taxonomy.matching} here; use mer-r1 rl for others"
        )
    if objective in ("format", "twice_format"):
        form = FormatReward if objective == "format" else TwiceFormatReward
        return form(distinct_words, strict_labels, taxonomy if known_words else None, absent_channels)
    kind = AnswerReward if objective in AnswerReward.OBJECTIVES else SetReward
    return kind(objective, taxonomy, 1, strict_answers, strict_labels, absent_channels)


def absent_of(completions: Sequence[Completion], absent: Sequence[Sequence[str]] | None) -> Sequence[Sequence[str]]:
    """The column `absent` of some completions.

    Raises:
        UserError: it is missing or has another length.
    """
    if absent is None or len(absent) != len(completions):
        raise UserError(f"absent_channels: expected the column `absent` with {len(completions)} lists of channels")
    return absent


def score_completion(
    completion: Completion,
    gold: object,
    taxonomy: Taxonomy | None = None,
    level: int = 1,
    strict_answers: bool = True,
    strict_labels: bool = True,
) -> SetScores | None:
    """The rewards of one completion, computed once and cached; None where the gold cannot be scored."""
    words = tuple(parse_labels(gold))
    return _scores(completion_text(completion), words, taxonomy or builtin(), level, strict_answers, strict_labels)


def set_accuracy(gold: Sequence[str], predicted: Sequence[str], taxonomy: Taxonomy, junk: int = 0) -> float | None:
    """Share, in [0, 1], of the wheels on which the predicted categories are exactly the gold ones; 0 with junk.

    Only wheels that place a gold word count; None where no wheel does. For one gold word and one answered word this is
    R1-Omni's accuracy, up to synonyms; naming additional emotions earns nothing (our reading for open-set answers).
    """
    pairs = [[taxonomy.categories(words, wheel) for words in (gold, predicted)] for wheel in taxonomy.wheels]
    hits = [wanted == found for wanted, found in pairs if wanted]
    return sum(hits) * (not junk) / len(hits) if hits else None


def gold_earns_full_reward(labels: object, taxonomy: Taxonomy | None = None, level: int = 1) -> bool:
    """Whether answering with the gold labels themselves earns 1 for format, recall, precision and F1.

    The answer names each label once and leaves out sentences. False where no wheel places any of them, or where they
    cannot be written as an answer. A training row must pass.
    """
    words = [word for word in dict.fromkeys(map(_lowered, parse_labels(labels))) if not _is_sentence(word)]
    try:
        completion = format_completion("", words)
    except UserError:
        return False
    scores = score_completion(completion, labels, taxonomy, level)
    return format_reward(completions=[completion]) == [1.0] and scores == SetScores(1.0, 1.0, 1.0)


def completion_text(completion: Completion) -> str:
    """The text of a completion: itself, or the joined contents of its chat messages."""
    if isinstance(completion, str):
        return completion
    return "".join(_content_text(message.get("content")) for message in completion)


@lru_cache(maxsize=8192)
def _scores(
    completion: str, gold: tuple[str, ...], taxonomy: Taxonomy, level: int, strict_answers: bool, strict_labels: bool
) -> SetScores | None:
    # Shared by the objectives: one completion is parsed and mapped once, not once per reward function.
    answer = _answer(completion, "last", strict_answers)
    junk = _junk(answer, gold, taxonomy) if strict_labels else (0, 0)
    return label_scores(gold, parse(answer).labels, taxonomy, level, *junk)


def _answer(completion: str, which: str, closed: bool) -> str:
    # The "first", "second" or "last" answer of a completion, as a text that holds nothing else; of more than two, the
    # last one is the second. "" where there is none or, if asked for, where it is not closed.
    if which == "last" and not closed:
        return completion  # as leniently as `parse` reads it
    found = answers_in(completion)
    chosen = {"first": found[:1], "second": found[1:][-1:], "last": found[-1:]}[which]
    return "".join(answer for answer, is_closed in chosen if is_closed or not closed)


def _junk(answer: str, gold: Sequence[str], taxonomy: Taxonomy) -> tuple[int, int]:
    # Number of wrong labels that the metrics forgive (repeated words, and words that no wheel places and the gold does
    # not hold), and how many of them are repeated.
    spans, labels, known = answer_word_spans(answer), parse(answer).labels, set(map(_lowered, gold))
    repeated = len(spans) - len(labels)
    return repeated + sum(word not in known and not taxonomy.knows(word) for word in labels), repeated


def _speaks_of(completion: str, channels: Sequence[str]) -> bool:
    return not channels_of(parse(completion).reasoning).isdisjoint(channels)


def _lowered(word: str) -> str:
    # As `parse` writes a label.
    return " ".join(word.lower().split())


def _is_sentence(label: str) -> bool:
    return len(label.split()) > MOST_LABEL_WORDS


def _content_text(content: object) -> str:
    # A message's content: text, or a list of parts of which the text ones count.
    if isinstance(content, str):
        return content
    parts: Iterable[Any] = content if isinstance(content, Sequence) else ()
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, Mapping))
