"""Commands that ask a model and show its answers: predict, evaluate, threshold, report."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mer_r1.cli.app import AsJson, Wheels, app, console, print_json, progress, say, say_notes, thinking_modes
from mer_r1.cli.benchmarks.engines import Engine, Patient
from mer_r1.cli.options import (
    OPENAI_KEY,
    BatchSize,
    Device,
    FeaturesDir,
    KeyVariable,
    Limits,
    MaxNewTokens,
    Overwrite,
    Temperature,
)
from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import load as load_wheels
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.cache import ReplyCache
from mer_r1.evaluation.llm.chat import Decoding
from mer_r1.weights import NOTICE, POLICY, model_path

Labelled = Annotated[Path, typer.Option("--manifest", help="Manifest with gold labels (JSONL).")]
Mode = Annotated[
    Literal["slow", "fast", "both", "auto"],
    typer.Option(help="Mode of thinking; auto reasons only where the fast answer is unsure."),
]
Threshold = Annotated[
    float | None,
    typer.Option(min=0, help="Confidence below which --think auto reasons; the model's own by default."),
]


@app.command()
def predict(
    clips: Annotated[list[Path], typer.Argument(help="Video or audio files.")],
    limits: Limits,
    model: Annotated[str, typer.Option(help="Model folder or hub name; by default the built-in model.")] = POLICY,
    think: Mode = "both",
    threshold: Threshold = None,
    subtitle: Annotated[str, typer.Option(help="Words spoken in the clip, or in all clips.")] = "",
    audio: Annotated[Path | None, typer.Option(help="Audio file that replaces the audio of one clip.")] = None,
    wheels: Wheels = None,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = 512,
    seed: Annotated[int, typer.Option(help="Random seed for sampling.")] = 0,
    batch_size: BatchSize = 8,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Recognise emotions in clips: labels, wheel categories, reasoning, confidences."""
    from mer_r1.evaluation.predict import predict as ask
    from mer_r1.model.generation import Sampling
    from mer_r1.model.omni import load

    if audio and len(clips) > 1:
        raise UserError("--audio goes with exactly one clip")
    if model == POLICY != model_path(model):  # not a folder of that name
        typer.echo(NOTICE, err=True)
    asked = [Clip(str(path), path, audio, subtitle) for path in clips]
    omni = load(model, device=device, limits=limits.given)
    sampling = Sampling(max_new_tokens, temperature, seed=seed)
    taxonomy = load_wheels(wheels)
    how: dict[str, Any] = {"batch_size": batch_size, "name": str(model)}
    if think == "auto":
        from mer_r1.evaluation.adaptive import predict_auto

        records = predict_auto(omni, asked, taxonomy, sampling, _gate_threshold(model, threshold), **how)
    else:
        records = ask(omni, asked, thinking_modes(think), taxonomy, sampling, **how)
    broken: set[str] = set()
    notes: dict[str, None] = {}  # each once, not once per mode
    for record in records:
        if as_json:
            print_json(record.to_dict(), indent=None)
        elif record.id not in broken:  # an error of a file is shown once, not once per mode
            _show_record(record)
        notes |= dict.fromkeys(f"{record.id}: {note}" for note in record.notes)
        if record.error is not None:
            broken.add(record.id)
    for line in () if as_json else notes:
        say(line, style="yellow")
    raise typer.Exit(1 if broken else 0)


