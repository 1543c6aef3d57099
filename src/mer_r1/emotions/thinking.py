"""Two modes of answering one question: slow thinking reasons first, fast thinking answers directly.

A completion is `<think> reasoning </think><answer> happy, excited </answer>`. Fast thinking has no own prompt and
is not trained: the question is the same, and the completion is prefilled with an empty think block,
`<think></think><answer>`, so that the model can only continue with the answer (the paper: "triggering direct answers").

This module writes questions and completions, and parses completions: strictly for the format reward, leniently for the
labels, because a sampled text can be anything. The inner blanks of `<answer> happy` make the first token of each
emotion word the one that begins with a blank, wherever the word stands.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mer_r1.errors import UserError

logger = logging.getLogger(__name__)

FAST_PREFILL = "<think></think><answer>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""The form of a completion, in this order."""
_TALK = {
    "video": r"face|smil\w+|smirk|grin|sneer|frown|brows?|eyes?|eyelids|lips?|mouth|nose|jaw|teeth|cheeks?|head|nod"
    r"|gaze|look|tears|see|seen|picture",
    "audio": r"voice|tone|toneless|hear|heard|sound|speech|pitch|volume|breath|sighs|pauses|hushed",
    "subtitle": r"words|subtitle|sentence|speaker says|joke|story|talk|insult|complaint|threat|warning|apology|thanks"
    r"|plan|memory|question|phrase|failure|news",
}
_MENTIONS = {channel: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for channel, words in _TALK.items()}
CHANNELS = tuple(_TALK)
"""What a clip may lack: picture, sound, words (the manifest's video, audio, subtitle)."""
MAX_SUBTITLE_CHARACTERS = 1000
FULL_QUESTION = (
    "{subtitle} Which emotions does the person in this clip feel? Study the face, listen to the voice and weigh the "
    "words, and notice where they disagree. Reason step by step inside <think> </think>. Then list every emotion that "
    "is evident, as English words separated by commas, inside <answer> </answer>."
)
SHORT_QUESTION = "{subtitle} Weigh face, voice and words."
WORDINGS = {"full": FULL_QUESTION, "short": SHORT_QUESTION}
"""Wordings of the question about emotions, by name."""
TEXT = "{text}"
"""Where a question of one's own holds the text of its row."""
DESCRIBE_QUESTION = "{subtitle} Describe what you see and hear."
REMARK_QUESTION = "{subtitle} What would people say?"

TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
_PIECE = re.compile(r"[^,;\n\r/、，；]+")
_WORD = re.compile(r"\S+")
_WRAPPING = frozenset("[](){}<>【】「」『』《》\"'“”‘’`*_.。!！?？:：•-")


class ThinkingMode(StrEnum):
    """How the model answers: SLOW reasons first, FAST answers directly."""

    SLOW = "slow"
    FAST = "fast"


@dataclass(frozen=True)
class Parsed:
    """A parsed completion.

    Attributes:
        reasoning: text of the first think block, trimmed; "" where there is none.
        answer: text of the answer that was read, trimmed; "" where there is none.
        labels: emotion words of the answer: lower-case, inner blanks single, each once, in order.
        well_formed: whether the completion is exactly one think block, then exactly one answer block, and nothing else
            but white space. The empty think block of fast thinking is well formed too.
    """

    reasoning: str
    answer: str
    labels: tuple[str, ...]
    well_formed: bool


def question(subtitle: str | None, style: str = "full", told: str = "") -> str:
    """The user's question about one clip, the same for slow and fast thinking.

    Args:
        subtitle: spoken words; None or blank becomes "No subtitle.". In a question of one's own the text as it is.
        style: "full" for large models; "short" for the tiny model, whose prompts have some 70 tokens; or a question of
            one's own with `TEXT` in it (`set_task.SetTask`).
        told: text that describes video and audio, for prompts without them.

    Raises:
        UserError: unknown style.
    """
    if TEXT in style:
        return style.replace(TEXT, f"{_one_line(subtitle)} {told}".strip())
    if style not in WORDINGS:
        raise UserError(f"style: expected {' or '.join(WORDINGS)}, or a question with {TEXT} in it, got {style!r:.80}")
    return WORDINGS[style].format(subtitle=f"{subtitle_sentence(subtitle)} {told}".strip())


def describe_question(subtitle: str | None) -> str:
    """A question of the tiny model's base stage: describe video and audio."""
    return DESCRIBE_QUESTION.format(subtitle=subtitle_sentence(subtitle))


def remark_question(subtitle: str | None, told: str = "") -> str:
    """A question of the tiny model's base stage: what people would say about the clip.

    Args:
        subtitle: see `question`.
        told: text that describes video and audio, for prompts without them.
    """
    return REMARK_QUESTION.format(subtitle=f"{subtitle_sentence(subtitle)} {told}".strip())


def prefill(mode: ThinkingMode) -> str:
    """The prefilled beginning of a completion: nothing in slow mode, an empty think block in fast mode."""
    return FAST_PREFILL if ThinkingMode(mode) is ThinkingMode.FAST else ""


