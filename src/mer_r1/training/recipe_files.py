"""Recipes: one YAML file a stage, every field of which can be set on the command line.

A recipe is TRL's own configuration (`SFTConfig`, `GRPOConfig`, and so `TrainingArguments`) with the few fields that
this project adds. Paths have no default. Defaults that differ from TRL's say why.
"""

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from trl import GRPOConfig, SFTConfig

from mer_r1.errors import UserError
from mer_r1.model.omni import TinyConfig
from mer_r1.rl.calibration import Method


@dataclass
class DataFields:
    """What every stage needs to know about its model and data.

    Attributes:
        model: checkpoint to start from, a folder or a hub name.
        manifest: the JSONL manifest of the clips.
        split: the rows of the manifest with this split; "all" takes every row.
        clips: of those, a slice such as "0:400".
        features_dir: where decoded inputs and tower features are kept; beside the manifest if not given.
        train_towers: train the vision and audio towers too (else they are frozen and their outputs cached).
        decode_workers: processes that decode clips.
        lora_rank: 0 trains the language model in full, above it LoRA of that rank on the language model only.
    """

    model: str | None = None
    manifest: str | None = None
    split: str = "train"
    clips: str | None = None
    features_dir: str | None = None
    train_towers: bool = False
    decode_workers: int = 2
    lora_rank: int = 0


@dataclass
class _Host:
    """Settings of the host trainers that this project changes."""

    # Our columns (clip index, kind, target) are no arguments of the model's forward.
    remove_unused_columns: bool = False
    report_to: str | list[str] | None = "tensorboard"
    logging_steps: float = 5
    # Tiny batches of short sequences gain nothing from it; the recipes of large models turn it on.
    gradient_checkpointing: bool = False
    # Of a mixture of experts (Qwen3-Omni) the loss is the method's alone; TRL would add the balancing loss by itself.
    router_aux_loss_coef: float | None = 0.0


@dataclass
class SFTRecipe(_Host, DataFields, SFTConfig):
    """`mer-r1 sft`: the cold start on slow-format reasoning (METHOD.md: 2 epochs, 2e-5).

    Attributes:
        targets: what is learned. "slow": reasoning and careful answer; "twice": answer, reasoning, answer
            (`two_answers`); "base": the tiny model's base stage, a description and a broad direct answer in turn.
        shared_prefixes: rows of one clip become one, which computes what their prompts have in common once
            (`packing`): the same gradients, sooner. The batch size then counts clips, not rows.
        towers_first_steps: steps in which the towers and their projections learn alone, the language model frozen,
            before the stage itself begins; for towers made new around a language model that is pretrained.
    """

    targets: str = "slow"
    shared_prefixes: bool = False
    towers_first_steps: int = 0
    learning_rate: float = 2e-5
    num_train_epochs: float = 2


@dataclass
class BuildRecipe(SFTRecipe):
    """`mer-r1 build --tiny`: make the tiny policy and take it through its base stage.

    Attributes:
        text: the language model: "tiny", made new, or "smollm2", pretrained (`smollm2`).
        tiny: sizes, fields of `tiny.TinyConfig`; with "smollm2" those of the towers count.
        eyes_stills: generated stills that the vision tower learns to see from (`pretrain`); 0 skips it.
        eyes_steps: steps of 64 stills.
        ears_sounds: generated sounds that the audio tower learns to hear from; 0 skips it.
        ears_steps: steps of 32 sounds.
        towers_learning_rate: peak learning rate of both.
        remarks: scenes that are told instead of shown, to read of (`scenes.remarks`).
        muon_learning_rate: of the language model's matrices in the base stage (`muon`); 0 leaves all to `optim`.
        reading_steps: steps of 32 remarks in which the language model reads before it meets clips; 0 skips it.
    """

    targets: str = "base"
    text: str = "tiny"
    eyes_stills: int = 16000
    eyes_steps: int = 1000
    ears_sounds: int = 4000
    ears_steps: int = 600
    towers_learning_rate: float = 1e-3
    remarks: int = 12000
    reading_steps: int = 500
    muon_learning_rate: float = 0.02
    tiny: dict[str, Any] | None = None


