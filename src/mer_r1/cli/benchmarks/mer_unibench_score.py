"""`mer-r1 score mer-unibench`: scores of saved predictions; and the mean of nine sets alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mer_r1.cli.app import AsJson, Wheels, print_json, say, score_app
from mer_r1.cli.benchmarks.mer_unibench_view import BY_WHEELS, show_scores
from mer_r1.cli.options import AllowPickle, Compared, Resamples
from mer_r1.data.jsonl import read_object
from mer_r1.emotions.wheels import load
from mer_r1.errors import UserError

if TYPE_CHECKING:
    from mer_r1.benchmarks.mer_unibench.predictions import Reading


TableForm = Literal["latex", "markdown", "csv"]


@score_app.command("mer-unibench")
def mer_unibench(
    predictions: Annotated[Path, typer.Option(help="Folder: NAME.jsonl, NAME/records.jsonl or results-NAME/ per set.")],
    data: Annotated[list[Path], typer.Option(help="Folder with manifests (mer-r1 prepare), or files; repeatable.")],
    compared: Compared,
    more: Annotated[list[Path] | None, typer.Argument(help="Further manifests.")] = None,
    wheels: Wheels = None,
    sets: Annotated[str | None, typer.Option(help="Only these sets, comma-separated.")] = None,
    mode: Annotated[
        Literal["official", "audited", "both"],
        typer.Option(help="The reference's scores, the audited scores, or both."),
    ] = "both",
    sentiment: Annotated[
        Literal["saved", "rules"], typer.Option(help="Sentiments as saved, or by the wheels.")
    ] = "saved",
    system: Annotated[str | None, typer.Option(help="Folder to take if results-NAME/ has several.")] = None,
    table: Annotated[TableForm | None, typer.Option(help="Print a table in this form instead.")] = None,
    published: Annotated[bool, typer.Option("--published", help="Add the published rows to the table.")] = False,
    name: Annotated[str, typer.Option(help="Name of the model in the table.")] = "",
    resamples: Resamples = 2000,
    seed: Annotated[int, typer.Option(help="Random seed of the bootstrap.")] = 0,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Score saved predictions on MER-UniBench: official and audited, slow and fast, and the mean of nine sets."""
    from mer_r1.benchmarks.mer_unibench.predictions import Reading
    from mer_r1.benchmarks.mer_unibench.report import Scoring, score_benchmark

    if published and table is None:
        raise UserError("--published goes with --table latex, markdown or csv")
    if compared.matching != "wheels" and mode == "official":
        raise UserError("--matching is of the audited scores: official ones compare words by the wheels")
    taxonomy = compared.taxonomy(wheels)
    reading = Reading(sentiment, taxonomy, allow_pickle, system)
    golds, found = _read(predictions, [*data, *(more or [])], sets, reading)
    how = Scoring(taxonomy, mode != "audited", mode != "official", seed, resamples)
    report = score_benchmark(golds, found, how)
    report |= {"model": name or str(predictions), "sentiment": sentiment}
    if as_json:
        print_json(report)
    elif table is not None:
        _print_tables(report, name, table, published)
    else:
        show_scores(report, [BY_WHEELS] if sentiment == "rules" else [])


@score_app.command("benchmark-mean", hidden=True)
def benchmark_mean(
    scores: Annotated[Path, typer.Option(help="JSON: set -> main score, or set -> gold and checkpoints.")],
    wheels: Wheels = None,
    as_json: AsJson = False,
) -> None:
    """Compute the mean of the nine sets and the best checkpoint of each, as the reference does."""
    from mer_r1.benchmarks.mer_unibench.scores.official import benchmark_mean as mean_of

    content = read_object(scores)
    report = mean_of(content.get("datasets", content), load(wheels))
    if as_json:
        print_json(report)
        return
    for title, entry in report["datasets"].items():
        say(f"{title}: {100 * entry['best'][0]:.2f}  {entry.get('checkpoint', '')}".rstrip())
    say(f"mean: {100 * report['mean']:.2f}")
    say(" ".join(report["table_row"]))


def _read(
    predictions: Path, data: list[Path], sets: str | None, reading: "Reading"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read gold and predictions of the chosen sets."""
    from mer_r1.benchmarks.mer_unibench.gold import read_gold
    from mer_r1.benchmarks.mer_unibench.predictions import read_predictions
    from mer_r1.benchmarks.mer_unibench.sets import SETS, named

    wanted = [named(part).name for part in sets.split(",")] if sets is not None else list(SETS)
    golds = {name: entry for name, entry in read_gold(data).items() if name in wanted}
    read = {name: read_predictions(predictions, SETS[name], reading) for name in golds}
    found = {name: answers for name, answers in read.items() if answers}
    for name in wanted if sets is not None else ():
        if name not in found:
            lacking = "predictions" if name in golds else "gold"
            raise UserError(f"--sets {name}: no {lacking} of {SETS[name].title} found")
    return golds, found


def _print_tables(report: dict[str, Any], name: str, form: TableForm, published: bool) -> None:
    from mer_r1.benchmarks.mer_unibench.tables import render, score_tables

    for place, table in enumerate(score_tables(report, name, published)):
        typer.echo(("\n" if place else "") + render(table, form), nl=False)
