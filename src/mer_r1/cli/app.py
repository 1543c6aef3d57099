"""What the commands share: the apps they register on, how they speak, how they end.

A command parses, calls one function, and shows what came back; heavy imports stay inside it.
"""

import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mer_r1.cli.options import App
from mer_r1.errors import UserError

app = App(
    help="MER-R1: reasoning that helps multimodal emotion recognition.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
score_app = App(help="Score what was predicted; needs no model.", no_args_is_help=True)
eval_app = App(help="Evaluate a model on a public benchmark, from its prompts to its scores.", no_args_is_help=True)
app.add_typer(score_app, name="score")
app.add_typer(eval_app, name="eval")
console = Console()

Wheels = Annotated[
    Path | None, typer.Option(help="Folder of the official emotion wheels; the built-in ones otherwise.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


class Think(StrEnum):
    """Which way of thinking a command asks for."""

    SLOW = "slow"
    FAST = "fast"
    BOTH = "both"


class ThinkOrAuto(StrEnum):
    """The same, or: fast first, and slow where fast is unsure."""

    SLOW = "slow"
    FAST = "fast"
    BOTH = "both"
    AUTO = "auto"


def main() -> None:
    """Entry point: an expected error is one line on stderr and exit status 2."""
    # What the libraries deprecate concerns us, not who runs a command.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    # Idle threads that spin beside other jobs cost up to ten times the time on few cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpx2", "numba", "transformers", "datasets", "PIL", "fsspec", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        # Without a file's name it is nothing that other words on the command line would mend.
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(f"mer-r1: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


def say(text: str, style: str | None = None) -> None:
    """Print one line as it is."""
    # As it is: names may look like markup, and a path that is broken at the terminal's width cannot be copied.
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def thinking_modes(think: Think | ThinkOrAuto) -> list[Any]:
    """The modes that a choice stands for; of "auto" both."""
    from mer_r1.emotions.thinking import ThinkingMode

    return list(ThinkingMode) if think.value in ("both", "auto") else [ThinkingMode(think.value)]


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print JSON in which NaN is null."""
    typer.echo(json.dumps(_null_nan(value), indent=indent, ensure_ascii=False, allow_nan=False))


def _null_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@contextmanager
def progress(what: str, total: int | None, quiet: bool = False) -> Iterator[Any]:
    """A bar on stderr, and the function that moves it: (how many more are done, of how many)."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # Elsewhere than on a terminal, a bar would leave blank lines behind.
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, disable=quiet or not errors.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, of=None: bar.update(task, advance=done, total=of or total)
