"""An evaluation on MER-UniBench on a terminal: its sets, its progress, its tables and what is missing."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.progress import TimeElapsedColumn

from mer_r1.cli.app import bars, console, say, say_notes

if TYPE_CHECKING:
    from mer_r1.evaluation.llm.jobs import Tally, Watch

logger = logging.getLogger(__name__)

LOG_SECONDS = 60.0
"""Seconds between two lines of progress in the log, without a terminal."""
BY_WHEELS = "sentiments are made from labels by the wheels, not by a language model as in the reference"
_SOURCES = {
    "answer": "in the answer",
    "llm": "by the language model",
    "empty": "blank answers",
    "rules": "by the wheels",
}
_MISSING = ("doubtful", "errors", "without_completion")


def say_beginning(
    clips: Mapping[str, Sequence[Any]], manifests: Mapping[str, Path], warnings: Mapping[str, Sequence[str]]
) -> None:
    """Show the sets, and warnings about manifests that were made."""
    from mer_r1.benchmarks.mer_unibench.sets import SETS

    say(", ".join(f"{SETS[name].title} {len(listed)}" for name, listed in clips.items()) + " clips")
    for name, lines in warnings.items():
        say(f"{SETS[name].title}: made {manifests[name]}")
        for line in lines:
            say(f"  warning: {line}", style="yellow")


@contextmanager
def watching(quiet: bool) -> "Iterator[Watch]":
    """Show progress and remaining time: a bar on a terminal, else one line per minute in the log."""
    with bars(quiet, TimeElapsedColumn()) as bar:
        task = bar.add_task("asking", total=None)
        last = [monotonic()]

        def watch(pace: "Tally") -> None:
            bar.update(task, completed=pace.finished, total=pace.total, description=_where(pace))
            if not bar.console.is_interactive and monotonic() - last[0] >= LOG_SECONDS:
                last[0] = monotonic()
                logger.info("%s: %d of %d", _where(pace), pace.finished, pace.total)

        yield watch


def _where(pace: "Tally") -> str:
    failed = f", {pace.failed} failed" if pace.failed else ""
    left = "" if pace.seconds_left is None else f", about {duration(pace.seconds_left)} left"
    return f"{pace.stage}{failed}{left}"


def duration(seconds: float) -> str:
    """Format a duration.

    >>> duration(80), duration(600), duration(9000)
    ('80 s', '10 min', '2 h 30 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def show_scores(report: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
    """Show the scores, what they hide, and remarks."""
    from mer_r1.benchmarks.mer_unibench.terminal import hidden_tables, remarks, scores_table

    console.print(scores_table(report))
    for table in hidden_tables(report):
        console.print(table)
    for line in (*notes, *remarks(report)):
        say(line)


def show(report: Mapping[str, Any], out: Path, has_llm: bool) -> None:
    """Show the scores, what they hide, the sources of labels, and what is missing."""
    from mer_r1.benchmarks.mer_unibench.run import SCORES_FILE, TABLE_FILE

    show_scores(report)
    _say_sources(report, has_llm)
    say(f"{out / SCORES_FILE}, {out / TABLE_FILE}")


def _say_sources(report: Mapping[str, Any], has_llm: bool) -> None:
    entries = [entry for modes in report["answers"].values() for entry in modes.values()]
    for kind in ("labels", "sentiments"):
        counts = sum((Counter(entry[kind]) for entry in entries), Counter())
        if counts:
            say(f"{kind}: " + ", ".join(f"{count} {_SOURCES.get(name, name)}" for name, count in counts.items()))
    if report["sentiment"] == "rules" and any(entry.get("sentiments") for entry in entries):
        say(BY_WHEELS)
    for name, modes in report["answers"].items():
        say_notes(modes[next(iter(modes))]["notes"], f"{report['sets'][name]['title']}: ")
        for mode, entry in modes.items():
            for clip, without in entry["partly"].items():
                say(f"{report['sets'][name]['title']} {mode}: {clip} was asked without its {' and '.join(without)}")
    _say_missing({name: sum(entry[name] for entry in entries) for name in _MISSING}, has_llm)


def _say_missing(counts: Mapping[str, int], has_llm: bool) -> None:
    if counts["doubtful"]:
        say(f"{counts['doubtful']} answers with doubtful labels or sentiment (labels.jsonl says why)")
    if counts["without_completion"]:
        again = "rerun to ask again, with --ask-partly by what can be read of them"
        silent = f"{counts['without_completion']} clips without an answer of the model (records.jsonl says why)"
        say(f"{silent}; {again}", style="red")
    if counts["errors"]:
        advice = "" if has_llm else "; --reader names a language model that reads them"
        say(f"{counts['errors']} answers without labels or sentiment (labels.jsonl says why){advice}", style="red")
