"""Read a language model's reply as labels or as a sentiment, and say what is wrong with it.

Replies are cleaned exactly as the reference of MER-UniBench cleans them (AffectGPT release), oddities included. The
reference then scores the result, valid or not. `read_labels` and `read_sentiment` also report a reply that is not a
list of English words, or not a sentiment. They use the lenient reader that judges use, too (`llm.reading`).
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from mer_r1.emotions.answers import MAX_LABEL_CHARACTERS, MAX_LABEL_WORDS, unknown_words
from mer_r1.emotions.sentiment import SENTIMENTS
from mer_r1.emotions.wheels import Taxonomy, parse_labels
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.reading import ascii_punctuation, only_value

_PREFIXES = ("输入", "输出", "翻译", "让我们来翻译一下：", "output", "Output", "input", "Input")
_TITLE = re.compile(r"(?:the )?(?:final )?(?:sentiment|answer|label|output)(?: is|\W*[:=])", re.IGNORECASE)
_ORNAMENT = " \t.`*!'\"[]{}:"

Verdict = tuple[str | None, str | None]
"""The value in a reply, or None; and what is wrong or doubtful about it, or None."""


def clean_reply(reply: str) -> str:
    r"""A language model's reply without the words that introduce it, exactly as the reference cleans it.

    Trim; drop each of eight prefixes at most once, in their fixed order; trim; drop one ":" and then one "："; trim;
    drop every line feed; trim. Its quirk is kept: "outputs: x" becomes "s: x".

    >>> clean_reply("\n Output \n: [a,\n b]")
    '[a, b]'
    """
    text = reply.strip()
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    text = text.strip().removeprefix(":").removeprefix("：")
    return text.strip().replace("\n", "").strip()


def read_labels(reply: str, taxonomy: Taxonomy | None = None) -> Verdict:
    """The label string in a reply, and what is wrong or doubtful about it.

    Args:
        reply: reply; anything around the one list in it is ignored. A JSON object may hold the list.
        taxonomy: wheels with the known words; without any known word the string is doubtful.

    >>> read_labels("Output: [happy, sad].")
    ('[happy, sad]', None)
    >>> read_labels("He seems happy.")
    (None, 'it is no list in square brackets')
    """
    text = only_value(reply, _list_text)
    if text is None:
        return None, "it is no list in square brackets"
    text = " ".join(text.split())
    labels = parse_labels(text)
    for label in labels:
        if not all(unicodedata.name(sign, "").startswith("LATIN") for sign in label if sign.isalpha()):
            return None, f"{label!r:.40} is not English"
        if len(label.split()) > MAX_LABEL_WORDS or len(label) > MAX_LABEL_CHARACTERS:
            return None, f"{label!r:.40} is a sentence, not an emotion word"
    return text, doubt_about(labels, taxonomy)


def _list_text(value: Any, text: str) -> str | None:
    """The label string in a value of a reply: a list of words, or the only such list in an object."""
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return text
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        if len(lists) == 1 and all(isinstance(word, str) for word in lists[0]):
            return f"[{', '.join(lists[0])}]"
    return None


def doubt_about(labels: Sequence[str], taxonomy: Taxonomy | None) -> str | None:
    """What is doubtful about labels that a reader named: that no wheel knows any of them; None if nothing is.

    Args:
        labels: emotion words; "neutral", which is not on any wheel, counts as known.
        taxonomy: wheels with the known words; None accepts all words.
    """
    unknown = [] if taxonomy is None else unknown_words(labels, taxonomy)
    return "no wheel knows any of its words" if unknown and len(unknown) == len(labels) else None


def read_sentiment(reply: str) -> Verdict:
    """The sentiment in a reply, and what is wrong with it.

    >>> read_sentiment("**Positive.**"), read_sentiment("happy")
    (('positive', None), (None, 'it is none of positive, negative, neutral'))
    """
    text = clean_reply(ascii_punctuation(reply))
    named = only_value(text, lambda value, _: next(iter(value.values()), None) if isinstance(value, dict) else None)
    text = _TITLE.sub("", named if isinstance(named, str) else text, count=1).strip(_ORNAMENT).lower()
    return (text, None) if text in SENTIMENTS else (None, f"it is none of {', '.join(SENTIMENTS)}")


def read_as_reference(reply: str) -> Verdict:
    """Any reply, cleaned; doubtful where `read_labels` and `read_sentiment` would both refuse it."""
    text = clean_reply(reply)
    if text == "[":  # the reference stops with an index error when it parses this
        return None, "a lone '[' cannot be parsed"
    valid = read_labels(reply)[0] == text or text in SENTIMENTS
    return text, None if valid else "it is not in the form that was asked for"


def list_parse_row(value: Any) -> dict[str, Any]:
    """A label string and the list it parses to, in the keys of the reference values; the reference's error by name."""
    try:
        return {"in": value, "out": parse_labels(value)}
    except UserError:
        if value != "[":
            raise
        return {"in": value, "out": "EXC IndexError"}


def llm_reply_row(value: Any) -> dict[str, Any]:
    """A reply and its cleaned form, in the keys of the reference values.

    Raises:
        UserError: the reply is not a text.
    """
    if not isinstance(value, str):
        raise UserError(f"expected a reply as a text, got {value!r:.80}")
    return {"in": value, "out": clean_reply(value)}
