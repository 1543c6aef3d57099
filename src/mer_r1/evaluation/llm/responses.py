"""Reading a chat server's responses: a reply, or one of many errors.

Errors come in three kinds. AGAIN: the next attempt may succeed (too many requests, a server's fault, a broken
connection, invalid output). PROMPT: this prompt will never succeed, others may (too long, filtered, refused). STOP: no
request will (wrong key, no such model). The client acts on the kind; this module only tells them apart.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from mer_r1.evaluation.llm.chat import Reply

_AGAIN_STATUS = (408, 409, 425, 429)
_STOP_STATUS = {401: "the key is not accepted", 402: "the account cannot pay", 403: "access is denied"}
_OUR_PARAMETERS = ("temperature", "seed", "top_p", "repetition_penalty", "max_completion_tokens")
_NO_CREDIT = "insufficient_quota"
_SHOWN = 200
_DEEPEST = 50


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
        wants_completion_tokens: whether the server only objects to the old name of `max_completion_tokens`.
    """

    kind: Kind
    message: str
    status: int | None = None
    retry_after: float | None = None
    wants_completion_tokens: bool = False


def read_reply(
    text: str, seconds: float, structured: bool, hide: Callable[[str], str] = str
) -> tuple[Reply | RequestError, int, int]:
    """The reply in the body of a successful response, or what is wrong with it; `hide` blanks out secrets in a text.

    Returns:
        The reply (its text is not blank) or the error; tokens read; tokens written.
    """
    try:
        body = blanked(json.loads(text), hide)
    except (ValueError, RecursionError):
        return RequestError(Kind.AGAIN, f"the server sent no JSON but {_short(hide(text))}"), 0, 0
    read, written = _tokens(body)
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return RequestError(Kind.AGAIN, f"the server sent no choice but {_short(json.dumps(body))}"), read, written
    finish_reason = str(choice.get("finish_reason") or "stop")
    words = _content(message.get("content"))
    if words.strip():
        return Reply(words, None, finish_reason, structured, read, written, seconds), read, written
    if message.get("refusal"):
        return RequestError(Kind.PROMPT, f"the model refuses: {_short(str(message['refusal']))}"), read, written
    if finish_reason in ("length", "content_filter"):
        return RequestError(Kind.PROMPT, f"an empty reply, ended by {finish_reason!r}"), read, written
    return RequestError(Kind.AGAIN, "an empty reply"), read, written


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
    status, said = error.status_code, _said(error, hide)
    if status in _STOP_STATUS:
        return RequestError(Kind.STOP, f"{status}, {_STOP_STATUS[status]} (key from {key_variable}): {said}", status)
    if status in (404, 405):
        return RequestError(Kind.STOP, f"{status}, no model {model!r} or no API at {base_url}: {said}", status)
    if error.code == _NO_CREDIT or error.type == _NO_CREDIT:
        return RequestError(Kind.STOP, f"{status}, the account's quota is used up: {said}", status)
    if status in _AGAIN_STATUS or status >= 500:
        return RequestError(Kind.AGAIN, f"{status}: {said}", status, retry_after(error.response.headers))
    if error.param in _OUR_PARAMETERS:
        return RequestError(Kind.STOP, f"{status}, the server does not take our {error.param}: {said}", status)
    renamed = error.param == "max_tokens" or "max_completion_tokens" in said
    return RequestError(Kind.PROMPT, f"{status}: {said}", status, wants_completion_tokens=renamed)


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
            except ValueError:
                continue
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            seconds = (moment - (now or datetime.now(UTC))).total_seconds()
        if seconds == seconds:  # NaN is none
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
    read, written = (count if isinstance(count, int) and count > 0 else 0 for count in counts)
    return read, written


def _content(content: Any) -> str:
    """The text of a message: a string, or the text parts of a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _said(error: Any, hide: Callable[[str], str]) -> str:
    """The server's own message about an error."""
    body = blanked(error.body, hide)
    if isinstance(body, dict):
        inner = body.get("message") or body.get("detail") or body.get("error") or body
        return _short(inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False, default=str))
    return _short(hide(str(body or error.message)))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return (line[:_SHOWN] + " …" if len(line) > _SHOWN else line) or "nothing"
