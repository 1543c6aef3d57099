"""Commands that ask a model and show its answers: predict, evaluate, report, app."""

import glob
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mer_r1.cli.app import (
    AsJson,
    Wheels,
    app,
    console,
    leave,
    print_json,
    progress,
    require,
    say,
    say_notes,
)
from mer_r1.cli.benchmarks.engines import Engine, Patient
from mer_r1.cli.options import (
    OPENAI_KEY,
    BatchSize,
    Compared,
    Device,
    FeaturesDir,
    KeyVariable,
    Labelled,
    Limits,
    MaxNewTokens,
    Overwrite,
    Temperature,
    Thinking,
)
from mer_r1.data.claim import clear
from mer_r1.data.clip import Clip
from mer_r1.data.inputs import find_clips, unreadable
from mer_r1.data.media.container import ClipLimits
from mer_r1.emotions.set_task import SetTask
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError, printable
from mer_r1.evaluation.llm.cache import ReplyCache
from mer_r1.evaluation.llm.chat import Decoding
from mer_r1.evaluation.records import taxonomy_in
from mer_r1.weights import NOTICE, POLICY, model_path

if TYPE_CHECKING:
    from mer_r1.data.media.speech import Transcriber
    from mer_r1.evaluation.answerers.base import ClipModel
    from mer_r1.evaluation.answerers.thinking_gate import Gate
    from mer_r1.evaluation.clips.ask import Answered, Asked


@dataclass(frozen=True)
class Words:
    """Options of the words that a machine writes down, and of the parts of a recording."""

    transcribe: Annotated[
        bool,
        typer.Option(
            "--transcribe",
            help="Write down the words of clips that have none (faster-whisper, or "
            "PocketSphinx where its model is not here).",
        ),
    ] = False
    transcriber: Annotated[
        str | None, typer.Option(help="Model of faster-whisper (folder, size or hub name), or pocketsphinx.")
    ] = None
    segment: Annotated[
        str | None, typer.Option(help="Divide recordings into utterances: vad, subtitles, or a number of seconds.")
    ] = None

    def transcriber_on(self, device: str | None) -> "Transcriber | None":
        """What writes words down; None if nothing does.

        Raises:
            UserError: a transcriber that is not to transcribe, or cannot.
        """
        if self.transcriber is not None and not self.transcribe:
            raise UserError("--transcriber needs --transcribe")
        from mer_r1.data.media.speech import transcriber

        return transcriber(self.transcriber, device) if self.transcribe else None


@dataclass(frozen=True)
class Answering:
    """Options of the model that answers."""

    model: Annotated[
        str, typer.Option(help="Model folder, hub name, or name at --model-url; the built-in model by default.")
    ] = POLICY
    model_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server of the model (.../v1).")] = None
    key_variable: KeyVariable = OPENAI_KEY
    four_bit: Annotated[
        bool, typer.Option("--4bit", help="Hold the language model in 4 bits (bitsandbytes); see mer-r1 plan predict.")
    ] = False
    temperature: Temperature = 0.0
    max_new_tokens: MaxNewTokens = 512
    seed: Annotated[int, typer.Option(help="Random seed for sampling.")] = 0
    device: Device = None

    def clip_model(self, taxonomy: Taxonomy, limits: dict[str, Any], batch_size: int) -> "ClipModel":
        """Build the model; a checkpoint is loaded with the first question.

        Raises:
            UserError: options that exclude each other.
        """
        decoding = Decoding(self.temperature, self.seed, self.max_new_tokens)
        if self.model_url is not None:
            from mer_r1.evaluation.answerers.endpoint import Sending, ServedModel
            from mer_r1.evaluation.llm.client import Client

            if self.four_bit or self.device:
                raise UserError("--4bit and --device are for a model in this process, --model-url names a server")
            client = Client(self.model, self.model_url, decoding, None, timeout=300.0, key_variable=self.key_variable)
            return ServedModel(client, taxonomy, Sending(**limits), batch_size)
        from mer_r1.evaluation.answerers.checkpoint import Checkpoint

        if self.model == POLICY != model_path(self.model):  # not a folder of that name
            typer.echo(NOTICE, err=True)
        return Checkpoint(self.model, taxonomy, decoding, batch_size, None, self.device, limits, self.four_bit)

    def taxonomy(self, wheels: Path | None) -> Taxonomy:
        """The categories of the model's task."""
        return _task(self.model, self.model_url).taxonomy(wheels)

    def heard_seconds(self, limits: dict[str, Any]) -> float:
        """Seconds of a clip that the model takes.

        Raises:
            UserError: there is no such model.
        """
        if "max_seconds" in limits or self.model_url is not None:
            return float(limits.get("max_seconds", ClipLimits.max_seconds))
        from mer_r1.model.omni import model_folder, read_settings

        return read_settings(model_folder(self.model)).max_seconds


