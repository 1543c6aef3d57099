"""`mer-r1 eval mer-unibench`: from a model and the data to the scores in one command; rerun to resume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mer_r1.cli.app import AsJson, Wheels, eval_app, leave, print_json, progress, thinking_modes
from mer_r1.cli.benchmarks.engines import Engine, Patient
from mer_r1.cli.benchmarks.mer_unibench_view import say_beginning, show, watching
from mer_r1.cli.options import (
    OPENAI_KEY,
    AllowPickle,
    Device,
    KeyVariable,
    Limits,
    MaxNewTokens,
    Overwrite,
    Reader,
    Requests,
    Resamples,
    SentimentBy,
    ThinkOption,
)
from mer_r1.data.claim import clear
from mer_r1.emotions.thinking import question
from mer_r1.emotions.wheels import Taxonomy, load
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.cache import ReplyCache
from mer_r1.evaluation.llm.chat import Decoding
from mer_r1.evaluation.records import RECORDS_FILE, claim_records

if TYPE_CHECKING:
    from mer_r1.benchmarks.mer_unibench.gold import Gold
    from mer_r1.benchmarks.mer_unibench.run import Reader as LabelReader
    from mer_r1.data.clip import Clip
    from mer_r1.evaluation.answerers.base import ClipModel


@dataclass(frozen=True, kw_only=True)
class Evaluated(Engine):
    """Options of the evaluated model: a checkpoint run here, or a model behind a server."""

    model: Annotated[str, typer.Option(help="Model folder or hub name; with --model-url, its name at the server.")]
    key_variable: KeyVariable = OPENAI_KEY
    device: Device = None
    features_dir: Annotated[Path | None, typer.Option(help="Feature cache, for models with equal towers.")] = None
    batch_size: Annotated[int | None, typer.Option(min=1, help="Clips per batch; 16, or 64 for servers and vLLM.")] = (
        None
    )
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Sampling temperature; 0 decodes greedily.")] = 0.0
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1, help="Nucleus of sampling.")] = None
    max_new_tokens: MaxNewTokens = 1024

    def clip_model(
        self, taxonomy: Taxonomy, seed: int, requests: Requests, cache: ReplyCache, limits: dict[str, Any]
    ) -> "ClipModel":
        """Build the model that answers about clips, with these fields of `ClipLimits` instead of its own.

        Raises:
            UserError: options that exclude each other.
        """
        decoding = Decoding(self.temperature, seed, self.max_new_tokens, self.top_p)
        if not self.is_torch:
            if self.model_url is None and (self.features_dir is not None or self.device is not None):
                raise UserError("--features-dir and --device need --engine torch: vLLM chooses for itself")
            how = (decoding, limits, requests, cache, self.key_variable)
            return self.other_model(self.model, taxonomy, *how, self.batch_size)
        from mer_r1.evaluation.answerers.checkpoint import Checkpoint

        batch_size = self.batch_size or 16
        return Checkpoint(self.model, taxonomy, decoding, batch_size, self.features_dir, self.device, limits)


@dataclass(frozen=True)
class Clips:
    """Options of the benchmark's clips."""

    data: Annotated[Path, typer.Option(help="Folder with NAME.jsonl or the released folder of each set.")]
    sets: Annotated[str | None, typer.Option(help="Only these sets, comma-separated; the nine by default.")] = None
    allow_pickle: AllowPickle = False
    allow_absolute: Annotated[bool, typer.Option("--allow-absolute", help="Accept manifests with absolute paths.")] = (
        False
    )
    ask_partly: Annotated[bool, typer.Option("--ask-partly", help="Ask about damaged clips by what is readable.")] = (
        False
    )


@eval_app.command("mer-unibench")
def mer_unibench(
    evaluated: Evaluated,
    limits: Limits,
    chosen: Clips,
    out: Annotated[Path, typer.Option(help="Output folder of records and scores; rerun to resume.")],
    reader: Reader,
    requests: Patient,
    think: ThinkOption = "both",
    sentiment: Annotated[
        SentimentBy | None, typer.Option(help="Sentiment by the reader (by default if there is one) or by the wheels.")
    ] = None,
    wheels: Wheels = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the table; --model by default.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed for sampling and bootstrap.")] = 0,
    resamples: Resamples = 2000,
    published: Annotated[bool, typer.Option("--published", help="Add the published rows to scores.md.")] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate on MER-UniBench: answers, labels, scores. Exit status 1 if a clip has no answer, 3 if none has."""
    from mer_r1.benchmarks.mer_unibench import run
    from mer_r1.benchmarks.mer_unibench.report import Scoring

    taxonomy = load(wheels)
    golds, clips = _data(chosen, quiet=as_json)
    if overwrite:
        clear(out, run.RESULTS)
    with ReplyCache(out / run.REPLIES_FILE) as cache:
        asked = evaluated.clip_model(taxonomy, seed, requests, cache, limits.given)
        helper = reader.model(requests, cache)
        read = run.Reader(taxonomy, helper, sentiment or ("rules" if helper is None else "llm"), reader.checked)
        how = (chosen.ask_partly, evaluated.processes)
        rows = _rows(asked, clips, thinking_modes(think), out, read, as_json, how)
    scoring = Scoring(taxonomy, seed=seed, resamples=resamples)
    weights = asked.settings.get("weights")
    report = run.score(golds, rows, out, scoring, name or evaluated.model, read.sentiment, published, weights)
    if as_json:
        print_json(report)
    else:
        show(report, out, read.model is not None)
    failed = run.gaps(report)
    leave(sum(entry["rows"] for modes in report["answers"].values() for entry in modes.values()) - failed, failed)


def _data(chosen: Clips, quiet: bool) -> "tuple[dict[str, Gold], dict[str, list[Clip]]]":
    """Read gold and clips of the chosen sets, in the published order."""
    from mer_r1.benchmarks.mer_unibench.gold import find_manifests, read_gold, scored_clips
    from mer_r1.benchmarks.mer_unibench.sets import NINE, SETS, named

    wanted = NINE if chosen.sets is None else {named(part).name for part in chosen.sets.split(",")}
    names = [name for name in SETS if name in wanted]
    manifests, warnings = find_manifests(chosen.data, names, allow_pickle=chosen.allow_pickle)
    golds = read_gold(manifests.values())
    clips = {name: scored_clips(path, allow_absolute=chosen.allow_absolute) for name, path in manifests.items()}
    if not quiet:
        say_beginning(clips, manifests, warnings)
    return golds, clips


def _rows(
    asked: "ClipModel",
    clips: "Mapping[str, Sequence[Clip]]",
    modes: list[Any],
    out: Path,
    reader: "LabelReader",
    quiet: bool,
    how: tuple[bool, int],
) -> dict[str, Any]:
    """Run the first two stages: answers, then their labels."""
    from mer_r1.benchmarks.mer_unibench import run
    from mer_r1.benchmarks.mer_unibench.ask import collect

    records = [pattern for pattern in run.RESULTS if pattern.endswith(RECORDS_FILE)]
    claim_records(out, reader.taxonomy, {**asked.settings, "question": question("")}, records)
    with watching(quiet) as watch:
        collect(asked, clips, modes, out, watch, *how)
    with progress("replies about labels", None, quiet) as advance:
        return {
            name: run.read_labels(name, listed, modes, out, reader, lambda index, reply: advance(1))
            for name, listed in clips.items()
        }
