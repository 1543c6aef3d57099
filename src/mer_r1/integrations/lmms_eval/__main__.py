"""`python -m mer_r1.integrations.lmms_eval`: the folder of our tasks, and lmms-eval's answers as prediction files."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mer_r1.errors import UserError
from mer_r1.integrations.lmms_eval import TASKS_FOLDER
from mer_r1.integrations.lmms_eval.answers import export_answers

app = typer.Typer(
    help="MER-UniBench and MME-Emotion as tasks of lmms-eval.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def tasks() -> None:
    """Print the folder of our tasks, for lmms-eval's option --include_path."""
    typer.echo(TASKS_FOLDER)


@app.command()
def answers(
    samples: Annotated[
        list[Path], typer.Argument(help="Files *_samples_*.jsonl of lmms-eval (--log_samples), or folders of them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the prediction files.")],
) -> None:
    """Convert the answers that lmms-eval saved to prediction files for extract, score and eval."""
    for path, count in export_answers(samples, out).items():
        typer.echo(f"{path}: {count} answers")


def main() -> None:
    """Entry point: an expected error is one line on stderr and exit status 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"mer-r1: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