@dataclass(frozen=True)
class Shown:
    """Options of what is shown and written."""

    out: Annotated[
        Path | None, typer.Option(help="Table of the answers: .csv, .jsonl or .parquet; rerun to resume.")
    ] = None
    timeline: Annotated[
        list[Path] | None,
        typer.Option(help="Timeline of one recording with --segment: .csv, .json, .srt, .vtt, .png, .svg or .pdf."),
    ] = None
    wheels_shown: Annotated[
        bool, typer.Option("--wheels-shown", help="Show the categories on every wheel, with confidences.")
    ] = False
    overwrite: Overwrite = False
    as_json: AsJson = False


@app.command()
def predict(
    clips: Annotated[list[str], typer.Argument(help="Media files, folders, patterns, or tables (.csv, .jsonl).")],
    answering: Answering,
    words: Words,
    limits: Limits,
    shown: Shown,
    thinking: Thinking,
    subtitle: Annotated[str, typer.Option(help="Words spoken in the clip, or in all clips without their own.")] = "",
    audio: Annotated[Path | None, typer.Option(help="Audio file that replaces the audio of one clip.")] = None,
    batch_size: BatchSize = 8,
    wheels: Wheels = None,
) -> None:
    """Recognise emotions in clips and recordings: labels, how sure the model is, what was missing, reasoning."""
    from mer_r1.evaluation.clips import ask, tables

    taxonomy = answering.taxonomy(wheels)
    found = find_clips(clips, subtitle, audio)
    _check_outputs(shown, words, found)
    problems = unreadable(found)
    if len(problems) == len(found):
        more = f" (and {len(found) - 1} other files)" if len(found) > 1 else ""
        raise UserError(f"{next(iter(problems.values()))}{more}")
    seconds = answering.heard_seconds(limits.given)
    gate = thinking.gate(answering.model, wheels=taxonomy.title, temperature=answering.temperature)
    asked = _asked(found, words, seconds, problems, shown, answering.device)
    model = answering.clip_model(taxonomy, limits.given, batch_size)
    records = tables.records_file(shown.out) if shown.out else None
    how: dict[str, Any] = {"gate": gate, "records": records, "facts": {"wheels": taxonomy.title}}
    answered: list[Answered] = []
    quiet = shown.as_json or (shown.out is None and console.is_terminal)  # else the answers themselves are the progress
    try:
        with progress("answer", len(asked), quiet=quiet) as advance:
            for one in ask.ask_clips(model, asked, thinking.modes, progress=advance, **how):
                answered.append(one)
                _show(one, shown, taxonomy, divided=words.segment is not None)
    finally:
        if answered:
            _write(answered, shown, taxonomy)
    failed = sum(one.error is not None for one in answered)
    leave(len(answered) - failed, failed)


def _check_outputs(shown: Shown, words: Words, found: Sequence[Clip]) -> None:
    """Refuse what cannot be written, before anything is asked; forget the results that are to be overwritten."""
    from mer_r1.evaluation.clips import tables, timeline

    if shown.timeline and (words.segment is None or len(found) != 1):
        raise UserError("--timeline goes with one recording and --segment")
    for path in shown.timeline or ():
        timeline.check_timeline(path)
    if shown.out is None:
        if shown.overwrite:
            raise UserError("--overwrite needs --out")
        return
    records = tables.records_file(shown.out)
    if shown.overwrite:
        clear(shown.out.parent, [glob.escape(path.name) for path in (records, shown.out)])
        clear(shown.out.parent, [glob.escape(f"{records.name}.claim.json")])
    elif shown.out.exists() and not records.exists():
        raise UserError(
            f"{printable(shown.out)} exists, and no records of ours beside it: choose another name, or give --overwrite"
        )


