"""Which recipes there are, and the fields of recipes with type, default and description, for help and documentation.

The fields are read from the sources (`recipes.py`, `method.py`, TRL's and transformers' arguments) without importing
them: help and `mer-r1 plan` need neither torch nor TRL.
"""

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from mer_r1.errors import UserError

MOST_CHARACTERS, MOST_VALUES = 30_000, 3_000
"""Largest YAML text, and values in it; a recipe has some fifty lines."""
PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = "training/recipes.py"
_HOST = {"sft": "SFTConfig", "build": "SFTConfig", "rl": "GRPOConfig"}
_SECRET = re.compile(r"(hub_token|auth_token|api_?key|password|passwd|secret)s?$|^(token|key)$", re.IGNORECASE)
_CREDENTIALS = re.compile(r"//[^/\s]*@")
OURS = {
    "sft": {"Data": ["DataFields"], "Training": ["SFTRecipe", "HostFields"]},
    "rl": {
        "Data": ["DataFields"],
        "Method": ["Method"],
        "Sampling": ["SamplingFields"],
        "Training": ["RLRecipe", "HostFields"],
    },
    "build": {"Data": ["DataFields"], "Training": ["SFTRecipe", "HostFields"], "Tiny policy": ["BuildRecipe"]},
}
"""Stage -> group of fields -> the dataclasses that declare them; where two do, the later one's default counts."""


@dataclass(frozen=True)
class RecipeField:
    """A field of a recipe as help shows it: type without None, default as in YAML (none if empty), group as heading."""

    name: str
    type: str
    default: str
    help: str
    group: str

    @property
    def kind(self) -> str:
        """Type and default, if it has one."""
        return f"{self.type}, default {self.default}" if self.default else self.type


def recipe_file(given: Path | str) -> Path:
    """The recipe file that a path or the name of a shipped recipe stands for.

    Raises:
        UserError: if there is no such file.
    """
    shipped = shipped_recipes()
    path = Path(given) if Path(given).is_file() else shipped.get(str(given))
    if path is None:
        raise UserError(f"no recipe at {given}: expected a YAML file or one of {', '.join(shipped)}")
    return path


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folders = (PACKAGE.parents[1] / "recipes", PACKAGE / "recipes")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def recipe_stages(file: Path) -> list[str]:
    """The stages that a recipe file configures, in their order."""
    content = parse_yaml(file.read_text(encoding="utf-8"), f"{file} is not valid YAML")
    return [name for name in ("build", "sft", "rl") if name in content] or ["rl" if "method" in content else "sft"]


def parse_yaml(text: str, problem: str, kind: Any = yaml.SafeLoader) -> Any:
    """The content of a YAML text. Its size is bounded with all anchors filled in, before anything is built.

    Args:
        text: YAML.
        problem: beginning of the error message.
        kind: loader class, without objects.

    Raises:
        UserError: it is no YAML, or larger than a recipe can be.
    """
    try:
        loader = kind(text)
        node = loader.get_single_node() if len(text) <= MOST_CHARACTERS else None
        if len(text) > MOST_CHARACTERS or _size(node, {}) > MOST_VALUES:
            raise UserError(f"{problem}: expected at most {MOST_CHARACTERS} characters and {MOST_VALUES} values")
        return None if node is None else loader.construct_document(node)
    except UserError:
        raise
    except Exception as error:  # a tag such as !!int raises anything that its constructor raises
        raise UserError(f"{problem}: {' '.join(str(error).split()) or type(error).__name__}") from error


