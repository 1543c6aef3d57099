"""Commands about clips: scenes (the built-in corpus), prepare (public data sets), check, export (for other engines)."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mer_r1.cli.app import AsJson, Wheels, app, console, print_json, progress, say
from mer_r1.cli.options import AllowPickle, Limits, Workers
from mer_r1.emotions.set_task import SetTask, read_task
from mer_r1.errors import UserError
from mer_r1.training.recipe_files import select_clips

MOST_FREQUENT = 8
"""Gold words named in a summary."""


@app.command()
def scenes(
    out: Annotated[Path, typer.Option(help="Output folder: clips/ and manifest.jsonl.")],
    num_clips: Annotated[int, typer.Option(min=1, help="Number of clips over all splits.")] = 4000,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same clips.")] = 0,
    missing: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the training clips without picture, sound or subtitle.")
    ] = 0.3,
    people: Annotated[int, typer.Option(min=1, help="Number of persons in the training split.")] = 64,
    workers: Workers = None,
) -> None:
    """Write the built-in corpus: generated audio-visual emotion scenes, no human data."""
    from mer_r1.lab.scenes.write import write_scenes

    with progress("scenes", num_clips) as advance:
        summary = write_scenes(out, num_clips, seed, workers=workers, progress=advance, missing=missing, people=people)
    console.print_json(json.dumps(summary, default=str))


@app.command()
def texts(
    name: Annotated[Literal["allergens", "scenes"], typer.Argument(help="Described dishes, or scenes told in words.")],
    out: Annotated[Path, typer.Option(help="Output folder: manifest.jsonl and task.json.")],
    num_rows: Annotated[int, typer.Option(min=10, help="Number of rows over all splits.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same rows.")] = 0,
) -> None:
    """Write a made data set of texts whose answers are sets of words, with its task: question and categories."""
    from mer_r1.lab.texts import WRITERS

    WRITERS[name](out, num_rows, seed)
    say(f"{num_rows} rows and task.json in {out}")


@app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="Manifest of the clips (JSONL).")],
    limits: Limits,
    wheels: Wheels = None,
    task: Annotated[Path | None, typer.Option(help="JSON file of the task; emotions by default.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default as many as pay, at most one per core.")
    ] = None,
    content: Annotated[
        bool, typer.Option("--content", help="Read all files whole, and compare them with their kept digests.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Report every invalid row and every broken file of a manifest."""
    from mer_r1.data.check import check_manifest
    from mer_r1.data.media.container import ClipLimits

    chosen = read_task(task) if task else SetTask()
    how: dict[str, Any] = {"workers": workers, "limits": ClipLimits(**limits.given).limits(), "content": content}
    with progress("check", None, quiet=as_json) as advance:
        report = check_manifest(manifest, is_known=chosen.taxonomy(wheels).knows, progress=advance, **how)
    if not report.n_rows:
        raise UserError(f"{manifest}: no rows, expected one JSON object per line")
    if as_json:
        print_json(report.to_dict())
    else:
        for line, clip_id, problem in report.problems:
            say(f"line {line} {clip_id or ''}: {problem}", style="red")
        say(f"{report.n_ok} of {report.n_rows} rows are valid; {_counts(report.counts)}")
    raise typer.Exit(0 if report.n_ok == report.n_rows else 1)


def _counts(counts: dict[str, int]) -> str:
    found = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"problems: {found}" if found else "no problems"


