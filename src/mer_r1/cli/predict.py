"""Commands that ask a model and show what it said: predict, evaluate, report, demo."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mer_r1.cli.app import AsJson, ThinkOrAuto, Wheels, app, console, print_json, progress, say, thinking_modes
from mer_r1.errors import UserError

Threshold = Annotated[
    float | None,
    typer.Option(min=0, help="Of --think auto: slow where the fast answer's sureness is below it; the model's own."),
]


@app.command()
def predict(
    clips: Annotated[list[Path], typer.Argument(help="Video or audio files.")],
    model: Annotated[str, typer.Option(help="Model folder or hub name.")],
    think: Annotated[
        ThinkOrAuto, typer.Option(help="Reason first, answer at once, both, or reason only where fast is unsure.")
    ] = ThinkOrAuto.BOTH,
    threshold: Threshold = None,
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
    from mer_r1.data.clip import Clip
    from mer_r1.emotions.wheels import load as load_wheels
    from mer_r1.evaluation.predict import predict as ask
    from mer_r1.model.generation import Sampling
    from mer_r1.model.omni import load

    if audio and len(clips) > 1:
        raise UserError("--audio goes with exactly one clip")
    asked = [_clip_of(Clip, path, subtitle, audio) for path in clips]
    omni = load(model, device=device)
    sampling = Sampling(max_new_tokens, temperature, seed=seed)
    taxonomy = load_wheels(wheels)
    how: dict[str, Any] = {"batch_size": batch_size, "name": str(model)}
    if think is ThinkOrAuto.AUTO:
        from mer_r1.evaluation.auto_predict import predict_auto

        records = predict_auto(omni, asked, taxonomy, sampling, gate_threshold(model, threshold), **how)
    else:
        records = ask(omni, asked, thinking_modes(think), taxonomy, sampling, **how)
    broken: set[str] = set()
    for record in records:
        if as_json:
            print_json(record.to_dict(), indent=None)
        elif record.id not in broken:  # what is wrong with a file is said once, not once a mode
            _show_record(record)
        if record.error is not None:
            broken.add(record.id)
    raise typer.Exit(1 if broken else 0)


@app.command()
def evaluate(
    manifest: Annotated[Path, typer.Option(help="JSONL manifest with gold labels.")],
    out: Annotated[Path, typer.Option(help="Folder for records.jsonl and summary.json; an interrupted run goes on.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder or hub name; without it saved records are scored again.")
    ] = None,
    think: Annotated[
        ThinkOrAuto, typer.Option(help="Slow, fast, both, or slow only where fast is unsure (auto).")
    ] = ThinkOrAuto.BOTH,
    threshold: Threshold = None,
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
    from mer_r1.evaluation.summary import build_table, write_summary

    limit = gate_threshold(model, threshold) if think is ThinkOrAuto.AUTO else None
    if model is not None:
        from mer_r1.evaluation.auto_predict import evaluate_auto
        from mer_r1.evaluation.predict import evaluate_model
        from mer_r1.model.generation import Sampling

        sampling = Sampling(max_new_tokens, temperature, seed=seed)
        how: dict[str, Any] = {"split": split, "wheels": wheels, "exchange": exchange, "batch_size": batch_size}
        how |= {"features_dir": features_dir, "device": device}
        with progress("evaluate", None, quiet=as_json) as advance:
            if limit is not None:
                evaluate_auto(model, manifest, out, sampling, limit, progress=advance, **how)
            else:
                evaluate_model(model, manifest, out, thinking_modes(think), sampling, progress=advance, **how)
    if limit is None:
        summary = write_summary(out, seed=seed, wheels=wheels)
    else:
        from mer_r1.evaluation.adaptive import write_auto_summary

        summary = write_auto_summary(out, limit, seed=seed, wheels=wheels)
    if as_json:
        print_json(summary)
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
    from mer_r1.evaluation.report import write_report

    say(str(write_report(run_dir, out)))


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
    from mer_r1.lab.demo import run_demo

    run_demo(out, quick=quick, seed=seed, console=console, bar=progress)


def gate_threshold(model: str | None, threshold: float | None) -> float:
    """The threshold that was given, else the one kept with the model."""
    if threshold is not None:
        return threshold
    if model is None:
        raise UserError("--think auto on saved records needs --threshold")
    from mer_r1.evaluation.adaptive import read_gate

    return read_gate(model).threshold


def _clip_of(kind: Any, path: Path, subtitle: str, audio: Path | None) -> Any:
    return kind(
        id=str(path), video=path, audio=audio, subtitle=subtitle, labels=None, reasoning=None, split=None, meta={}
    )


def _show_record(record: Any) -> None:
    if record.error:
        say(f"{record.id}: {record.error.removeprefix(f'{record.id}: ')}", style="red")
        return
    say(f"{record.id} ({record.mode}, {record.seconds:.2f} s)", style="bold")
    doubt = "" if record.well_formed else "   (not in the form that was asked for)"
    say(f"  labels      {', '.join(record.labels) or '(none)'}{doubt}")
    for wheel, sectors in record.categories.items():
        sure = record.confidence.get(wheel, {})
        top = sorted(sure, key=lambda sector: -sure[sector])[:3]
        shown = ", ".join(f"{sector} {sure[sector]:.2f}" for sector in top)
        say(f"  {wheel:<11} {', '.join(sectors) or '-'}   (confidence: {shown or '-'})")
    if record.reasoning:
        say(f"  reasoning   {record.reasoning}")
