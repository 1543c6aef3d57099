"""An evaluation on MME-Emotion on a terminal: what is left and spent, and the tables."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import TimeRemainingColumn

from mer_r1.cli.app import bars, console, print_json, say
from mer_r1.cli.benchmarks.mer_unibench_view import duration

if TYPE_CHECKING:
    from mer_r1.benchmarks.mme_emotion.judging.stages import Item
    from mer_r1.evaluation.llm.chat import Prices
    from mer_r1.evaluation.llm.jobs import Tally, Watch

logger = logging.getLogger(__name__)


@contextmanager
def watching(prices: "Prices | None", quiet: bool) -> "Iterator[Watch]":
    """Show an estimate before each stage, and what is done, failed, spent and left while it runs.

    A bar on a terminal; otherwise one line in the log per tenth.
    """
    with bars(quiet, TimeRemainingColumn()) as bar:
        rows: dict[str, Any] = {}
        tenths: dict[str, int] = {}

        def watch(tally: "Tally") -> None:
            tenth = 10 * tally.finished // max(tally.total, 1)
            if tally.stage not in rows:
                rows[tally.stage] = bar.add_task(tally.stage, total=tally.total, completed=tally.known)
                tenths[tally.stage] = tenth
                say_estimate(tally.stage, tally.estimate, quiet)
            bar.update(rows[tally.stage], completed=tally.finished, description=tally.stage + _so_far(tally, prices))
            if not bar.console.is_interactive and tenth > tenths[tally.stage]:
                tenths[tally.stage] = tenth
                done = f"{tally.stage}: {tally.finished} of {tally.total}{_so_far(tally, prices)}"
                logger.info("%s, about %s left", done, duration(tally.seconds_left or 0.0))

        yield watch


def _so_far(tally: "Tally", prices: "Prices | None") -> str:
    from mer_r1.evaluation.llm.jobs import cost

    failed = f", {tally.failed} failed" if tally.failed else ""
    spent = cost(prices, tally.input_tokens, tally.output_tokens)
    return f"{failed}, {_used(tally.input_tokens, tally.output_tokens, spent)}"


def say_estimate(stage: str, entry: dict[str, Any], quiet: bool) -> None:
    """Show the estimate of the remaining questions, if any."""
    if quiet or not entry["questions"]:
        return
    used = _used(entry["input_tokens"], entry["output_tokens"], entry["cost"])
    say(f"{stage}: {entry['questions']} questions, about {used}, {duration(entry['seconds'])}")


def say_result(tally: "Tally", prices: "Prices | None", quiet: bool) -> None:
    """Show what a stage has done and used."""
    if quiet:
        return
    parts = ((tally.known, "before"), (tally.cached, "from the cache"))
    among = ", ".join(f"{count} {where}" for count, where in parts if count)
    done = f"{tally.known + tally.done} of {tally.total}" + (f" ({among})" if among else "")
    say(f"{tally.stage}: {done}{_so_far(tally, prices)}")


def _used(read: float, written: float, cost: float | None) -> str:
    spent = "" if cost is None else f", cost {cost:,.2f}" if cost >= 1 else f", cost {cost:.4f}"
    return f"{read:,.0f} tokens read and {written:,.0f} written{spent}"


def match_labels(
    out: Path, items: "list[Item]", wheels: Path | None, seed: int, source: dict[str, Any], as_json: bool
) -> None:
    """Write recognition by label match, and show it as a table."""
    from mer_r1.benchmarks.mme_emotion.run import write_label_scores
    from mer_r1.benchmarks.mme_emotion.terminal import label_table
    from mer_r1.emotions.wheels import load

    report = write_label_scores(out, items, load(wheels), seed, source)
    if as_json:
        print_json(report)
    else:
        console.print(label_table(report))
        _say_source(next(iter(report.values()), {}))


def show(report: dict[str, Any], categories: bool, as_json: bool) -> None:
    """Show all tables and notes of a report, or its JSON."""
    from mer_r1.benchmarks.mme_emotion import terminal as tables

    if as_json:
        print_json(report)
        return
    console.print(tables.official_table(report))
    console.print(tables.audited_table(report))
    if categories:
        for table in tables.category_tables(report):
            console.print(table)
    agreements = [report, *report.get("modes", {}).values()]
    for entry in agreements:
        if "agreement" in entry:
            console.print(tables.agreement_table(entry["agreement"]))
    _say_source(report)
    for line in tables.notes(report):
        say(line)


def _say_source(report: dict[str, Any]) -> None:
    say(", ".join(f"{name}: {value}" for name, value in report.get("source", {}).items() if value is not None))
