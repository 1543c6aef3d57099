"""Working through a list of questions to a language model: what is left, what it will cost, and each reply kept.

A question that has a valid row already is left alone. A row is valid if it ended without an error and was asked in
exactly these words of this model, so that a changed answer, gold label, audio clue or rule is asked again and nothing
else is. The rest is asked in batches (ten pictures an item would not fit into memory for a whole benchmark), and every
reply becomes a row on disk the moment it arrives.
"""

import hashlib
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from mer_r1.errors import UserError
from mer_r1.evaluation.llm.cache import ReplyCache
from mer_r1.evaluation.llm.chat import ChatPrompt, Decoding, Prices, Reply, TextModel, Usage
from mer_r1.evaluation.llm.client import Client
from mer_r1.evaluation.llm.ledger import Ledger, Row
from mer_r1.evaluation.llm.responses import Retries

logger = logging.getLogger(__name__)

BATCH = 64
"""Questions that are prepared, and held in memory, at a time."""
CHARACTERS_PER_TOKEN = 4.0
TOKENS_PER_IMAGE = 765
"""What a picture of some megapixels costs at OpenAI's high detail: 85 + 4 tiles of 170. Other servers differ."""
TOKENS_PER_REPLY = 120
ASSUMED_SECONDS = 5.0
"""Seconds a reply, assumed until this stage has measured some."""


@dataclass(frozen=True)
class Job:
    """One question to a language model.

    Attributes:
        key: what makes it one item of its stage; the ledger's key of `row`.
        row: what its row says beside the reply.
        text: its words; pictures and sounds are not part of them.
        build: makes the prompt, with its pictures; raises `UserError` where that cannot be done.
        images: how many pictures go along, at most.
        tries: requests until it counts as failed.
    """

    key: Hashable
    row: Row
    text: str
    build: Callable[[], ChatPrompt]
    images: int = 0
    tries: int = 6


@dataclass(frozen=True)
class Endpoint:
    """How to reach an OpenAI-compatible server, and how patiently.

    Attributes:
        base_url: usually ends in /v1.
        key_variable: environment variable with the service's key; read when something is asked, kept nowhere.
        concurrency: requests at a time.
        timeout: seconds for one whole reply.
        attempts: requests until a question counts as failed; None takes each task's own number.
        first_wait: seconds before the second attempt; the reference waits 2.
        max_tokens: longest reply.
        temperature: of the replies; the reference takes 0.
        seed: of the replies; None leaves it to the server, so that repetitions can differ.
        prices: of tokens; None where they are not known.
    """

    base_url: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 120.0
    attempts: int | None = None
    first_wait: float = 2.0
    max_tokens: int = 2048
    temperature: float = 0.0
    seed: int | None = 0
    prices: Prices | None = None

    def asking(self, name: str, cache: ReplyCache, watch: "Watch | None" = None) -> "Asking":
        """Ask the model `name` here, with replies kept in `cache`."""
        decoding = Decoding(self.temperature, self.seed, self.max_tokens)
        usage = Usage()

        def model(tries: int) -> Client:
            retries = Retries(self.attempts or tries, self.first_wait, longest_wait=30.0)
            return Client(
                name,
                self.base_url,
                decoding,
                cache,
                self.concurrency,
                self.timeout,
                retries,
                self.key_variable,
                usage,
            )

        return Asking(name, model, self.prices, self.concurrency, watch, usage=usage)


@dataclass
class Tally:
    """How far a stage is, and what it has used.

    Attributes:
        stage: its name.
        total: its questions.
        known: those that had a valid row before.
        done: answered in this run, replies from the cache included.
        failed: without a reply in this run.
        cached: those of `done` that came from the cache and cost nothing.
        input_tokens: paid for in this run, as the server counts them, unusable replies included.
        output_tokens: likewise.
        estimate: expected tokens, cost and time of the questions that were left; see `estimated`.
        began: when this run of it began, on the monotonic clock.
    """

    stage: str
    total: int = 0
    known: int = 0
    done: int = 0
    failed: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    estimate: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=monotonic)

    @property
    def finished(self) -> int:
        """Questions that need no more waiting for."""
        return self.known + self.done + self.failed

    @property
    def seconds_left(self) -> float:
        """Seconds that the rest will take at the pace of this run so far."""
        here = self.done + self.failed
        left = self.total - self.finished
        return (monotonic() - self.began) / here * left if here else float(self.estimate.get("seconds", 0.0))

    def count(self, reply: Reply) -> None:
        """Take note of a reply."""
        self.failed += reply.text is None
        self.done += reply.text is not None
        self.cached += reply.cached


Watch = Callable[[Tally], Any]
"""Is told how far a stage is: once before it asks anything, then after each reply."""


