import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mer_r1.data.clip import Clip
from mer_r1.data.manifest import write_manifest
from mer_r1.emotions.meaning import Meaning
from mer_r1.emotions.metrics import mean_scores, wheel_scores
from mer_r1.emotions.thinking import format_completion
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.records import Record, append_record, rescore
from mer_r1.evaluation.summary import build_table, compare, derange, summarise, write_summary


def scored(clip_id, f1, mode="slow", **fields):
    return Record(clip_id, mode, "x", scores={"precision": f1 / 2, "recall": f1, "f1": f1}, labels=["x"], **fields)


def answered(clip_id, labels, gold, mode="slow"):
    return Record(clip_id, mode, format_completion("because", labels), gold=gold)


def test_means_equal_those_of_the_metrics():
    taxonomy = builtin()
    rows = [(["happy", "angry"], ["joyful"]), (["sad"], ["sad", "afraid"]), (["bored"], ["surprised"])]
    records = rescore([answered(str(i), labels, gold) for i, (labels, gold) in enumerate(rows)], taxonomy)
    slow = summarise(records, resamples=50)["modes"]["slow"]
    expected = mean_scores(wheel_scores(gold, labels, taxonomy) for labels, gold in rows)
    for name in ("precision", "recall", "f1"):
        assert slow[name]["mean"] == pytest.approx(getattr(expected, name), abs=1e-12)
    assert slow["labels"]["mean"] == pytest.approx(4 / 3)
    assert slow["well_formed"]["mean"] == 1.0


def test_errors_and_unscorable_clips_are_counted_and_left_out():
    records = [
        scored("a", 1.0, tokens=10),
        scored("b", 0.5, tokens=20),
        Record("c", "slow", "", error="no such file"),
        Record("d", "slow", "x", gold=["zzqx"], labels=["x"], tokens=30),
        Record("e", "slow", "x", gold=["sad"], scores={"precision": 0.0, "recall": 0.0, "f1": 0.0}, tokens=40),
    ]
    slow = summarise(records, resamples=50)["modes"]["slow"]
    counts = {name: slow[name] for name in ("n_records", "n", "n_skipped", "n_errors", "n_unparsed")}
    assert counts == {"n_records": 5, "n": 3, "n_skipped": 1, "n_errors": 1, "n_unparsed": 1}
    assert slow["f1"]["mean"] == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert slow["tokens"]["mean"] == pytest.approx((10 + 20 + 30 + 40) / 4)


def test_confidence_of_correct_and_incorrect_categories_by_hand():
    taxonomy = builtin()
    first, second = taxonomy.wheels[0], taxonomy.wheels[1]
    confidence = {
        wheel.name: {
            sector: right if sector in taxonomy.categories(["happy"], wheel) else wrong
            for sector in taxonomy.sectors(wheel)
        }
        for wheel, right, wrong in ((first, 0.6, 0.1), (second, 0.2, 0.3))
    }
    record = Record("a", "slow", "x", gold=["happy"], confidence=confidence)
    slow = summarise([record], resamples=10)["modes"]["slow"]
    # Wheels are averaged: (0.6 + 0.2) / 2 and (0.1 + 0.3) / 2; the other wheels have no confidences and say nothing.
    assert slow["confidence_correct"]["mean"] == pytest.approx(0.4)
    assert slow["confidence_incorrect"]["mean"] == pytest.approx(0.2)


def test_unknown_confidences_say_nothing():
    name = builtin().wheels[0].name
    records = [Record("a", "slow", "x", gold=["happy"]), Record("b", "slow", "x", gold=["sad"], confidence={name: {}})]
    records.append(Record("c", "slow", "x", gold=["sad"], confidence={name: {"joy": None}}))
    slow = summarise(records, resamples=10)["modes"]["slow"]
    assert slow["confidence_correct"] == {"mean": None, "low": None, "high": None, "n": 0}


def test_slow_minus_fast_uses_the_clips_that_both_have():
    records = [scored("a", 0.9), scored("b", 0.4), scored("only slow", 0.0)]
    records += [scored("a", 0.5, "fast"), scored("b", 0.2, "fast"), Record("only slow", "fast", "", error="broken")]
    difference = summarise(records, resamples=200)["differences"]["slow - fast"]
    assert (difference["n"], difference["n_unmatched"]) == (2, 1)
    assert difference["f1"]["mean"] == pytest.approx((0.4 + 0.2) / 2)
    assert difference["precision"]["mean"] == pytest.approx(0.15)
    # Resampling {0.4, 0.2} can give no mean outside these two.
    assert difference["f1"]["low"] == pytest.approx(0.2)
    assert difference["f1"]["high"] == pytest.approx(0.4)


