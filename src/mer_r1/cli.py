"""The command line. Each command parses, calls one function, and shows what came back; heavy imports stay inside."""

import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mer_r1.errors import UserError

app = typer.Typer(
    help="MER-R1: reasoning that helps multimodal emotion recognition.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
score = typer.Typer(
    help="Score label files against gold files. FILE is JSON: name -> label string or list.", no_args_is_help=True
)
app.add_typer(score, name="score")
console = Console()

Wheels = Annotated[
    Path | None, typer.Option(help="Folder of the official emotion wheels; the built-in ones otherwise.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


class Think(StrEnum):
    """Which way of thinking a command asks for."""

    SLOW = "slow"
    FAST = "fast"
    BOTH = "both"


@app.command()
def scenes(
    out: Annotated[Path, typer.Option(help="Folder to write: clips/ and manifest.jsonl.")],
    clips: Annotated[int, typer.Option(min=1, help="How many clips, over all splits.")] = 4000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clips.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; all cores if not given.")] = None,
) -> None:
    """Write the built-in corpus: generated audio-visual emotion scenes (never human data)."""
    from mer_r1.scenes import write_scenes

    with _progress("scenes", clips) as advance:
        summary = write_scenes(out, clips, seed, workers=workers, progress=advance)
    console.print_json(json.dumps(summary, default=str))


@app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="JSONL manifest.")],
    wheels: Wheels = None,
    workers: Annotated[int | None, typer.Option(help="Processes; all cores if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Report every broken row and every broken file of a manifest."""
    from mer_r1.data import check_manifest
    from mer_r1.taxonomy import load

    with _progress("check", None, quiet=as_json) as advance:
        report = check_manifest(manifest, taxonomy=load(wheels), workers=workers, progress=advance)
    if as_json:
        _print_json(report.to_dict())
    else:
        for line, clip_id, problem in report.problems:
            console.print(f"line {line} {clip_id or ''}: {problem}", style="red", markup=False, highlight=False)
        console.print(f"{report.n_ok} of {report.n_rows} rows are sound; " + _counts(report.counts))
    raise typer.Exit(0 if report.n_ok == report.n_rows else 1)


@app.command(context_settings=PASS_ON)
def build(
    context: typer.Context,
    tiny: Annotated[bool, typer.Option("--tiny", help="Build the tiny policy (the only kind so far).")] = False,
    config: Annotated[Path | None, typer.Option(help="Recipe (YAML); any field as key=value or --key value.")] = None,
) -> None:
    """Make the tiny policy and train its base stage."""
    if not tiny:
        raise UserError("say what to build: --tiny makes the tiny policy")
    from mer_r1.config import BuildRecipe, read_recipe
    from mer_r1.train import run_build

    _stage(run_build, read_recipe(BuildRecipe, config, context.args))


@app.command(context_settings=PASS_ON)
def sft(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="Recipe (YAML); any field as key=value or --key value.")] = None,
) -> None:
    """Cold start: supervised training on slow-format reasoning."""
    from mer_r1.config import SFTRecipe, read_recipe
    from mer_r1.train import run_sft

    _stage(run_sft, read_recipe(SFTRecipe, config, context.args))


@app.command(context_settings=PASS_ON)
def rl(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="Recipe (YAML); any field as key=value or --key value.")] = None,
) -> None:
    """Reinforcement learning: method=f1, rd, ad or mer-r1, and the calibration choices."""
    from mer_r1.config import RLRecipe, read_recipe
    from mer_r1.train import run_rl

    _stage(run_rl, read_recipe(RLRecipe, config, context.args))


