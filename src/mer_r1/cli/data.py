"""Commands about clips: write the built-in corpus, check a manifest."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mer_r1.cli.app import AsJson, Wheels, app, console, print_json, progress, say
from mer_r1.errors import UserError

Workers = Annotated[int | None, typer.Option(min=1, help="Processes; all cores if not given.")]


@app.command()
def scenes(
    out: Annotated[Path, typer.Option(help="Folder to write: clips/ and manifest.jsonl.")],
    clips: Annotated[int, typer.Option(min=1, help="How many clips, over all splits.")] = 4000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clips.")] = 0,
    workers: Workers = None,
) -> None:
    """Write the built-in corpus: generated audio-visual emotion scenes (never human data)."""
    from mer_r1.lab.scenes import write_scenes

    with progress("scenes", clips) as advance:
        summary = write_scenes(out, clips, seed, workers=workers, progress=advance)
    console.print_json(json.dumps(summary, default=str))


@app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="JSONL manifest.")],
    wheels: Wheels = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Report every broken row and every broken file of a manifest."""
    from mer_r1.data.check import check_manifest
    from mer_r1.emotions.wheels import load

    with progress("check", None, quiet=as_json) as advance:
        report = check_manifest(manifest, is_known=load(wheels).knows, workers=workers, progress=advance)
    if not report.n_rows:
        raise UserError(f"{manifest}: no rows, expected a JSON object a line")
    if as_json:
        print_json(report.to_dict())
    else:
        for line, clip_id, problem in report.problems:
            say(f"line {line} {clip_id or ''}: {problem}", style="red")
        say(f"{report.n_ok} of {report.n_rows} rows are sound; {_counts(report.counts)}")
    raise typer.Exit(0 if report.n_ok == report.n_rows else 1)


def _counts(counts: dict[str, int]) -> str:
    found = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"problems: {found}" if found else "no problems"
