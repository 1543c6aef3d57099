"""Recipe files in YAML, and the command-line settings that override them.

`trl.TrlParser` cannot replace this: it has no key=value and no sections, reads YAML 1.1 (`no` is False, 1:30 is 90,
2e-6 is a text) and answers a misspelt key with the usage of some 200 options instead of the nearest name.
"""

import dataclasses
import difflib
import logging
import re
import types
import typing
from collections.abc import Container, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest
from mer_r1.data.media.container import ClipLimits
from mer_r1.errors import UserError, brief
from mer_r1.rl.method import Method
from mer_r1.training.recipe_info import MOST_CHARACTERS, declared_fields, parse_yaml, recipe_file, refuse_secrets

if TYPE_CHECKING:
    from mer_r1.training.recipes import BuildRecipe, DataFields, RLRecipe, SFTRecipe

logger = logging.getLogger(__name__)


class _Yaml(yaml.SafeLoader):
    """YAML with the scalars of version 1.2: `no` and 1:30 are texts, 2e-6 is a number."""


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


Recipe = TypeVar("Recipe", "SFTRecipe", "BuildRecipe", "RLRecipe")


CHOICES = {
    "targets": ("slow", "twice", "base"),
    "text": ("tiny", "smollm2"),
    "rollouts": ("hf", "vllm"),
    "vllm_mode": ("colocate", "server"),
    "vllm_confidences": ("auto", "engine", "policy"),
}
SWITCHES = {"yes": True, "on": True, "no": False, "off": False}
STAGES = ("sft", "build", "rl")
RENAMED = {
    "decode_workers": "workers",
    "eyes_stills": "vision_images",
    "eyes_steps": "vision_steps",
    "ears_sounds": "audio_clips",
    "ears_steps": "audio_steps",
    "remarks": "caption_examples",
    "reading_steps": "text_steps",
}
"""Old name of a field -> its name now. Goes with the next release."""


def read_recipe(kind: type[Recipe], file: Path | str | None, overrides: list[str]) -> Recipe:
    """Read a recipe file and lay command-line settings over it.

    A file may hold several stages: the sections "build", "sft" and "rl", each laid over the section "common".

    Args:
        kind: the recipe's dataclass.
        file: YAML file, the name of a shipped recipe, or None for defaults only.
        overrides: "key=value", or "--key", "value" in turn ("--key=value" and a bare "--flag" work too).

    Raises:
        UserError: for an unknown key (naming the nearest), a missing file or a value of the wrong type.
    """
    known = typing.get_type_hints(kind)
    hints = {item.name: known[item.name] for item in dataclasses.fields(kind) if item.init}
    values = _read_values(stage_of(kind), hints, file, overrides)
    if not values.get("output_dir"):
        raise UserError("the recipe has no output_dir: give the folder of the checkpoints (output_dir=DIR)")
    try:
        recipe = kind(**values)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"the recipe does not fit together: {error}") from error
    _check(recipe)
    return recipe


def plain_recipe(stage: str, file: Path | str | None, overrides: list[str]) -> SimpleNamespace:
    """The fields of a recipe without its dataclass, so without torch and TRL; it cannot start a run.

    Names, types and choices are checked as by `read_recipe`; what else does not go together is found when a run starts.

    Args:
        stage: of `STAGES`.
        file: as of `read_recipe`.
        overrides: as of `read_recipe`.

    Raises:
        UserError: as `read_recipe`.
        ModuleNotFoundError: TRL is not installed.
    """
    declared = declared_fields(stage)
    hints = {name: _hint(annotation) for name, (annotation, _) in declared.items()}
    defaults = {name: default for name, (_, default) in declared.items()}
    recipe = SimpleNamespace(**defaults | _read_values(stage, hints, file, overrides))
    check_choices(recipe)
    if stage == "rl":
        try:
            Method(**{item.name: getattr(recipe, item.name) for item in dataclasses.fields(Method)})
        except ValueError as error:
            raise UserError(f"the recipe does not fit together: {error}") from error
    return recipe


def _hint(annotation: str) -> Any:
    # The type of a field by its source (an installed package's, never a recipe); Any where it names the host's class.
    try:
        return eval(annotation, {"Any": Any})
    except NameError:
        return Any


def stage_of(kind: type) -> str:
    """The stage, of `STAGES`, of a recipe's class."""
    return kind.__name__.removesuffix("Recipe").lower()


def recipe_class(stage: str) -> Any:
    """The recipe's class of a stage."""
    from mer_r1.training import recipes

    return {"sft": recipes.SFTRecipe, "build": recipes.BuildRecipe, "rl": recipes.RLRecipe}[stage]


def select_clips(recipe: "DataFields | SimpleNamespace") -> list[Clip]:
    """The clips of a recipe: its manifest, split and slice.

    Raises:
        UserError: if no clip is left, or the slice is invalid.
    """
    clips = read_manifest(required(recipe.manifest, "manifest"))
    if recipe.split != "all":
        clips = [clip for clip in clips if clip.split == recipe.split]
    if recipe.clips:
        match = re.fullmatch(r"(\d*):(\d*)", recipe.clips)
        if not match:
            raise UserError(f"clips must be a slice such as 0:400, got {recipe.clips!r}")
        start, end = (int(part) if part else None for part in match.groups())
        clips = clips[start:end]
    if not clips:
        raise UserError(f"no clips: {recipe.manifest} has none with split={recipe.split}, clips={recipe.clips}")
    return clips


