"""The words of an answer in any form that models use: numbered, titled, with scores, options, JSON, markup.

Training rewards the form that was asked for (`thinking.parse`). Evaluation reads what a model means: the words of the
answer, or that it cannot be read, never a label such as "1. happy". What is no list of words (sentences, explanations,
negations, other scripts, a bare option letter) is left to a reader.
"""

import html
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from mer_r1.emotions.wheels import Taxonomy, builtin

MAX_LABEL_WORDS, MAX_LABEL_CHARACTERS = 4, 60
"""Words ("ill at ease" has three) and characters that a label may have; more are a sentence."""
MAX_ANSWER_CHARACTERS = 20_000

_TITLE_WORDS = """
a about all an and answer answers are as be can category categories clip detected dominant emotion emotional emotions
evident felt feeling feelings final following follows in include includes including is label labels list main most my of
output overall person person's persons predicted prediction primary result secondary sentiment state states step the
their these this video visible
"""
_PHRASE_WORDS = """
a am an are be because but can cannot could does either for from has have he he's her his however i i'm if in into is it
it's its maybe may might no nor not of on or perhaps possibly probably seems she she's so than that the there they this
though to unless was we were while who with without would yet you
"""
_TITLE = frozenset(_TITLE_WORDS.split())
"""Words of a title such as "The main emotions are:"; none of them is an emotion."""
_NO_LABEL = frozenset(_PHRASE_WORDS.split())
"""Words that make a piece a phrase, unless a wheel knows it as a whole ("ill at ease")."""
_MEASURES = ("confidence", "score", "probability", "intensity", "level", "rank", "index", "id", "weight")

_NUMBER = r"\d+(?:\.\d+)?\s*%?(?:\s*/\s*\d+)?"
_TAGS = re.compile(r"\\(?:boxed|text\w*|math\w*)\s*(?=\{)|\\[nrt]|<[^<>\n]{0,60}>|```\w*")
_CLEANERS = (
    (re.compile(rf"\(\s*(?:[a-z]{{4,12}}\s*[:=]?\s*)?{_NUMBER}\s*\)|[:=~]\s*{_NUMBER}(?![\w.])"), ""),
    (
        re.compile(
            r"(?<![\w'])(?i:option\s*)?(?:\(\s*(?:[A-Za-z]|\d{1,2})\s*\)|(?:[A-Z]|\d{1,2})\s*[.)](?!\d))\s*(?=\S)"
        ),
        "\n",
    ),
    (re.compile(r"(?:^|(?<=[,;\n])|(?i:\boption)) ?(?:[A-Z]|\d{1,2}) ?:\s*(?=\S)"), "\n"),
    (re.compile(r"="), ":"),
    (re.compile(r"[.!?](?=\s|$)|\s[-–—]+>?(?=\s)|->|[&~]|(?:\b(?:and|or|plus|as well as)\b)", re.IGNORECASE), "\n"),
)
_SEPARATOR = re.compile(r"[,;\n/]+")
_EDGE = " \t[](){}<>\"'`*_.!?:-#\\“”‘’•·"
_MARKS = frozenset("•·、。；，【】「」『』《》〔〕")
_BARE = re.compile(rf"^{_NUMBER}\s*[.)-]?\s*|\s*{_NUMBER}$")


def answer_words(answer: str) -> tuple[str, ...] | None:
    """The emotion words of an answer, lower-case and each once; () for an empty one, None if it cannot be read.

    >>> answer_words("Emotions: 1. Happy (0.8)<br>2) sad<|im_end|>"), answer_words("She is happy but tired")
    (('happy', 'sad'), None)
    """
    text = html.unescape(answer[: MAX_ANSWER_CHARACTERS + 1]).strip()
    if not text or len(text) > MAX_ANSWER_CHARACTERS:
        return None if text else ()
    pieces = _pieces(text)
    if not pieces:
        return None if pieces is None or text.strip("[]{} \n") else ()
    found = [list(_words(piece)) for piece in pieces]
    if not all(found) or any(None in words for words in found):
        return None
    return tuple(dict.fromkeys(word for words in found for word in words if word)) or None


