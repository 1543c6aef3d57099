"""The answer-think-answer form of VideoAuto-R1: a first answer, reasoning, and a reviewed answer.

`<answer> happy </answer><think> but the voice shakes </think><answer> happy, afraid </answer>`. One completion holds
both modes: up to the first answer it is fast thinking, as a whole it is slow thinking. Training rewards both answers
(`rl.rewards`); at inference the model stops after the first answer if it is confident
(`evaluation.answerers.adaptive`).

Source: VideoAuto-R1 (arXiv 2601.05175), "thinking once, answering twice". It writes the answers as boxed text, we use
our answer tags. Its escape answer ("let's analyze ...", with a bonus of its own) has no counterpart here, because
emotion words can always be guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mer_r1.emotions.thinking import TAG, Parsed, ThinkingMode, answer_word_spans, consists_of, format_completion, parse

ONCE, TWICE = "once", "twice"
FORMS = (ONCE, TWICE)
"""Forms of a completion: think and answer, or answer, think and answer."""

_ANSWER_END = "</answer>"
_STRICT_TAGS = ("<answer>", _ANSWER_END, "<think>", "</think>", "<answer>", _ANSWER_END)


@dataclass(frozen=True)
class ParsedTwice:
    """A parsed completion with two answers.

    Attributes:
        first: emotion words of the first answer: lower-case, each once, in order.
        reasoning: text of the first think block, trimmed; "" where there is none.
        final: emotion words of the last answer; empty where there is no second one.
        repeats: whether one of the answers names a word twice.
        well_formed: whether it is exactly answer, think, answer, and nothing else but white space.
    """

    first: tuple[str, ...]
    reasoning: str
    final: tuple[str, ...]
    repeats: bool
    well_formed: bool


def format_twice(first: Sequence[str], reasoning: str, final: Sequence[str]) -> str:
    """Write a completion with these answers and this reasoning; `parse_twice` returns them again.

    Raises:
        UserError: as `thinking.format_completion`.

    >>> format_twice(["happy"], "But the voice shakes.", ["happy", "afraid"])
    '<answer> happy </answer><think> But the voice shakes. </think><answer> happy, afraid </answer>'
    """
    opening = format_completion("", first).removeprefix("<think></think>")
    return opening + format_completion(reasoning, final)


def parse_twice(completion: str) -> ParsedTwice:
    """Parse a completion: strictly for its form, leniently for its content. Never raises.

    A completion that was cut short has no second answer: its first answer does not count as final.
    """
    answers = [answer for answer, _ in answers_in(completion)]
    words = [parse(answer).labels for answer in (*answers[:1], *answers[1:][-1:])]
    repeats = any(len(answer_word_spans(answer)) > len(parse(answer).labels) for answer in answers)
    first, final = (*words, (), ())[:2]
    well_formed = consists_of(_STRICT_TAGS, completion, list(TAG.finditer(completion)))
    return ParsedTwice(first, parse(completion).reasoning, final, repeats, well_formed)


def answers_in(completion: str) -> list[tuple[str, bool]]:
    """Each answer in a completion, as a text that holds nothing else, and whether it was closed there."""
    tags = [
        *((tag.group().lower(), tag.start(), tag.end()) for tag in TAG.finditer(completion)),
        ("", len(completion), 0),
    ]
    return [
        (f"<answer>{completion[begin:end]}</answer>", after == _ANSWER_END)
        for (name, _, begin), (after, end, _) in pairwise(tags)
        if name == "<answer>"
    ]


def first_answer_end(completion: str) -> int | None:
    """Number of characters up to the end of the first answer's closing tag; None where it is not closed.

    >>> first_answer_end("<answer> sad </answer><think> hm")
    22
    """
    place = completion.lower().find(_ANSWER_END)
    return None if place < 0 else place + len(_ANSWER_END)


def read_completion(completion: str, mode: str = ThinkingMode.SLOW, form: str = ONCE) -> Parsed:
    """Parse a completion of either form in either mode; `thinking.parse` for both forms.

    Of two answers, the first belongs to fast mode and the second to slow mode. A fast completion of the form "twice" is
    well formed if it is one closed answer and nothing else.

    Args:
        completion: text, prefilled part included.
        mode: "slow" or "fast".
        form: "once" or "twice".
    """
    if form == ONCE:
        return parse(completion)
    both = parse_twice(completion)
    if mode == ThinkingMode.SLOW:
        return Parsed(both.reasoning, ", ".join(both.final), both.final, both.well_formed)
    well_formed = consists_of(_STRICT_TAGS[:2], completion, list(TAG.finditer(completion)))
    return Parsed("", ", ".join(both.first), both.first, well_formed)
