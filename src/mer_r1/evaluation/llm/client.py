"""Client for language models behind a server, used for label extraction and for judging.

Any server with OpenAI's chat completions works (OpenAI, vLLM, SGLang, llama.cpp, Ollama ...). Servers are slow, refuse,
limit rates, break off and send invalid output. The client keeps few requests in flight. A failure that may pass is
retried with growing waits, never before the server's own Retry-After, which holds for all requests. A failure that no
request can pass (no such model, no permission) stops the run with one clear line. A failure of one prompt becomes that
prompt's error. Whatever has arrived is in the cache (`llm.cache`), so a rerun resumes there and asks nothing twice.

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
from mer_r1.evaluation.llm.chat import ChatPrompt, Decoding, OnReply, Prices, Reply, Usage, sound_text
from mer_r1.evaluation.llm.responses import Kind, RequestError, Retries, backoff, classify_error, read_reply

logger = logging.getLogger(__name__)

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
_OPENAI_ONLY = ("temperature", "seed", "top_p")
_SHAPE_REFUSED = (400, 415, 422)


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
    _plain_only: bool = field(default=False, init=False, repr=False)
    _tokens_name: str = field(default="max_tokens", init=False, repr=False)

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
        asks["http_client"] = DefaultAsyncHttpxClient(event_hooks={"response": [self._refuse_other_server]})
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
        return Reply(None, error.message + tried)

    async def _attempt(self, prompt: ChatPrompt) -> Reply | RequestError:
        """One request; a second at once where the server does not know structured output or `max_tokens`."""
        client = self.client
        structured = prompt.schema is not None and not client._plain_only
        found = await self._request(prompt, structured)
        if isinstance(found, RequestError) and found.wants_completion_tokens and client._tokens_name == "max_tokens":
            client._tokens_name = "max_completion_tokens"
            found = await self._request(prompt, structured)
        if structured and isinstance(found, RequestError) and found.status in _SHAPE_REFUSED:
            found = await self._request(prompt, structured=False)
            if isinstance(found, Reply):
                if not client._plain_only:
                    logger.warning(
                        "%s does not support structured output: falling back to a text instruction", client.base_url
                    )
                client._plain_only = True
        return found

    async def _request(self, prompt: ChatPrompt, structured: bool) -> Reply | RequestError:
        from openai import APIError

        client, begin = self.client, monotonic()
        client.usage.requests += 1
        try:
            raw = await asyncio.wait_for(self.create(**self._body(prompt, structured)), client.timeout)
        except (APIError, TimeoutError) as error:
            return classify_error(error, client.name, client.base_url, client.key_variable, self._hide)
        found, prompt_tokens, completion_tokens = read_reply(raw.text, monotonic() - begin, structured, self._hide)
        client.usage.prompt_tokens += prompt_tokens
        client.usage.completion_tokens += completion_tokens
        return found if isinstance(found, RequestError) else replace(found, text=sound_text(str(found.text)))

    def _body(self, prompt: ChatPrompt, structured: bool) -> dict[str, Any]:
        decoding = self.client.decoding
        body: dict[str, Any] = {"model": self.client.name, "messages": list(prompt.messages)}
        body |= {name: value for name in _OPENAI_ONLY if (value := getattr(decoding, name)) is not None}
        body[self.client._tokens_name] = decoding.max_tokens
        if decoding.repetition_penalty is not None:
            body["extra_body"] = {"repetition_penalty": decoding.repetition_penalty}
        if prompt.messages[-1]["role"] == "assistant":  # a turn to continue, in the words of vLLM and SGLang
            body.setdefault("extra_body", {}).update(continue_final_message=True, add_generation_prompt=False)
        if structured:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": prompt.schema},
            }
        return body

    async def _wait(self, attempt: int, error: RequestError) -> None:
        retries = self.client.retries
        if error.retry_after is None:
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
    key = os.environ.get(variable, "").strip()
    if not key and (urlsplit(base_url).hostname or "").endswith("openai.com"):
        raise UserError(f"{base_url} needs a key: set the environment variable {variable}")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"environment variable {variable}: expected a key of printable ASCII characters without blanks")
    return key
