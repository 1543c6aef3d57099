import json
import logging
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.emotions.metrics import wheel_scores
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.records import (
    _EXPECTED,
    Record,
    append_record,
    is_news,
    kept_records,
    kept_states,
    read_records,
    rescore,
    states_of,
)

FAST = "<think></think><answer> happy </answer>"


def write(path, *records):
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            append_record(file, record)
    return path


def test_a_record_survives_the_file(tmp_path):
    record = Record(
        "a", "slow", "<think> x </think><answer> sad </answer>", "x", ["sad"], ["sad"], True,
        {"precision": 1.0, "recall": 0.5, "f1": 2 / 3}, {"plutchik": ["sadness"]}, {"plutchik": {"sadness": 0.25}},
        1.5, 12, "runs/sft", 3, {"torch": "2"}, "abc", None,
    )  # fmt: skip
    assert read_records(write(tmp_path / "r.jsonl", record)) == [record]


def test_every_field_is_checked():
    assert set(_EXPECTED) == {entry.name for entry in fields(Record)}


@given(st.text(alphabet=st.characters(exclude_categories=())), st.lists(st.text(max_size=8), max_size=3))
def test_any_text_survives_the_file(tmp_path_factory, completion, labels):
    record = Record("clip", "fast", completion, labels=labels)
    path = write(tmp_path_factory.getbasetemp() / "any.jsonl", record)
    assert path.read_bytes().count(b"\n") == 1
    assert read_records(path) == [record]


def test_nan_is_written_as_null(tmp_path):
    path = write(tmp_path / "r.jsonl", Record("a", "slow", "", confidence={"w": {"joy": float("nan")}}))
    assert json.loads(path.read_text())["confidence"] == {"w": {"joy": None}}


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_half_written_last_line_is_dropped_and_said(tmp_path, caplog, cut):
    path = write(tmp_path / "r.jsonl", Record("a", "slow", FAST))
    whole = path.read_bytes()
    line = json.dumps(Record("b", "slow", "é").to_dict(), ensure_ascii=False).encode()
    path.write_bytes(whole + line[:cut])
    with caplog.at_level(logging.WARNING):
        assert [record.id for record in read_records(path)] == ["a"]
    assert "line 2 was only half written" in caplog.text


def test_a_run_goes_on_after_a_half_written_line(tmp_path):
    path = write(tmp_path / "r.jsonl", Record("a", "slow", FAST))
    path.write_bytes(path.read_bytes() + b'{"id": "b", "mo')
    assert states_of(kept_records(path, {})) == {("a", "slow"): None}
    with path.open("a", encoding="utf-8") as file:
        append_record(file, Record("b", "slow", FAST))
    assert [record.id for record in read_records(path)] == ["a", "b"]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    path = write(tmp_path / "r.jsonl", Record("a", "slow", FAST))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert states_of(kept_records(path, {})) == {("a", "slow"): None}
    with path.open("a", encoding="utf-8") as file:
        append_record(file, Record("a", "fast", FAST))
    assert states_of(kept_records(path, {})) == {("a", "slow"): None, ("a", "fast"): None}


def test_a_broken_line_in_the_middle_is_an_error_with_its_place(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": "a"\n' + json.dumps(Record("b", "slow", FAST).to_dict()) + "\n")
    with pytest.raises(UserError, match=r"r\.jsonl line 1: expected a record"):
        read_records(path)


def test_of_duplicates_the_last_counts(tmp_path, caplog):
    records = [Record("a", "slow", "first"), Record("b", "slow", "x"), Record("a", "slow", "second")]
    with caplog.at_level(logging.WARNING):
        read = read_records(write(tmp_path / "r.jsonl", *records))
    assert [(record.id, record.completion) for record in read] == [("a", "second"), ("b", "x")]
    assert "1 records were predicted again" in caplog.text


def test_clips_that_ended_in_an_error_are_tried_again(tmp_path):
    path = write(tmp_path / "r.jsonl", Record("a", "slow", "", error="no such file"), Record("b", "slow", FAST))
    known = states_of(kept_records(path, {}))
    assert known == {("a", "slow"): "no such file", ("b", "slow"): None}
    assert [is_news(Record("a", "slow", "", error=why), known) for why in ("no such file", "empty", None)] == [
        False,
        True,
        True,
    ]
    assert states_of(kept_records(path, {}), draw=1) == {}
    assert states_of(kept_states(path, {})) == known, "and with little memory"
    assert states_of(kept_records(tmp_path / "none.jsonl", {})) == {}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"mode": "slow", "completion": ""}, "a record without id"),
        ({"id": "a", "mode": "medium", "completion": ""}, "expected 'slow' or 'fast', got 'medium'"),
        ({"id": "a", "mode": "slow", "completion": 3}, "completion of record 'a': expected a text, got 3"),
        ({"id": "a", "mode": "slow", "completion": "", "scores": {"f1": 1.0}}, "expected precision, recall and f1"),
        (
            {"id": "a", "mode": "slow", "completion": "", "labels": "sad"},
            "labels of record 'a': expected a list of words, got 'sad'",
        ),
        ({"id": "a", "mode": "slow", "completion": "", "gold": ["sad", 3]}, "expected a list of words or null"),
        (
            {"id": "a", "mode": "slow", "completion": "", "confidence": {"w": 1}},
            "expected wheel -> sector -> probability",
        ),
        (
            {"id": "a", "mode": "slow", "completion": "", "scores": {"precision": float("nan"), "recall": 1, "f1": 1}},
            "within 0 and 1, or null",
        ),
        ([1], "expected a record as one JSON object"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, row, said):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=said):
        read_records(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        read_records(tmp_path / "none.jsonl")


def test_rescoring_needs_only_completion_and_gold():
    stale = Record("a", "slow", "<think> so </think><answer> happy, angry </answer>", gold=["joyful"], labels=["stale"])
    (record,) = rescore([stale], builtin())
    scores = wheel_scores(["joyful"], ["happy", "angry"], builtin())
    assert record.scores == scores._asdict()
    # On every wheel happy is right and angry is wrong: precision 1/2, recall 1, F1 = 2·1 / (1 + 2).
    assert record.scores == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3})
    assert (record.labels, record.reasoning, record.well_formed) == (["happy", "angry"], "so", True)


@pytest.mark.parametrize(
    ("answer", "labels", "doubt"),
    [
        ("<answer>1. Happy (0.9)\n2. sad</answer>", ["happy", "sad"], None),
        ("<answer>happy, zzqx</answer>", ["happy", "zzqx"], "no wheel knows zzqx"),
        ("<answer>zzqx</answer>", ["zzqx"], "no wheel knows any of its words"),
        ("<answer>She is happy but tired.</answer>", [], "no answer that can be read as words"),
        ("She smiles.", [], "no answer that can be read as words"),
        ("<answer></answer>", [], None),
    ],
)
def test_words_are_read_in_any_form_and_doubtful_ones_are_marked(answer, labels, doubt):
    (record,) = rescore([Record("a", "slow", f"<think> so </think>{answer}", gold=["joyful"])], builtin())
    assert (record.labels, record.doubt) == (labels, doubt)


def test_rescoring_keeps_errors_and_unscorable_clips():
    broken, unknown, unlabelled = rescore(
        [
            Record("a", "slow", "", error="no such file", gold=["sad"]),
            Record("b", "slow", FAST, gold=["zzqx"]),
            Record("c", "slow", FAST),
        ],
        builtin(),
    )
    assert broken.error == "no such file"
    assert broken.scores is None
    assert unknown.scores is None
    assert unlabelled.scores is None
    assert unlabelled.labels == ["happy"]
