"""Reading a chat server's responses: a reply, or one of many errors.

Errors come in three kinds. AGAIN: the next attempt may succeed (too many requests, a server's fault, a broken
connection, invalid output). PROMPT: this prompt will never succeed, others may (too long, filtered, refused). STOP: no
request will (wrong key, no such model). The client acts on the kind; this module only tells them apart.

A server may send anything. Every field goes through one path: it is bounded, secrets are blanked out after parsing (an
escape hides no key), and a message is one printable line. Only a reply that ended by itself is a reply.
"""

import json
import random
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from mer_r1.errors import printable
from mer_r1.evaluation.llm.chat import Reply, sound_text

_AGAIN_STATUS = (408, 409, 425, 429)
_STOP_STATUS = {401: "the key is not accepted", 402: "the account cannot pay", 403: "access is denied"}
MAX_BODY = 16 * 2**20
"""Longest body of a response, in bytes after decompression."""
_NO_CREDIT = "insufficient_quota"
_SHOWN, _SEARCHED, _DEEPEST = 200, 4000, 50
_MOST_TOKENS = 2**40
_LONGEST_WAIT = 7 * 86400.0
"""Seconds; a longer Retry-After is a mistake of the server and counts as none."""

_ENDED = ("stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete")
_CUT = ("length", "max_tokens", "max_output_tokens", "model_length")
_FILTERED = re.compile(r"filter|safety|recitation|block|refus", re.IGNORECASE)
LENGTHS = ("max_tokens", "max_completion_tokens")
_SCHEMA = re.compile(r"response_format|json[_ ]schema|structured|guided|grammar|json mode", re.IGNORECASE)
_REFUSAL = re.compile(
    r"support|unrecogni[sz]ed|unknown|unexpected|unavailable|not (?:be )?(?:permitted|allowed|accept|available)|forbid|"
    r"extra inputs|deprecated|only the default|use .{0,3}max_completion_tokens",
    re.IGNORECASE,
)
_BAD_VALUE = re.compile(r"must be|invalid|expected", re.IGNORECASE)
_TOO_LONG = re.compile(r"too (?:large|long)|context|exceed", re.IGNORECASE)


class Kind(Enum):
    """Whether the same request may succeed later, never, or whether no request will."""

    AGAIN = "again"
    PROMPT = "prompt"
    STOP = "stop"


@dataclass(frozen=True)
class Retries:
    """Retry policy.

    Attributes:
        attempts: requests for one prompt until it counts as failed; None takes the prompt's own number.
        first_wait: seconds before the second attempt; each further wait is twice as long, with jitter.
        longest_wait: upper limit of these waits, in seconds.
        longest_asked: longest Retry-After that is waited for, in seconds; a server that asks for more stops the run.
        give_up_after: failed prompts in a row after which the run stops.
    """

    attempts: int | None = None
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_asked: float = 600.0
    give_up_after: int = 20


@dataclass(frozen=True)
class RequestError:
    """Why a request gave no reply: a value, never raised.

    Attributes:
        kind: which requests it concerns, see `Kind`.
        message: one line with the server's own words.
        status: HTTP status; None without one.
        retry_after: seconds that the server asks to wait; None if it does not.
        parameter: name that the server's error gives as its reason; "" without one.
        said: the server's own words, longer than in the message.
        finish_reason: how a broken reply ended, in the server's word; "" without a reply.
    """

    kind: Kind
    message: str
    status: int | None = None
    retry_after: float | None = None
    parameter: str = ""
    said: str = ""
    finish_reason: str = ""


async def read_bounded(response: Any) -> None:
    """Read the body of a response as UTF-8, whatever its headers say, and stop a body without end.

    Raises:
        OverflowError: the body is too long.
    """
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            raise OverflowError(f"the response is longer than {MAX_BODY // 2**20} MiB")
    response._content = b"".join(parts)
    response.encoding = "utf-8"


