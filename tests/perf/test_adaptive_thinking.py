"""The comparison of ways of thinking, by hand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "perf"))
from adaptive_thinking import agreements, bound, by_clip, compare, main, overlap, ranked, seconds

from mer_r1.evaluation.answerers.thinking_gate import Gate, pairs
from mer_r1.evaluation.records import Record, append_record


def row(name: str, mode: str, f1: float, draw: int, sureness: float = 0.9, category: str = "joy") -> Record:
    return Record(
        id=name, mode=mode, completion="", labels=["happy"], scores=dict.fromkeys(("precision", "recall", "f1"), f1),
        sureness=sureness, tokens=5 if mode == "fast" else 40, draw=draw, categories={"w": [category]},
    )  # fmt: skip


# Clip a: an unsure fast answer that both a slow and another fast answer would mend; clip b: slow is worse.
RECORDS = [
    *(row("a", "fast", 0.0, 0, 0.1, "anger"), row("a", "slow", 1.0, 0)),
    *(row("a", "fast", 1.0, 1), row("a", "slow", 1.0, 1)),
    *(row("b", "fast", 1.0, 0), row("b", "slow", 0.5, 0), row("b", "fast", 1.0, 1), row("b", "slow", 0.5, 1)),
]  # fmt: skip


def test_ways_of_thinking_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    compare([(Gate.by_confidence(0.5), pairs(RECORDS))], same_clips=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {words[0]: (float(words[2]), float(words[-1])) for words in lines if words[1] == "F1"}
    assert found["fast"] == (0.75, 5.0)
    assert found["slow"] == (0.75, 40.0)
    assert found["auto"] == (1.0, 15.0)  # one answer of four pays for both: (45 + 5 + 5 + 5) / 4
    assert found["again"] == (1.0, 6.2)  # (10 + 5 + 5 + 5) / 4 = 6.25
    assert found["random"] == (0.75, 15.0)
    assert found["oracle"] == (1.0, 15.0)


def test_the_next_draw_and_its_agreement() -> None:
    both = pairs(RECORDS)
    assert {key: other.draw for key, other in seconds(both).items()} == {
        ("a", 0): 1, ("a", 1): 0, ("b", 0): 1, ("b", 1): 0,
    }  # fmt: skip
    assert agreements(both) == pytest.approx([0.0, 0.0, 1.0, 1.0])
    assert agreements(pairs(RECORDS[:2])) is None
    assert overlap(row("a", "fast", 1.0, 0), row("a", "fast", 1.0, 1)) == 1.0
    assert by_clip([("a", 1.0), ("a", 0.0), ("b", 1.0)]) == [0.5, 1.0]
    assert ranked([1.0, 2.0, 3.0], [30.0, 20.0, 10.0]) == pytest.approx(-1.0)


def test_single_draws_have_no_bound(capsys: pytest.CaptureFixture[str]) -> None:
    bound([(Gate.by_confidence(0.5), pairs(RECORDS[:2]))], 0.5)
    assert capsys.readouterr().out == ""


def test_it_runs_on_folders_of_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "records.jsonl").open("w", encoding="utf-8") as file:
        for record in RECORDS:
            append_record(file, record)
    monkeypatch.setattr(sys, "argv", ["", "--val", str(tmp_path), "--test", str(tmp_path), "--share", "0.5"])
    main()
    told = capsys.readouterr().out
    assert told.count("auto - again") == 2
    assert "logistic" in told
