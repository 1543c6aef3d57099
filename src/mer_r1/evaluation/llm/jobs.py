"""Work through a list of jobs for a language model: what is left, what it will cost, and one row per reply.

A job is one question. It is skipped if its ledger holds a valid row: one without an error, for exactly these words and
media, this model and its decoding. So a changed answer, gold label, clip or rule is asked again, and nothing else. The
remaining jobs are asked in batches (ten images per job would not fit into memory for a whole benchmark), and every
reply becomes a row on disk as soon as it arrives.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from mer_r1.errors import UserError
from mer_r1.evaluation.llm.chat import ChatPrompt, Prices, Reply, Usage
from mer_r1.evaluation.llm.client import Client
from mer_r1.evaluation.llm.ledger import Ledger, Row

BATCH = 64
"""Jobs that are prepared, and held in memory, at a time."""
CHARACTERS_PER_TOKEN = 4.0
TOKENS_PER_IMAGE = 765
"""Tokens of an image of some megapixels at OpenAI's high detail: 85 + 4 tiles of 170. Other servers differ."""
TOKENS_PER_REPLY = 120
ASSUMED_SECONDS = 5.0
"""Seconds per reply, assumed until some have been measured."""


@dataclass(frozen=True)
class Job:
    """One question to a language model.

    Attributes:
        key: the ledger's key of `row`.
        row: fields of its row besides the reply.
        text: its words, without images and sounds.
        build: makes the prompt, with its images and sounds; raises `UserError` where that cannot be done.
        images: number of images in the prompt, at most.
        about: what decides the reply besides words and model: version of the instruction, digest and size of media.
    """

    key: Hashable
    row: Row
    text: str
    build: Callable[[], ChatPrompt]
    images: int = 0
    about: str = ""


@dataclass
class Tally:
    """Progress of one stage of work, and what it has used.

    Attributes:
        stage: its name.
        total: all its items.
        known: items that had a valid row or record before this run.
        done: items answered in this run, from the cache or not.
        failed: items without an answer in this run.
        cached: those of `done` that came from the cache and cost nothing.
        input_tokens: tokens paid for in this run, as the server counts them, unusable replies included.
        output_tokens: likewise.
        estimate: expected tokens, cost and seconds of the remaining items, see `estimated`; empty if unknown.
        began: start of this run on the monotonic clock.
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
        """Items that need no more waiting for."""
        return self.known + self.done + self.failed

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest takes at the pace of this run; before its first item the estimate, None without."""
        here = self.done + self.failed
        if not here:
            return self.estimate.get("seconds")
        return (monotonic() - self.began) / here * (self.total - self.finished)


Watch = Callable[[Tally], Any]
"""Callback called with the progress: once before anything is asked, then after each item."""


def run(
    stage: str,
    jobs: Sequence[Job],
    client: Client,
    version: str,
    ledger: Ledger,
    read: Callable[[Job, Reply], Row],
    watch: Watch | None = None,
) -> Tally:
    """Ask every job of a stage without a valid row; write a row for each, with the fields that `read` gives.

    A reply that `read` cannot use gets an `error` there: it counts as failed. One of an earlier run is asked for anew.

    Raises:
        UserError: asking further is pointless (see `chat.TextModel.complete`); rows written so far stay.
    """
    left = remaining(jobs, ledger, client)
    tally = Tally(stage, total=len(jobs), known=len(jobs) - len(left), estimate=estimated(left, ledger, client))
    before = replace(client.usage)

    def note() -> None:
        tally.input_tokens = client.usage.prompt_tokens - before.prompt_tokens
        tally.output_tokens = client.usage.completion_tokens - before.completion_tokens
        if watch:
            watch(tally)

    def ask(batch: Sequence[Job]) -> None:
        prepared = list(_prepared(batch, client, ledger, tally))
        stale: list[int] = []

        def keep(index: int, reply: Reply) -> None:
            job = prepared[index][0]
            row = _row(job, client, reply) | read(job, reply)
            if reply.cached and row["error"] is not None:
                stale.append(index)
                return
            ledger.add(row)
            tally.failed += row["error"] is not None
            tally.done += row["error"] is None
            tally.cached += reply.cached
            note()

        client.complete([prompt for _, prompt in prepared], version, keep)
        if left := list(stale):
            fresh = [replace(prepared[index][1], fresh=True) for index in left]
            client.complete(fresh, version, lambda number, reply: keep(left[number], reply))
        note()

    note()
    for start in range(0, len(left), BATCH):
        ask(left[start : start + BATCH])
    return tally


def remaining(jobs: Sequence[Job], ledger: Ledger, client: Client) -> list[Job]:
    """The jobs without a valid row: without an error, for the same question to the same model, and the same item."""
    return [job for job in jobs if not _is_valid(ledger.rows.get(job.key), job, client)]


def _is_valid(row: Row | None, job: Job, client: Client) -> bool:
    if row is None or row.get("error") is not None:
        return False
    expected = {name: value for name, value in job.row.items() if value is not None} | _stamp(job, client)
    return all(row.get(name) == value for name, value in expected.items())


def estimated(left: Sequence[Job], ledger: Ledger, client: Client) -> dict[str, Any]:
    """What the remaining jobs will about take.

    Returns:
        `questions`, `input_tokens`, `output_tokens`, `cost` (None without prices) and `seconds`. Tokens are guessed
        from characters and images; where the ledger has rows of this stage, their mean is used, as for the time.
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
        "cost": cost(client.prices, round(inputs), round(outputs)),
        "seconds": each * len(left) / max(client.concurrency, 1),
    }


def cost(prices: Prices | None, input_tokens: int, output_tokens: int) -> float | None:
    """Cost of so many tokens; None where the prices are unknown."""
    return Usage(prompt_tokens=input_tokens, completion_tokens=output_tokens).cost(prices) if prices else None


def _prepared(jobs: Sequence[Job], client: Client, ledger: Ledger, tally: Tally) -> Iterator[tuple[Job, ChatPrompt]]:
    """Jobs with their prompts; one whose prompt cannot be built gets a row with the reason."""
    for job in jobs:
        try:
            yield job, job.build()
        except UserError as error:
            tally.failed += 1
            before = ledger.rows.get(job.key)
            if before is None or before.get("error") != str(error):  # a repeated run adds no second row
                ledger.add(job.row | _stamp(job, client) | {"error": str(error)})


def _row(job: Job, client: Client, reply: Reply) -> Row:
    used = {
        "input_tokens": reply.prompt_tokens,
        "output_tokens": reply.completion_tokens,
        "seconds": round(reply.seconds, 3),
        "cached": reply.cached,
        "finish_reason": reply.finish_reason,
    }
    return job.row | _stamp(job, client) | used | {"error": reply.problem}


def _stamp(job: Job, client: Client) -> Row:
    decided = json.dumps([job.text, job.about, client.decoding.settings], sort_keys=True)
    return {"model": client.name, "asked": hashlib.sha256(decided.encode()).hexdigest()[:16]}


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(float(row.get(name) or 0) for row in rows) / len(rows)
