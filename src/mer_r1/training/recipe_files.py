"""Recipes: one YAML file a stage, every field of which can be set on the command line.

A recipe is TRL's own configuration (`SFTConfig`, `GRPOConfig`, and so `TrainingArguments`) with the few fields that
this project adds. Paths have no default. Defaults that differ from TRL's say why.
"""

import dataclasses
import difflib
import re
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mer_r1.errors import UserError
from mer_r1.model.tiny import TinyConfig
from mer_r1.training.recipes import BuildRecipe, RLRecipe, SFTRecipe


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