def test_pairing_makes_a_constant_gain_certain():
    # Clips differ widely, the gain does not: the paired interval has no width although each side's is wide.
    before = [scored(str(i), i / 100) for i in range(80)]
    after = [scored(str(i), i / 100 + 0.1) for i in range(80)]
    difference = compare(after, before, "slow", resamples=300)
    assert difference["f1"]["low"] == pytest.approx(0.1)
    assert difference["f1"]["high"] == pytest.approx(0.1)
    interval = summarise(after, resamples=300)["modes"]["slow"]["f1"]
    assert interval["high"] - interval["low"] > 0.05


def test_comparison_is_antisymmetric_and_keeps_to_its_mode():
    one = [scored("a", 0.9), scored("b", 0.3), scored("a", 0.0, "fast")]
    two = [scored("b", 0.1), scored("c", 0.5), scored("b", 0.9, "fast")]
    forth, back = compare(one, two, "slow"), compare(two, one, "slow")
    assert (forth["n"], forth["n_unmatched"]) == (1, 2)
    assert forth["f1"]["mean"] == pytest.approx(0.2)
    assert back["f1"]["mean"] == pytest.approx(-0.2)
    assert compare(one, two, "fast")["n"] == 0


def test_nothing_at_all_is_null_not_zero():
    assert summarise([])["modes"] == {}
    slow = summarise([Record("a", "slow", "", error="broken")])["modes"]["slow"]
    assert slow["f1"]["mean"] is None
    assert slow["n_errors"] == 1


@given(st.sets(st.text(min_size=1, max_size=5), min_size=2, max_size=40), st.integers(0, 5))
def test_no_clip_keeps_its_own(ids, seed):
    mapping = derange(ids, seed)
    assert set(mapping) == set(mapping.values()) == ids
    assert all(mine != other for mine, other in mapping.items())
    assert mapping == derange(reversed(sorted(ids)), seed)


def test_the_exchange_depends_on_its_seed_and_needs_two_clips():
    ids = [str(i) for i in range(30)]
    assert derange(ids, 0) != derange(ids, 1)
    for bad in ([], ["a"], ["a", "b", "a"]):
        with pytest.raises(UserError, match="at least two different clips"):
            derange(bad)


def write(folder, records, labels=(("a", "joyful"), ("b", "joyful"))):
    clips = [Clip(name, subtitle="x", labels=(label,), split="test") for name, label in labels]
    write_manifest(folder / "m.jsonl", [*clips, Clip("other", subtitle="x", labels=("sad",), split="train")])
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for record in records:
            append_record(file, record)


def test_the_summary_is_written_from_completions_alone(tmp_path):
    write(tmp_path, [answered("a", ["happy"], ["joyful"]), answered("b", ["sad"], ["joyful"], "fast")])
    summary = write_summary(tmp_path, tmp_path / "m.jsonl", seed=4, resamples=20, condition="audio exchanged")
    read = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert read == summary
    assert summary["modes"]["slow"]["f1"] == {"mean": 1.0, "low": None, "high": None, "n": 1}
    assert summary["modes"]["fast"]["f1"]["mean"] == 0.0
    assert (summary["seed"], summary["condition"]) == (4, "audio exchanged")


def test_the_same_records_are_scored_by_meaning_and_the_summary_says_so(tmp_path):
    write(tmp_path, [answered("a", ["joyful"], None), answered("b", ["sad"], None)])
    wheels = write_summary(tmp_path, tmp_path / "m.jsonl", "test", resamples=10)
    # Any two words point into one direction: only opposites are apart.
    meaning = Meaning(lambda texts: np.ones((len(texts), 1)), "one direction", 0.5)
    taxonomy = replace(builtin(), matching="meaning", meaning=meaning)
    found = write_summary(tmp_path, tmp_path / "m.jsonl", "test", resamples=10, wheels=taxonomy)
    assert [each["matching"] for each in (wheels, found)] == ["wheels", "meaning (one direction, floor 0.5)"]
    assert found["modes"]["slow"]["f1"]["mean"] == wheels["modes"]["slow"]["f1"]["mean"] == 0.5
    assert found["wheels"] == wheels["wheels"]
    assert json.loads((tmp_path / "summary.json").read_text())["matching"] == found["matching"]
    assert "words compared by meaning (one direction, floor 0.5)" in " ".join(table_text(build_table(found)).split())
    assert "compared by" not in table_text(build_table(wheels))


def test_a_folder_without_records_is_an_error(tmp_path):
    write(tmp_path, [])
    with pytest.raises(UserError, match=r"no records of the 2 clips of .*m\.jsonl with split=test"):
        write_summary(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "records.jsonl").unlink()
    with pytest.raises(UserError, match=r"records.jsonl: cannot be read"):
        write_summary(tmp_path, tmp_path / "m.jsonl")