def _size(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """Values in a node, those behind its anchors counted each time they are used."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = MOST_VALUES + 1  # for an anchor that holds itself
        parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(node)]


def refuse_secrets(value: Any, name: str = "") -> None:
    """Refuse keys and addresses with credentials: recipes are saved with every checkpoint.

    Raises:
        UserError: naming the field, never its value.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            refuse_secrets(inner, str(key))
    elif isinstance(value, list | tuple | set):
        for inner in value:
            refuse_secrets(inner, name)
    elif value and (_SECRET.search(name) or (isinstance(value, str) and _CREDENTIALS.search(value))):
        raise UserError(f"{name}: a recipe is saved with every checkpoint and takes no key; set HF_TOKEN or log in")


def recipe_fields(stage: str) -> list[RecipeField]:
    """Fields that this project adds to the recipe of a stage (of `OURS`) or gives another default, group by group.

    >>> next(field.default for field in recipe_fields("rl") if field.name == "format_weight")
    '0.1'
    """
    found: dict[str, RecipeField] = {}
    for group, names in OURS[stage].items():
        for name in names:
            for field in _declared(_file_of(name), name, group):
                before = found.get(field.name, field)
                found[field.name] = dataclasses.replace(before, default=field.default)
    return list(found.values())


def host_fields(kind: Any, stage: str) -> list[RecipeField]:
    """The fields of a recipe's dataclass that are TRL's and transformers' own, with their descriptions."""
    ours = {field.name for field in recipe_fields(stage)}
    return [
        RecipeField(
            item.name,
            _plain(getattr(item.type, "__name__", str(item.type))),
            _as_yaml(item.default) if item.default is not dataclasses.MISSING else "",
            _sentence(item.metadata.get("help", "")),
            "TRL and transformers",
        )
        for item in dataclasses.fields(kind)
        if item.init and item.name not in ours
    ]


def declared_fields(stage: str) -> dict[str, tuple[str, Any]]:
    """Annotation and default of every field of a stage's recipe, TRL's and transformers' own included.

    A default that only running code can tell is None.

    Raises:
        ModuleNotFoundError: TRL is not installed.
    """
    name = _HOST[stage]
    module = re.sub("Config", "_config", name).lower()
    bases = [(_installed("transformers", "training_args.py"), "TrainingArguments")]
    bases += [(_installed("trl", "trainer/base_config.py"), "_BaseConfig")]
    bases += [(_installed("trl", f"trainer/{module}.py"), name)]
    bases += [(_file_of(one), one) for names in OURS[stage].values() for one in names]
    return {
        item: (annotation, default)
        for file, name in bases
        for item, annotation, default in _assigned(_classes(file)[name])
    }


def _installed(package: str, file: str) -> str:
    spec = find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return str(Path(str(spec.origin)).parent / file)


def _file_of(name: str) -> str:
    return "rl/method.py" if name == "Method" else RECIPES


@lru_cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    body = ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body
    return {node.name: node for node in body if isinstance(node, ast.ClassDef)}


def _declared(file: str, name: str, group: str) -> list[RecipeField]:
    node = _classes(file)[name]
    text = (ast.get_docstring(node) or "").partition("Attributes:\n")[2]
    helps = {key: _sentence(said) for key, said in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)}
    return [
        # A subclass that only changes the default has no description.
        RecipeField(item, _plain(annotation), _as_yaml(default), helps.get(item, ""), group)
        for item, annotation, default in _assigned(node)
    ]


def _assigned(node: ast.ClassDef) -> Iterator[tuple[str, str, Any]]:
    """Name, annotation and default of the fields that a dataclass declares and takes as arguments."""
    for item in node.body:
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value):
            continue
        value, given = item.value, {}
        if isinstance(value, ast.Call):  # dataclasses.field
            given = {str(keyword.arg): keyword.value for keyword in value.keywords}
            value = given.get("default", ast.Constant(None))
        if item.target.id.islower() and "init" not in given:
            try:
                default = ast.literal_eval(value)
            except ValueError:  # a name
                default = None
            yield item.target.id, ast.unparse(item.annotation), default


def _plain(annotation: str) -> str:
    return re.sub(r"\w+\.| \| None|None \| ", "", annotation)


def _sentence(text: str) -> str:
    words = " ".join(text.split())
    return words[:1].upper() + words[1:]


def _as_yaml(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