def _asked(
    found: Sequence[Clip], words: Words, seconds: float, problems: Collection[str], shown: Shown, device: str | None
) -> "list[Asked]":
    """The clips, or the utterances of the recordings, with their words."""
    from mer_r1.evaluation.clips import ask, tables

    listener = words.transcriber_on(device)
    parts: list[Clip] = []
    if words.segment is None:
        parts = list(found)
    else:
        with progress("divide", None, quiet=shown.as_json) as advance:
            for clip in found:
                whole = clip.id in problems  # its record says why it has no answer
                parts += [clip] if whole else ask.sections_of(clip, words.segment, seconds)
                advance(1, len(found))
    if listener is None:
        return ask.with_words(parts, seconds)
    kept = tables.transcripts_file(shown.out) if shown.out else None
    with progress("write down the words", len(parts), quiet=shown.as_json) as advance:
        return ask.with_words(parts, seconds, listener, kept, advance)


def _show(one: "Answered", shown: Shown, taxonomy: Taxonomy, divided: bool) -> None:
    """Print one answer; of a table only what failed."""
    from mer_r1.evaluation.clips import text, timeline

    if shown.as_json:
        for record in one.records:
            print_json(record.to_dict(), indent=None)
    elif divided and one.clip.section is not None and not shown.wheels_shown:
        if shown.out is None:
            say(timeline.entry_line(timeline.entry_of(one, taxonomy)), style="red" if one.error else None)
    elif shown.out is None or one.error is not None:
        for line, style in text.lines_of(one, taxonomy, shown.wheels_shown):
            say(line, style=style)


def _write(answered: "Sequence[Answered]", shown: Shown, taxonomy: Taxonomy) -> None:
    """Write table and timelines of what is answered."""
    from mer_r1.evaluation.clips import tables, timeline

    written = list(shown.timeline or ())
    if shown.out is not None:
        tables.write_rows(shown.out, [tables.row_of(one, taxonomy) for one in answered])
        written.insert(0, shown.out)
    entries = [timeline.entry_of(one, taxonomy) for one in answered if one.clip.section is not None]
    for path in shown.timeline or ():
        timeline.write_timeline(path, entries, taxonomy, title=Path(answered[0].clip.id.rpartition("#")[0]).name)
    if written and not shown.as_json:
        failed = sum(one.error is not None for one in answered)
        say(
            f"{len(answered) - failed} answered{f', {failed} failed' if failed else ''}: {', '.join(map(str, written))}"
        )


