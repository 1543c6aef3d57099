"""Figures of a step, by hand."""

import math
from collections import defaultdict, deque

import pytest
import torch

from mer_r1.rl.method import Advantages
from mer_r1.rl.statistics import confidence_statistics, group_statistics, known_mean, log_used, warn_if_quiet

NAN = math.nan


def test_known_mean() -> None:
    assert known_mean(torch.tensor([1.0, NAN, 4.0])) == 2.5
    assert math.isnan(known_mean(torch.tensor([NAN])))


def test_confidences_are_probabilities_of_correct_and_incorrect_categories() -> None:
    slow = torch.tensor([[0.5, 0.2, 0.1], [NAN, NAN, NAN]]).log()
    fast = torch.tensor([[0.25, 0.1, 0.3], [0.5, 0.5, 0.5]]).log()
    correct = torch.tensor([[True, False, False]] * 2)
    known, partition = torch.ones(2, 3, dtype=torch.bool), torch.tensor([0, 0, 0])
    found = confidence_statistics(slow, fast, correct, known, partition)
    expected = {
        "confidence/slow_correct": [0.5, NAN],
        "confidence/slow_incorrect": [0.15, NAN],  # (0.2 + 0.1) / 2
        "confidence/fast_correct": [0.25, 0.5],
        "confidence/fast_incorrect": [0.2, 0.5],
    }
    assert found.keys() == expected.keys()
    assert confidence_statistics(slow, None, correct, known, partition).keys() == {*list(expected)[:2]}
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(values), equal_nan=True)


def test_figures_of_two_groups() -> None:
    """The first group differs in recall by 1 (spread 1 / sqrt 2), the second is all the same."""
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.5], [1.0, 0.5]])
    terms = (torch.tensor([0.2, NAN, 0.4, NAN]), torch.zeros(4))
    used = Advantages(torch.zeros(4), None, 0.25)
    found = group_statistics(rewards, used, ["format", "recall"], 2, terms, torch.tensor([1.0, 3.0, 2.0, 2.0]))
    assert found == pytest.approx(
        {
            "spread/format": 0.0,
            "spread/recall": math.sqrt(0.5) / 2,
            "calibration/delta_correct": 0.3,
            "calibration/delta_incorrect": 0.0,
            "calibration/spread_correct": 0.0,
            "calibration/spread_incorrect": 0.0,
            "calibration/correct_with_recall": NAN,
            "calibration/incorrect_with_recall": NAN,
            "calibration/correct_with_words": NAN,
            "calibration/incorrect_with_words": NAN,
            "calibration/share": 0.25,
            "groups_without_signal": 0.5,
        },
        nan_ok=True,
    )
    assert not [name for name in group_statistics(rewards, used, ["format", "recall"], 2) if "calibration" in name]


def test_what_a_term_goes_with() -> None:
    """Two groups of three. T+ rises with the words in the first (correlation 1) and falls in the second (-0.5)."""
    rewards = torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.0, 1.0]] * 2)
    words = torch.tensor([1.0, 2.0, 3.0, 3.0, 2.0, 4.0])
    # A rollout without a term has the minimum of its group, as in the advantage.
    plus = torch.tensor([-1.0, 0.0, 1.0, 5.0, 5.5, NAN])
    found = group_statistics(
        rewards, Advantages(torch.zeros(6), None, 0.1), ["recall", "precision"], 3, (plus, None), words
    )
    assert found["calibration/delta_correct"] == pytest.approx(2.1)
    assert found["calibration/spread_correct"] == pytest.approx((1 + math.sqrt(0.125)) / 2)
    # 5, 5.5, 5 against 3, 2, 4: both deviate by -1/6, 1/3, -1/6 and 0, -1, 1.
    falling = (-1 / 3 - 1 / 6) / math.sqrt((1 / 36 + 1 / 9 + 1 / 36) * 2)
    assert found["calibration/correct_with_words"] == pytest.approx((1 + falling) / 2, abs=1e-6)
    assert found["calibration/correct_with_recall"] == pytest.approx((1 + 0) / 2, abs=1e-6)
    assert "calibration/delta_incorrect" not in found


def test_the_advantages_of_the_update_replace_those_of_the_table() -> None:
    logs = {"advantages": deque([9.0, 1.0, 2.0], maxlen=4), "extra": defaultdict(list)}
    metrics = {"frac_reward_zero_std": [0.1, 0.2]}
    log_used(logs, metrics, Advantages(torch.tensor([3.0, 4.0]), torch.tensor([0.5, 0.25]), 0.0), 0.75)
    assert list(logs["advantages"]) == [9.0, 3.0, 4.0]
    assert logs["extra"] == {"advantage_added_to_reasoning": [0.5, 0.25]}
    assert metrics == {"frac_reward_zero_std": [0.1, 0.75]}


def test_interference_is_logged_where_both_objectives_differ() -> None:
    rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.2]])
    used = Advantages(torch.tensor([-1.0, 1.0, 0.0]), None, 0.0)
    found = group_statistics(rewards, used, ["recall", "precision"], 3)
    assert found["interference/rho"] == pytest.approx(-0.9449, abs=1e-3)
    assert {"interference/predicted_recall", "interference/measured_precision"} <= found.keys()


def test_the_warning_begins_above_one_half(caplog: pytest.LogCaptureFixture) -> None:
    warn_if_quiet(0.5, 7)
    assert caplog.text == ""
    warn_if_quiet(0.75, 7)
    assert "step 7: all rewards are equal in 75 % of the groups" in caplog.text
