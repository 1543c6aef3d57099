"""The public names of `mer_r1`: each resolves, is documented, has an example, and costs nothing until it is used."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_architecture import HEAVY, ROOT
from test_readme import examples

import mer_r1

API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def imported_names(example: str) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in nodes if node.module == "mer_r1" for alias in node.names}


def in_a_new_process(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


# --- names ------------------------------------------------------------------------------------------------------------


def test_the_public_names_are_those_with_a_place_and_those_that_editors_see() -> None:
    tree = ast.parse(Path(mer_r1.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"mer_r1.{place}" for name, place in mer_r1._PLACES.items()}
    assert sorted(seen) == mer_r1.__all__
    assert set(mer_r1.__all__) <= set(dir(mer_r1))


@pytest.mark.parametrize("name", mer_r1.__all__)
def test_every_public_name_resolves_to_its_place_and_is_documented(name: str) -> None:
    module, _, attribute = f"mer_r1.{mer_r1._PLACES[name]}".rpartition(".")
    value: Any = getattr(mer_r1, name)
    assert value is getattr(importlib.import_module(module), attribute)
    described = value if hasattr(value, "__qualname__") else type(value)  # a reward is described by its class
    assert len(described.__doc__ or "") > 40
    assert f"::: {described.__module__}.{described.__qualname__}\n" in f"{API}\n"


def test_every_public_name_has_an_example_that_uses_it() -> None:
    used = {
        name
        for example in examples(API)
        for name in imported_names(example)
        if len(re.findall(rf"\b{name}\b", example)) > 1
    }
    assert sorted(used) == mer_r1.__all__


def test_only_public_names_are_found() -> None:
    with pytest.raises(AttributeError, match="module 'mer_r1' has no attribute 'prodict'"):
        getattr(mer_r1, "prodict")  # noqa: B009
    with pytest.raises(ImportError, match="cannot import name 'prodict'"):
        exec("from mer_r1 import prodict")


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = (*HEAVY, "numpy", "typer", "rich", "mer_r1.data", "mer_r1.emotions")
    loaded = f"import sys, mer_r1; print([name for name in {heavy!r} if name in sys.modules])"
    assert in_a_new_process(loaded) == "[]"
    light = (
        "Clip, read_manifest, write_manifest, check_manifest, builtin_wheels, official_wheels, parse, wheel_scores, "
    )
    light += "recall_reward, precision_reward, f1_reward, format_reward, read_records, summarise"
    loaded = f"import sys; from mer_r1 import {light}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert in_a_new_process(loaded) == "[]"


@pytest.mark.parametrize(
    ("name", "absent", "extra"),
    [("load_model", "torch", "predict"), ("calibration_terms", "torch", "predict"), ("RLRecipe", "trl", "train")],
)
def test_a_missing_package_is_one_line_that_names_the_extra(name: str, absent: str, extra: str) -> None:
    program = f"""
import sys
sys.modules[{absent!r}] = None  # imports of it fail as if it were not installed
try:
    from mer_r1 import {name}
except ImportError as error:
    print(error)
"""
    expected = f"mer_r1.{name} needs the package {absent}: install mer-r1 with the extra {extra}, mer-r1[{extra}]"
    assert in_a_new_process(program) == expected


def test_a_missing_module_of_our_own_is_not_put_down_to_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mer_r1._PLACES, "gone", "data.gone.gone")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'mer_r1\.data\.gone'"):
        _ = mer_r1.gone
