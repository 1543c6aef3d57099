"""The documents are true: names exist, commands parse, links lead somewhere, generated parts are up to date.

`tests/test_docs_run.py` runs the commands.
"""

import ast
import dataclasses
import os
import re
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import typer
from test_architecture import ROOT, SOURCE, project_files, slugs, trees

from mer_r1.cli import app

DOCUMENTS = sorted(path for path in project_files() if path.suffix == ".md")
PAPER_MAP = ROOT / "docs" / "paper_map.md"
PASSED_ON = {"build": "BuildRecipe", "sft": "SFTRecipe", "rl": "RLRecipe"}
"""Commands that pass settings on to a recipe."""


def prose(path: Path) -> str:
    """A document without its comments (what is still to be filled in)."""
    return re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


# --- names ------------------------------------------------------------------------------------------------------------


def members(body: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """Names defined in a module or class body, with the body of those that have one."""
    found: dict[str, list[ast.stmt]] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node.body
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = []
        elif isinstance(node, ast.Assign):
            found |= {target.id: [] for target in node.targets if isinstance(target, ast.Name)}
    return found


def exists(reference: str) -> bool:
    """Whether `module.name` or `module.Class.name` is defined in this package."""
    module = max((name for name in trees() if f"{reference}.".startswith(f"{name}.")), key=len)
    body = trees()[module].body
    for name in reference.removeprefix(module).split(".")[1:]:
        inside = members(body)
        if name not in inside:
            return False
        body = inside[name]
    return True


def references(text: str) -> list[str]:
    """Backticked names of this package: `module.name`."""
    quoted = re.findall(r"`([a-z_]+(?:\.\w+)+)(?:\(\))?`", text)
    return [name for name in quoted if name.split(".")[0] in trees() and not re.search(r"\.(py|jsonl?|md|yaml)$", name)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids(DOCUMENTS))
def test_every_function_that_a_document_names_exists(path: Path) -> None:
    assert [name for name in references(prose(path)) if not exists(name)] == []


def test_missing_functions_would_be_found() -> None:
    assert exists("rl.method.Method.weights")
    assert not exists("rl.method.Method.weight")
    assert references("`emotions.metrics.set_scores` `metrics.py` `no_module.name` `emotions.metrics.f()`") == [
        "emotions.metrics.set_scores",
        "emotions.metrics.f",
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids(DOCUMENTS))
def test_every_test_that_a_document_names_exists(path: Path) -> None:
    named = re.findall(r"`tests/([\w/]+\.py)::(\w+)`", prose(path))
    wrong = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / "tests" / file).is_file()
        or test not in members(ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8")).body)
    ]
    assert wrong == []


def paper_rows() -> list[list[str]]:
    lines = prose(PAPER_MAP).splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
    return [row for row in rows if len(row) == 5 and row[0] != "item" and not set(row[0]) <= {"-"}]


def test_every_line_of_the_paper_map_has_a_status_a_function_and_a_test() -> None:
    rows = paper_rows()
    assert len(rows) > 40
    assert [row[0] for row in rows if not re.match(r"stated|fork|our reading", row[1])] == []
    assert [row[0] for row in rows if not references(row[2])] == []
    assert [row[0] for row in rows if "::" not in row[3]] == []


def test_every_reading_of_ours_can_be_changed_where_the_map_says() -> None:
    options = {name for row in paper_rows() for name in re.findall(r"`(\w+)=\w*`", row[4])}
    known = set().union(*(recipe_fields(kind) for kind in PASSED_ON.values()))
    assert "alpha" in options
    assert options - known == set()


def test_every_choice_of_the_method_is_on_the_map_and_in_the_recipe() -> None:
    from mer_r1.rl.method import Method

    text = prose(PAPER_MAP)
    names = {item.name for item in dataclasses.fields(Method)}
    assert names <= recipe_fields("RLRecipe")
    assert {name for name in names if f"`{name}=" not in text} == set()


def test_defaults_of_the_recipes_are_those_of_the_map() -> None:
    from mer_r1.training import recipes

    def defaults(kind: type, *names: str) -> dict[str, Any]:
        return {item.name: item.default for item in dataclasses.fields(kind) if item.name in names}

    assert defaults(recipes.SFTRecipe, "num_train_epochs", "learning_rate", "targets") == {
        "num_train_epochs": 2,
        "learning_rate": 2e-5,
        "targets": "slow",
    }
    expected = {
        "num_train_epochs": 1,
        "learning_rate": 2e-6,
        "num_generations": 4,
        "beta": 0.04,
        "epsilon": 0.2,
        "max_completion_length": 1024,
        "max_grad_norm": 1.0,
        "loss_type": "grpo",
        "method": "mer-r1",
    }
    assert defaults(recipes.RLRecipe, *expected) == expected