@app.command()
def evaluate(
    manifest: Labelled,
    out: Annotated[Path, typer.Option(help="Output folder: records.jsonl and summary.json; rerun to resume.")],
    limits: Limits,
    thinking: Thinking,
    engine: Engine,
    requests: Patient,
    compared: Compared,
    model: Annotated[
        str | None,
        typer.Option(help="Model folder or hub name, or its name at --model-url; without it, only score."),
    ] = None,
    key_variable: KeyVariable = OPENAI_KEY,
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
    task = _task(model, engine.model_url)
    taxonomy = compared.taxonomy(taxonomy_in(out, wheels) if model is None else task.taxonomy(wheels))
    gate = thinking.gate(model, wheels=taxonomy.title, temperature=temperature)
    needing = {"--overwrite": overwrite, "--exchange": exchange, "an engine": engine != Engine()}
    _refuse(model, engine, gate, num_answers, needing, (exchange, features_dir, device))
    if model is not None:
        from mer_r1.evaluation.answerers.adaptive import evaluate_auto
        from mer_r1.evaluation.predict import evaluate_model
        from mer_r1.model.generation import Sampling

        sampling = Sampling(max_new_tokens, temperature, seed=seed)
        how: dict[str, Any] = {"split": split, "wheels": wheels, "exchange": exchange, "batch_size": batch_size}
        how |= {"features_dir": features_dir, "device": device, "limits": limits.given, "overwrite": overwrite}
        how["processes"] = engine.processes
        with ExitStack() as stack:
            advance = stack.enter_context(progress("evaluate", None, quiet=as_json))
            if not engine.is_torch:
                decoding, cache = Decoding(temperature, seed, max_new_tokens), ReplyCache(out / "replies.sqlite")
                asking = decoding, limits.given, requests, stack.enter_context(cache), key_variable, batch_size
                how["asked"] = engine.other_model(model, taxonomy, *asking)
            if gate:
                evaluate_auto(model, manifest, out, sampling, gate, progress=advance, **how)
            else:
                how |= {"num_answers": num_answers}
                evaluate_model(model, manifest, out, thinking.modes, sampling, progress=advance, **how)
    _show_summary((out, manifest, split), gate, seed, taxonomy, model, as_json)


def _task(model: str | None, model_url: str | None) -> SetTask:
    """What a checkpoint is asked; a server is asked about emotions."""
    if model is None or model_url is not None:
        return SetTask()
    from mer_r1.model.omni import task_of

    return task_of(model)


def _refuse(
    model: str | None,
    engine: Engine,
    gate: "Gate | None",
    num_answers: int,
    needing: Mapping[str, object],
    own: Sequence[object],
) -> None:
    """Refuse options that would do nothing; `needing` a model, and a checkpoint's `own`."""
    if model is None and (given := [name for name, value in needing.items() if value]):
        raise UserError(f"{given[0]} needs --model: without it, nothing is asked")
    if gate and model is not None and num_answers > 1:
        raise UserError("--num-answers: --think auto asks for one answer per clip")
    if not engine.is_torch and any((gate, num_answers > 1, *own)):
        names = "--think auto, --exchange, --num-answers, --features-dir and --device"
        raise UserError(f"{names} are for a checkpoint in PyTorch: leave --engine vllm or --model-url out")


def _show_summary(
    of: tuple[Path, Path, str],
    gate: "Gate | None",
    seed: int,
    wheels: Taxonomy,
    model: str | None,
    as_json: bool,
) -> None:
    from mer_r1.evaluation.answerers.adaptive import write_auto_summary
    from mer_r1.evaluation.summary import build_table, score_card, write_summary

    if gate is not None:
        summary: Any = write_auto_summary(*of, gate, seed=seed, wheels=wheels)
    else:
        summary = write_summary(*of, seed=seed, wheels=wheels)
        if model is not None:
            score_card(model, summary)
    if as_json:
        print_json(summary)
    else:
        console.print(build_table(summary, width=console.width))
        say_notes(summary["notes"])


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
    answering: Answering,
    words: Words,
    limits: Limits,
    wheels: Wheels = None,
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
    from mer_r1.evaluation.clips.ask import seconds_of

    require("app")
    taxonomy, model = answering.taxonomy(wheels), answering.model
    able: dict[str, Any] = {"most_seconds": 60 * max_minutes, "keep": keep, "segment": words.segment}
    if words.segment not in (None, "vad"):
        seconds_of(words.segment, "vad")  # an upload has no subtitle file beside it
    able |= {"transcriber": words.transcriber_on(answering.device), "heard": answering.heard_seconds(limits.given)}
    source: Source
    if answering.model_url is not None:
        source = Asked(answering.clip_model(taxonomy, limits.given, batch_size=1))
    else:
        from mer_r1.model.generation import Sampling

        sampling = Sampling(answering.max_new_tokens, answering.temperature, seed=answering.seed)
        source = InProcess(model, taxonomy, sampling, answering.device, limits.given, answering.four_bit)
        if model == POLICY != model_path(model):
            able["notice"] = NOTICE
    with without_traces() as temporary:
        settings = Settings(source, taxonomy, temporary, **able)
        with served(settings, host, port, max_megabytes) as address:
            if host not in HERE:
                say(f"whoever reaches {host} can use this page: it has no password", style="yellow")
            say(f"open {address} (Ctrl-C ends it)")
            until_interrupted()
