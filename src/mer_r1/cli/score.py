"""Commands about words: map, extract (labels of predictions), and scores of two JSON files."""

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from mer_r1.cli.app import AsJson, Wheels, app, console, leave, print_json, progress, say, say_notes, score_app
from mer_r1.cli.options import AllowPickle, PricesOption, Reader, Requests, SentimentBy, parse_prices
from mer_r1.data.jsonl import read_json, read_object
from mer_r1.emotions.meaning import matched
from mer_r1.emotions.metrics import hit_rate_report, openset_report, sentiment_report
from mer_r1.emotions.wheels import load
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.cache import ReplyCache
from mer_r1.evaluation.llm.chat import Prices, Usage

WORDS_BESIDE = 3
"""Words per table of 80 columns."""
COLUMNS = {"fscore": "F-score", "hitrate": "hit rate", "n_scored": "scored", "n_skipped": "skipped"}
"""Key of a figure -> title of its column, where they differ."""


@app.command("map")
def map_words(
    words: Annotated[list[str], typer.Argument(help="Emotion words.")], wheels: Wheels = None, as_json: AsJson = False
) -> None:
    """Show the place of words on the emotion wheels."""
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
    say("Each wheel: sector / label; - if the word is not on it.")


@app.command()
def extract(
    predictions: Annotated[Path, typer.Option(help="JSON lines, JSON: name -> text, or the reference's .npz.")],
    out: Annotated[Path, typer.Option(help="JSON lines with labels; *.json: name -> label string.")],
    reader: Reader,
    requests: Requests,
    kind: Annotated[
        Literal["labels", "sentiment"], typer.Option(help="Labels only, or their sentiment too.")
    ] = "labels",
    sentiment: Annotated[SentimentBy, typer.Option(help="Sentiment by the reader or by the wheels.")] = "llm",
    think: Annotated[Literal["slow", "fast"] | None, typer.Option(help="Only rows of this mode.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Reply cache; llm-replies.sqlite beside --out.")] = None,
    prices: PricesOption = None,
    allow_pickle: AllowPickle = False,
    wheels: Wheels = None,
    as_json: AsJson = False,
) -> None:
    """Extract the labels of predictions: from their <answer>, else by a language model. Rerun to resume.

    Exit status 1 if a row has no labels, 3 if none has.
    """
    from mer_r1.evaluation.labels.files import label_rows, read_predictions, sentiment_rows, summarise, write_rows

    rows = read_predictions(predictions, allow_pickle)
    rows = [row for row in rows if think is None or row.get("mode") == think]
    if not rows:
        raise UserError(f"{predictions}: no rows of mode {think}")
    costs, taxonomy, checked = parse_prices(prices), load(wheels), reader.checked
    with ReplyCache(cache or out.with_name("llm-replies.sqlite")) as kept:
        model = reader.model(requests, kept)
        with progress("texts read", None, quiet=as_json) as advance:
            rows = label_rows(rows, model, taxonomy, checked, lambda index, reply: advance(1))
        if kind == "sentiment":
            with progress("sentiments", len(rows), quiet=as_json) as advance:
                rows = sentiment_rows(rows, sentiment, model, taxonomy, checked, lambda index, reply: advance(1))
    write_rows(out, rows, "openset" if kind == "labels" else "sentiment")
    summary = {"out": str(out), **summarise(rows), "usage": _usage(getattr(model, "usage", None), costs)}
    _show_extracted(summary, rows, as_json)
    failed = summary["errors"] + summary["without_completion"]
    leave(summary["rows"] - failed, failed)


Gold = Annotated[Path, typer.Option(help="JSON: name -> gold.")]
Predictions = Annotated[list[Path], typer.Option(help="JSON: name -> prediction; repeatable, one report per file.")]


@score_app.command()
def openset(gold: Gold, predictions: Predictions, wheels: Wheels = None, as_json: AsJson = False) -> None:
    """Precision, recall and F-score of open-vocabulary labels, by word and by wheel."""
    taxonomy = load(wheels)
    _score(gold, predictions, partial(openset_report, taxonomy=taxonomy), as_json, f"wheels: {taxonomy.title}")


@score_app.command("hit-rate")
def hit_rate(gold: Gold, predictions: Predictions, wheels: Wheels = None, as_json: AsJson = False) -> None:
    """Hit rate: is the sector of a clip's one gold label among the predicted sectors?"""
    taxonomy = load(wheels)
    _score(gold, predictions, partial(hit_rate_report, taxonomy=taxonomy), as_json, f"wheels: {taxonomy.title}")


@score_app.command()
def sentiment(gold: Gold, predictions: Predictions, as_json: AsJson = False) -> None:
    """Weighted F1 and accuracy of positive or negative: gold holds numbers, predictions hold replies."""
    _score(gold, predictions, sentiment_report, as_json, "no wheels")


