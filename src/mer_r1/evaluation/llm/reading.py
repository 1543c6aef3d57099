"""One lenient reader of what language models reply, for readers and judges: JSON and lists, with or without company.

Reasoning is removed first. Then every JSON value and every list in square brackets counts, in a code fence or not, with
prose around it or not, in ASCII or in full-width punctuation. The caller says which of them it can use; a reply with
none, or with several, is not read.
"""

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from mer_r1.emotions.wheels import parse_labels

MAX_CHARACTERS, MAX_STARTS = 50_000, 200
"""Longest reply that is read, and most brackets in it that may open a value."""

_NAMES = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad)"
_MARK = re.compile(  # opening marks are group 1; everything else closes
    rf"(<\s*{_NAMES}\s*>|\[think\]|◁think▷|<\|(?:begin_of_thought|start_thinking)\|>|<\|channel\|>analysis<\|message\|>)"
    rf"|<\s*/\s*{_NAMES}\s*>|\[/think\]|◁/think▷|<\|(?:end_of_thought|end_thinking)\|>"
    r"|<\|channel\|>final<\|message\|>|\bassistantfinal\b",
    re.IGNORECASE,
)
_SPECIAL = re.compile(r"<\|[^<>|]{1,40}\|>|</?s>|[\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]")
_ASCII = {ord(wide): chr(ord(wide) - 0xFEE0) for wide in map(chr, range(0xFF01, 0xFF5F))}
_ASCII |= dict(zip(map(ord, "【】〔〕「」『』、。；“”‘’\u3000"), '[][]"""",.,""\'\' ', strict=True))
_LIST = re.compile(r"\[[^\[\]]*\]")
_DECODER = json.JSONDecoder(strict=False)

Value = TypeVar("Value")


def without_thinking(text: str) -> str:
    """The text without think blocks in any common form; "" where it ends within one.

    A block may lack its opening mark (chat templates write it into the prompt) or its closing one (a cut reply).

    >>> without_thinking("He smiles, so [angry]? No.</think> [happy]"), without_thinking("<think> [angry] is")
    ('[happy]', '')
    """
    kept, place, depth = "", 0, 0
    for mark in _MARK.finditer(text):
        before = text[place : mark.start()]
        place = mark.end()
        if mark.group(1):
            kept += "" if depth else before
            depth += 1
        elif depth:
            depth -= 1
        else:
            kept = ""
    kept += "" if depth else text[place:]
    return _SPECIAL.sub("", kept).strip()


def ascii_punctuation(text: str) -> str:
    """The text with ASCII in place of full-width letters, digits, punctuation and quotes."""
    return text.translate(_ASCII)


def only_value(text: str, read: Callable[[Any, str], Value | None]) -> Value | None:
    """What `read` makes of the JSON values and lists in a reply; None if it reads none, or several.

    Args:
        text: a reply without its reasoning.
        read: gets a value and its text, None if it cannot use it. A list that is no JSON comes as its words.

    >>> only_value('Sure: ```JSON {"ratings": ["1/1"]}```', lambda value, text: text)
    '{"ratings": ["1/1"]}'
    """
    text, found, place = ascii_punctuation(text[: MAX_CHARACTERS + 1]), list[Value](), 0
    if len(text) > MAX_CHARACTERS:
        return None
    for _ in range(MAX_STARTS):
        starts = [start for start in (text.find("[", place), text.find("{", place)) if start >= 0]
        if not starts:
            return found[0] if len(found) == 1 else None
        place = min(starts)
        value, end = _value_at(text, place)
        if end is not None and (read_value := read(value, text[place:end])) is not None:
            found.append(read_value)
        place = end or place + 1
    return None


def _value_at(text: str, start: int) -> tuple[Any, int | None]:
    """The JSON value or list that begins here, and its end; None for the end where neither does."""
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        words = _LIST.match(text, start)
        return (parse_labels(words.group()), words.end()) if words else (None, None)
