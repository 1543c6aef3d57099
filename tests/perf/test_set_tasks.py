"""The table of the text tasks, by hand: two seeds of two rows."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "perf"))
import set_tasks

from mer_r1.data.clip import Clip
from mer_r1.emotions.set_task import taxonomy_of
from mer_r1.emotions.thinking import ThinkingMode, format_completion
from mer_r1.evaluation.records import provenance, record_of_answer

FOOD = {"allergen": {"milk": [], "egg": [], "nuts": []}}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of SFT, of which the slow answers to the rows a and b are known."""
    gold = {"a": ["milk", "egg"], "b": ["nuts"]}
    answers = {0: {"a": ["milk"], "b": ["nuts"]}, 1: {"a": ["milk", "egg"], "b": ["egg"]}}
    for seed, given in answers.items():
        folder = tmp_path / f"seed{seed}" / "sft" / "eval"
        folder.mkdir(parents=True)
        (folder / "claim.json").write_text(json.dumps({"task": {"question": "{text}?", "categories": FOOD}}))
        lines = [
            record_of_answer(Clip(name, labels=tuple(gold[name])), ThinkingMode.SLOW, format_completion("So.", words),
                taxonomy_of(FOOD), provenance("sft", seed, {})).to_dict()
            for name, words in given.items()
        ]  # fmt: skip
        (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_a_score_is_a_mean_over_rows_of_the_mean_over_seeds(runs: Path) -> None:
    recall = set_tasks.values(runs, [0, 1, 2], "sft", "slow", "recall")
    assert recall == {"a": [0.5, 1.0], "b": [1.0, 0.0]}
    # Rows .75 and .5; seeds .75 and .5. Of two rows drawn with replacement the mean is .5, .625 or .75.
    assert set_tasks.cell(recall) == "0.625 [0.500, 0.750] (0.500 to 0.750)"
    assert set_tasks.values(runs, [0], "f1", "slow", "recall") == {}


def test_a_difference_is_paired_by_row_and_seed(runs: Path) -> None:
    recall = set_tasks.values(runs, [0, 1], "sft", "slow", "recall")
    precision = set_tasks.values(runs, [0, 1], "sft", "slow", "precision")
    assert precision == {"a": [1.0, 1.0], "b": [1.0, 0.0]}
    # Rows .25 and 0; seeds .25 and 0.
    assert set_tasks.cell(precision, recall) == "+0.125 [+0.000, +0.250] (0.000 to 0.250)"


def test_the_table_has_what_is_there(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_tasks.table(runs, [0, 1])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in lines if line.startswith("| sft")] == [["| sft", "slow"]]
    assert not any("slow - fast" in line for line in lines)
