"""Think when it pays: which clips are thought over, what that costs, and a threshold from validation clips only."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mer_r1.cli import app
from mer_r1.data.claim import weights_digest
from mer_r1.data.clip import Clip
from mer_r1.data.manifest import write_manifest
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers.adaptive import (
    Gate,
    at_threshold,
    choose_by_confidence,
    choose_threshold,
    curve,
    is_unsure,
    oracle,
    pairs,
    read_gate,
    summarise_auto,
    write_gate,
)  # fmt: skip
from mer_r1.evaluation.records import Record, append_record


def record(name: str, mode: str, f1: float, sureness: float | None, tokens: int, form: str = "once") -> Record:
    scores = {"precision": f1, "recall": f1, "f1": f1}
    return Record(
        id=name, mode=mode, completion="<think></think><answer> sad </answer>", labels=["sad"], gold=["sad"],
        scores=scores, sureness=sureness, tokens=tokens, form=form,
    )  # fmt: skip


def clip(name: str, sure: float, fast: float, slow: float, form: str = "once") -> list[Record]:
    return [record(name, "fast", fast, sure, 5, form), record(name, "slow", slow, None, 40, form)]


# Sure and right, unsure and wrong, sure and right although slow is wrong: thinking below 0.5 is best.
THREE = [*clip("a", 0.9, 1.0, 1.0), *clip("b", 0.2, 0.0, 1.0), *clip("c", 0.6, 1.0, 0.0)]


def test_thresholds_by_hand() -> None:
    both = pairs(THREE)
    never, some, always = at_threshold(both, 0.0), at_threshold(both, 0.5), at_threshold(both, 2.0)
    assert (never.f1, never.tokens, never.share) == (pytest.approx(2 / 3), 5.0, 0.0)
    # One clip of three pays for both answers: (5 + 45 + 5) / 3 tokens.
    assert (some.f1, some.tokens, some.share) == (1.0, pytest.approx(55 / 3), pytest.approx(1 / 3))
    assert (always.f1, always.tokens, always.share) == (pytest.approx(2 / 3), 45.0, 1.0)
    best = oracle(both)
    assert (best.f1, best.tokens) == (some.f1, some.tokens)
    gate = choose_threshold(THREE, {"split": "val"})
    assert 0.2 < gate.threshold <= 0.6
    assert (gate.f1, gate.chosen_on) == (1.0, {"split": "val", "clips": 3})


def test_two_answers_are_paid_for_once() -> None:
    both = pairs(clip("a", 0.1, 0.0, 1.0, form="twice"))
    assert at_threshold(both, 0.5).tokens == 40.0
    assert at_threshold(both, 0.0).tokens == 5.0


def test_of_equally_good_thresholds_the_cheapest() -> None:
    same = [row for name in "abc" for row in clip(name, 0.5, 0.7, 0.7)]
    gate = choose_threshold(same, {})
    assert (gate.share, gate.tokens) == (0.0, 5.0)


def test_an_answer_without_a_word_is_always_thought_over() -> None:
    fast = record("a", "fast", 0.0, 0.99, 5)
    assert not is_unsure(fast, 0.5)
    assert is_unsure(replace(fast, labels=[]), 0.0)
    assert is_unsure(replace(fast, sureness=None), 0.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_curve_runs_from_fast_to_slow_below_the_oracle(clips: list[tuple[float, float, float]]) -> None:
    records = [row for i, values in enumerate(clips) for row in clip(str(i), *values)]
    both = pairs(records)
    points = curve(both)
    shares = [point.share for point in points]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert points[0].f1 == pytest.approx(math.fsum(fast for _, fast, _ in clips) / len(clips))
    assert points[-1].f1 == pytest.approx(math.fsum(slow for _, _, slow in clips) / len(clips))
    assert all(point.f1 <= oracle(both).f1 + 1e-9 for point in points)


def test_chosen_records_carry_the_cost_of_both() -> None:
    chosen = choose_by_confidence(THREE, 0.5)
    assert [(row.id, row.mode, row.tokens) for row in chosen] == [("a", "fast", 5), ("b", "slow", 45), ("c", "fast", 5)]
    summary = summarise_auto(THREE, 0.5, resamples=10)
    assert summary["modes"]["auto"]["f1"]["mean"] == 1.0
    assert summary["modes"]["fast"]["f1"]["mean"] == pytest.approx(2 / 3)
    assert summary["modes"]["auto"]["tokens"]["mean"] == pytest.approx(55 / 3)


def test_a_gate_is_kept_with_the_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mer-r1 threshold"):
        read_gate(tmp_path)
    gate = Gate(0.4, {"split": "val", "weights": weights_digest(tmp_path)}, 0.3, 0.5, 20.0)
    assert read_gate(write_gate(replace(gate, chosen_on={"split": "val"}), tmp_path).parent) == gate
    (tmp_path / "model.safetensors").write_bytes(b"retrained")
    with pytest.raises(UserError, match=r"weights: '\w+', now '\w+'\); choose it again with `mer-r1 threshold`"):
        read_gate(tmp_path)
    for content in ("[]", "[" * 100_000, *(json.dumps(asdict(gate) | {"threshold": x}) for x in ("x", True, math.nan))):
        (tmp_path / "think_auto.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="not a threshold file"):
            read_gate(tmp_path)


def test_nothing_to_choose_on_is_said() -> None:
    with pytest.raises(UserError, match="got none"):
        choose_threshold([record("a", "fast", 1.0, 0.5, 5)], {})
    with pytest.raises(UserError, match="no fast answers"):
        summarise_auto([record("a", "slow", 1.0, None, 5)], 0.5)


def test_saved_records_are_scored_again_at_a_threshold(tmp_path: Path) -> None:
    with (tmp_path / "records.jsonl").open("w", encoding="utf-8") as file:
        for row in THREE:
            append_record(file, row)
    manifest = tmp_path / "m.jsonl"
    write_manifest(manifest, [Clip(name, subtitle="x", labels=("happy",), split="test") for name in "abc"])
    told = ["evaluate", "--manifest", str(manifest), "--out", str(tmp_path), "--think", "auto", "--json"]
    found = CliRunner().invoke(app, [*told, "--threshold", "0.5"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["modes"]["auto"]["tokens"]["mean"] == pytest.approx(55 / 3)
    missing = CliRunner().invoke(app, told)
    assert isinstance(missing.exception, UserError)
    assert "--threshold" in str(missing.exception)