@app.command()
def prepare(
    name: Annotated[str | None, typer.Argument(help="Name of the data set; --list shows all.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the data set, or of all data sets.")] = None,
    out: Annotated[Path | None, typer.Option(help="Manifest to write; NAME.jsonl in --root by default.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data set; the benchmark's by default.")] = None,
    split_sft: Annotated[
        int | None,
        typer.Option(min=1, help="Split in two: this number of clips for SFT (5000 in the paper), the rest for RL."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the choice of SFT clips.")] = 0,
    allow_pickle: AllowPickle = False,
    encoding: Annotated[str, typer.Option(help="Encoding of the CSV tables, e.g. gb18030.")] = "utf-8",
    absolute: Annotated[bool, typer.Option("--absolute", help="Write absolute paths of media.")] = False,
    drop_missing: Annotated[bool, typer.Option("--drop-missing", help="Leave out clips without a video file.")] = False,
    list_sets: Annotated[bool, typer.Option("--list", help="List all data sets with their files and counts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the manifest of a public data set from its folder, and report what is unexpected."""
    from mer_r1.corpora import prepare as corpora

    if list_sets:
        _show_sets([corpora.named(name)] if name else list(corpora.DATA_SETS.values()), as_json)
        return
    if name is None or root is None:
        raise UserError(
            "prepare needs a data set and its folder: mer-r1 prepare NAME --root DIR (--list shows the names)"
        )
    summary = corpora.prepare(
        name,
        root,
        out,
        split=split,
        split_sft=split_sft,
        seed=seed,
        allow_pickle=allow_pickle,
        encoding=encoding,
        absolute=absolute,
        drop_missing=drop_missing,
    )
    if as_json:
        print_json(summary)
    else:
        _show_summary(summary)


def _show_sets(sets: list[Any], as_json: bool) -> None:
    from mer_r1.corpora.prepare import expected_files

    rows = [
        {
            "name": data.name,
            "title": data.title,
            "gold": data.kind,
            "folder": data.folder,
            "parts": {name: part.clips for name, part in data.parts.items()},
            "at_least": any(part.at_least for part in data.parts.values()),
            "files": expected_files(data),
        }
        for data in sets
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        say(f"{row['name']}: {row['title']}, {row['gold']}", style="bold")
        least = "at least " if row["at_least"] else ""
        parts = (f"{name} ({'?' if clips is None else f'{least}{clips}'})" for name, clips in row["parts"].items())
        say(f"  parts   {', '.join(parts)}")
        say(f"  folder  {row['folder']}")
        for index, file in enumerate(row["files"]):
            say(f"  {'' if index else 'files':<7} {file}")


def _show_summary(summary: dict[str, Any]) -> None:
    expected = summary["expected"]
    known = "" if expected is None else f", expected {expected}"
    say(f"{summary['dataset']}, {summary['part']}: {summary['clips']} clips{known}")
    gold = [f"{word} {count}" for word, count in list(summary["gold"].items())[:MOST_FREQUENT]]
    more = len(summary["gold"]) - len(gold)
    say(f"gold: {', '.join(gold) or 'none'}{f', and {more} more words' if more > 0 else ''}")
    for warning in summary["warnings"]:
        say(f"warning: {warning}", style="yellow")
    for path, rows in summary["manifests"].items():
        say(f"{path}: {rows} rows")


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="With --whole the folder to write, with --rows the JSONL file.")],
    whole: Annotated[
        bool, typer.Option("--whole", help="Write a whole checkpoint around the thinker --model.")
    ] = False,
    rows: Annotated[
        Literal["swift", "verl"] | None, typer.Option(help="Write the clips of --manifest as rows for this engine.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder; with --rows for the wording of its question and its limits.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Whole checkpoint that the thinker came from; without it, no talker is written.")
    ] = None,
    manifest: Annotated[Path | None, typer.Option(help="Manifest with gold labels (JSONL).")] = None,
    split: Annotated[str, typer.Option(help="Rows of this split only, or all.")] = "train",
    clips: Annotated[str | None, typer.Option(help='Slice of those rows, such as "5000:".')] = None,
) -> None:
    """Export for other engines: a whole checkpoint (vLLM, ms-swift, lmms-eval), or rows of ms-swift or verl."""
    from mer_r1.integrations.export import rows as write_rows
    from mer_r1.integrations.export import whole_checkpoint

    if whole == (rows is not None):
        raise UserError("choose what to export: --whole, or --rows swift or verl")
    if whole:
        if model is None or manifest or clips:
            raise UserError(
                "--whole takes --model, the folder of a thinker, --base and --out; not --manifest or --clips"
            )
        whole_checkpoint(model, out, base)
        say(f"model: {out}")
        return
    if manifest is None or base:
        raise UserError("--rows takes --manifest, --split, --clips, --model and --out; not --base")
    from mer_r1.model.omni import Settings, read_settings
    from mer_r1.training.recipes import DataFields

    chosen = select_clips(DataFields(manifest=str(manifest), split=split, clips=clips))
    settings = read_settings(model) if model else Settings()
    say(f"{write_rows(chosen, str(rows), out, settings.question, settings)} rows in {out}")