def read_reply(
    content: str | bytes, seconds: float, structured: bool, hide: Callable[[str], str] = str
) -> tuple[Reply | RequestError, int, int]:
    """The reply in the body of a successful response, or what is wrong with it.

    A server that parses the reasoning out of a reply sends it as `reasoning_content` or `reasoning`. It is put back in
    front, as a think block; where it is all there is, it is the reply. `hide` blanks out secrets.

    Returns:
        The reply (its text is not blank) or the error; tokens read; tokens written.
    """
    try:
        body = blanked(json.loads(content), hide)
    except (ValueError, RecursionError):
        text = content if isinstance(content, str) else content.decode("utf-8", "replace")
        return RequestError(Kind.AGAIN, f"the server sent no JSON but {_short(hide(text))}"), 0, 0
    read, written = _tokens(body)
    try:
        choice = body["choices"][0]
        message = dict(choice["message"].items())
    except (TypeError, LookupError, AttributeError):
        return RequestError(Kind.AGAIN, f"the server sent no choice but {_short(_text_of(body))}"), read, written
    ended = _short(_text_of(choice.get("finish_reason") or "stop"))[:40]
    finish_reason = "stop" if ended.lower() in _ENDED else "length" if ended.lower() in _CUT else ended
    words, reasoning = map(sound_text, _spoken(message))
    said = words if words.strip() else reasoning if finish_reason == "stop" else ""
    if finish_reason in ("stop", "length") and said.strip():
        return Reply(said, None, finish_reason, structured, read, written, seconds), read, written
    if refusal := message.get("refusal"):
        return RequestError(Kind.PROMPT, f"the model refuses: {_short(_text_of(refusal))}"), read, written
    return _broken(ended, finish_reason, bool(words.strip())), read, written


def _broken(ended: str, finish_reason: str, has_words: bool) -> RequestError:
    """The error of a reply that has no words, or did not end by itself or at its longest length."""
    problem = f"{'a broken' if has_words else 'an empty'} reply"
    problem += "" if finish_reason == "stop" else f", ended by {ended!r}"
    kind = Kind.PROMPT if finish_reason == "length" or _FILTERED.search(ended) else Kind.AGAIN
    return RequestError(kind, problem, finish_reason=ended)


def classify_error(
    error: Exception, model: str, base_url: str, key_variable: str, hide: Callable[[str], str]
) -> RequestError:
    """What an exception of the `openai` package, or a time-out, means for this request and the others.

    The other arguments are for the message; `hide` blanks out secrets in a text before it is shortened.
    """
    import openai

    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return RequestError(Kind.AGAIN, "no reply in time")
    if not isinstance(error, openai.APIStatusError):
        cause = error.__cause__ or error
        return RequestError(Kind.AGAIN, f"the connection failed: {type(cause).__name__} {_short(hide(str(cause)))}")
    status, words = error.status_code, _said(error, hide)
    said = _short(words)
    if status in _STOP_STATUS:
        return RequestError(Kind.STOP, f"{status}, {_STOP_STATUS[status]} (key from {key_variable}): {said}", status)
    if status in (404, 405):
        return RequestError(Kind.STOP, f"{status}, no model {model!r} or no API at {base_url}: {said}", status)
    if error.code == _NO_CREDIT or error.type == _NO_CREDIT:
        return RequestError(Kind.STOP, f"{status}, the account's quota is used up: {said}", status)
    if status in _AGAIN_STATUS or status >= 500:
        return RequestError(Kind.AGAIN, f"{status}: {said}", status, retry_after(error.response.headers))
    parameter = error.param if isinstance(error.param, str) else ""
    return RequestError(Kind.PROMPT, f"{status}: {said}", status, parameter=parameter, said=words)


