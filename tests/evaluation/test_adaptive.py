"""Adaptive thinking: which clips are reasoned about, what that costs, and a gate from validation clips only."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mer_r1.cli import app
from mer_r1.data.claim import weights_digest
from mer_r1.data.clip import Clip
from mer_r1.data.manifest import write_manifest
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers.adaptive import choose_by_gate, summarise_auto
from mer_r1.evaluation.answerers.thinking_gate import (
    Gate,
    alone,
    at_gate,
    candidates,
    choose_gate,
    curve,
    features,
    oracle,
    pairs,
    read_gate,
    write_gate,
)
from mer_r1.evaluation.records import Record, append_record

SURE = Gate.by_confidence


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
    never, some, always = (at_gate(both, SURE(limit)) for limit in (0.0, 0.5, 2.0))
    assert (never.f1, never.tokens, never.share) == (pytest.approx(2 / 3), 5.0, 0.0)
    # One clip of three pays for both answers: (5 + 45 + 5) / 3 tokens.
    assert (some.f1, some.tokens, some.share) == (1.0, pytest.approx(55 / 3), pytest.approx(1 / 3))
    assert (always.f1, always.tokens, always.share) == (pytest.approx(2 / 3), 45.0, 1.0)
    best = oracle(both)
    assert (best.f1, best.tokens) == (some.f1, some.tokens)
    gate = choose_gate(THREE, {"split": "val"}, scores=["confidence"])
    assert 0.2 < gate.threshold <= 0.6
    assert (gate.point.f1, gate.chosen_on) == (1.0, {"split": "val", "answers": 3, "token_price": 0.0})
    # Reasoning about clip b gains 1/3 of F1 for 40/3 tokens: a token gains 0.025.
    assert choose_gate(THREE, {}, 0.024, ["confidence"]).point.share == pytest.approx(1 / 3)
    assert choose_gate(THREE, {}, 0.026, ["confidence"]).point.share == 0.0


def test_each_mode_alone_by_hand() -> None:
    both = pairs(THREE)
    assert [(alone(both, side).f1, alone(both, side).tokens) for side in (0, 1)] == [(2 / 3, 5.0), (2 / 3, 40.0)]


def test_a_score_is_judged_by_the_order_of_the_clips() -> None:
    best = candidates(THREE, {}, scores=["confidence"])[0]
    # Gains 1, 0, -1 at confidences .2, .9, .6. The curve over the share is above the chord by the mean of
    # gain x (1/2 - (rank + 1/2)/3), ranks 0, 2, 1: (1 x 1/3 + 0 - 1 x 0)/3.
    assert best.lift["mean"] == pytest.approx(1 / 9)
    assert best.auc == 1.0  # the one clip that gains is less sure than the one that loses
    assert best.correlation == pytest.approx(-float(np.corrcoef([0.9, 0.2, 0.6], [0, 1, -1])[0, 1]))


def confident(name: str, *wheels: dict[str, float], sureness: float | None = 0.5) -> Record:
    confidence = {str(place): wheel for place, wheel in enumerate(wheels)}
    return replace(record(name, "fast", 1.0, sureness, 5), confidence=confidence)


def test_features_by_hand() -> None:
    # Shares .6, .3, .1 after normalising, and .5, .5: margins .3 and 0.
    fast = confident("a", {"x": 0.3, "y": 0.05, "z": 0.15}, {"x": 0.2, "y": 0.2})
    entropy = -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1)) / math.log(3)
    expected = {"confidence": 0.5, "surprise": math.log(2), "margin": 0.15, "evenness": -(entropy + 1) / 2, "words": 1}
    assert features(fast) == pytest.approx(expected)
    assert features(confident("a", {"x": 1.0}, {"x": 0.0, "y": 0.0}))["margin"] is None  # nothing to compare
    assert features(confident("a", sureness=None))["surprise"] is None


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=6), min_size=1, max_size=4))
def test_features_are_bounded(wheels: list[list[float]]) -> None:
    found = features(confident("a", *(dict(zip("abcdef", wheel, strict=False)) for wheel in wheels)))
    if found["margin"] is not None and found["evenness"] is not None:
        assert 0 <= found["margin"] <= 1
        assert -1 - 1e-9 <= found["evenness"] <= 1e-9


def test_the_lead_finds_what_no_single_feature_orders() -> None:
    """Reasoning helps where the margin is wide and the confidence low: only both together say so."""
    records = []
    for place in range(200):
        sure, margin = 0.3 + 0.06 * (place // 20), (place % 20) / 20
        gain = 0.5 + 0.5 * (margin - sure)
        rows = clip(str(place), sure, (1 - gain) / 2, (1 + gain) / 2)
        records += [replace(rows[0], confidence={"w": {"x": (1 + margin) / 2, "y": (1 - margin) / 2}}), rows[1]]
    best = candidates(records, {})[0]
    assert best.gate.score == "lead"
    assert best.correlation > 0.95
    gains = {
        fast.id: slow.scores["f1"] - fast.scores["f1"] for fast, slow in pairs(records) if slow.scores and fast.scores
    }
    leads = np.asarray([best.gate.score_of(fast) for fast, _ in pairs(records)])
    assert np.allclose(-leads, list(gains.values()), atol=0.1)


def test_a_budget_is_spent_and_never_exceeded() -> None:
    gate = choose_gate(THREE, {}, scores=["confidence"])
    assert [point.tokens for point in gate.curve] == pytest.approx([5, 55 / 3, 95 / 3, 45])
    assert [at_gate(pairs(THREE), gate.within(budget)).tokens for budget in (5, 18, 32, 45)] == pytest.approx(
        [5, 5, 95 / 3, 45]
    )
    for budget in (4.9, 45.1, math.nan, math.inf):
        with pytest.raises(UserError, match=r"^--budget: got .* tokens per clip, expected 5\.0 to 45\.0"):
            gate.within(budget)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30), st.floats(5, 45)
)
def test_every_score_keeps_to_the_budget(clips: list[tuple[float, float, float]], budget: float) -> None:
    records = [row for i, values in enumerate(clips) for row in clip(str(i), *values)]
    for one in candidates(records, {}, scores=["confidence", "lead"]):
        if one.gate.curve[0].tokens <= budget:
            chosen = one.gate.within(budget)
            assert next(p.tokens for p in one.gate.curve if p.threshold == chosen.threshold) <= budget


def test_two_answers_are_paid_for_once() -> None:
    both = pairs(clip("a", 0.1, 0.0, 1.0, form="twice"))
    assert at_gate(both, SURE(0.5)).tokens == 40.0
    assert at_gate(both, SURE(0.0)).tokens == 5.0


def test_of_equally_good_thresholds_the_cheapest() -> None:
    same = [row for name in "abc" for row in clip(name, 0.5, 0.7, 0.7)]
    gate = choose_gate(same, {})
    assert (gate.score, gate.point.share, gate.point.tokens) == ("confidence", 0.0, 5.0)


def test_an_answer_without_a_word_is_always_reasoned_about() -> None:
    fast = record("a", "fast", 0.0, 0.99, 5)
    assert not SURE(0.5).reasons(fast)
    assert SURE(0.0).reasons(replace(fast, labels=[]))
    assert SURE(0.0).reasons(replace(fast, sureness=None))
    assert replace(SURE(-1.0), weights={"margin": 1.0}).reasons(fast)  # no categories


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_curve_runs_from_fast_to_slow_below_the_oracle(clips: list[tuple[float, float, float]]) -> None:
    records = [row for i, values in enumerate(clips) for row in clip(str(i), *values)]
    both = pairs(records)
    points = curve(both, [fast.sureness or 0.0 for fast, _ in both])
    shares = [point.share for point in points]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert points[0].f1 == pytest.approx(math.fsum(fast for _, fast, _ in clips) / len(clips))
    assert points[-1].f1 == pytest.approx(math.fsum(slow for _, _, slow in clips) / len(clips))
    assert all(point.f1 <= oracle(both).f1 + 1e-9 for point in points)


def test_chosen_records_carry_the_cost_of_both() -> None:
    chosen = choose_by_gate(THREE, SURE(0.5))
    assert [(row.id, row.mode, row.tokens) for row in chosen] == [("a", "fast", 5), ("b", "slow", 45), ("c", "fast", 5)]
    summary = summarise_auto(THREE, SURE(0.5), resamples=10)
    assert summary["modes"]["auto"]["f1"]["mean"] == 1.0
    assert summary["modes"]["fast"]["f1"]["mean"] == pytest.approx(2 / 3)
    assert summary["modes"]["auto"]["tokens"]["mean"] == pytest.approx(55 / 3)


def test_a_gate_is_kept_with_the_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mer-r1 threshold"):
        read_gate(tmp_path)
    gate = choose_gate(THREE, {"split": "val", "temperature": 0.0, "wheels": "x"})
    file = write_gate(gate, tmp_path)
    kept = replace(gate, chosen_on={**gate.chosen_on, "weights": weights_digest(tmp_path)})
    assert read_gate(tmp_path, temperature=0.0, wheels="x") == kept
    with pytest.raises(UserError, match=r"\(wheels: 'x', now 'y'\); choose it again with `mer-r1 threshold`"):
        read_gate(tmp_path, wheels="y")
    (tmp_path / "model.safetensors").write_bytes(b"retrained")
    with pytest.raises(UserError, match=r"weights: '\w+', now '\w+'\); choose it again with `mer-r1 threshold`"):
        read_gate(tmp_path)
    row = asdict(kept)
    bad = [row | {"threshold": x} for x in ("x", True, math.nan)] + [row | {"weights": {"words": "x"}}]
    bad += [row | {"weights": {"smile": 1.0}}, {"threshold": 0.5}]
    bad += [row | {"curve": wrong} for wrong in ([{}], 3, [])]
    for content in ("[]", "[" * 100_000, *map(json.dumps, bad)):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="not a threshold file"):
            read_gate(tmp_path)


def test_nothing_to_choose_on_is_said() -> None:
    with pytest.raises(UserError, match="got none"):
        choose_gate([record("a", "fast", 1.0, 0.5, 5)], {})
    with pytest.raises(UserError, match="no fast answers"):
        summarise_auto([record("a", "slow", 1.0, None, 5)], SURE(0.5))
    with pytest.raises(UserError, match=r"1 clips to reason about have no slow record \(first: a\)"):
        summarise_auto([record("a", "fast", 1.0, 0.2, 5)], SURE(0.5))


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
    for wrong, message in (
        (["--budget", "20"], "--think auto on saved records needs --threshold, not --budget"),
        (["--budget", "20", "--threshold", "0.5"], "exclude each other"),
        (["--think", "slow", "--budget", "20"], "--budget needs --think auto, got --think slow"),
        (["--budget", "20", "--model", str(tmp_path)], "no think_auto.json in "),
    ):
        refused = CliRunner().invoke(app, [*told, *wrong])
        assert message in str(refused.exception)