@dataclass(frozen=True)
class Asking:
    """Who is asked, and how the work is shown.

    Attributes:
        name: the model's name.
        model: gives the model, for questions that may be tried so many times.
        prices: of tokens; None where they are not known.
        concurrency: requests at a time, for the estimate of time.
        watch: told of the progress.
        batch: questions prepared at a time.
        usage: what the model's client counts, unusable replies included.
    """

    name: str
    model: Callable[[int], TextModel]
    prices: Prices | None = None
    concurrency: int = 8
    watch: Watch | None = None
    batch: int = BATCH
    usage: Usage = field(default_factory=Usage)


def asked_as(text: str) -> str:
    """Short hash of a question's words, kept in its row."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_valid(row: Row | None, job: Job, model: str) -> bool:
    """Whether a row answers this question: no error, the same words, the same model, the same item."""
    if row is None or row.get("error") is not None:
        return False
    same = all(row.get(name) == value for name, value in job.row.items() if value is not None)
    return same and row.get("asked") == asked_as(job.text) and row.get("model") == model


def work(
    stage: str, jobs: Sequence[Job], asking: Asking, version: str, ledger: Ledger, read: Callable[[Reply], Row]
) -> Tally:
    """Ask everything that has no valid row yet, and write a row for each.

    Args:
        stage: name of the stage, for people.
        jobs: all its questions.
        asking: who is asked.
        version: of the instruction; part of the cache's key.
        ledger: where the rows go.
        read: what a row says of its reply.

    Raises:
        UserError: asking further is pointless (see `chat.TextModel.complete`); rows written so far stay.
    """
    left = [job for job in jobs if not is_valid(ledger.rows.get(job.key), job, asking.name)]
    tally = Tally(stage, total=len(jobs), known=len(jobs) - len(left))
    tally.estimate = estimated(left, ledger, asking)
    _tell(asking, tally)
    before = replace(asking.usage)

    def note() -> None:
        tally.input_tokens = asking.usage.prompt_tokens - before.prompt_tokens
        tally.output_tokens = asking.usage.completion_tokens - before.completion_tokens
        _tell(asking, tally)

    for batch in _batches(left, asking.batch):
        prepared = list(_prepared(batch, asking.name, ledger, tally))

        def take(index: int, reply: Reply, prepared: list[tuple[Job, ChatPrompt]] = prepared) -> None:
            job, _ = prepared[index]
            ledger.add(_row(job, asking.name, reply) | read(reply))
            tally.count(reply)
            note()

        asking.model(batch[0].tries).complete([prompt for _, prompt in prepared], version, take)
        note()
    return tally


def _batches(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    for tries in sorted({job.tries for job in jobs}):
        same = [job for job in jobs if job.tries == tries]
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _tell(asking: Asking, tally: Tally) -> None:
    if asking.watch:
        asking.watch(tally)


def estimated(left: Sequence[Job], ledger: Ledger, asking: Asking) -> dict[str, Any]:
    """What the questions that are left will about take.

    Returns:
        `questions`, `input_tokens`, `output_tokens`, `cost` (None without prices) and `seconds`. Tokens are guessed
        from characters and pictures; where the ledger has rows of this stage, their mean counts, as for the time.
    """
    rows = [row for row in ledger.rows.values() if row.get("input_tokens") and not row.get("cached")]
    guessed = sum(len(job.text) / CHARACTERS_PER_TOKEN + job.images * TOKENS_PER_IMAGE for job in left)
    inputs = _mean(rows, "input_tokens") * len(left) if rows else guessed
    outputs = (_mean(rows, "output_tokens") if rows else TOKENS_PER_REPLY) * len(left)
    each = _mean(rows, "seconds") if rows else ASSUMED_SECONDS
    return {
        "questions": len(left),
        "input_tokens": round(inputs),
        "output_tokens": round(outputs),
        "cost": cost(asking.prices, round(inputs), round(outputs)),
        "seconds": each * len(left) / max(asking.concurrency, 1),
    }


def cost(prices: Prices | None, input_tokens: int, output_tokens: int) -> float | None:
    """What so many tokens cost; None where the prices are not known."""
    return Usage(prompt_tokens=input_tokens, completion_tokens=output_tokens).cost(prices) if prices else None


def _prepared(jobs: Sequence[Job], model: str, ledger: Ledger, tally: Tally) -> Iterator[tuple[Job, ChatPrompt]]:
    for job in jobs:
        try:
            yield job, job.build()
        except UserError as error:
            tally.failed += 1
            before = ledger.rows.get(job.key)
            if before is None or before.get("error") != str(error):  # said once is enough
                ledger.add(job.row | _stamp(job, model) | {"error": str(error)})


def _row(job: Job, model: str, reply: Reply) -> Row:
    used = {
        "input_tokens": reply.prompt_tokens,
        "output_tokens": reply.completion_tokens,
        "seconds": round(reply.seconds, 3),
        "cached": reply.cached,
        "finish_reason": reply.finish_reason,
    }
    return job.row | _stamp(job, model) | used | {"error": reply.error}


def _stamp(job: Job, model: str) -> Row:
    return {"model": model, "asked": asked_as(job.text)}


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(float(row.get(name) or 0) for row in rows) / len(rows)