def refused_parameter(error: RequestError, sent: Collection[str]) -> str | None:
    """Which of the optional parameters sent the server does not take; None if its error is about something else."""
    places = {name: re.search(rf"(?<!\w){re.escape(name)}(?!\w)", error.said) for name in sent}
    named = sorted((place.start(), name) for name, place in places.items() if place)
    name = error.parameter if error.parameter in sent else named[0][1] if named else ""
    if name in LENGTHS:
        return None if _TOO_LONG.search(error.said) or not _REFUSAL.search(error.said) else name
    if name and (name == error.parameter or _REFUSAL.search(error.said) or _BAD_VALUE.search(error.said)):
        return name
    return "response_format" if "response_format" in sent and _SCHEMA.search(error.said) else None


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds to wait by a response's `retry-after-ms` or `retry-after` (seconds or a date); None without a valid one.

    Args:
        headers: headers of the response; names in lower case, or a mapping that ignores case.
        now: present time with its time zone; None reads the clock.

    >>> retry_after({"retry-after": "2.5"})
    2.5
    >>> retry_after({"retry-after": "Fri, 02 Jan 2026 00:00:30 GMT"}, datetime(2026, 1, 2, tzinfo=UTC))
    30.0
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                moment = parsedate_to_datetime(value)
            except (ValueError, TypeError, IndexError, OverflowError, RecursionError):
                continue
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            try:
                seconds = (moment - (now or datetime.now(UTC))).total_seconds()
            except OverflowError:  # its zone takes it out of the calendar
                continue
        if seconds <= _LONGEST_WAIT:  # NaN is none
            return max(0.0, seconds)
    return None


def backoff(attempt: int, first: float, longest: float) -> float:
    """Seconds to wait after failed attempt number `attempt` (0, 1 ...): doubling, capped, with jitter.

    Between half of min(longest, first × 2^attempt) and all of it, so that parallel requests do not come back together.
    """
    ceiling = min(longest, first * 2.0 ** min(attempt, 60))
    return ceiling * random.uniform(0.5, 1.0)


def blanked(value: Any, hide: Callable[[str], str], depth: int = 0) -> Any:
    """A parsed body with every text passed through `hide`: in the raw body a secret may be written with escapes."""
    if isinstance(value, dict | list) and depth > _DEEPEST:
        return None
    if isinstance(value, dict):
        return {hide(str(name)): blanked(item, hide, depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [blanked(item, hide, depth + 1) for item in value]
    return hide(value) if isinstance(value, str) else value


def _tokens(body: Any) -> tuple[int, int]:
    usage = body.get("usage") if isinstance(body, dict) else None
    counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    read, written = (count if type(count) is int and 0 < count < _MOST_TOKENS else 0 for count in counts)
    return read, written


def _spoken(message: Mapping[str, Any]) -> tuple[str, str]:
    """What a message says, with its reasoning in front as a think block; and the reasoning alone."""
    content = message.get("content")
    given = message.get("reasoning_content") or message.get("reasoning")
    words, reasoning = _joined(content, "text"), _joined(given, "text") if given else _joined(content, "thinking")
    if reasoning.strip() and words.strip() and "<think" not in words:
        words = f"<think>{reasoning}</think>{words}"
    return words, reasoning


def _joined(content: Any, kind: str) -> str:
    """The parts of one kind ("text" or "thinking") of a message's content, joined; plain content is a text."""
    if isinstance(content, list):
        parts = [part.get(kind) for part in content if isinstance(part, dict)]
        texts = (_joined(part, "text") if kind == "thinking" else part for part in parts)
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) and kind == "text" else ""


def _said(error: Any, hide: Callable[[str], str]) -> str:
    """The server's own message about an error."""
    body = blanked(error.body, hide)
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    return _text_of(body or hide(str(error.message)))[:_SEARCHED]


def _text_of(value: Any) -> str:
    """Any JSON value as a text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _short(text: str) -> str:
    line = " ".join(text[: 50 * _SHOWN].split())
    return printable(line[:_SHOWN] + " …" if len(line) > _SHOWN else line) or "nothing"