def test_defaults_of_the_recipe_are_those_of_the_method() -> None:
    from mer_r1.rl.method import Method
    from mer_r1.training import recipes

    shown = {item.name: item.default for item in dataclasses.fields(recipes.RLRecipe)}
    assert {name: shown[name] for name in vars(Method())} == vars(Method())


# --- commands ---------------------------------------------------------------------------------------------------------


@lru_cache
def recipe_fields(kind: str) -> set[str]:
    from mer_r1.training import recipes

    return {item.name for item in dataclasses.fields(getattr(recipes, kind)) if item.init}


def console_lines(path: Path) -> list[str]:
    blocks = re.findall(r"```(?:console|bash|sh)\n(.*?)```", prose(path), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in lines if line.strip() and not line.startswith("#")]


def check_command(words: list[str]) -> None:
    """Parse a shown call of `mer-r1` with the real parser, without running it."""
    command, path = typer.main.get_command(app), "mer-r1"
    while hasattr(command, "commands"):
        assert words, f"{path} needs a command"
        assert words[0] in command.commands, f"{path} has no command {words[0]!r}"
        path, command = f"{path} {words[0]}", command.commands[words[0]]
        words = words[1:]
    context = command.make_context(path, list(words))
    kind = PASSED_ON.get(path.split()[-1])
    settings = {word.split("=")[0].removeprefix("--") for word in context.args if "=" in word or word.startswith("--")}
    if kind:
        assert settings <= recipe_fields(kind), f"{path} has no {settings - recipe_fields(kind)}"


SHOWN = [(path, line) for path in DOCUMENTS if path.name != "cli.md" for line in console_lines(path)]


@pytest.mark.parametrize(("path", "line"), SHOWN, ids=[f"{path.name}: {line[:50]}" for path, line in SHOWN])
def test_every_command_that_is_shown_exists(path: Path, line: str) -> None:
    words = shlex.split(line)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        assert {word for word in words[1:] if "=" not in word} <= targets
    elif words[0].endswith("mer-r1"):
        check_command(words[1:])
    elif "mer_r1.cli" in words:
        check_command(words[words.index("mer_r1.cli") + 1 :])


def test_wrong_commands_would_be_found() -> None:
    for wrong in ("predict --model", "score nothing", "rl metod=ad"):
        with pytest.raises(Exception, match=r"predict|nothing|metod|model"):
            check_command(shlex.split(wrong))


def test_every_command_is_shown_in_the_readme_or_by_its_recipes() -> None:
    shown = "\n".join(line for _, line in SHOWN) + "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "recipes").glob("*.yaml")
    )
    commands = typer.main.get_command(app).commands
    public = [name for name, command in commands.items() if not command.hidden]
    assert [name for name in public if f"mer-r1 {name}" not in shown and name != "demo"] == []


def test_the_page_of_commands_is_up_to_date() -> None:
    arguments = ["-m", "typer", "mer_r1.cli", "utils", "docs", "--name", "mer-r1", "--title", "Commands of mer-r1"]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").strip() == done.stdout.strip(), "run: make docs"


def test_the_command_line_also_runs_as_a_module() -> None:
    """What `accelerate launch -m mer_r1.cli` needs."""
    done = subprocess.run([sys.executable, "-m", "mer_r1.cli", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_every_command_and_option_has_a_help_text() -> None:
    def walk(command: Any, path: str) -> list[str]:
        bare = [] if command.help else [path]
        for parameter in command.params:
            if not getattr(parameter, "help", None):
                bare.append(f"{path} {parameter.name}")
        for name, inner in getattr(command, "commands", {}).items():
            bare += [] if inner.hidden else walk(inner, f"{path} {name}")
        return bare

    assert walk(typer.main.get_command(app), "mer-r1") == []


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids(DOCUMENTS))
def test_every_link_leads_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(path))
    here = [(path.parent / target if target else path, section) for target, section in targets if "://" not in target]
    assert [target for target, _ in here if not target.exists()] == []
    assert [f"{target}#{section}" for target, section in here if section and section not in slugs(target)] == []


def test_every_page_has_its_place_on_the_site() -> None:
    shown = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("plugins:")[0])
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in DOCUMENTS if path.is_relative_to(ROOT / "docs")}
    assert sorted(shown) == sorted({*pages, "index.md"} - {"study/README.md"})
    sections = re.findall(r"^  - (\w+):", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[:6] == ["Start", "Method", "Use", "Scale", "Lab", "API"]


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "MER-R1" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids(DOCUMENTS))
def test_every_file_that_is_named_exists(path: Path) -> None:
    named = re.findall(r"`((?:src|tests|docs|recipes|perf|\.ci)/[\w./-]+?)(?:::\w+)?`", prose(path))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_source_is_where_the_readme_says() -> None:
    assert SOURCE.is_dir()
    assert "src/mer_r1/" in prose(ROOT / "README.md")
