"""Commands that ask a model and show its answers: predict, evaluate, threshold, report."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mer_r1.cli.app import AsJson, Wheels, app, console, print_json, progress, require, say, say_notes, thinking_modes
from mer_r1.cli.options import (
    OPENAI_KEY,
    BatchSize,
    Device,
    FeaturesDir,
    KeyVariable,
    Limits,
    MaxNewTokens,
    Overwrite,
    Requests,
    Temperature,
)
from mer_r1.data.clip import Clip
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import load as load_wheels
from mer_r1.errors import UserError
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
    model: Annotated[str | None, typer.Option(help="Model folder or hub name; without it, only score.")] = None,
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
    from mer_r1.evaluation.summary import build_table, score_card, write_summary

    limit = _gate_threshold(model, threshold) if think == "auto" else 0.0
    if model is None and (overwrite or exchange):
        raise UserError(f"{'--overwrite' if overwrite else '--exchange'} needs --model: without it, nothing is asked")
    if model is not None:
        from mer_r1.evaluation.adaptive import evaluate_auto
        from mer_r1.evaluation.predict import evaluate_model
        from mer_r1.model.generation import Sampling

        sampling = Sampling(max_new_tokens, temperature, seed=seed)
        how: dict[str, Any] = {"split": split, "wheels": wheels, "exchange": exchange, "batch_size": batch_size}
        how |= {"features_dir": features_dir, "device": device, "limits": limits.given, "overwrite": overwrite}
        if think == "auto" and num_answers > 1:
            raise UserError("--num-answers: --think auto asks for one answer per clip")
        with progress("evaluate", None, quiet=as_json) as advance:
            if think == "auto":
                evaluate_auto(model, manifest, out, sampling, limit, progress=advance, **how)
            else:
                how |= {"num_answers": num_answers}
                evaluate_model(model, manifest, out, thinking_modes(think), sampling, progress=advance, **how)
    if think == "auto":
        from mer_r1.evaluation.adaptive import write_auto_summary

        summary = write_auto_summary(out, manifest, split, limit, seed=seed, wheels=wheels)
    else:
        summary = write_summary(out, manifest, split, seed=seed, wheels=wheels)
        if model is not None:
            score_card(model, summary)
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


@app.command("app")
def serve_page(
    limits: Limits,
    requests: Requests,
    model: Annotated[str, typer.Option(help="Model folder or hub name; by default the built-in model.")] = POLICY,
    model_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server of the model (.../v1).")] = None,
    key_variable: KeyVariable = OPENAI_KEY,
    wheels: Wheels = None,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = 512,
    seed: Annotated[int, typer.Option(help="Random seed for sampling.")] = 0,
    device: Annotated[str | None, typer.Option(help="Device of the model; a GPU if there is one.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; this machine's own by default.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port; the first free one from 7860 on.")] = None,
    max_megabytes: Annotated[int, typer.Option(min=1, help="Largest file that can be uploaded.")] = 100,
    max_minutes: Annotated[float, typer.Option(min=0.01, help="Longest recording that is accepted.")] = 10.0,
    keep: Annotated[Path | None, typer.Option(help="Folder for the records of all answers; none are kept.")] = None,
) -> None:
    """Serve a web page: ask about a video, a recording or a built-in scene, and see both answers being written."""
    from mer_r1.app.ask import Asked, InProcess, Source
    from mer_r1.app.page import Settings
    from mer_r1.app.serve import HERE, served, until_interrupted, without_traces

    require("app")
    taxonomy = load_wheels(wheels)
    source: Source
    if model_url is not None:
        from mer_r1.evaluation.answerers.endpoint import Sending, ServedModel
        from mer_r1.evaluation.llm.chat import Decoding
        from mer_r1.evaluation.llm.client import Client

        decoding = Decoding(temperature, seed, max_new_tokens)
        client = Client(
            model, model_url, decoding, None, requests.concurrency, requests.timeout, key_variable=key_variable
        )
        source = Asked(ServedModel(client, taxonomy, Sending(**limits.given), 1))
    else:
        from mer_r1.model.generation import Sampling

        sampling = Sampling(max_new_tokens, temperature, seed=seed)
        source = InProcess(model, taxonomy, sampling, device, limits.given)
    notice = NOTICE if model_url is None and model == POLICY != model_path(model) else ""
    with without_traces() as temporary:
        settings = Settings(source, taxonomy, temporary, notice, 60 * max_minutes, keep)
        with served(settings, host, port, max_megabytes) as address:
            if host not in HERE:
                say(f"whoever reaches {host} can use this page: it has no password", style="yellow")
            say(f"open {address} (Ctrl-C ends it)")
            until_interrupted()


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
