"""What is committed: no secrets, nothing oversized, versions that agree with each other, set-up without surprises."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_architecture import ROOT, project_files

MAX_BYTES = 300_000

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
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match.group()[:20]}..." for match in SECRETS.finditer(text)]
    assert found == []


def test_no_file_over_the_cap() -> None:
    over = {
        str(path.relative_to(ROOT)): path.stat().st_size for path in project_files() if path.stat().st_size > MAX_BYTES
    }
    assert over == {}, f"over {MAX_BYTES} bytes"


def test_nothing_that_is_made_is_committed() -> None:
    made = re.compile(r"(^|/)(__pycache__|runs|\.venv[^/]*|[^/]+\.egg-info|dist|build)/|\.(pyc|safetensors|mp4|wav)$")
    assert [str(path) for path in project_files() if made.search(str(path.relative_to(ROOT)))] == []


def test_every_requirement_is_pinned_to_a_version_in_its_range() -> None:
    project, pinned = PYPROJECT["project"], {canonicalize_name(name): version for name, version in pins().items()}
    extras = project["optional-dependencies"]
    wanted = [
        Requirement(text)
        for text in (*project["dependencies"], *(r for e in ("train", "scenes", "dev") for r in extras[e]))
    ]
    wrong = [
        f"{requirement}: {pinned.get(canonicalize_name(requirement.name), 'not pinned')}"
        for requirement in wanted
        if (version := pinned.get(canonicalize_name(requirement.name))) is None or version not in requirement.specifier
    ]
    assert wrong == []


def test_the_pins_are_plain_versions_of_the_ordinary_index() -> None:
    assert [f"{name}=={version}" for name, version in pins().items() if Version(version).local] == []
    assert "mer-r1" not in pins()
    for name in ("Makefile", "constraints.txt", "pyproject.toml", ".ci/run"):
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
