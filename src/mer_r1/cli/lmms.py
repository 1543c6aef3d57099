"""`mer-r1 lmms-tasks` and `lmms-answers`: the former, hidden spellings of `python -m mer_r1.integrations.lmms_eval`."""

from pathlib import Path
from typing import Annotated

import typer

from mer_r1.cli.app import app


@app.command("lmms-tasks", hidden=True)
def lmms_tasks() -> None:
    """Print the folder of our tasks for lmms-eval."""
    from mer_r1.integrations.lmms_eval.__main__ import tasks

    _note("lmms-tasks", "tasks")
    tasks()


@app.command("lmms-answers", hidden=True)
def lmms_answers(
    samples: Annotated[list[Path], typer.Argument(help="Files or folders of saved answers.")],
    out: Annotated[Path, typer.Option(help="Folder for the prediction files.")],
) -> None:
    """Convert the answers that lmms-eval saved to prediction files."""
    from mer_r1.integrations.lmms_eval.__main__ import answers

    _note("lmms-answers", "answers")
    answers(samples, out)


def _note(old: str, new: str) -> None:
    typer.echo(f"mer-r1 {old} is now: python -m mer_r1.integrations.lmms_eval {new}", err=True)