def test_gold_and_clips_are_those_of_the_manifest(tmp_path):
    rows = [answered(name, ["happy"], ["joyful"]) for name in ("a", "b", "gone", "other")]
    write(tmp_path, rows, [("a", "sad"), ("b", "joyful"), ("new", "joyful")])
    summary = write_summary(tmp_path, tmp_path / "m.jsonl", resamples=20)
    assert summary["modes"]["slow"]["f1"]["mean"] == 0.5, "the gold of a was corrected to sad; b is right"
    assert summary["modes"]["slow"]["n_records"] == 2, "gone is no clip any more, other is of another split"
    assert (summary["clips"], summary["missing"], summary["split"]) == (3, 1, "test")
    assert summary["wheels"] == builtin().title
    assert summary["manifest"] == str(tmp_path / "m.jsonl")
    text = " ".join(table_text(build_table(summary)).split())
    assert "split test: 3 clips, 1 of them without a record; wheels: built-in" in text
    every = write_summary(tmp_path, tmp_path / "m.jsonl", "all", resamples=20)
    assert (every["clips"], every["modes"]["slow"]["n_records"]) == (4, 3)


def test_confidences_belong_to_the_wheels_of_the_folder(tmp_path):
    sure = {wheel.name: dict.fromkeys(builtin().sectors(wheel), 0.25) for wheel in builtin().wheels}
    write(tmp_path, [replace(answered("a", ["happy"], ["joyful"]), confidence=sure)])
    for wheels, expected in ((builtin().title, 0.25), ("official (1234)", None)):
        (tmp_path / "claim.json").write_text(json.dumps({"wheels": wheels}))
        summary = write_summary(tmp_path, tmp_path / "m.jsonl", resamples=20)
        assert summary["modes"]["slow"]["confidence_correct"]["mean"] == expected


def table_text(table, width=200):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_table_shows_modes_differences_and_what_was_left_out():
    records = [scored("a", 0.5), scored("b", 0.5), Record("c", "slow", "", error="broken"), scored("a", 0.25, "fast")]
    summary = summarise(records, resamples=10)
    text = table_text(build_table(summary))
    assert "0.500 [0.500, 0.500]" in text
    assert "+0.250" in text
    assert "slow: 1 errors" in text
    stages = table_text(build_table({"SFT [x]": summary}, {"gain": compare(records, records, "slow", resamples=10)}))
    assert "SFT [x] slow" in stages
    assert "+0.000 [+0.000, +0.000]" in stages


@pytest.mark.parametrize("width", [60, 80, 100, 116])
def test_no_terminal_is_so_narrow_that_the_table_loses_numbers(width):
    summary = summarise([scored("a", 0.5), scored("b", 0.5), scored("a", 0.25, "fast")], resamples=10)
    gain = compare([scored("a", 0.25)], [scored("a", 0.5)], "slow", resamples=10)

    def shown(width):
        stages = {"SFT": summary, "MER-R1": summary}
        return table_text(build_table(stages, {"MER-R1 slow - SFT slow": gain}, width), width)

    text = shown(width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    numbers = [sorted(re.findall(r"[+-]?\d\.\d{3}", told)) for told in (text, shown(200))]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) == 37
    if width >= 80:
        assert "[0.500, 0.500]" in text
        assert len(text.splitlines()) <= (24 if width < 116 else 13)


def test_nan_never_reaches_a_summary():
    records = [scored("a", 0.5, confidence={builtin().wheels[0].name: {"joy": math.nan}}, gold=["happy"])]
    json.dumps(summarise(records, resamples=5), allow_nan=False)


def test_the_number_of_a_clip_is_the_mean_of_its_answers():
    def answer(clip_id, draw, labels):
        scores = {"precision": 1.0, "recall": labels / 4, "f1": labels / 5}
        return Record(clip_id, "slow", "x", labels=["happy"] * labels, gold=["happy"], scores=scores, draw=draw)

    both = [answer("a", 0, 1), answer("a", 1, 3), answer("b", 0, 4)]
    row = summarise(both, resamples=10)["modes"]["slow"]
    assert row["n_records"] == 3
    assert row["n"] == 2
    assert row["f1"]["mean"] == pytest.approx((0.4 + 0.8) / 2)
    assert row["labels"]["mean"] == pytest.approx(3)
    difference = compare(both, [answer("a", 0, 4), answer("b", 0, 4)], "slow", resamples=10)
    assert difference["n"] == 2
    assert difference["recall"]["mean"] == pytest.approx(-0.25)
