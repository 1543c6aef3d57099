"""Prompts, replies, decoding and costs of language models: plain values shared by all callers.

A prompt is a list of turns in the form of chat completions, which every server and every chat template accepts. A reply
is a text or the reason why there is none, so no prompt is ever lost. A `TextModel` turns prompts into replies: a server
(`llm.client.Client`) or a local checkpoint (`llm.local.LocalModel`).
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from mer_r1.errors import UserError
from mer_r1.evaluation.llm.reading import without_thinking

Message = Mapping[str, Any]
"""One turn: `role`, and `content` as text or as a list of parts."""


@dataclass(frozen=True)
class ChatPrompt:
    """One question to a model.

    Attributes:
        messages: the turns. A user's turn may hold parts: text, `image_url` (data URL), `input_audio` (base64).
        schema: JSON schema of the reply, for servers with structured output; None for free text.
        repeat: 0 for the first reply; 1, 2 ... ask the same again for further, separately kept replies.
        attempts: requests until it counts as failed; not part of the cache's key.
        fresh: ask even if the cache holds a reply, and keep the new one; not part of the key either.
    """

    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None = None
    repeat: int = 0
    attempts: int = 6
    fresh: bool = False

    @classmethod
    def user(cls, text: str) -> "ChatPrompt":
        """A prompt of a single user turn of text; invalid Unicode in it becomes a question mark."""
        return cls(({"role": "user", "content": sound_text(text)},))

    def again(self, reply: str, correction: str) -> "ChatPrompt":
        """The same conversation with the model's reply and a correction appended."""
        turns = (
            {"role": "assistant", "content": sound_text(without_thinking(reply) or "...")},
            {"role": "user", "content": correction},
        )
        return replace(self, messages=(*self.messages, *turns))


_CLIENTS_OWN = frozenset(("model", "messages", "stream", "n", "response_format", "continue_final_message"))


@dataclass(frozen=True)
class Decoding:
    """How a reply is decoded; None leaves a parameter to the server. The defaults are deterministic if the server is.

    Attributes:
        temperature: 0 takes the most likely token.
        seed: random seed for sampling; None leaves it to the server, then two runs differ.
        max_tokens: longest reply, in tokens.
        top_p: probability mass of nucleus sampling, in (0, 1]; None for the server's default.
        repetition_penalty: a parameter of vLLM and transformers, not of OpenAI; None leaves it out.
        extra_body: further fields of each request to a server, such as `chat_template_kwargs`.
    """

    temperature: float = 0.0
    seed: int | None = 0
    max_tokens: int = 512
    top_p: float | None = None
    repetition_penalty: float | None = None
    extra_body: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse values that no server accepts; equal numbers get one form, because they are part of a key."""
        if not 0 <= self.temperature <= 2:
            raise UserError(f"temperature: expected a number within 0 and 2, got {self.temperature!r}")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens: expected at least 1, got {self.max_tokens!r}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p: expected a number above 0 and up to 1, got {self.top_p!r}")
        for name in ("temperature", "top_p", "repetition_penalty"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(value))
        if owned := _CLIENTS_OWN.intersection(self.extra_body or ()):
            raise UserError(f"extra body: {min(owned)} is set by the client; expected further fields of the server")

    @property
    def settings(self) -> dict[str, Any]:
        """The fields as JSON values; without `extra_body` where there is none, as before it existed."""
        return {name: value for name, value in asdict(self).items() if name != "extra_body" or value}


REFERENCE_SAMPLING = Decoding(temperature=0.7, seed=None, max_tokens=512, top_p=0.8, repetition_penalty=1.05)
"""How the reference (AffectGPT release) samples the replies of its label extractor: unseeded."""


@dataclass(frozen=True)
class Reply:
    """A reply, or why there is none.

    Attributes:
        text: the reply; None where `error` says why there is none.
        error: one line; None where there is a reply.
        finish_reason: "stop"; "length" for a reply cut off at `max_tokens`; with an error the server's own word, or "".
        structured: whether the server was held to the prompt's schema.
        prompt_tokens: tokens read, as the server counts them; 0 if it does not say.
        completion_tokens: tokens written.
        seconds: wall time of the last attempt.
        cached: whether it came from the cache, so that nothing was asked.
    """

    text: str | None
    error: str | None = None
    finish_reason: str = "stop"
    structured: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cached: bool = False

    @property
    def final(self) -> str:
        """The text without its reasoning."""
        return without_thinking(self.text or "")

    @property
    def problem(self) -> str | None:
        """Why it cannot be read as a reply: there is none, it was cut off, or it is nothing but reasoning."""
        if self.text is None:
            return self.error
        if self.finish_reason != "stop":
            return f"it did not end properly ({self.finish_reason})"
        return None if self.final else "it is nothing but reasoning"


@dataclass(frozen=True)
class Prices:
    """Prices of a service, in its currency per million tokens read (`prompt`) and written (`completion`)."""

    prompt: float
    completion: float


@dataclass
class Usage:
    """Counts of everything a client has asked so far.

    Attributes:
        asked: prompts that got a reply from the server.
        cached: prompts whose reply was in the cache.
        failed: prompts that stayed without a reply.
        requests: HTTP requests, retries included.
        prompt_tokens: tokens read by the server, unusable replies included.
        completion_tokens: tokens written by it, likewise.
        cached_prompt_tokens: tokens that the cached replies once took; they cost nothing now.
        cached_completion_tokens: likewise, written.
        left_out: parameters that the server refused and that were left out.
    """

    asked: int = 0
    cached: int = 0
    failed: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    cached_completion_tokens: int = 0
    left_out: list[str] = field(default_factory=list)

    def cost(self, prices: Prices) -> float:
        """Cost of the new replies, in the currency of `prices`.

        >>> Usage(prompt_tokens=2_000_000, completion_tokens=500_000).cost(Prices(0.5, 2.0))
        2.0
        """
        return (self.prompt_tokens * prices.prompt + self.completion_tokens * prices.completion) / 1e6


OnReply = Callable[[int, Reply], Any]
"""Callback called for each reply as it arrives, with the prompt's index and the reply."""


class TextModel(Protocol):
    """Answers prompts with text: a server (`client.Client`) or a local checkpoint (`local.LocalModel`)."""

    @property
    def name(self) -> str:
        """The model's name in records."""

    def complete(self, prompts: Sequence[ChatPrompt], version: str, on_reply: OnReply | None = None) -> list[Reply]:
        """One reply per prompt, in the prompts' order; a prompt without a reply gets one with its `error`.

        Args:
            prompts: prompts to ask; equal ones are asked once.
            version: version of the instruction, e.g. "labels-1"; part of the cache's key.
            on_reply: callback called for each reply as it arrives, in any order.

        Raises:
            UserError: asking further is pointless. What has arrived is kept in the cache.
        """


def sound_text(text: str) -> str:
    r"""The text with question marks for lone surrogates, which no file and no server accepts.

    >>> sound_text("caf\u00e9 \ud800")
    'café ?'
    """
    return text.encode("utf-8", "replace").decode("utf-8")


def image_part(jpeg: bytes) -> dict[str, Any]:
    """An image as part of a chat message (OpenAI's form)."""
    return {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()}}


def sound_part(wav: bytes) -> dict[str, Any]:
    """Audio as part of a chat message (OpenAI's form)."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}}