def required(value: str | None, name: str) -> str:
    """The value of a field that has no default.

    Raises:
        UserError: it is not given.
    """
    if not value:
        raise UserError(f"the recipe has no {name}: give {name}=...")
    return value


def check_choices(recipe: Any) -> None:
    """Refuse values that are not among a field's choices, and limits of clips that are none.

    Raises:
        UserError: naming the field and its choices.
    """
    for name, allowed in CHOICES.items():
        if (given := getattr(recipe, name, allowed[0])) not in allowed:
            told = (" or " if len(allowed) == 2 else ", ").join(allowed)
            raise UserError(f"{name} must be {told}, got {given!r}")
    if not isinstance(recipe.model_init_kwargs, dict | None):
        raise UserError(f"model_init_kwargs must be a mapping, got {brief(recipe.model_init_kwargs)}")
    if ClipLimits.given(recipe) and hasattr(recipe, "tiny"):
        raise UserError(f"{next(iter(ClipLimits.given(recipe)))}: `build` takes the sizes of its inputs under tiny")


def _read_values(stage: str, hints: Mapping[str, Any], file: Path | str | None, overrides: list[str]) -> dict[str, Any]:
    # What file and command line give, by the fields' names and in their types.
    values = _read_file(stage, recipe_file(file)) if file is not None else {}
    values = {_current_name(key, hints): value for key, value in values.items()}
    for key, text in _parse_overrides(overrides):
        key = _current_name(key, hints)
        values[key] = _from_text(key, text, hints.get(key))
    refuse_secrets(values)
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            raise UserError(f"unknown key {key!r} in the recipe{f': did you mean {near[0]!r}?' if near else ''}")
        values[key] = _coerce(key, value, hints[key])
    return values


def _check(recipe: Any) -> None:
    from transformers.integrations import get_available_reporting_integrations

    from mer_r1.model.tiny import TinyConfig

    check_choices(recipe)
    # Before the clips are decoded.
    if recipe.push_to_hub:
        raise UserError("push_to_hub: it uploads checkpoints only; after training, hf upload NAME OUTPUT_DIR/model")
    seen = {*get_available_reporting_integrations(), "azure_ml", "flyte"}  # two that the library does not look for
    if absent := sorted(set(recipe.report_to or ()) - seen):
        raise UserError(f"report_to={absent[0]}: unknown, or its package is not installed; report_to=none needs none")
    if recipe.router_aux_loss_coef:
        raise UserError("router_aux_loss_coef: only 0 is possible, packed rows keep no router statistics")
    if getattr(recipe, "tiny", None):
        sizes = typing.get_type_hints(TinyConfig)
        if unknown := set(map(str, recipe.tiny)) - set(sizes):
            raise UserError(f"unknown key {sorted(unknown)[0]!r} under tiny: the sizes are those of model.TinyConfig")
        recipe.tiny = {key: _coerce(f"tiny.{key}", value, sizes[key]) for key, value in recipe.tiny.items()}
        try:
            TinyConfig(**recipe.tiny)
        except ValueError as error:
            raise UserError(f"tiny: {error}") from error


def _current_name(key: str, known: Container[str]) -> str:
    name = RENAMED.get(key, key)
    if key in known or name not in known:
        return key
    logger.warning("%s is now %s; the old name goes with the next release", key, name)
    return name


def _read_file(stage: str, path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    content = parse_yaml(text, f"{path} is not valid YAML", _Yaml)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected key: value lines, got {type(content).__name__}")
    sections = {"common", *STAGES} & content.keys()
    if not sections:
        return content
    if outside := [str(key) for key in content if key not in sections]:
        raise UserError(f"{path}: {outside[0]!r} is outside the sections; put it under common")
    if stage not in content:
        raise UserError(f"{path} has no section {stage}: it holds {', '.join(content)}")
    values: dict[str, Any] = {}
    for name in ("common", stage):
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
    # A text stays as written: YAML would make a mapping of the slice 700:
    if set(_options(hint)) <= {str, type(None)}:
        return None if text in ("", "null", "~") else text
    return parse_yaml(text, f"{key}: cannot read {brief(text)}", _Yaml)


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _coerce(key: str, value: Any, hint: Any) -> Any:
    # The field's type decides: an integer may stand for a float, a number for a text.
    options = _options(hint)
    if value is None or any(_fits(value, option) for option in options):
        return value
    for option in options:
        converted = _converted(value, option)
        if converted is not None:
            return converted
    names = ", ".join(getattr(option, "__name__", str(option)) for option in options if option is not type(None))
    raise UserError(f"{key} must be {names}, got {brief(value)}")


def _converted(value: Any, option: Any) -> Any:
    if option in (float, int) and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            number = option(value)
        except ValueError:
            return None
        return number if _fits(number, option) else None
    if option is bool:
        return SWITCHES.get(str(value).lower())
    return str(value) if option is str and isinstance(value, int | float) else None


def _fits(value: Any, option: Any) -> bool:
    if option in (int, float) and (isinstance(value, bool) or value != value):  # NaN
        return False
    origin = typing.get_origin(option) or option
    return option is Any or (isinstance(origin, type) and isinstance(value, origin))
