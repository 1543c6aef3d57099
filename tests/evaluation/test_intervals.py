import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.errors import UserError
from mer_r1.evaluation.intervals import bootstrap, bootstraps, draws


def test_agrees_with_the_normal_theory_interval():
    values = np.random.default_rng(1).normal(0.6, 0.2, 400)
    interval = bootstrap(values, seed=3, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval["mean"] == pytest.approx(values.mean(), abs=1e-12)
    assert interval["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_covers_the_true_mean_about_as_often_as_it_says():
    # Of 300 intervals that each cover with 0.95, 285 do so on average, standard deviation sqrt(300·0.95·0.05) = 3.8.
    rng = np.random.default_rng(0)
    intervals = [bootstrap(rng.uniform(0, 1, 60), seed=index, resamples=400) for index in range(300)]
    covered = sum(entry["low"] <= 0.5 <= entry["high"] for entry in intervals)
    assert 270 <= covered <= 298


def test_is_the_same_for_the_same_seed_only():
    values = np.random.default_rng(1).random(50)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_chunks_do_not_change_the_result(monkeypatch):
    values = np.random.default_rng(1).random(50)
    whole = bootstrap(values, resamples=101)
    monkeypatch.setattr("mer_r1.evaluation.intervals._CHUNK", 50 * 7)
    assert bootstrap(values, resamples=101) == whole


def test_several_measures_have_the_intervals_that_each_has_alone(monkeypatch):
    rng, drawn = np.random.default_rng(2), []
    columns = {"a": rng.random(40), "b": rng.random(40), "short": rng.random(7), "one": [0.5], "none": []}
    columns["known"] = [*columns["a"][:20], math.nan, *columns["b"][:20]]
    alone = {name: bootstrap(values, seed=5, resamples=200) for name, values in columns.items()}
    alone_by_hand = np.quantile(
        np.array(columns["a"])[np.random.default_rng(5).integers(0, 40, (200, 40))].mean(1), 0.975
    )
    assert alone["a"]["high"] == alone_by_hand
    monkeypatch.setattr("mer_r1.evaluation.intervals.draws", lambda n, *how: drawn.append(n) or draws(n, *how))
    assert bootstraps(columns, seed=5, resamples=200) == alone
    assert sorted(drawn) == [7, 40]  # once for all measures of as many clips


def test_small_and_unknown_samples():
    assert bootstrap([]) == {"mean": None, "low": None, "high": None, "n": 0}
    assert bootstrap([0.25]) == {"mean": 0.25, "low": None, "high": None, "n": 1}
    assert bootstrap([math.nan, 0.5, 0.5]) == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 2}
    with pytest.raises(UserError, match="resamples: expected at least 1, got 0"):
        bootstrap([1.0, 2.0], resamples=0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.floats(-2, 2))
def test_lies_within_the_values_and_moves_with_them(values, shift):
    interval = bootstrap(values, resamples=60)
    moved = bootstrap([value + shift for value in values], resamples=60)
    assert min(values) - 1e-12 <= interval["low"] <= interval["high"] <= max(values) + 1e-12
    for edge in ("mean", "low", "high"):
        assert moved[edge] == pytest.approx(interval[edge] + shift, abs=1e-9)
