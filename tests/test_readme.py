"""README.md and docs/api.md: their Python examples and the commands of the front page run, on made data."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import openpyxl
import pytest
from synthetic_run import write_run
from test_architecture import ROOT

from mer_r1 import cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
ON_A_CPU = "use_cpu=true bf16=false max_steps=1 workers=0 report_to=none save_strategy=no logging_steps=1 "
ADDED = {
    "sft": f"{ON_A_CPU} model=runs/demo/sft/model",
    "rl": f"{ON_A_CPU} max_completion_length=24",
    "predict": "--max-new-tokens 24",
    "evaluate": "--max-new-tokens 24",
}
"""What the test adds to a command of the front page, so that it runs in seconds with the tiny model."""


def examples(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[str]:
    return [line for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def write_tables(folder: Path) -> None:
    """Official tables in miniature: two words, and five wheels that place them in one sector."""
    folder.mkdir()
    (folder / "format.csv").write_text("name,format\nhappy,happily\njoy,joyful\n", encoding="utf-8")
    columns = [f"{kind}_run{run}" for run in range(1, 9) for kind in ("word", "synonym")]
    sheets = {"synonym": [columns, ["happy", "joy", *[""] * 14], ["joy", "happy", *[""] * 14]]}
    sheets |= {f"wheel{number}": [["level1", "level2", "level3"], ["happy", "joy", "glad"]] for number in range(1, 6)}
    for name, rows in sheets.items():
        book = openpyxl.Workbook()
        for row in rows:
            book.worksheets[0].append(row)
        book.save(folder / f"{name}.xlsx")


@pytest.fixture(scope="module")
def workplace(taught_folder: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: data, a finished demo, a clip of one's own, official tables."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(corpus.parent, folder / "data")
    shutil.copy(corpus.parent / "0.mp4", folder / "clip.mp4")
    write_run(folder / "made", clips=12, media=0)
    records = folder / "runs" / "demo" / "eval" / "rl" / "records.jsonl"
    records.parent.mkdir(parents=True)
    shutil.copy(folder / "made" / "eval" / "rl.jsonl", records)
    for stage in ("sft", "rl"):
        (folder / "runs" / "demo" / stage).mkdir()
        (folder / "runs" / "demo" / stage / "model").symlink_to(taught_folder)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    write_tables(folder / "emotion_wheel")
    return folder


SHOWN = [(name, text) for name, page in (("README", README), ("api", API)) for text in examples(page)]


@pytest.mark.parametrize(("page", "example"), SHOWN, ids=[f"{page}-{index}" for index, (page, _) in enumerate(SHOWN)])
def test_every_example_runs(
    page: str, example: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    exec(compile(example, f"{page}.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert printed
    for line in example.splitlines():  # `print(...)  # what it prints`, where a value is given
        if (told := re.fullmatch(r"print\(.*\)  # (\(.*|[a-z]+)", line)) is not None:
            assert told[1] in printed.splitlines()


def exit_status() -> int:
    """Runs the program with the arguments of `sys.argv` in this process."""
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_commands_of_the_front_page_run_one_after_the_other(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    lines = commands(README)
    assert [line.split()[1] for line in lines] == ["predict", "sft", "rl", "evaluate"]
    for line in lines:
        words = shlex.split(line)
        monkeypatch.setattr(sys, "argv", words + ADDED[words[1]].split())
        assert exit_status() == 0, f"{line}\n{capsys.readouterr().err}"
    assert (workplace / "runs" / "rl" / "model" / "config.json").is_file()
    assert (workplace / "runs" / "eval" / "summary.json").is_file()


def test_the_example_of_the_front_page_is_short() -> None:
    (example,) = examples(README)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    assert len(README.splitlines()) <= 130