@app.command()
def evaluate(
    manifest: Labelled,
    out: Annotated[Path, typer.Option(help="Output folder: records.jsonl and summary.json; rerun to resume.")],
    limits: Limits,
    engine: Engine,
    requests: Patient,
    model: Annotated[
        str | None,
        typer.Option(help="Model folder or hub name, or its name at --model-url; without it, only score."),
    ] = None,
    key_variable: KeyVariable = OPENAI_KEY,
    think: Mode = "both",
    threshold: Threshold = None,
    split: Annotated[str, typer.Option(help='Split of the manifest; "all" for every row.')] = "test",
    wheels: Wheels = None,
    exchange: Annotated[str | None, typer.Option(help="audio or video, to take it from another clip.")] = None,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = 512,
    num_answers: Annotated[int, typer.Option(min=1, help="Sampled answers per clip; its scores are their means.")] = 1,
    seed: Annotated[int, typer.Option(help="Random seed for sampling, exchange and bootstrap.")] = 0,
    batch_size: BatchSize = 32,
    features_dir: FeaturesDir = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on labelled clips: precision, recall and F1 of slow and fast thinking, with 95 % intervals."""
    limit = _gate_threshold(model, threshold) if think == "auto" else 0.0
    needing = {"--overwrite": overwrite, "--exchange": exchange, "an engine": engine != Engine()}
    if model is None and (given := [name for name, value in needing.items() if value]):
        raise UserError(f"{given[0]} needs --model: without it, nothing is asked")
    if model is not None:
        from mer_r1.evaluation.adaptive import evaluate_auto
        from mer_r1.evaluation.predict import evaluate_model
        from mer_r1.model.generation import Sampling

        sampling = Sampling(max_new_tokens, temperature, seed=seed)
        how: dict[str, Any] = {"split": split, "wheels": wheels, "exchange": exchange, "batch_size": batch_size}
        how |= {"features_dir": features_dir, "device": device, "limits": limits.given, "overwrite": overwrite}
        how["processes"] = engine.processes
        if think == "auto" and num_answers > 1:
            raise UserError("--num-answers: --think auto asks for one answer per clip")
        with ExitStack() as stack:
            advance = stack.enter_context(progress("evaluate", None, quiet=as_json))
            if not engine.is_torch:
                if any((think == "auto", exchange, num_answers > 1, features_dir, device)):
                    given = "--think auto, --exchange, --num-answers, --features-dir and --device"
                    raise UserError(f"{given} are for a checkpoint in PyTorch: leave --engine vllm or --model-url out")
                asking = (Decoding(temperature, seed, max_new_tokens), limits.given, requests)
                asking += (stack.enter_context(ReplyCache(out / "replies.sqlite")), key_variable, batch_size)
                how["asked"] = engine.other_model(model, load_wheels(wheels), *asking)
            if think == "auto":
                evaluate_auto(model, manifest, out, sampling, limit, progress=advance, **how)
            else:
                how |= {"num_answers": num_answers}
                evaluate_model(model, manifest, out, thinking_modes(think), sampling, progress=advance, **how)
    _show_summary(out, manifest, split, limit if think == "auto" else None, seed, wheels, as_json)


def _show_summary(
    out: Path, manifest: Path, split: str, limit: float | None, seed: int, wheels: Path | None, as_json: bool
) -> None:
    from mer_r1.evaluation.adaptive import write_auto_summary
    from mer_r1.evaluation.summary import build_table, write_summary

    if limit is not None:
        summary = write_auto_summary(out, manifest, split, limit, seed=seed, wheels=wheels)
    else:
        summary = write_summary(out, manifest, split, seed=seed, wheels=wheels)
    if as_json:
        print_json(summary)
    else:
        console.print(build_table(summary))
        say_notes(summary["notes"])


@app.command()
def threshold(
    model: Annotated[Path, typer.Option(help="Model folder; the threshold is saved in it.")],
    manifest: Labelled,
    out: Annotated[Path, typer.Option(help="Output folder of the records; rerun to resume.")],
    limits: Limits,
    split: Annotated[str, typer.Option(help="Split to choose on; never the test split.")] = "val",
    wheels: Wheels = None,
    max_new_tokens: MaxNewTokens = 512,
    batch_size: BatchSize = 32,
    features_dir: FeaturesDir = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Choose the confidence below which --think auto reasons, on validation clips."""
    from mer_r1.evaluation.adaptive import choose_threshold, curve, pairs, write_gate
    from mer_r1.evaluation.predict import evaluate_model
    from mer_r1.evaluation.summary import clips_of, saved_records, source_text
    from mer_r1.model.generation import Sampling

    if any(clip.split == "test" for clip in clips_of(manifest, split)):
        raise UserError(f"--split {split} has test clips: a threshold is never chosen on them")
    sampling = Sampling(max_new_tokens, 0.0, seed=0)
    how: dict[str, Any] = {"batch_size": batch_size, "features_dir": features_dir, "device": device}
    how |= {"limits": limits.given, "overwrite": overwrite}
    with progress("answer", None, quiet=as_json) as advance:
        evaluate_model(str(model), manifest, out, list(ThinkingMode), sampling, split, wheels, progress=advance, **how)
    records, told = saved_records(out, manifest, split, load_wheels(wheels))
    told = {"model": str(model), **told}
    gate = choose_threshold(records, {"manifest": manifest.name, "split": split, "wheels": told["wheels"]})
    kept = write_gate(gate, model)
    if as_json:
        found = {"threshold": gate.threshold, "share": gate.share, "f1": gate.f1, "tokens": gate.tokens}
        print_json(found | told)
        return
    say(source_text(told))
    for point in curve(pairs(records)):
        mark = "  <- chosen" if point.threshold == gate.threshold else ""
        reached = f"reasons in {point.share:4.0%}, F1 {point.f1:.3f}, {point.tokens:.1f} tokens"
        say(f"threshold {point.threshold:.3f}: {reached}{mark}")
    say(f"saved in {kept}")


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="Run folder with run.json.")],
    out: Annotated[Path | None, typer.Option(help="Page to write; report.html in the run folder by default.")] = None,
) -> None:
    """Write a self-contained HTML page about a run."""
    from mer_r1.evaluation.report import write_report

    say(str(write_report(run_dir, out)))


def _gate_threshold(model: str | None, threshold: float | None) -> float:
    if threshold is not None:
        return threshold
    if model is None:
        raise UserError("--think auto on saved records needs --threshold")
    from mer_r1.evaluation.adaptive import read_gate

    return read_gate(model).threshold


def _show_record(record: Any) -> None:
    if record.error:
        say(f"{record.id}: {record.error.removeprefix(f'{record.id}: ')}", style="red")
        return
    say(f"{record.id} ({record.mode}, {record.seconds:.2f} s)", style="bold")
    doubt = "" if record.well_formed else "   (not in the requested form)"
    doubt += f"   ({record.doubt})" if record.doubt else ""
    doubt += "" if record.finish_reason == "stop" else "   (cut off: see --max-new-tokens)"
    say(f"  labels      {', '.join(record.labels) or '(none)'}{doubt}")
    for wheel, sectors in record.categories.items():
        sure = record.confidence.get(wheel, {})
        top = sorted(sure, key=lambda sector: -sure[sector])[:3]
        shown = ", ".join(f"{sector} {sure[sector]:.2f}" for sector in top)
        say(f"  {wheel:<11} {', '.join(sectors) or '-'}   (confidence: {shown or '-'})")
    if record.reasoning:
        say(f"  reasoning   {record.reasoning}")