@app.command()
def predict(
    clips: Annotated[list[Path], typer.Argument(help="Video or audio files.")],
    model: Annotated[str, typer.Option(help="Model folder or hub name.")],
    think: Annotated[Think, typer.Option(help="Reason first, answer at once, or both.")] = Think.BOTH,
    subtitle: Annotated[str, typer.Option(help="What is said (for one clip, or for all).")] = "",
    audio: Annotated[
        Path | None, typer.Option(help="Sound file to use instead of the video's own (one clip only).")
    ] = None,
    wheels: Wheels = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 decodes greedily.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at a time.")] = 8,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, ...")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model about clips: labels, wheel categories, reasoning, confidences."""
    from mer_r1.data import Clip
    from mer_r1.model import load
    from mer_r1.predict import predict as ask
    from mer_r1.rollout import Sampling
    from mer_r1.taxonomy import load as load_wheels

    if audio and len(clips) > 1:
        raise UserError("--audio goes with exactly one clip")
    asked = [_clip_of(Clip, path, subtitle, audio) for path in clips]
    omni = load(model, device=device)
    sampling = Sampling(max_new_tokens, temperature, seed=seed)
    records = ask(omni, asked, _modes(think), load_wheels(wheels), sampling, batch_size, name=str(model))
    broken = 0
    for record in records:
        broken += record.error is not None
        if as_json:
            _print_json(record.to_dict(), indent=None)
        else:
            _show_record(record)
    raise typer.Exit(1 if broken else 0)


@app.command()
def evaluate(
    manifest: Annotated[Path, typer.Option(help="JSONL manifest with gold labels.")],
    out: Annotated[Path, typer.Option(help="Folder for records.jsonl and summary.json; an interrupted run goes on.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder or hub name; without it saved records are scored again.")
    ] = None,
    think: Annotated[Think, typer.Option(help="Slow, fast, or both.")] = Think.BOTH,
    split: Annotated[str, typer.Option(help='Rows of this split; "all" for every row.')] = "test",
    wheels: Wheels = None,
    exchange: Annotated[str | None, typer.Option(help="audio or video: give every clip another clip's.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 decodes greedily.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest completion.")] = 512,
    seed: Annotated[int, typer.Option(help="Of sampling, exchange and bootstrap.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at a time.")] = 32,
    features_dir: Annotated[Path | None, typer.Option(help="Feature cache; beside the manifest if not given.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, ...")] = None,
    as_json: AsJson = False,
) -> None:
    """Precision, recall and F1 of slow and fast thinking, with 95 % intervals, from saved records."""
    from mer_r1.evaluate import build_table, write_summary

    if model is not None:
        from mer_r1.predict import evaluate_model
        from mer_r1.rollout import Sampling

        sampling = Sampling(max_new_tokens, temperature, seed=seed)
        with _progress("evaluate", None, quiet=as_json) as advance:
            evaluate_model(
                model,
                manifest,
                out,
                _modes(think),
                sampling,
                split,
                wheels,
                exchange,
                batch_size,
                features_dir,
                device,
                advance,
            )
    summary = write_summary(out, seed=seed, wheels=wheels)
    if as_json:
        _print_json(summary)
    else:
        console.print(build_table(summary))


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="Run folder with run.json.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the page; report.html in the run folder otherwise.")
    ] = None,
) -> None:
    """One self-contained HTML page about a run."""
    from mer_r1.report import write_report

    console.print(str(write_report(run_dir, out)))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder; an interrupted demo goes on where it stopped.")] = Path(
        "runs/demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer clips and steps: 5 minutes, and weaker results.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of scenes, model and training.")] = 0,
) -> None:
    """The whole story on generated scenes: base, SFT, RL with MER-R1, evaluation, report."""
    from mer_r1.demo import run_demo

    run_demo(out, quick=quick, seed=seed, console=console)


@app.command("map")
def map_words(
    words: Annotated[list[str], typer.Argument(help="Emotion words.")], wheels: Wheels = None, as_json: AsJson = False
) -> None:
    """Where words stand on the emotion wheels."""
    from mer_r1.taxonomy import load

    taxonomy = load(wheels)
    rows = [taxonomy.map_row(word) for word in words]
    if as_json:
        _print_json(rows)
        return
    table = Table(*rows[0].keys())
    for row in rows:
        table.add_row(*(value or "-" for value in row.values()))
    console.print(table)


Gold = Annotated[Path, typer.Option(help="JSON: name -> gold.")]
Pred = Annotated[Path, typer.Option(help="JSON: name -> prediction.")]


@score.command()
def openset(gold: Gold, pred: Pred, wheels: Wheels = None, as_json: AsJson = False) -> None:
    """Open-vocabulary labels: precision, recall and F-score by word and by wheel."""
    from mer_r1.metrics import openset_report
    from mer_r1.taxonomy import load

    _show_report(openset_report(_read_json(gold), _read_json(pred), load(wheels)), as_json)


@score.command("hit-rate")
def hit_rate(gold: Gold, pred: Pred, wheels: Wheels = None, as_json: AsJson = False) -> None:
    """One gold label a clip: is its sector among the predicted ones?"""
    from mer_r1.metrics import hit_rate_report
    from mer_r1.taxonomy import load

    _show_report(hit_rate_report(_read_json(gold), _read_json(pred), load(wheels)), as_json)


@score.command()
def sentiment(gold: Gold, pred: Pred, as_json: AsJson = False) -> None:
    """Positive or negative: weighted F1 and accuracy. Gold holds numbers, predictions hold replies."""
    from mer_r1.metrics import sentiment_report

    _show_report(sentiment_report(_read_json(gold), _read_json(pred)), as_json)


def main() -> None:
    """Entry point: an expected error is one line on stderr and exit status 2."""
    # Idle threads that spin beside other jobs cost up to ten times the time on few cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "numba", "transformers", "datasets", "PIL", "fsspec", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(f"mer-r1: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


def _stage(run: Any, recipe: Any) -> None:
    with _progress("clips decoded and encoded", None) as advance:
        folder = run(recipe, advance)
    console.print(f"model: {folder}")


def _modes(think: Think) -> list[Any]:
    from mer_r1.thinking import ThinkingMode

    return list(ThinkingMode) if think is Think.BOTH else [ThinkingMode(think.value)]


def _clip_of(kind: Any, path: Path, subtitle: str, audio: Path | None) -> Any:
    return kind(
        id=str(path), video=path, audio=audio, subtitle=subtitle, labels=None, reasoning=None, split=None, meta={}
    )


def _show_record(record: Any) -> None:
    if record.error:
        console.print(f"[red]{record.id}[/red]: {record.error}", highlight=False)
        return
    console.print(f"[bold]{record.id}[/bold] ({record.mode}, {record.seconds:.2f} s)", highlight=False)
    console.print(f"  labels      {', '.join(record.labels) or '(none)'}", highlight=False, markup=False)
    for wheel, sectors in record.categories.items():
        sure = record.confidence.get(wheel, {})
        top = sorted(sure, key=lambda sector: -sure[sector])[:3]
        shown = ", ".join(f"{sector} {sure[sector]:.2f}" for sector in top)
        console.print(
            f"  {wheel:<11} {', '.join(sectors) or '-'}   (confidence: {shown or '-'})", highlight=False, markup=False
        )
    if record.reasoning:
        console.print(f"  reasoning   {record.reasoning}", highlight=False, markup=False)


def _show_report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(report)
        return
    table = Table("metric", "value")
    for name, value in report.items():
        shown = (
            ", ".join(f"{key} {_number(item)}" for key, item in value.items())
            if isinstance(value, dict)
            else _number(value)
        )
        table.add_row(name, shown)
    console.print(table)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object, name -> value, got {type(content).__name__}")
    return content


def _print_json(value: Any, indent: int | None = 2) -> None:
    typer.echo(json.dumps(_null_nan(value), indent=indent, ensure_ascii=False, allow_nan=False))


def _null_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items()) or "no problems"


@contextmanager
def _progress(what: str, total: int | None, quiet: bool = False) -> Iterator[Any]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, of=None: bar.update(task, advance=done, total=of or total)


if __name__ == "__main__":  # accelerate launch -m mer_r1.cli
    main()
