"""`mer-r1 lmms-tasks` and `lmms-answers`: our benchmarks inside lmms-eval, and its answers back in our commands."""

from pathlib import Path
from typing import Annotated

import typer

from mer_r1.cli.app import app, say


@app.command("lmms-tasks")
def lmms_tasks() -> None:
    """Print the folder with our tasks for lmms-eval, for its option --include_path."""
    from mer_r1.integrations.lmms_eval import TASKS_FOLDER

    say(str(TASKS_FOLDER))


@app.command("lmms-answers")
def lmms_answers(
    samples: Annotated[
        list[Path], typer.Argument(help="Files *_samples_*.jsonl of lmms-eval (--log_samples), or folders of them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the prediction files.")],
) -> None:
    """Make prediction files of the answers that lmms-eval saved, for extract, score and eval."""
    from mer_r1.integrations.lmms_eval.answers import export_answers

    for path, count in export_answers(samples, out).items():
        say(f"{path}: {count} answers")