@dataclass
class RLRecipe(_Host, DataFields, GRPOConfig):
    """`mer-r1 rl`: MER-R1 and the methods it is compared with (METHOD.md: 1 epoch, 2e-6, G = 4, beta 0.04).

    The fields from `method` to `confidence_clip` are those of `calibration.Method`.

    Attributes:
        wheels: folder of the official emotion wheels; the built-in wheels if not given.
        confidence_level: "category" or "word".
        confidence_clip: clip of the calibration terms.
        shared_prefixes: in training a prompt is computed once for the rollouts that a batch has of it (`packing`).
        rollouts: what samples, "hf" (this policy) or "vllm" (`vllm.rollouts`; TRL's fields `vllm_*` say how).
        vllm_confidences: what scores vLLM's answers: "engine", "policy", or "auto" for the cheaper.
    """

    method: str = "mer-r1"
    format_weight: float = 0.1
    distinct_words: bool = False
    alpha: float = 0.1
    space: str = "advantage"
    sides: str = "both"
    anchors: str = "all"
    confidence_level: str = "category"
    confidence_clip: float = 5.0
    shared_prefixes: bool = True
    rollouts: str = "hf"
    vllm_confidences: str = "auto"
    # Truncated, not masked: one token that the engine's kernels round away must not cost the whole rollout.
    vllm_importance_sampling_mode: str = "token_truncate"
    wheels: str | None = None
    learning_rate: float = 2e-6
    num_train_epochs: float = 1
    num_generations: int | None = 4
    beta: float = 0.04
    epsilon: float = 0.2
    max_completion_length: int | None = 1024
    # Per-sequence means as in GRPO; TRL's default (dapo) weighs every token of the batch the same.
    loss_type: str = "grpo"

    def method_choices(self) -> Method:
        """The method's choices as one object.

        Raises:
            UserError: if a choice is not one of the method's.
        """
        try:
            return Method(
                name=self.method,
                format_weight=self.format_weight,
                distinct_words=self.distinct_words,
                alpha=self.alpha,
                space=self.space,
                sides=self.sides,
                anchors=self.anchors,
                level=self.confidence_level,
                clip=self.confidence_clip,
            )
        except ValueError as error:
            raise UserError(str(error)) from error


class _Yaml(yaml.SafeLoader):
    """YAML with the scalars of its version 1.2, where `no` is a word, 1:30 no number of minutes and 2e-6 a number."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag.endswith((":null", ":merge"))]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"^[-+]?(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.inf)$|^\.nan$", "-+.0123456789"),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


Recipe = TypeVar("Recipe", SFTRecipe, BuildRecipe, RLRecipe)


TARGETS = ("slow", "twice", "base")
TEXTS = ("tiny", "smollm2")
ENGINES = {
    "rollouts": ("hf", "vllm"),
    "vllm_mode": ("colocate", "server"),
    "vllm_confidences": ("auto", "engine", "policy"),
}
SWITCHES = {"yes": True, "on": True, "no": False, "off": False}
SECTIONS = {SFTRecipe: "sft", BuildRecipe: "build", RLRecipe: "rl"}


def shipped_recipe(name: str) -> Path:
    """Path of a recipe that comes with the package.

    Raises:
        UserError: if there is none of that name.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise UserError(f"no recipe named {name} comes with this installation")


def read_recipe(kind: type[Recipe], file: Path | str | None, overrides: list[str]) -> Recipe:
    """Read a recipe file and lay command-line settings over it.

    A file may hold several stages: the sections "build", "sft" and "rl", each laid over the section "common".

    Args:
        kind: the recipe's dataclass.
        file: YAML, or None for defaults only.
        overrides: "key=value", or "--key", "value" in turn ("--key=value" and a bare "--flag" work too).

    Raises:
        UserError: for an unknown key (naming the nearest), a missing file or a value of the wrong type.
    """
    hints = {item.name: typing.get_type_hints(kind)[item.name] for item in dataclasses.fields(kind) if item.init}
    values = _read_file(kind, Path(file)) if file is not None else {}
    values.update({key: _from_text(key, text, hints.get(key)) for key, text in _parse_overrides(overrides)})
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            raise UserError(f"unknown key {key!r} in the recipe{f': did you mean {near[0]!r}?' if near else ''}")
        values[key] = _coerce(key, value, hints[key])
    if not values.get("output_dir"):
        raise UserError("the recipe has no output_dir: say where the checkpoints go (output_dir=DIR)")
    try:
        recipe = kind(**values)
    except (ValueError, TypeError) as error:
        raise UserError(f"the recipe does not fit together: {' '.join(str(error).split())}") from error
    _check(recipe)
    return recipe


