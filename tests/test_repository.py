"""What is committed: no secrets, nothing oversized, versions that agree with each other, set-up without surprises."""

import ast
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_architecture import ROOT, project_files, trees

MAX_BYTES = 300_000
MAX_WEIGHTS = 12_000_000  # of each shipped model

SECRETS = re.compile(
    "|".join(
        (
            r"-----BEGIN [A-Z ]*PRIVATE KEY",
            r"\bAKIA[0-9A-Z]{16}\b",  # AWS
            r"\bgh[pousr]_[A-Za-z0-9]{30,}",  # GitHub
            r"\bgithub_pat_\w{30,}",
            r"\bhf_[A-Za-z0-9]{30,}",  # Hugging Face
            r"\bsk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic and the like
            r"\bxox[abprs]-[A-Za-z0-9-]{10,}",  # Slack
            r"\bAIza[A-Za-z0-9_-]{35}",  # Google
            r"\beyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}",  # JSON web tokens
            r"(?i:\b(?:password|passwd|secret|api_?key|access_?token)\b)['\"]?\s*[:=]\s*['\"][^'\"\s{}$<>]{8,}['\"]",
            r"\w+://[^\s/:@'\"]+:[^\s/:@'\"]+@",  # a password in an address
        )
    )
)

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def makefile_extras() -> list[str]:
    """Extras that `make` installs."""
    return re.findall(r"^EXTRAS \?= (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[0].split(",")


@pytest.mark.parametrize(
    "leak",
    [
        "-----BEGIN OPENSSH" + " PRIVATE KEY-----",
        "AKIA" + "ABCDEFGHIJKLMNOP",
        "ghp" + "_" + "a1" * 18,
        "hf" + "_" + "aB" * 17,
        "sk" + "-proj-" + "a1" * 15,
        "api_key" + ' = "k3yk3yk3y"',
        "https://me:" + "pass" + "@example.org",
    ],
)
def test_the_scan_finds_secrets(leak: str) -> None:
    assert SECRETS.search(f"before {leak} after")


@pytest.mark.parametrize("fine", ["api_key = os.environ['KEY']", "token = tokenizer(text)", "risk-averse", "task-a"])
def test_the_scan_leaves_ordinary_code_alone(fine: str) -> None:
    assert not SECRETS.search(fine)


def test_no_secrets() -> None:
    found = []
    for path in project_files():
        if path.suffix == ".safetensors":  # numbers, in which anything can be found
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match.group()[:20]}..." for match in SECRETS.finditer(text)]
    assert found == []


def test_no_file_over_the_cap() -> None:
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in project_files()}
    weights = [name for name in sizes if name.endswith(".safetensors")]
    assert all(sizes.pop(name) <= MAX_WEIGHTS for name in weights), weights
    over = {name: size for name, size in sizes.items() if size > MAX_BYTES}
    assert over == {}, f"over {MAX_BYTES} bytes"


def test_nothing_that_is_made_is_committed() -> None:
    made = re.compile(
        r"^runs/|(^|/)(__pycache__|\.venv[^/]*|[^/]+\.egg-info|dist|build|site)/|\.(pyc|wav)$"
        r"|^(?!src/mer_r1/weights/).*\.safetensors$|^(?!src/mer_r1/app/scenes/).*\.mp4$"
    )
    assert [str(path) for path in project_files() if made.search(str(path.relative_to(ROOT)))] == []


def test_every_requirement_is_pinned_to_a_version_in_its_range() -> None:
    project, pinned = PYPROJECT["project"], {canonicalize_name(name): version for name, version in pins().items()}
    extras = project["optional-dependencies"]
    installed = ("predict", *makefile_extras())
    wanted = [
        Requirement(text)
        for text in (*project["dependencies"], *(text for extra in installed for text in extras[extra]))
    ]
    wanted = [requirement for requirement in wanted if requirement.name != "mer-r1"]  # an extra that holds another
    wrong = [
        f"{requirement}: {pinned.get(canonicalize_name(requirement.name), 'not pinned')}"
        for requirement in wanted
        if (version := pinned.get(canonicalize_name(requirement.name))) is None or version not in requirement.specifier
    ]
    assert wrong == []


def test_the_pins_are_plain_versions_of_the_ordinary_index() -> None:
    assert [f"{name}=={version}" for name, version in pins().items() if Version(version).local] == []
    assert "mer-r1" not in pins()
    for name in ("Makefile", "constraints.txt", "pyproject.toml", "Dockerfile", ".ci/run", ".ci/installs"):
        assert not re.search(r"index-url|find-links|--index|file:", (ROOT / name).read_text(encoding="utf-8")), name


def test_hooks_are_pinned_and_use_the_tested_ruff() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    needed = [Requirement(text) for hook in hooks for text in hook["additional_dependencies"]]
    assert all(re.fullmatch(r"==[\d.]+", str(requirement.specifier)) for requirement in needed)
    assert {str(requirement.specifier) for requirement in needed if requirement.name == "ruff"} == {
        f"=={pins()['ruff']}"
    }
    assert {"detect-private-key", "detect-secrets", "check-added-large-files"} <= {hook["id"] for hook in hooks}


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8")
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_public_workflow_and_the_image_call_the_same_targets() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    called = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert {"make check", "make docs"} <= set(called)
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    called += re.findall(r"^RUN (make \w+)", image, re.MULTILINE)
    assert [call for call in called if not (call.startswith("make ") and call.split()[1] in targets)] == []
    assert re.search(r"^USER (?!root)", image, re.MULTILINE)


def test_what_the_base_imports_is_what_the_base_installs() -> None:
    """No package of an extra in the base, none missing: seen in the sources that need no torch."""
    names = {"PIL": "pillow", "yaml": "pyyaml"}
    base = {canonicalize_name(Requirement(text).name) for text in PYPROJECT["project"]["dependencies"]}
    used = {
        canonicalize_name(names.get(root, root))
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if (root := name.split(".")[0]) not in {*sys.stdlib_module_names, "mer_r1"}
    }
    assert base <= used
    extras = {
        canonicalize_name(Requirement(text).name)
        for extra in PYPROJECT["project"]["optional-dependencies"].values()
        for text in extra
    }
    brought = {"markupsafe", "huggingface-hub", "starlette"}  # by jinja2, transformers, gradio
    hosts = {"swift", "verl"}
    assert used - base - extras - brought - hosts == set()


def test_the_licence_and_the_version_are_stated_alike() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    assert f"## [{PYPROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_documents_end_in_one_line_break_and_have_no_trailing_blanks() -> None:
    wrong = []
    for path in project_files():
        if path.suffix in {".md", ".toml", ".yaml", ".py", ".txt"} or path.name == "Makefile":
            text = Path(path).read_text(encoding="utf-8")
            if text and (not text.endswith("\n") or text.endswith("\n\n") or re.search(r"[ \t]$", text, re.MULTILINE)):
                wrong.append(str(path.relative_to(ROOT)))
    assert wrong == []
