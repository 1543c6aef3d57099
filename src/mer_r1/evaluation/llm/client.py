"""Client for language models behind a server, used for label extraction and for judging.

Any server with OpenAI's chat completions works (OpenAI, vLLM, SGLang, llama.cpp, Ollama ...). Servers are slow, refuse,
limit rates, break off and send invalid output. The client keeps few requests in flight. A failure that may pass is
retried with growing waits, never before the server's own Retry-After, which holds for all requests. A failure that no
request can pass (no such model, no permission) stops the run with one clear line. A failure of one prompt becomes that
prompt's error. Whatever has arrived is in the cache (`llm.cache`), so a rerun resumes there and asks nothing twice.

What a server refuses (structured output, a parameter, the name of `max_tokens`) is left out after one clear note, by
every request from then on; one that was under way and refused for it is asked again.

The retries of the `openai` package are off: they wait per request, and count neither requests nor tokens.

The service's key is read from the environment when something is asked, and goes into the request and nowhere else. A
server that echoes it finds it blanked out.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any
from urllib.parse import urljoin, urlsplit

from mer_r1.errors import UserError
from mer_r1.evaluation.llm.cache import Replies, ReplyCache, reply_key
from mer_r1.evaluation.llm.chat import ChatPrompt, Decoding, OnReply, Prices, Reply, Usage
from mer_r1.evaluation.llm.responses import (
    LENGTHS,
    Kind,
    RequestError,
    Retries,
    backoff,
    classify_error,
    read_bounded,
    read_reply,
    refused_parameter,
)

logger = logging.getLogger(__name__)

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
_OPTIONAL = ("temperature", "seed", "top_p", "repetition_penalty", *LENGTHS)
_NOT_OPENAI = ("repetition_penalty",)
_SHAPE_REFUSED = (400, 415, 422)
_SUSPICIONS = 3
"""Prompts that pass only without the schema, until a server that gives no reason counts as one without schemas."""


@dataclass(eq=False)
class Client:
    """A model behind an OpenAI-compatible endpoint.

    Attributes:
        name: the model's name at the server.
        base_url: address of the API, usually ending in /v1.
        decoding: how replies are decoded.
        cache: keeps the replies; None keeps them for the client's lifetime only.
        concurrency: requests in flight at once.
        timeout: seconds for one whole reply.
        retries: retry policy.
        key_variable: environment variable with the service's key; servers other than OpenAI's may go without.
        prices: prices of tokens; None if unknown.
        usage: counts of everything asked so far.
    """

    name: str
    base_url: str
    decoding: Decoding = field(default_factory=Decoding)
    cache: ReplyCache | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: Retries = field(default_factory=Retries)
    key_variable: str = DEFAULT_KEY_VARIABLE
    prices: Prices | None = None
    usage: Usage = field(default_factory=Usage)
    _suspicions: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse an address or numbers that cannot work."""
        parts = urlsplit(self.base_url)
        if "@" in self.base_url or parts.query or parts.fragment:
            raise UserError(f"base URL: give no credentials in it; the key is read from {self.key_variable}")
        if parts.scheme not in ("http", "https") or not parts.hostname:  # not shown: it may be a key
            raise UserError("base URL: expected an address such as http://localhost:8000/v1")
        if self.concurrency < 1 or (self.retries.attempts or 1) < 1:
            raise UserError("concurrency and attempts: expected at least 1")
        if self.cache is None:
            self.cache = ReplyCache(":memory:")

    def missing(self, prompts: Iterable[ChatPrompt], version: str) -> int:
        """How many different replies are not in the cache yet: what a run has to ask (and pay) for."""
        assert self.cache is not None
        keys = {reply_key(self.name, prompt, self.decoding, version) for prompt in prompts}
        return sum(self.cache.get(key) is None for key in keys)

    def complete(self, prompts: Sequence[ChatPrompt], version: str, on_reply: OnReply | None = None) -> list[Reply]:
        """One reply per prompt, in order; see `chat.TextModel`. Inside an event loop, await `acomplete` instead."""
        return asyncio.run(self.acomplete(prompts, version, on_reply))

    async def acomplete(
        self, prompts: Sequence[ChatPrompt], version: str, on_reply: OnReply | None = None
    ) -> list[Reply]:
        """One reply per prompt, in the prompts' order: from the cache, else from the server; see `chat.TextModel`.

        Raises:
            UserError: the server refuses the key or the model (401, 402, 403, 404), a parameter, or many prompts in a
                row; or the key is missing. Requests in flight are still waited for, and what has arrived is in the
                cache.
        """
        assert self.cache is not None
        replies = Replies(prompts, self.cache, self.name, self.decoding, version, on_reply)
        self.usage.cached += replies.n_cached
        self.usage.cached_prompt_tokens += sum(reply.prompt_tokens for reply in replies.cached)
        self.usage.cached_completion_tokens += sum(reply.completion_tokens for reply in replies.cached)
        if replies.missing:
            await _Run(self, _read_key(self.key_variable, self.base_url)).complete(replies)
        return replies.in_order()


