"""The statistics of a diagnosis, by hand and on data of known variances; and the gate, from numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mer_r1.evaluation.diagnosis.gate import judge, verdict
from mer_r1.evaluation.diagnosis.statistics import (
    Correlation,
    added_share,
    bootstrap_of,
    ceiling,
    cosine,
    explained_share,
    variance_parts,
    within_groups,
)
from mer_r1.evaluation.intervals import Interval, bootstrap

NAN = float("nan")
GROUPS = arrays(np.float64, (4, 5), elements=st.integers(-9, 9).map(float))


# --- correlations within groups ---------------------------------------------------------------------------------------


def test_correlations_are_averaged_over_groups():
    first = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    second = np.array([[1.0, 3.0, 2.0], [6.0, 4.0, 2.0]])
    # 0.5 and -1: mean -0.25, standard deviation 1.5 / sqrt(2), standard error 0.75
    assert within_groups(first, second) == pytest.approx((-0.25, 0.75, 2))


def test_what_only_one_of_the_measures_has_does_not_count():
    first = np.array([[1.0, NAN, 2.0, 3.0, 50.0]])
    second = np.array([[2.0, -50.0, 4.0, 6.0, NAN]])
    assert within_groups(first, second) == pytest.approx((1.0, None, 1))
    assert within_groups(first[:, :3], second[:, :3]) == (None, None, 0)  # two common ones of three
    assert within_groups(first[:, [0, 2]], second[:, [0, 2]]) == pytest.approx((1.0, None, 1))  # G is 2


def test_a_group_without_spread_has_no_correlation():
    first = np.array([[0.1, 0.1, 0.1], [1.0, 2.0, 4.0]])
    assert within_groups(first, np.array([[1.0, 2.0, 3.0]] * 2)).groups == 1
    assert within_groups(first[:1], np.array([[1.0, 2.0, 3.0]])) == (None, None, 0)


@given(GROUPS, GROUPS, arrays(np.float64, (4, 1), elements=st.integers(1, 5).map(float)))
def test_a_correlation_knows_neither_level_nor_scale_of_a_group(first, second, scale):
    found = within_groups(first, second)
    moved = within_groups(scale * first + 7 * scale, second)
    assert moved.groups == found.groups == within_groups(second, first).groups
    if found.mean is not None:
        assert -1 <= found.mean <= 1
        assert moved.mean == pytest.approx(found.mean, abs=1e-9)
        assert within_groups(-first, second).mean == pytest.approx(-found.mean, abs=1e-9)


# --- shares of variance -----------------------------------------------------------------------------------------------


def simulated(signal: float, noise: float, prompts: int = 3000, group: int = 4, answers: int = 3) -> np.ndarray:
    """Scores (B, G, M) whose variance is `signal` between reasonings and `noise` between their answers."""
    rng = np.random.default_rng(0)
    prompt = rng.normal(0, 5, (prompts, 1, 1))  # is the same for all rollouts and must not count
    reasoning = rng.normal(0, signal**0.5, (prompts, group, 1))
    return prompt + reasoning + rng.normal(0, noise**0.5, (prompts, group, answers))


def test_parts_of_the_variance_by_hand():
    scores = np.array([[[0.0, 2.0], [4.0, 6.0], [NAN, NAN]], [[0.0, 1.0], [NAN, NAN], [NAN, NAN]]])
    # Means 1 and 5: variance 8 between; 2 within, of which a half is in the means.
    reasoning, sampling = variance_parts(scores)
    assert reasoning[0] == pytest.approx(7.0)
    assert sampling[0] == pytest.approx(2.0)
    assert np.isnan([reasoning[1], sampling[1]]).all()  # one reasoning alone shows nothing
    assert explained_share(scores) == {"mean": pytest.approx(7 / 9), "low": None, "high": None, "n": 1}


@pytest.mark.parametrize(("signal", "noise"), [(0.0, 1.0), (0.07, 0.93), (0.5, 0.5), (1.0, 0.0)])
def test_known_shares_are_found(signal, noise):
    scores = simulated(signal, noise)
    reasoning, sampling = variance_parts(scores)
    # The standard error of each mean is below 0.013.
    assert reasoning.mean() == pytest.approx(signal, abs=0.04)
    assert sampling.mean() == pytest.approx(noise, abs=0.04)
    share = explained_share(scores)
    assert share["low"] - 0.01 <= signal <= share["high"] + 0.01


def test_without_a_share_of_the_reasoning_its_part_is_zero_on_average_and_not_above():
    reasoning, _ = variance_parts(simulated(0.0, 1.0))
    assert 0.2 < (reasoning < 0).mean() < 0.8
    assert abs(reasoning.mean()) < 4 * reasoning.std() / len(reasoning) ** 0.5


@given(arrays(np.float64, (5, 3, 2), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])))
def test_shares_lie_between_0_and_1(scores):
    for found in (explained_share(scores), ceiling(scores)):
        assert all(value is None or 0 <= value <= 1 for value in (found["mean"], found["low"], found["high"]))


def test_the_ceiling_is_the_correlation_of_the_truth_itself():
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 1, (2000, 30))
    scores = truth[:, :, None] + rng.normal(0, 3, (2000, 30, 4))
    # Reliability 1 / (1 + 9 / 4).
    assert ceiling(scores)["mean"] == pytest.approx((4 / 13) ** 0.5, abs=0.01)
    assert within_groups(truth, scores.mean(axis=2)).mean == pytest.approx((4 / 13) ** 0.5, abs=0.01)


def test_cosine_and_share_of_what_is_added():
    plain = np.array([[1.0, -1.0], [2.0, -2.0]])
    added = np.array([[1.0, 1.0], [0.0, 0.0]])  # orthogonal, squares 2 against 10
    assert cosine(plain + added, plain)["mean"] == pytest.approx((10 / 12) ** 0.5)
    assert added_share(plain + added, plain)["mean"] == pytest.approx(2 / 12)
    assert cosine(3 * plain, plain) == {"mean": pytest.approx(1.0), "low": 1.0, "high": pytest.approx(1.0), "n": 2}
    assert cosine(plain, 0 * plain)["mean"] is None


def test_a_function_of_one_column_alone_is_its_bootstrap():
    values = np.random.default_rng(0).random(40)
    table = np.stack([values, np.ones(40)], axis=1)
    table[3, 1] = NAN  # left out as a whole
    found = bootstrap_of(table, lambda means: means[..., 0], seed=5)
    assert found == pytest.approx(bootstrap(np.delete(values, 3), seed=5))


# --- the gate ---------------------------------------------------------------------------------------------------------


def interval(mean: float | None, half: float = 0.01) -> Interval:
    if mean is None:
        return {"mean": None, "low": None, "high": None, "n": 0}
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 100}


def judged(share=0.4, exchange=0.15, cos=0.9, highest=0.8, sides=("recall", "precision"), **changed: float | None):
    """Conditions where all is well but for what is changed in the recall side's correlations."""
    good = {"recall": 0.2, "precision": 0.05, "words": 0.02, "reasoning": 0.45}
    terms = {side: {name: Correlation(r, 0.01, 90) for name, r in good.items()} for side in sides}
    terms[sides[0]] |= {name: Correlation(r, None if r is None else 0.01, 90) for name, r in changed.items()}
    checks = judge(interval(exchange), interval(share), interval(highest), terms, interval(cos))
    return checks, verdict(checks)