@score_app.command("matching")
def matching_table(
    systems: Annotated[
        Path | None, typer.Option(help="JSON: labels -> system -> label strings of the same clips, to rank systems.")
    ] = None,
    wheels: Wheels = None,
    meaning_model: Annotated[Path | None, typer.Option(help="Embedding model; the packaged one by default.")] = None,
    meaning_floor: Annotated[float | None, typer.Option(min=0, max=1, help="Similarity floor; 0.5 by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a comparison of words by meaning against synonyms, wheels, valence, opposites, and rankings of systems."""
    from mer_r1.benchmarks.mer_unibench.scores.agreement import system_agreement, word_agreement

    by_wheels = load(wheels)
    by_meaning = matched(by_wheels, "meaning", meaning_model, meaning_floor)
    report = word_agreement(by_meaning.meaning, by_wheels)
    if systems is not None:
        labels = read_object(systems).get("labels")
        if not isinstance(labels, dict) or not all(isinstance(rows, list) for rows in labels.values()):
            raise UserError(f"{systems}: expected an object with labels: system -> a list of label strings")
        report["systems"] = system_agreement(labels, by_wheels, by_meaning)
    if as_json:
        print_json(report)
    else:
        _show_matching(report)


def _show_matching(report: dict[str, Any]) -> None:
    table = Table("pairs", title=f"{report['meaning']} against {report['wheels']}")
    for name in ("n", "AUC, bare", "AUC, mended", "above the floor, bare", "mended"):
        table.add_column(name, justify="right")
    for name, rest in (("synonyms", "other words"), ("sectors", "other sectors"), ("valence", "opposite valence")):
        row = report[name]
        bare, mended = (row[kind] for kind in ("cosine", "mended"))
        cells = [" / ".join(f"{share:.3f}" for share in kind["above"]) for kind in (bare, mended)]
        table.add_row(
            f"{name} / {rest}", " / ".join(map(str, row["n"])), _number(bare["auc"]), _number(mended["auc"]), *cells
        )
    row = report["antonyms"]
    table.add_row("opposites", str(row["n"]), "", "", *(f"{row[kind]['above']:.3f}" for kind in ("cosine", "mended")))
    console.print(table)
    say(f"opposites above the floor: {', '.join(report['not apart']) or 'none'}")
    for word, near in report["neighbours"].items():
        say(f"{word}: " + (", ".join(f"{other} {value:.2f}" for other, value in near.items() if value) or "no word"))
    if "systems" in report:
        row = report["systems"]
        say(
            f"{row['n_systems']} systems on {row['n_clips']} clips: rank correlation of systems "
            f"{row['systems']['mean']:.3f} (lowest {row['systems']['lowest']:.3f}), of answers {row['clips']:.3f}; "
            f"mean F1 {row['f1']['wheels']:.3f} by wheels, {row['f1']['meaning']:.3f} by meaning"
        )


@score_app.command("list-parse", hidden=True)
def list_parse(
    predictions: Annotated[Path, typer.Option(help="JSON: a list of label strings, or name -> label string.")],
    as_json: AsJson = False,
) -> None:
    """Split label strings into labels by the reference's rule."""
    from mer_r1.evaluation.labels.replies import list_parse_row

    _table(predictions, list_parse_row, as_json)


@score_app.command("llm-reply", hidden=True)
def llm_reply(
    predictions: Annotated[Path, typer.Option(help="JSON: a list of replies, or name -> reply.")],
    as_json: AsJson = False,
) -> None:
    """Clean replies of a language model by the reference's rule."""
    from mer_r1.evaluation.labels.replies import llm_reply_row

    _table(predictions, llm_reply_row, as_json)


def _score(gold: Path, predictions: list[Path], report_of: Callable[..., Any], as_json: bool, by: str) -> None:
    """Score each prediction file; several files give file -> report. A table says what it is of, and `by` what."""
    from mer_r1.evaluation.labels.extract import label_field

    golds = read_object(gold)
    reports = {}
    for path in predictions:
        try:
            reports[str(path)] = report_of(golds, {name: label_field(v) for name, v in read_object(path).items()})
        except UserError as error:
            raise UserError(f"{path}: {error}" if len(predictions) > 1 else str(error)) from error
    if as_json:
        print_json(next(iter(reports.values())) if len(predictions) == 1 else reports)
        return
    for name, report in reports.items():
        _show_report(report)
        say(f"{name} on the {len(golds)} names of {gold}; {by}")


def _show_report(report: dict[str, Any]) -> None:
    """Show one row per measure and one column per figure; a report of plain figures has the column "value"."""
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


def _usage(usage: Usage | None, prices: Prices | None) -> dict[str, Any]:
    if usage is None:
        return {}
    return asdict(usage) | ({} if prices is None else {"cost": usage.cost(prices)})


def _show_extracted(summary: dict[str, Any], rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        failed = {row["id"]: row["error"] for row in rows if row.get("error") is not None}
        print_json({**summary, "failed": failed})
        return
    for row in rows:
        if row.get("error") is not None:
            say(f"{row['id']}: {row['error']}", style="red")
    usage = summary["usage"]
    say(f"{summary['out']}: {summary['rows']} rows")
    for name in ("labels", "sentiments"):
        if summary[name]:
            say(f"{name}: " + ", ".join(f"{count} from {source}" for source, count in summary[name].items()))
    say_notes(summary["notes"])
    say(f"doubtful {summary['doubtful']}, errors {summary['errors']}, no completion {summary['without_completion']}")
    if usage:
        spent = f", cost {usage['cost']:.4f}" if "cost" in usage else ""
        say(
            f"asked {usage['asked']}, known already {usage['cached']}, without reply {usage['failed']}; "
            f"{usage['prompt_tokens']} tokens read, {usage['completion_tokens']} written{spent}"
        )


def _table(path: Path, row_of: Any, as_json: bool) -> None:
    """Apply `row_of` to each entry of a JSON file: a list, an object, or rows in the reference's own form (`in`)."""
    content = read_json(path)
    if not isinstance(content, list | dict):
        raise UserError(f"{path}: expected a list, or an object name -> value, got {type(content).__name__}")
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    found = {}
    for name, entry in entries:
        try:
            found[name] = row_of(entry["in"] if isinstance(entry, dict) and "in" in entry else entry)
        except UserError as error:
            raise UserError(f"{path}, entry {name!r}: {error}") from error
    if as_json:
        print_json(found if isinstance(content, dict) else list(found.values()))
    else:
        for name, row in found.items():
            say(f"{name}: {row['in']!r} -> {row['out']!r}")