class _Run:
    """One call of `acomplete`: its connection, its workers, and the state that they share."""

    def __init__(self, client: Client, key: str) -> None:
        self.client = client
        self.key = key
        self.stop: UserError | None = None
        self.stopping = asyncio.Event()
        self.not_before = 0.0  # on the monotonic clock: the server asked all requests to wait
        self.failed_in_a_row = 0

    async def complete(self, replies: Replies) -> None:
        """Ask for the missing replies; raises what stopped the run after the requests in flight have ended."""
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        logging.getLogger("httpcore2").setLevel(logging.INFO)  # its trace shows whole headers, echoes of the key too
        base_url, timeout, keys = self.client.base_url, self.client.timeout, iter(replies.missing)
        asks: dict[str, Any] = {"base_url": base_url, "timeout": timeout, "max_retries": 0}
        hooks = {"response": [self._refuse_other_server, read_bounded]}
        asks["http_client"] = DefaultAsyncHttpxClient(event_hooks=hooks)
        async with AsyncOpenAI(api_key=self.key or "none", **asks) as remote:
            self.create = remote.chat.completions.with_raw_response.create
            workers = [asyncio.create_task(self._work(keys, replies)) for _ in range(self.client.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if self.stop is not None:
            raise self.stop

    async def _refuse_other_server(self, response: Any) -> None:
        """Raise UserError for a redirect that leads the prompts to another origin."""
        if response.has_redirect_location:
            asked = urlsplit(str(response.request.url))
            there = urlsplit(urljoin(asked.geturl(), response.headers["location"]))
            if (there.scheme, there.netloc) != (asked.scheme, asked.netloc):
                message = f"it redirects to another server, {there.scheme}://{there.netloc.rpartition('@')[2]}"
                raise UserError(f"{self.client.name} at {self.client.base_url}: {self._hide(message):.200}")

    async def _work(self, keys: Iterator[str], replies: Replies) -> None:
        while self.stop is None and (key := next(keys, None)) is not None:
            reply = await self._ask(replies.prompt(key))
            if reply is not None:
                replies.arrived(key, reply)

    async def _ask(self, prompt: ChatPrompt) -> Reply | None:
        """The reply, or one with its error; None where the run was stopped before either."""
        usage, retries = self.client.usage, self.client.retries
        attempts = retries.attempts or prompt.attempts
        for attempt in range(1, attempts + 1):
            await self._sleep_until(self.not_before)
            if self.stop is not None:
                return None
            found = await self._attempt(prompt)
            if isinstance(found, Reply):
                usage.asked += 1
                self.failed_in_a_row = 0
                return found
            error = found
            if error.kind is Kind.STOP:
                self._halt(error.message)
                return None
            if error.kind is Kind.PROMPT:
                break
            if attempt < attempts:
                logger.debug("attempt %d of %d: %s", attempt, attempts, error.message)
                await self._wait(attempt - 1, error)
        usage.failed += 1
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= retries.give_up_after:
            self._halt(f"{self.failed_in_a_row} prompts in a row got no reply; the last: {error.message}")
        tried = "" if error.kind is Kind.PROMPT else f" (after {attempts} attempts)"
        return Reply(None, error.message + tried, error.finish_reason)

    async def _attempt(self, prompt: ChatPrompt) -> Reply | RequestError:
        """One request, asked again at once for as long as it was refused for something that is now known."""
        while True:
            known = len(self.client.usage.left_out)
            body = self._body(prompt)
            found = await self._request(body)
            if not isinstance(found, RequestError) or found.status not in _SHAPE_REFUSED:
                return found
            if refused := refused_parameter(found, body.keys() | (self.client.decoding.extra_body or {}).keys()):
                if refused in (self.client.decoding.extra_body or ()):
                    return replace(found, kind=Kind.STOP, message=f"{refused} of the extra body: {found.message}")
                self._leave_out(refused, found.message)
            if len(self.client.usage.left_out) == known:
                break
        if "response_format" in body:
            del body["response_format"]
            found = await self._request(body)
            self.client._suspicions += isinstance(found, Reply)
            if self.client._suspicions >= _SUSPICIONS:
                self._leave_out("response_format", "it takes only prompts without a schema")
        return found

    def _leave_out(self, name: str, reason: str) -> None:
        client = self.client
        if name in client.usage.left_out:
            return
        client.usage.left_out.append(name)
        if name == "response_format":
            note = "does not support structured output: falling back to a text instruction"
        elif name == "max_tokens":
            note = "does not take max_tokens: asking with max_completion_tokens"
        else:
            note = f"does not take our {name}: left out, so that the server's own choice applies"
        logger.warning("%s %s (%s)", client.base_url, note, reason)

    async def _request(self, body: dict[str, Any]) -> Reply | RequestError:
        from openai import APIError

        client, begin, decoding = self.client, monotonic(), self.client.decoding
        client.usage.requests += 1
        extra = {name: body[name] for name in _NOT_OPENAI if name in body} | dict(decoding.extra_body or {})
        if body["messages"][-1]["role"] == "assistant":  # a turn to continue, in the words of vLLM and SGLang
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
        sent = {name: value for name, value in body.items() if name not in extra}
        try:
            raw = await asyncio.wait_for(self.create(**sent, extra_body=extra or None), client.timeout)
        except (APIError, TimeoutError, OverflowError) as error:
            return classify_error(error, client.name, client.base_url, client.key_variable, self._hide)
        structured = "response_format" in body
        found, prompt_tokens, completion_tokens = read_reply(raw.content, monotonic() - begin, structured, self._hide)
        client.usage.prompt_tokens += prompt_tokens
        client.usage.completion_tokens += completion_tokens
        return found

    def _body(self, prompt: ChatPrompt) -> dict[str, Any]:
        """The fields of a request, without those that the server is known to refuse."""
        decoding, left_out = self.client.decoding, self.client.usage.left_out
        length = LENGTHS["max_tokens" in left_out]
        offered = {name: getattr(decoding, name, None) for name in _OPTIONAL} | {length: decoding.max_tokens}
        if prompt.schema is not None:
            schema = {"name": "reply", "strict": True, "schema": prompt.schema}
            offered["response_format"] = {"type": "json_schema", "json_schema": schema}
        kept = {name: value for name, value in offered.items() if value is not None and name not in left_out}
        return {"model": self.client.name, "messages": list(prompt.messages), **kept}

    async def _wait(self, attempt: int, error: RequestError) -> None:
        retries = self.client.retries
        if not error.retry_after:  # zero and the past say nothing about the load
            await self._sleep_until(monotonic() + backoff(attempt, retries.first_wait, retries.longest_wait))
        elif error.retry_after > retries.longest_asked:
            self._halt(f"{error.message}; it asks to wait {error.retry_after:.0f} s: run again then")
        else:  # all requests wait: the limit is the account's, not the prompt's
            self.not_before = max(self.not_before, monotonic() + error.retry_after)

    async def _sleep_until(self, moment: float) -> None:
        """Sleep until this moment of the monotonic clock, or until the run is stopped."""
        while (left := moment - monotonic()) > 0 and self.stop is None:
            try:
                await asyncio.wait_for(self.stopping.wait(), left)
            except TimeoutError:
                moment = max(moment, self.not_before)

    def _halt(self, message: str) -> None:
        if self.stop is None:
            self.stop = UserError(f"{self.client.name} at {self.client.base_url}: {message} (replies so far are kept)")
            self.stopping.set()

    def _hide(self, text: str) -> str:
        return text.replace(self.key, "[key]") if len(self.key) > 5 else text  # "none" and "EMPTY" are no secrets


def _read_key(variable: str, base_url: str) -> str:
    """The key in an environment variable; "" where it is not set and the server is not OpenAI's."""
    if not variable.isidentifier():  # a key, perhaps: it is not repeated
        raise UserError("expected the name of the environment variable with the key, not the key")
    key = os.environ.get(variable, "").strip()
    if not key and (urlsplit(base_url).hostname or "").endswith("openai.com"):
        raise UserError(f"{base_url} needs a key: set the environment variable {variable}")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"environment variable {variable}: expected a key of printable ASCII characters without blanks")
    return key