def unknown_words(labels: Sequence[str], taxonomy: Taxonomy) -> list[str]:
    """The labels that no wheel knows; "neutral", which is not on any wheel, counts as known."""
    return [label for label in labels if label.lower() not in taxonomy.forms and label.lower() != "neutral"]


def rule_doubt(labels: Sequence[str], taxonomy: Taxonomy | None) -> str | None:
    """What is doubtful about labels that a rule found and no reader confirmed; None if nothing is."""
    unknown = [] if taxonomy is None else unknown_words(labels, taxonomy)
    if unknown and len(unknown) == len(labels):
        return "no wheel knows any of its words"
    return f"no wheel knows {', '.join(unknown)}" if unknown else None


def _pieces(text: str) -> list[str] | None:
    """The texts that a JSON answer holds, see `_strings`; of any other answer the text."""
    try:
        value = json.loads(re.sub(r"^```\w*|```$", "", text).strip())
    except (ValueError, RecursionError):
        return [text]
    return _strings(value) if isinstance(value, dict | list) else [text]


def _strings(value: Any, depth: int = 0) -> list[str] | None:
    """The words in a JSON value: texts of lists, keys with a number above 0, values of titles; None if unclear."""
    if isinstance(value, str):
        return [value]
    if depth > 4 or not isinstance(value, dict | list):
        return None
    found: list[str] = []
    for item in value.items() if isinstance(value, dict) else (("", item) for item in value):
        name, inner = item
        if isinstance(inner, bool | int | float) and name:
            found += [name] if inner and name.lower() not in _MEASURES else []
            continue
        texts = _strings(inner, depth + 1)
        if texts is None or (
            name and not set(re.findall(r"[\w']+", name.lower().replace("_", " "))) <= _TITLE | {"name"}
        ):
            return None
        found += texts
    return found


def _words(text: str) -> Iterator[str | None]:
    """The labels of a text, "" for pieces without any (numbers, titles), None for what is no label."""
    text = unicodedata.normalize("NFKC", "".join(map(_sign, _TAGS.sub("\n", text))))
    text = re.sub(r"\s*[\n\r]\s*", "\n", re.sub(r"[ \t]+", " ", text))
    for pattern, mark in _CLEANERS:
        text = pattern.sub(mark, text)
    for piece in _SEPARATOR.split(text):
        title, _, rest = (part.strip(_EDGE) for part in piece.rpartition(":"))
        if not rest:
            title, rest = "", title
        words = _untitled(_BARE.sub("", rest).strip(_EDGE).lower().replace("_", " "))
        if not set(title.lower().split()) <= _TITLE or (len(rest) == 1 and rest.isupper()):  # or an option's letter
            yield None
        elif words or title:
            yield _label(words) if words else ""


def _untitled(text: str) -> str:
    words = text.split()
    while len(" ".join(words)) > 3 and words[0] in _TITLE and not _is_known(" ".join(words)):
        del words[0]
    return " ".join(words)


def _label(text: str) -> str | None:
    """The text if it may be a label: few Latin words, known as a whole or no phrase."""
    words = text.split()
    if _is_known(text):
        return text
    if len(words) > MAX_LABEL_WORDS or len(text) > MAX_LABEL_CHARACTERS or not any(map(str.isalpha, text)):
        return None
    if not all(sign in " -'’" or unicodedata.name(sign, "").startswith("LATIN") for sign in text):
        return None
    phrase = len(words) > 1 and (not _NO_LABEL.isdisjoint(words) or sum(map(_is_known, words)) > 1)
    return None if phrase else text


@lru_cache(4096)
def _is_known(text: str) -> bool:
    return text in builtin().forms or text == "neutral"


def _sign(sign: str) -> str:
    """A character as it is; nothing for invisible ones, a separator for symbols and circled numbers."""
    kind = unicodedata.category(sign)
    if kind in ("Cf", "Cc", "Mn", "Me", "Co", "Cs") and sign not in "\n\r\t":
        return ""
    return "\n" if (kind in ("So", "No", "Sc", "Sm", "Zl", "Zp") and sign not in "=~<>") or sign in _MARKS else sign
