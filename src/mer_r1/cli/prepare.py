"""`mer-r1 prepare`: data sets of the field become manifests, and `--list` says what is expected where."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mer_r1.cli.app import AsJson, app, print_json, say
from mer_r1.errors import UserError

MOST_FREQUENT = 8
"""Gold words that the summary names."""


@app.command()
def prepare(
    name: Annotated[str | None, typer.Argument(help="Data set, as --list names it.")] = None,
    root: Annotated[Path | None, typer.Option(help="Its folder, or the folder that holds all of them.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Manifest to write; NAME.jsonl in the data set's folder if not given.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data set; what the benchmark tests otherwise.")] = None,
    split_sft: Annotated[
        int | None,
        typer.Option(min=1, help="Write two manifests: so many clips for SFT (the paper: 5000), the rest for RL."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of the SFT clips.")] = 0,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Read .npz labels that hold pickles. A pickle can run code when it is read: use this for files whose "
            "origin you trust. Only plain containers, numbers, strings and numpy arrays are admitted.",
        ),
    ] = False,
    encoding: Annotated[str, typer.Option(help="Of the CSV tables, such as gb18030.")] = "utf-8",
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Write absolute paths, so that the manifest may lie anywhere.")
    ] = False,
    drop_missing: Annotated[bool, typer.Option("--drop-missing", help="Leave clips without a video file out.")] = False,
    list_sets: Annotated[bool, typer.Option("--list", help="Show all data sets, their files and counts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the manifest of a data set from its folder, and report whatever is not as it should be."""
    from mer_r1.corpora import prepare as corpora

    if list_sets:
        _show_sets([corpora.named(name)] if name else list(corpora.DATA_SETS.values()), as_json)
        return
    if name is None or root is None:
        raise UserError("say which data set and where it is: mer-r1 prepare NAME --root DIR (--list shows the names)")
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