def test_all_conditions_met():
    checks, text = judged()
    assert len(checks) == 8
    assert not any(check.close for check in checks)
    assert text == "The calibration can act on this model: all 8 conditions are met."
    assert len(judged(sides=("recall",))[0]) == 5


@pytest.mark.parametrize(
    ("changed", "name", "words"),
    [
        ({"exchange": -0.02}, "F1, own - other reasoning", "does not read its reasoning"),
        ({"exchange": None}, "F1, own - other reasoning", "does not read its reasoning"),
        ({"recall": 0.06}, "recall side: recall or precision", "follows neither recall nor precision (r +0.06)"),
        ({"words": 0.89}, "recall side: number of words", "(r +0.89), so it rewards long answers"),
        ({"words": -0.2}, "recall side: number of words", "(r -0.20), so it rewards short answers"),
        ({"reasoning": 0.2}, "recall side: F1 given the reasoning", "how good a reasoning is (r +0.20 with the F1"),
        ({"reasoning": None}, "recall side: F1 given the reasoning", "how good a reasoning is (r unknown"),
        ({"cos": 0.997}, "advantages: cosine with AD", "cosine 0.997 with AD's: the terms are too light"),
        ({"cos": 0.5}, "advantages: cosine with AD", "the terms outweigh recall and precision"),
        ({"cos": None}, "advantages: cosine with AD", "all rollouts of each prompt earn the same"),
    ],
)
def test_each_condition_fails_by_itself(changed, name, words):
    checks, text = judged(**changed)
    assert [check.name for check in checks if not check.passed] == [name]
    assert text.startswith("The calibration cannot act on this model as it is: ")
    assert words in text


def test_one_of_recall_and_precision_is_enough():
    assert all(check.passed for check in judged(recall=-0.3, precision=0.12)[0])


def test_a_reasoning_that_explains_too_little_is_named():
    assert "no term could" not in judged(reasoning=0.2, highest=0.36)[1]
    assert "no term could: the reasoning explains only 3.0 %" in judged(reasoning=0.2, highest=0.3, share=0.03)[1]


@pytest.mark.parametrize(
    ("changed", "close"),
    [
        ({"recall": 0.115}, True),
        ({"recall": 0.125}, False),
        ({"words": -0.14}, True),
        ({"words": 0.16}, True),
        ({"reasoning": 0.34}, True),
        ({"cos": 0.965}, True),
        ({"cos": 0.805}, True),
        ({"exchange": 0.005}, True),
        ({"exchange": -0.005}, False),
    ],
)
def test_what_lies_close_to_its_bound_is_told(changed, close):
    checks, text = judged(**changed)
    assert sum(check.close for check in checks) == close
    assert ("more clips may change them: 1 of 8." in text) == close