def format_completion(reasoning: str, labels: Sequence[str]) -> str:
    """Write a completion with this reasoning and these labels; an empty reasoning gives the fast form.

    `parse` returns the reasoning and the (lower-cased, trimmed) labels again.

    Raises:
        UserError: no labels, a label that would not be read back as one word, or a tag inside the reasoning.

    >>> format_completion("", ["happy", "excited"])
    '<think></think><answer> happy, excited </answer>'
    """
    reasoning = reasoning.strip()
    if TAG.search(reasoning):
        raise UserError(f"reasoning: must not contain think or answer tags, got {reasoning!r:.80}")
    if not labels:
        raise UserError("labels: expected at least one word for the answer, got none")
    for label in labels:
        spans = [] if TAG.search(label) else list(_label_spans(label, 0, len(label)))
        if [label[start:end] for start, end in spans] != [label.strip()]:
            raise UserError(f"labels: {label!r:.80} would not be read back as one label")
    think = f"<think> {reasoning} </think>" if reasoning else "<think></think>"
    return f"{think}<answer> {', '.join(label.strip() for label in labels)} </answer>"


def parse(completion: str) -> Parsed:
    """Parse a completion: strictly for its form, leniently for its content. Never raises, linear in the text's length.

    Labels come from the last <answer>, closed or not; without one, from the text that a lone </answer> closes or that
    follows the last </think>. A text without any of these tags has no labels: it is reasoning cut short.
    """
    tags = list(TAG.finditer(completion))
    start, end = _answer_range(completion, tags)
    words = (completion[first:last] for first, last in _label_spans(completion, start, end))
    labels = dict.fromkeys(" ".join(word.lower().split()) for word in words)
    well_formed = consists_of(TAGS, completion, tags)
    return Parsed(_reasoning(completion, tags), completion[start:end].strip(), tuple(labels), well_formed)


def answer_word_spans(completion: str) -> list[tuple[int, int]]:
    """Character spans (start, end) of the emotion words of the answer, repeated words included.

    The labels of `parse` are these spans in lower case, each once. The first token of every span is an anchor of the
    category confidence.

    >>> answer_word_spans("<think></think><answer> sad, ill at ease </answer>")
    [(24, 27), (29, 40)]
    """
    return list(_label_spans(completion, *_answer_range(completion, list(TAG.finditer(completion)))))


def channels_of(reasoning: str) -> set[str]:
    """Channels of a clip that a reasoning speaks of, of `CHANNELS`.

    The English words looked for are those of short reasonings such as the built-in scenes': a sign, not a proof. The
    option `absent_channels` of the rewards and `lab.tiny.absence` use it.

    >>> sorted(channels_of("I see a wide smile. The words do not fit the face. So sad."))
    ['subtitle', 'video']
    """
    return {channel for channel, found in _MENTIONS.items() if found.search(reasoning)}


def subtitle_sentence(subtitle: str | None) -> str:
    """The subtitle in quotes, as one line without tags or a chat template's special tokens."""
    text = _one_line(subtitle)
    if not text:
        return "No subtitle."
    if len(text) > MAX_SUBTITLE_CHARACTERS:
        logger.warning("subtitle of %d characters cut to %d", len(text), MAX_SUBTITLE_CHARACTERS)
        text = text[:MAX_SUBTITLE_CHARACTERS] + "…"
    return 'Subtitle: "' + text.replace('"', "'") + '"'


def _one_line(text: str | None) -> str:
    """A text as one line without tags or a chat template's special tokens."""
    return " ".join((text or "").split()).replace("<", "‹").replace(">", "›")


def consists_of(form: Sequence[str], completion: str, tags: Sequence[re.Match[str]]) -> bool:
    """Whether a completion has exactly these pairs of tags, and only white space outside of them."""
    ends = [0, *(tag.end() for tag in tags[1::2])]
    starts = [*(tag.start() for tag in tags[::2]), len(completion)]
    outside = "".join(completion[end:start] for end, start in zip(ends, starts, strict=False))
    return [tag.group() for tag in tags] == list(form) and not outside.strip()


def _reasoning(completion: str, tags: Sequence[re.Match[str]]) -> str:
    """Text from the first <think> to the next tag, or to the end."""
    for index, tag in enumerate(tags):
        if tag.group().lower() == "<think>":
            end = tags[index + 1].start() if index + 1 < len(tags) else len(completion)
            return completion[tag.end() : end].strip()
    return ""


def _answer_range(completion: str, tags: Sequence[re.Match[str]]) -> tuple[int, int]:
    """Start and end of the text that holds the labels; an empty range where there is none."""
    names = [tag.group().lower() for tag in tags]
    ends = [*(tag.start() for tag in tags[1:]), len(completion)]
    for name in ("<answer>", "</answer>", "</think>"):
        if name not in names:
            continue
        last = len(names) - 1 - names[::-1].index(name)
        if name == "</answer>":  # closed but never opened
            return (tags[last - 1].end() if last else 0), tags[last].start()
        return tags[last].end(), ends[last]
    return 0, 0


def _label_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Spans of the labels in text[start:end]: split at separators and the word "and", wrapping punctuation removed."""
    for piece in _PIECE.finditer(text, start, end):
        words: list[tuple[int, int]] = []
        for word in _WORD.finditer(text, piece.start(), piece.end()):
            if word.group().lower() == "and":
                yield from _unwrapped(text, words)
                words = []
            else:
                words.append(word.span())
        yield from _unwrapped(text, words)


def _unwrapped(text: str, words: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The span of consecutive words without surrounding brackets, quotes, bullets and stops, if anything is left."""
    if not words:
        return
    start, end = words[0][0], words[-1][1]
    while start < end and (text[start] in _WRAPPING or text[start].isspace()):
        start += 1
    while start < end and (text[end - 1] in _WRAPPING or text[end - 1].isspace()):
        end -= 1
    if start < end:
        yield start, end
