"""Commands about words and numbers, which need no model: map, score openset, hit-rate, sentiment."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from mer_r1.cli.app import AsJson, Wheels, app, console, print_json, say, score_app
from mer_r1.data.jsonl import read_object
from mer_r1.errors import UserError

WORDS_BESIDE = 3
"""Words that stand beside each other in a table of 80 columns."""
COLUMNS = {"fscore": "F-score", "hitrate": "hit rate", "n_scored": "scored", "n_skipped": "skipped"}
"""What the columns are called for people, where it is not the key."""


@app.command("map")
def map_words(
    words: Annotated[list[str], typer.Argument(help="Emotion words.")], wheels: Wheels = None, as_json: AsJson = False
) -> None:
    """Where words stand on the emotion wheels."""
    from mer_r1.emotions.wheels import load

    taxonomy = load(wheels)
    rows = [taxonomy.map_row(word) for word in words]
    if as_json:
        print_json(rows)
        return
    for start in range(0, len(rows), WORDS_BESIDE):
        beside = rows[start : start + WORDS_BESIDE]
        table = Table("")
        for row in beside:
            table.add_column(Text(row["word"], overflow="fold"), overflow="fold")
        for name, key in (("base word", "case1"), ("label", "case2")):
            table.add_row(name, *(Text(row[key] or "-") for row in beside))
        for index, wheel in enumerate(taxonomy.wheels, start=1):
            rings = [[row[f"wheel{index}_level{level}"] for level in (1, 2)] for row in beside]
            table.add_row(wheel.name, *(Text(" / ".join(filter(None, pair)) or "-") for pair in rings))
        console.print(table)
    say("Of each wheel: its sector / its label. -: no such word there.")


Gold = Annotated[Path, typer.Option(help="JSON: name -> gold.")]
Pred = Annotated[
    list[Path], typer.Option(help="JSON: name -> prediction; repeatable, which gives a report for each file.")
]


@score_app.command()
def openset(gold: Gold, pred: Pred, wheels: Wheels = None, as_json: AsJson = False) -> None:
    """Open-vocabulary labels: precision, recall and F-score by word and by wheel."""
    from mer_r1.emotions.metrics import openset_report
    from mer_r1.emotions.wheels import load

    taxonomy = load(wheels)
    _score(gold, pred, lambda labels, predicted: openset_report(labels, predicted, taxonomy), as_json)


@score_app.command("hit-rate")
def hit_rate(gold: Gold, pred: Pred, wheels: Wheels = None, as_json: AsJson = False) -> None:
    """One gold label a clip: is its sector among the predicted ones?"""
    from mer_r1.emotions.metrics import hit_rate_report
    from mer_r1.emotions.wheels import load

    taxonomy = load(wheels)
    _score(gold, pred, lambda labels, predicted: hit_rate_report(labels, predicted, taxonomy), as_json)


@score_app.command()
def sentiment(gold: Gold, pred: Pred, as_json: AsJson = False) -> None:
    """Positive or negative: weighted F1 and accuracy. Gold holds numbers, predictions hold replies."""
    from mer_r1.emotions.metrics import sentiment_report

    _score(gold, pred, sentiment_report, as_json)


def _score(gold: Path, pred: list[Path], report_of: Callable[..., Any], as_json: bool) -> None:
    """Score each prediction file; several give file -> report."""
    golds = read_object(gold)
    reports = {}
    for path in pred:
        try:
            reports[str(path)] = report_of(golds, read_object(path))
        except UserError as error:
            raise UserError(f"{path}: {error}" if len(pred) > 1 else str(error)) from error
    if as_json:
        print_json(next(iter(reports.values())) if len(pred) == 1 else reports)
        return
    for name, report in reports.items():
        if len(pred) > 1:
            say(name, style="bold")
        _show_report(report)


def _show_report(report: dict[str, Any]) -> None:
    """A row for each measure, a column for each of its figures; a report of plain figures has the column "value"."""
    rows = {name: value if isinstance(value, dict) else {"value": value} for name, value in report.items()}
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = Table("measure")
    for key in keys:
        table.add_column(COLUMNS.get(key, key), justify="right")
    for name, row in rows.items():
        table.add_row(name, *(_number(row[key]) if key in row else "" for key in keys))
    console.print(table)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4f}"
    return str(value)