def _check(recipe: SFTRecipe | RLRecipe) -> None:
    # What would otherwise come to light after the clips are decoded.
    if recipe.router_aux_loss_coef:
        raise UserError("router_aux_loss_coef: only 0 is possible, packed rows keep no statistics of the router")
    if isinstance(recipe, RLRecipe):
        recipe.method_choices()
        for name, allowed in ENGINES.items():
            if getattr(recipe, name) not in allowed:
                raise UserError(f"{name} must be {' or '.join(allowed)}, got {getattr(recipe, name)!r}")
        if recipe.use_vllm:
            raise UserError("use_vllm=true starts TRL's engine, which takes images only: say rollouts=vllm")
    elif recipe.targets not in TARGETS:
        raise UserError(f"targets must be {', '.join(TARGETS)}; got {recipe.targets!r}")
    if isinstance(recipe, BuildRecipe) and recipe.text not in TEXTS:
        raise UserError(f"text must be {' or '.join(TEXTS)}, got {recipe.text!r}")
    if isinstance(recipe, BuildRecipe) and recipe.tiny:
        sizes = typing.get_type_hints(TinyConfig)
        if unknown := set(map(str, recipe.tiny)) - set(sizes):
            raise UserError(f"unknown key {sorted(unknown)[0]!r} under tiny: the sizes are those of model.TinyConfig")
        recipe.tiny = {key: _coerce(f"tiny.{key}", value, sizes[key]) for key, value in recipe.tiny.items()}
        try:
            TinyConfig(**recipe.tiny)
        except ValueError as error:
            raise UserError(f"tiny: {error}") from error


def _read_file(kind: type[Recipe], path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no recipe at {path}: expected a YAML file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Yaml)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected key: value lines, got {type(content).__name__}")
    sections = {"common", *SECTIONS.values()} & content.keys()
    if not sections:
        return content
    if outside := [str(key) for key in content if key not in sections]:
        raise UserError(f"{path}: {outside[0]!r} stands outside the sections; put it under common")
    if SECTIONS[kind] not in content:
        raise UserError(f"{path} has no section {SECTIONS[kind]}: it holds {', '.join(content)}")
    values: dict[str, Any] = {}
    for name in ("common", SECTIONS[kind]):
        section = content.get(name) or {}
        if not isinstance(section, dict):
            raise UserError(f"{path}: expected key: value lines under {name}, got {type(section).__name__}")
        values |= section
    return values


def _parse_overrides(overrides: list[str]) -> list[tuple[str, str]]:
    values = []
    words = list(overrides)
    while words:
        word = words.pop(0)
        flag = word.startswith("--")
        key, given, value = word.removeprefix("--").partition("=")
        if not given:
            if not flag:
                raise UserError(f"cannot read {word!r}: settings are given as key=value or --key value")
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        values.append((key.replace("-", "_"), value))
    return values


def _from_text(key: str, text: str, hint: Any) -> Any:
    # A text is taken as it stands: YAML would make a mapping of the slice 700:
    if set(_options(hint)) <= {str, type(None)}:
        return None if text in ("", "null", "~") else text
    try:
        return yaml.load(text, _Yaml)
    except yaml.YAMLError as error:
        raise UserError(f"{key}: cannot read {text!r}: {' '.join(str(error).split())}") from error


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _coerce(key: str, value: Any, hint: Any) -> Any:
    # A whole number may stand for a fraction, and a number for a text; the recipe's own types decide.
    options = _options(hint)
    if value is None or any(_fits(value, option) for option in options):
        return value
    for option in options:
        if option in (float, int) and isinstance(value, str | int) and not isinstance(value, bool):
            try:
                number = option(value)
            except ValueError:
                continue
            if _fits(number, option):
                return number
        if option is bool and str(value).lower() in SWITCHES:
            return SWITCHES[str(value).lower()]
        if option is str and isinstance(value, int | float):
            return str(value)
    names = ", ".join(getattr(option, "__name__", str(option)) for option in options if option is not type(None))
    raise UserError(f"{key} must be {names}, got {value!r}")


def _fits(value: Any, option: Any) -> bool:
    if option in (int, float) and (isinstance(value, bool) or value != value):  # a truth value; not a number
        return False
    origin = typing.get_origin(option) or option
    return option is Any or (isinstance(origin, type) and isinstance(value, origin))
