"""Asking language models over the network: one client for label extraction and for judging.

Any server that speaks OpenAI's chat completions will do (OpenAI, vLLM, SGLang, llama.cpp, Ollama ...). Servers are
slow, refuse, limit rates, break off and return rubbish. Therefore: few requests at a time; what may pass is tried
again, later and later, and never before the server's own Retry-After; what cannot pass (no such model, no permission)
stops the run with one clear line; what concerns one prompt only becomes that prompt's error. Whatever has arrived is
in the cache (`llm.cache`) by then, so that the next run goes on from there and asks nothing twice.

The service's key is read from the environment when something is asked, and goes into the request and nowhere else. A
server that echoes it finds it blanked out.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from mer_r1.errors import UserError
from mer_r1.evaluation.llm.cache import ReplyCache, reply_key
from mer_r1.evaluation.llm.chat import ChatPrompt, Decoding, OnReply, Reply, Usage, sound_text
from mer_r1.evaluation.llm.responses import Kind, Retries, Trouble, backoff, read_reply, trouble_of

logger = logging.getLogger(__name__)

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
_OPENAI_ONLY = ("temperature", "seed", "top_p")
_SHAPE_REFUSED = (400, 415, 422)
_HIDDEN = "[key]"


@dataclass(eq=False)
class Client:
    """A model behind an OpenAI-compatible endpoint.

    Attributes:
        model: The model's name at the server.
        base_url: Address of the API, usually ending in /v1.
        decoding: How replies are decoded.
        cache: Where replies are kept; None keeps them for the client's lifetime only.
        concurrency: Requests that may be under way at once.
        timeout: Seconds for one whole reply.
        retries: How often and how long to try again.
        key_variable: Environment variable with the service's key. Servers other than OpenAI's may go without.
        usage: Counts of everything asked so far.
    """

    model: str
    base_url: str
    decoding: Decoding = field(default_factory=Decoding)
    cache: ReplyCache | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: Retries = field(default_factory=Retries)
    key_variable: str = DEFAULT_KEY_VARIABLE
    usage: Usage = field(default_factory=Usage)
    _plain_only: bool = field(default=False, init=False, repr=False)
    _tokens_name: str = field(default="max_tokens", init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse an address or numbers that cannot work."""
        parts = urlsplit(self.base_url)
        if "@" in parts.netloc or parts.query:
            raise UserError(f"base URL: give no credentials in it; the key is read from {self.key_variable}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"base URL: expected an address such as http://localhost:8000/v1, got {self.base_url!r}")
        if self.concurrency < 1 or self.retries.attempts < 1:
            raise UserError("concurrency and attempts: expected at least 1")
        if self.cache is None:
            self.cache = ReplyCache(":memory:")

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model

    def missing(self, prompts: Iterable[ChatPrompt], version: str) -> int:
        """How many different replies are not in the cache yet: what a run will have to ask (and pay) for."""
        assert self.cache is not None
        keys = {reply_key(self.model, prompt, self.decoding, version) for prompt in prompts}
        return sum(self.cache.get(key) is None for key in keys)

    def complete(self, prompts: Sequence[ChatPrompt], version: str, on_reply: OnReply | None = None) -> list[Reply]:
        """One reply a prompt, in order; see `chat.TextModel`. Inside an event loop, await `acomplete` instead."""
        return asyncio.run(self.acomplete(prompts, version, on_reply))

    async def acomplete(
        self, prompts: Sequence[ChatPrompt], version: str, on_reply: OnReply | None = None
    ) -> list[Reply]:
        """One reply a prompt, in the prompts' order: from the cache, else from the server.

        Args:
            prompts: What to ask; equal ones are asked once.
            version: Of the instruction; part of the cache's key.
            on_reply: Told each reply when it is there.

        Raises:
            UserError: The server refuses us or the model (401, 402, 403, 404), a parameter, or everything in a row; or
                the key is missing. Requests under way are still waited for, and what has arrived is in the cache.
        """
        assert self.cache is not None
        places: dict[str, list[int]] = {}
        replies: dict[int, Reply] = {}

        def deliver(key: str, reply: Reply) -> None:
            for index in places[key]:
                replies[index] = reply
                if on_reply:
                    on_reply(index, reply)

        for index, prompt in enumerate(prompts):
            places.setdefault(reply_key(self.model, prompt, self.decoding, version), []).append(index)
        open_keys = []
        for key, indices in places.items():
            known = self.cache.get(key)
            if known is None:
                open_keys.append(key)
                continue
            self.usage.cached += len(indices)
            self.usage.cached_prompt_tokens += known.prompt_tokens
            self.usage.cached_completion_tokens += known.completion_tokens
            deliver(key, known)
        if open_keys:
            run = _Run(self, _read_key(self.key_variable, self.base_url))
            async with aclosing(run.replies((key, prompts[places[key][0]]) for key in open_keys)) as arriving:
                async for key, reply in arriving:
                    if reply.text is not None:
                        self.cache.put(key, reply, self.model, prompts[places[key][0]], self.decoding, version)
                    deliver(key, reply)
        return [replies[index] for index in range(len(prompts))]


class _Run:
    """One call of `acomplete`: its connection, its workers, and what they must tell each other."""

    def __init__(self, client: Client, key: str) -> None:
        self.client = client
        self.key = key
        self.stop: UserError | None = None
        self.stopping = asyncio.Event()
        self.not_before = 0.0  # on the monotonic clock: the server asked everyone to wait
        self.failed_in_a_row = 0

    async def replies(self, prompts: Iterator[tuple[str, ChatPrompt]]) -> AsyncGenerator[tuple[str, Reply], None]:
        """Yields (key, reply) as they arrive; raises what stopped the run after the requests under way have ended."""
        from openai import AsyncOpenAI

        arrived: asyncio.Queue[tuple[str, Reply] | None] = asyncio.Queue()
        logging.getLogger("httpcore2").setLevel(logging.INFO)  # its trace shows whole headers, echoes of the key too
        base_url, timeout = self.client.base_url, self.client.timeout
        async with AsyncOpenAI(api_key=self.key or "none", base_url=base_url, timeout=timeout, max_retries=0) as remote:
            self.create = remote.chat.completions.with_raw_response.create
            workers = [asyncio.create_task(self._work(prompts, arrived)) for _ in range(self.client.concurrency)]
            try:
                for _ in workers:
                    while (entry := await arrived.get()) is not None:
                        yield entry
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if self.stop is not None:
            raise self.stop

    async def _work(self, prompts: Iterator[tuple[str, ChatPrompt]], arrived: asyncio.Queue[Any]) -> None:
        try:
            for key, prompt in prompts:
                reply = await self._ask(prompt)
                if reply is not None:
                    arrived.put_nowait((key, reply))
                if self.stop is not None:
                    return
        finally:
            arrived.put_nowait(None)

    async def _ask(self, prompt: ChatPrompt) -> Reply | None:
        """The reply, or an error's; None where the run was stopped before either."""
        usage, retries = self.client.usage, self.client.retries
        trouble = None
        for attempt in range(retries.attempts):
            await self._sleep_until(self.not_before)
            if self.stop is not None:
                return None
            reply, trouble = await self._attempt(prompt)
            if reply is not None:
                usage.asked += 1
                self.failed_in_a_row = 0
                return reply
            assert trouble is not None
            if trouble.kind is Kind.STOP:
                self._halt(trouble.message)
                return None
            if trouble.kind is Kind.PROMPT:
                break
            if attempt + 1 < retries.attempts:
                logger.debug("attempt %d of %d: %s", attempt + 1, retries.attempts, trouble.message)
                await self._wait(attempt, trouble)
        assert trouble is not None
        usage.failed += 1
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= retries.give_up_after:
            self._halt(f"{self.failed_in_a_row} prompts in a row got no reply; the last: {trouble.message}")
        tried = "" if trouble.kind is Kind.PROMPT else f" (after {retries.attempts} attempts)"
        return Reply(None, trouble.message + tried)

    async def _attempt(self, prompt: ChatPrompt) -> tuple[Reply | None, Trouble | None]:
        """One request; a second at once where the server does not know structured output or `max_tokens`."""
        structured = prompt.schema is not None and not self.client._plain_only
        reply, trouble = await self._request(prompt, structured)
        if trouble is not None and trouble.wants_completion_tokens and self.client._tokens_name == "max_tokens":
            self.client._tokens_name = "max_completion_tokens"
            reply, trouble = await self._request(prompt, structured)
        if trouble is not None and structured and trouble.status in _SHAPE_REFUSED:
            plain, plain_trouble = await self._request(prompt, structured=False)
            if plain is not None:
                if not self.client._plain_only:
                    logger.warning("%s knows no structured output: asking in words", self.client.base_url)
                self.client._plain_only = True
            return plain, plain_trouble
        return reply, trouble

    async def _request(self, prompt: ChatPrompt, structured: bool) -> tuple[Reply | None, Trouble | None]:
        from openai import APIError

        usage, begin = self.client.usage, monotonic()
        usage.requests += 1
        try:
            raw = await asyncio.wait_for(self.create(**self._body(prompt, structured)), self.client.timeout)
        except (APIError, TimeoutError) as error:
            found = trouble_of(error, self.client.model, self.client.base_url, self.client.key_variable, self._hide)
            return None, found
        result, prompt_tokens, completion_tokens = read_reply(self._hide(raw.text), monotonic() - begin, structured)
        usage.prompt_tokens += prompt_tokens
        usage.completion_tokens += completion_tokens
        if isinstance(result, Trouble):
            return None, result
        assert result.text is not None
        return result.with_text(self._hide(sound_text(result.text))), None

    def _body(self, prompt: ChatPrompt, structured: bool) -> dict[str, Any]:
        decoding = self.client.decoding
        body: dict[str, Any] = {"model": self.client.model, "messages": list(prompt.messages)}
        body |= {name: value for name in _OPENAI_ONLY if (value := getattr(decoding, name)) is not None}
        body[self.client._tokens_name] = decoding.max_tokens
        if decoding.repetition_penalty is not None:
            body["extra_body"] = {"repetition_penalty": decoding.repetition_penalty}
        if prompt.messages[-1]["role"] == "assistant":  # a turn to go on with, in the words of vLLM and SGLang
            body.setdefault("extra_body", {}).update(continue_final_message=True, add_generation_prompt=False)
        if structured:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": prompt.schema},
            }
        return body

    async def _wait(self, attempt: int, trouble: Trouble) -> None:
        retries = self.client.retries
        if trouble.retry_after is None:
            await self._sleep_until(monotonic() + backoff(attempt, retries.first_wait, retries.longest_wait))
        elif trouble.retry_after > retries.longest_asked:
            self._halt(f"{trouble.message}; it asks to wait {trouble.retry_after:.0f} s: run again then")
        else:  # everyone waits: the limit is the account's, not the prompt's
            self.not_before = max(self.not_before, monotonic() + trouble.retry_after)

    async def _sleep_until(self, moment: float) -> None:
        """Sleep until this moment of the monotonic clock, or until the run is stopped."""
        while (left := moment - monotonic()) > 0 and self.stop is None:
            try:
                await asyncio.wait_for(self.stopping.wait(), left)
            except TimeoutError:
                moment = max(moment, self.not_before)

    def _halt(self, message: str) -> None:
        if self.stop is None:
            self.stop = UserError(f"{self.client.model} at {self.client.base_url}: {message} (replies so far are kept)")
            self.stopping.set()

    def _hide(self, text: str) -> str:
        return text.replace(self.key, _HIDDEN) if self.key else text


def _read_key(variable: str, base_url: str) -> str:
    """The key in an environment variable; "" where it is not set and the server is not OpenAI's."""
    key = os.environ.get(variable, "").strip()
    if not key and (urlsplit(base_url).hostname or "").endswith("openai.com"):
        raise UserError(f"{base_url} wants a key: set the environment variable {variable}")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"environment variable {variable}: expected a key of printable ASCII characters without blanks")
    return key
