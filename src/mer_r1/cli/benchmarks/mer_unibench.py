"""`mer-r1 eval mer-unibench`: one command from a model and the data to the scores; run again, it goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mer_r1.cli.app import AsJson, Think, Wheels, eval_app, print_json, progress, thinking_modes
from mer_r1.cli.benchmarks.mer_unibench_view import say_beginning, show, watching
from mer_r1.errors import UserError

if TYPE_CHECKING:
    from mer_r1.benchmarks.mer_unibench.gold import Gold
    from mer_r1.benchmarks.mer_unibench.run import Reader
    from mer_r1.data.clip import Clip
    from mer_r1.emotions.wheels import Taxonomy
    from mer_r1.evaluation.answerers.base import ClipModel
    from mer_r1.evaluation.llm.cache import ReplyCache
    from mer_r1.evaluation.llm.chat import Decoding
    from mer_r1.evaluation.llm.client import Client

OPENAI_KEY = "OPENAI_API_KEY"


class Engine(StrEnum):
    """What runs a checkpoint here."""

    TORCH = "torch"
    VLLM = "vllm"


class SendVideo(StrEnum):
    """How a server gets the picture."""

    VIDEO_URL = "video_url"
    FRAMES = "frames"
    NONE = "none"


class SendAudio(StrEnum):
    """How a server gets the sound."""

    AUDIO_URL = "audio_url"
    INPUT_AUDIO = "input_audio"
    NONE = "none"


class SentimentBy(StrEnum):
    """Who turns labels into a sentiment."""

    LLM = "llm"
    RULES = "rules"


class Reference(StrEnum):
    """How the language model that reads labels is used: as we do, or as the reference does."""

    OURS = "ours"
    REFERENCE = "reference"


Model = Annotated[str, typer.Option(help="Model folder, hub name, or with --base-url its name at the server.")]
Data = Annotated[Path, typer.Option(help="Folder with NAME.jsonl, or the release's folder, of each set.")]
Out = Annotated[Path, typer.Option(help="Folder of all records and scores; an interrupted run goes on.")]
Sets = Annotated[str | None, typer.Option(help="Only these sets, with commas between; otherwise the nine.")]
Thinking = Annotated[Think, typer.Option(help="Reason first, answer at once, or both.")]
AskPartly = Annotated[
    bool,
    typer.Option("--ask-partly", help="Ask about clips with unreadable files by what can be read; they are named."),
]
EngineChoice = Annotated[Engine, typer.Option(help="What runs a checkpoint here.")]
BaseUrl = Annotated[
    str | None, typer.Option(help="OpenAI-compatible endpoint of the model, e.g. http://localhost:8000/v1.")
]
Picture = Annotated[SendVideo, typer.Option(help="To --base-url: the file, frames, or nothing.")]
Sound = Annotated[SendAudio, typer.Option(help="To --base-url: the part that carries the sound.")]
Frames = Annotated[int, typer.Option(min=1, help="Frames a clip, with --send-video frames.")]
Llm = Annotated[
    str | None,
    typer.Option(help="Reader of answers without a list in <answer>: its name at --llm-url, or a local folder."),
]
LlmUrl = Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint of --llm.")]
LlmSampling = Annotated[
    Reference, typer.Option(help="Of --llm: temperature 0 and a seed, or the reference's unseeded sampling.")
]
LlmReplies = Annotated[
    Reference, typer.Option(help="Of --llm: refuse unusable replies, or take all as the reference does.")
]
Sentiment = Annotated[
    SentimentBy | None,
    typer.Option(help="Sentiments by --llm or by the wheels; if not given, by --llm if there is one."),
]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="Of the model; 0 decodes greedily.")]
TopP = Annotated[float | None, typer.Option(min=0.01, max=1, help="Nucleus of the sampling.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
Seed = Annotated[int, typer.Option(help="Of sampling and bootstrap.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Clips at a time: 16; for servers and vLLM 64.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests at a time.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds for one reply.")]
KeyVariable = Annotated[str, typer.Option(help="Environment variable with --base-url's key.")]
LlmKeyVariable = Annotated[str, typer.Option(help="Environment variable with --llm-url's key.")]
FeaturesDir = Annotated[
    Path | None, typer.Option(help="Keep the towers' outputs there, for further models with the same towers.")
]
Device = Annotated[str | None, typer.Option(help="cuda, cpu, ...")]
Name = Annotated[str | None, typer.Option(help="Of the model, for the table; --model if not given.")]
Resamples = Annotated[int, typer.Option(min=1, help="Draws of the bootstrap.")]
Published = Annotated[bool, typer.Option("--published", help="Put the published rows into scores.md.")]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read .npz labels that hold pickles, where a manifest must be made: a pickle can name code to run; only "
        "plain containers, numbers, texts and arrays are admitted, anything else is refused.",
    ),
]
AllowAbsolute = Annotated[
    bool, typer.Option("--allow-absolute", help="Take manifests whose media lie anywhere (prepare --absolute).")
]


@dataclass(frozen=True)
class Reach:
    """How servers are asked: where replies are kept, how many requests at a time, seconds for a reply."""

    cache: "ReplyCache"
    concurrency: int
    timeout: float

    def client(self, name: str, url: str, decoding: "Decoding", key_variable: str) -> "Client":
        """A model at a server."""
        from mer_r1.evaluation.llm.client import Client

        return Client(name, url, decoding, self.cache, self.concurrency, self.timeout, key_variable=key_variable)


@eval_app.command("mer-unibench")
def mer_unibench(
    model: Model,
    data: Data,
    out: Out,
    sets: Sets = None,
    think: Thinking = Think.BOTH,
    ask_partly: AskPartly = False,
    engine: EngineChoice = Engine.TORCH,
    base_url: BaseUrl = None,
    send_video: Picture = SendVideo.VIDEO_URL,
    send_audio: Sound = SendAudio.AUDIO_URL,
    frames: Frames = 8,
    llm: Llm = None,
    llm_url: LlmUrl = None,
    llm_sampling: LlmSampling = Reference.OURS,
    llm_replies: LlmReplies = Reference.OURS,
    sentiment: Sentiment = None,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    max_new_tokens: MaxNewTokens = 1024,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    concurrency: Concurrency = 8,
    timeout: Timeout = 300.0,
    key_variable: KeyVariable = OPENAI_KEY,
    llm_key_variable: LlmKeyVariable = OPENAI_KEY,
    features_dir: FeaturesDir = None,
    device: Device = None,
    wheels: Wheels = None,
    name: Name = None,
    resamples: Resamples = 2000,
    published: Published = False,
    allow_pickle: AllowPickle = False,
    allow_absolute: AllowAbsolute = False,
    as_json: AsJson = False,
) -> None:
    """MER-UniBench: ask the model about every clip, read its labels, score. Status 1: some clip has no answer."""
    from mer_r1.benchmarks.mer_unibench import run
    from mer_r1.benchmarks.mer_unibench.report import Scoring
    from mer_r1.emotions.wheels import load
    from mer_r1.evaluation.llm.cache import ReplyCache
    from mer_r1.evaluation.llm.chat import Decoding

    taxonomy, decoding = load(wheels), Decoding(temperature, seed, max_new_tokens, top_p)
    golds, clips = _data(data, sets, allow_pickle, allow_absolute, quiet=as_json)
    with ReplyCache(out / run.REPLIES_FILE) as cache:
        reach = Reach(cache, concurrency, timeout)
        asked: ClipModel
        if base_url is not None:
            sending = (send_video.value, send_audio.value, frames)
            client = reach.client(model, base_url, decoding, key_variable)
            asked = _served(client, taxonomy, sending, batch_size, engine)
        else:
            asked = _local(model, taxonomy, decoding, batch_size, engine, features_dir, device)
        helper = _helper(llm, llm_url, llm_sampling, reach, llm_key_variable)
        by = sentiment or (SentimentBy.RULES if helper is None else SentimentBy.LLM)
        reader = run.Reader(taxonomy, helper, by.value, llm_replies is Reference.OURS)
        rows = _rows(asked, clips, thinking_modes(think), out, reader, ask_partly, as_json)
    how = Scoring(taxonomy, seed=seed, resamples=resamples)
    report = run.score(golds, rows, out, how, name or model, reader.sentiment, published)
    if as_json:
        print_json(report)
    else:
        show(report, out, reader.model is not None)
    raise typer.Exit(1 if run.gaps(report) else 0)


def _data(
    data: Path, sets: str | None, allow_pickle: bool, allow_absolute: bool, quiet: bool
) -> "tuple[dict[str, Gold], dict[str, list[Clip]]]":
    """Gold and clips of the sets that are wanted, in the published order."""
    from mer_r1.benchmarks.mer_unibench.gold import find_manifests, read_gold, scored_clips
    from mer_r1.benchmarks.mer_unibench.sets import NINE, SETS, named

    chosen = NINE if sets is None else {named(part).name for part in sets.split(",")}
    names = [name for name in SETS if name in chosen]
    manifests, warnings = find_manifests(data, names, allow_pickle=allow_pickle)
    golds = read_gold(manifests.values())
    clips = {name: scored_clips(path, allow_absolute=allow_absolute) for name, path in manifests.items()}
    if not quiet:
        say_beginning(clips, manifests, warnings)
    return golds, clips


def _served(
    client: "Client", taxonomy: "Taxonomy", sending: tuple[Any, Any, int], batch_size: int | None, engine: Engine
) -> "ClipModel":
    from mer_r1.evaluation.answerers.endpoint import Sending, ServedModel

    if engine is not Engine.TORCH:
        raise UserError(f"--engine {engine.value} runs a checkpoint here, --base-url asks a server: give one of them")
    return ServedModel(client, taxonomy, Sending(*sending), batch_size or 64)


def _local(
    model: str,
    taxonomy: "Taxonomy",
    decoding: "Decoding",
    batch_size: int | None,
    engine: Engine,
    features_dir: Path | None,
    device: str | None,
) -> "ClipModel":
    if engine is Engine.VLLM:
        from mer_r1.evaluation.answerers.vllm import EngineModel

        if features_dir is not None or device is not None:
            raise UserError("--features-dir and --device go with --engine torch: vLLM chooses for itself")
        return EngineModel(model, taxonomy, decoding, batch_size or 64)
    from mer_r1.evaluation.answerers.checkpoint import Checkpoint

    return Checkpoint(model, taxonomy, decoding, batch_size or 16, features_dir, device)


def _helper(llm: str | None, url: str | None, sampling: Reference, reach: Reach, key_variable: str) -> Any:
    """The language model that reads labels, or None where none was named."""
    from mer_r1.evaluation.llm.chat import REFERENCE_SAMPLING, Decoding

    decoding = REFERENCE_SAMPLING if sampling is Reference.REFERENCE else Decoding()
    if llm is None:
        if url is not None:
            raise UserError("--llm-url says where; say with --llm which model to ask there")
        return None
    if url is not None:
        return reach.client(llm, url, decoding, key_variable)
    if not Path(llm).is_dir():
        raise UserError(f"--llm {llm}: no such folder; for a model behind an endpoint give --llm-url")
    from mer_r1.evaluation.llm.local import LocalModel

    return LocalModel(llm, decoding, reach.cache)


def _rows(
    asked: "ClipModel",
    clips: "Mapping[str, Sequence[Clip]]",
    modes: list[Any],
    out: Path,
    reader: "Reader",
    partly: bool,
    quiet: bool,
) -> dict[str, Any]:
    """The first two stages: answers, then their labels."""
    from mer_r1.benchmarks.mer_unibench import run
    from mer_r1.benchmarks.mer_unibench.ask import collect

    run.claim_folder(out, asked.settings)
    with watching(quiet) as watch:
        collect(asked, clips, modes, out, watch, partly)
    with progress("replies about labels", None, quiet) as advance:
        return {
            name: run.read_labels(name, listed, modes, out, reader, lambda index, reply: advance(1))
            for name, listed in clips.items()
        }
