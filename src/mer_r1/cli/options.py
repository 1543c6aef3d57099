"""Options that several commands share, groups of options, and the spellings of the last release."""

import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from mer_r1.emotions.meaning import matched
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import Taxonomy, load
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.cache import ReplyCache
from mer_r1.evaluation.llm.chat import REFERENCE_SAMPLING, Decoding, Prices, TextModel

if TYPE_CHECKING:
    from mer_r1.evaluation.answerers.thinking_gate import Gate
    from mer_r1.evaluation.llm.client import Client

OPENAI_KEY = "OPENAI_API_KEY"
PANELS = {"data": "Data", "training": "Train", "plan": "Train", "predict": "Predict", "score": "Score"}
PANELS |= {"diagnose": "Train", "mme_emotion": "Score", "study": "Lab", "app": "Help"}
"""File of a command -> its panel in the help."""

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of a command that takes fields of a recipe."""

RECIPE = typer.Option(help="Recipe: a YAML file, or the name of a shipped one (mer-r1 recipes).")
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; one per core by default.")]
Device = Annotated[str | None, typer.Option(help="Device of the model: cpu, cuda, cuda:1 ...; a GPU if there is one.")]
Temperature = Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 decodes greedily.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest completion, in tokens.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Clips per batch.")]
FeaturesDir = Annotated[Path | None, typer.Option(help="Feature cache; features/ beside the manifest by default.")]
Labelled = Annotated[Path, typer.Option("--manifest", help="Manifest with gold labels (JSONL).")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete the results in --out, and ask anew; else others are refused.")
]
Resamples = Annotated[int, typer.Option(min=1, help="Resamples of the bootstrap.")]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read .npz files that hold pickles. A pickle can run code when read: use it for files you trust. "
        "Only plain containers, numbers, strings and arrays are accepted.",
    ),
]
KeyVariable = Annotated[str, typer.Option(help="Environment variable with the server's API key.")]
PricesOption = Annotated[
    str | None, typer.Option("--prices", help="Price per million tokens read,written, e.g. 0.15,0.6.")
]
ExtraBody = Annotated[
    str | None,
    typer.Option(
        "--extra-body",
        help='Further fields of each request to reader or judge, as JSON, e.g. \'{"chat_template_kwargs": '
        '{"enable_thinking": false}}\'.',
    ),
]
Think = Literal["slow", "fast", "both"]
ThinkOption = Annotated[Think, typer.Option(help="Mode of thinking.")]
SentimentBy = Literal["llm", "rules"]


@dataclass(frozen=True)
class Compared:
    """Options of how words are compared in precision, recall and F1."""

    matching: Annotated[
        Literal["wheels", "meaning", "both"],
        typer.Option(help="Compare words by wheels, by meaning (an embedding model), or by both."),
    ] = "wheels"
    meaning_model: Annotated[
        Path | None, typer.Option(help="Folder of the embedding model; the packaged one by default.")
    ] = None
    meaning_floor: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Similarity below which two words have nothing in common; 0.5 by default."),
    ] = None

    def taxonomy(self, wheels: Path | Taxonomy | None) -> Taxonomy:
        """A taxonomy, the wheels of a folder, or the built-in ones, with words compared in this way."""
        return matched(load(wheels), self.matching, self.meaning_model, self.meaning_floor)


@dataclass(frozen=True)
class Limits:
    """Options of how much of each clip is read; by default as the model's own settings say."""

    num_frames: Annotated[
        int | None, typer.Option(min=1, help="Frames per clip, evenly over its length; the model's own by default.")
    ] = None
    max_seconds: Annotated[
        float | None, typer.Option(help="Seconds read from a clip's beginning; the model's own by default.")
    ] = None
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Pixels of a frame above which it is scaled down.")] = (
        None
    )
    audio_track: Annotated[
        int | None, typer.Option(min=1, help="Number of the audio track, from 1; the default one otherwise.")
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """The ones that were given, as fields of `ClipLimits`.

        Raises:
            UserError: a value is no limit.
        """
        from mer_r1.data.media.container import ClipLimits

        return ClipLimits.given(self)


@dataclass(frozen=True)
class Thinking:
    """Options of the mode of thinking."""

    think: Annotated[
        Literal["slow", "fast", "both", "auto"],
        typer.Option(help="Mode of thinking; auto reasons only where the gate of mer-r1 threshold says so."),
    ] = "both"
    threshold: Annotated[
        float | None,
        typer.Option(min=0, help="Confidence below which --think auto reasons, in place of the model's own gate."),
    ] = None
    budget: Annotated[
        float | None,
        typer.Option(help="Mean tokens per clip for --think auto: the gate's threshold that spends at most these."),
    ] = None

    @property
    def modes(self) -> list[ThinkingMode]:
        """The modes that may be asked in."""
        return [mode for mode in ThinkingMode if self.think in (mode.value, "both", "auto")]

    def gate(self, model: str | None, **asked: Any) -> "Gate | None":
        """The gate of auto, None for another mode; `asked` are the facts it must have been chosen on.

        Raises:
            UserError: options that exclude each other, or no gate of this model.
        """
        from mer_r1.evaluation.answerers.thinking_gate import Gate, read_gate

        given = [name for name in ("threshold", "budget") if getattr(self, name) is not None]
        if given and self.think != "auto":
            raise UserError(f"--{given[0]} needs --think auto, got --think {self.think}")
        if len(given) > 1:
            raise UserError("--threshold and --budget exclude each other: a budget sets the threshold")
        if self.think != "auto":
            return None
        if self.threshold is not None:
            return Gate.by_confidence(self.threshold)
        if model is None:
            raise UserError(f"--think auto on saved records needs --threshold{', not --budget' if given else ''}")
        gate = read_gate(model, **asked)
        return gate if self.budget is None else gate.within(self.budget)


@dataclass(frozen=True)
class Requests:
    """Options of requests to a server."""

    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a reply counts as lost.")] = 120.0

    def client(self, name: str, url: str, decoding: Decoding, cache: ReplyCache, key_variable: str) -> "Client":
        """Client of a served model."""
        from mer_r1.evaluation.llm.client import Client

        return Client(name, url, decoding, cache, self.concurrency, self.timeout, key_variable=key_variable)


@dataclass(frozen=True)
class Reader:
    """Options of the language model that reads labels."""

    reader: Annotated[str | None, typer.Option(help="Model that reads labels out of free text: name, or folder.")] = (
        None
    )
    reader_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server of the reader (.../v1).")] = None
    reader_sampling: Annotated[
        Literal["greedy", "reference"],
        typer.Option(help="Temperature 0 with a seed, or the reference's unseeded sampling."),
    ] = "greedy"
    reader_replies: Annotated[
        Literal["checked", "reference"],
        typer.Option(help="Refuse unusable replies, or accept every reply as the reference does."),
    ] = "checked"
    reader_key_variable: Annotated[
        str, typer.Option(help="Environment variable with the API key of the reader's server.")
    ] = OPENAI_KEY
    extra_body: ExtraBody = None

    @property
    def checked(self) -> bool:
        """Whether unusable replies are refused."""
        return self.reader_replies == "checked"

    def model(self, requests: Requests, cache: ReplyCache) -> TextModel | None:
        """The served or the local model; None if none is named.

        Raises:
            UserError: a server without a model's name, or a folder that does not exist.
        """
        decoding = REFERENCE_SAMPLING if self.reader_sampling == "reference" else Decoding()
        decoding = replace(decoding, extra_body=parse_fields("--extra-body", self.extra_body))
        if self.extra_body is not None and self.reader_url is None:
            raise UserError("--extra-body: its fields are for the reader's server; expected --reader-url, too")
        if self.reader is None:
            if self.reader_url is not None:
                raise UserError("--reader-url needs --reader, the name of the model there")
            return None
        if self.reader_url is not None:
            return requests.client(self.reader, self.reader_url, decoding, cache, self.reader_key_variable)
        if not Path(self.reader).is_dir():
            raise UserError(f"--reader {self.reader}: no such folder; for a served model give --reader-url")
        from mer_r1.evaluation.llm.local import LocalModel

        return LocalModel(self.reader, decoding, cache)


def parse_fields(option: str, text: str | None) -> dict[str, Any] | None:
    """Read the JSON object given to an option."""
    try:
        fields_of = None if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{option}: expected a JSON object, got {text!r:.80} ({error!s:.80})") from error
    if text is not None and not isinstance(fields_of, dict):
        raise UserError(f"{option}: expected a JSON object, got {text!r:.80}")
    return fields_of or None


def parse_prices(text: str | None) -> Prices | None:
    """Read the value of --prices."""
    if text is None:
        return None
    try:
        read, written = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--prices: expected two numbers such as 0.15,0.6, got {text!r}") from error
    return Prices(read, written)


# --- groups of options ------------------------------------------------------------------------------------------------


def ungrouped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replace each parameter that is a dataclass by its fields, so that typer makes an option of each field."""
    groups: dict[str, Any] = {}
    parameters: list[Parameter] = []
    for name, parameter in signature(function).parameters.items():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
            continue
        groups[name] = parameter.annotation
        for item in fields(parameter.annotation):
            default = Parameter.empty if item.default is MISSING else item.default
            parameters.append(Parameter(item.name, Parameter.KEYWORD_ONLY, default=default, annotation=item.type))

    def run(**given: Any) -> Any:
        made = {
            name: kind(**{item.name: given.pop(item.name) for item in fields(kind)}) for name, kind in groups.items()
        }
        return function(**given, **made)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


class App(typer.Typer):
    """A group of commands. Each is a `Command`, and its parameters may be dataclasses of options."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Register a function as a command, in the help's panel of its file."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            panel = PANELS.get(function.__module__.rpartition(".")[2])
            described = {"cls": Command, "rich_help_panel": panel, **settings}
            super(App, self).command(name, **described)(ungrouped(function))
            return function

        return decorate


# --- spellings of the last release ------------------------------------------------------------------------------------

_PREDICTIONS = {"--pred": "--predictions"}
_READER = {"--llm": "--reader", "--llm-url": "--reader-url"}
_SERVER = {"--data": "--manifest", "--price-in": "--prices", "--price-out": "--prices"}
RENAMED: dict[str, dict[str, str]] = {
    "scenes": {"--clips": "--num-clips"},
    "parity": {"--clips": "--num-clips"},
    "plan": {"--rows": "--num-clips"},
    "extract": {"--llm": "--reader", "--base-url": "--reader-url"}
    | {"--sampling": "--reader-sampling", "--replies": "--reader-replies", "--key-variable": "--reader-key-variable"},
    "clues": _SERVER | {"--base-url": "--model-url", "--max-tokens": "--max-new-tokens"},
    "score openset": _PREDICTIONS,
    "score hit-rate": _PREDICTIONS,
    "score sentiment": _PREDICTIONS,
    "score list-parse": _PREDICTIONS,
    "score llm-reply": _PREDICTIONS,
    "score mer-unibench": {"--gold": "--data"},
    "score mme-emotion": {"--judged": "--predictions", "--data": "--manifest", "--alpha": "--cot-weight"},
    "eval mer-unibench": _READER
    | {"--base-url": "--model-url", "--llm-sampling": "--reader-sampling", "--llm-replies": "--reader-replies"}
    | {"--frames": "--num-frames", "--llm-key-variable": "--reader-key-variable"},
    "eval mme-emotion": _SERVER
    | {"--base-url": "--judge-url", "--responses": "--predictions", "--alpha": "--cot-weight"}
    | {"--extractor": "--reader", "--extractor-url": "--reader-url", "--max-tokens": "--judge-max-new-tokens"},
    "study": {"--jobs": "--workers", "--clips": "--num-clips"},
}
"""Command, or group of commands -> old spelling of an option -> its spelling now. Goes with the next release."""

RENAMED_VALUES = {"--llm-sampling": {"ours": "greedy"}, "--llm-replies": {"ours": "checked"}}
"""Old spelling of an option -> old value -> its name now."""

_LMMS = "mer_r1.integrations.lmms_eval"
MOVED = {"lmms-tasks": (_LMMS, "tasks"), "lmms-answers": (_LMMS, "answers")}
"""Command of the last release -> module that has it now, and its name there."""


class Command(TyperCommand):
    """A command that also takes the spellings of the last release, with a note on stderr."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, after old spellings have become those of now."""
        known = {name for parameter in self.params for name in parameter.opts}
        renamed: dict[str, str] = {}
        for words, names in RENAMED.items():
            if f" {words} " in f"{ctx.command_path} ":
                renamed |= {old: new for old, new in names.items() if new in known and old not in known}
        spelled, found = current_spelling(args, renamed)
        for old in found if not ctx.resilient_parsing else ():
            typer.echo(f"{old} is now {renamed[old]}; the old spelling goes with the next release", err=True)
        return super().parse_args(ctx, spelled)


def current_spelling(args: Sequence[str], renamed: dict[str, str]) -> tuple[list[str], list[str]]:
    """Replace old spellings of options, and old values, by those of now.

    Args:
        args: the words after the command.
        renamed: old spelling -> spelling now. Every such option takes a value.

    Returns:
        The words as they are spelled now, and the old spellings found, each once.

    >>> current_spelling(["--llm", "m", "--llm-sampling=ours", "--out", "o"], RENAMED["eval mer-unibench"])
    (['--reader', 'm', '--reader-sampling', 'greedy', '--out', 'o'], ['--llm', '--llm-sampling'])
    >>> current_spelling(["--price-in", "2", "--price-out", "8"], RENAMED["clues"])
    (['--prices', '2,8'], ['--price-in', '--price-out'])
    """
    words, left = [], list(args)
    found: dict[str, str] = {}  # old spelling -> its last value
    while left:
        word = left.pop(0)
        if word == "--":
            left.insert(0, word)
            break
        old, equals, value = word.partition("=")
        if old not in renamed:
            words.append(word)
            continue
        given = [value] if equals else [left.pop(0)] if left else []
        found[old] = given[0] if given else ""
        if not old.startswith("--price-"):
            words += [renamed[old], *(RENAMED_VALUES.get(old, {}).get(one, one) for one in given)]
    if any(old.startswith("--price-") for old in found):
        words += ["--prices", f"{found.get('--price-in', '')},{found.get('--price-out', '')}"]
    return [*words, *left], list(found)
