"""Figures of a step, by hand."""

import math

import pytest
import torch

from mer_r1.rl.statistics import confidence_statistics, group_statistics, known_mean, warn_if_quiet

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
    assert list(found) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(values), equal_nan=True)


def test_figures_of_two_groups() -> None:
    """The first group differs in recall by 1 (spread 1 / sqrt 2), the second is all the same."""
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.5], [1.0, 0.5]])
    terms = (torch.tensor([0.2, NAN, 0.4, NAN]), torch.zeros(4))
    found = group_statistics(rewards, torch.zeros(4), ["format", "recall"], 2, terms)
    assert found == pytest.approx(
        {
            "spread/format": 0.0,
            "spread/recall": math.sqrt(0.5) / 2,
            "calibration/delta_correct": 0.3,
            "calibration/delta_incorrect": 0.0,
            "groups_without_signal": 0.5,
        }
    )
    assert "calibration/delta_correct" not in group_statistics(
        rewards, torch.zeros(4), ["format", "recall"], 2, (None, None)
    )


def test_interference_is_logged_where_both_objectives_differ() -> None:
    rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.2]])
    found = group_statistics(rewards, torch.tensor([-1.0, 1.0, 0.0]), ["recall", "precision"], 3, (None, None))
    assert found["interference/rho"] == pytest.approx(-0.9449, abs=1e-3)
    assert {"interference/predicted_recall", "interference/measured_precision"} <= found.keys()


def test_the_warning_begins_above_one_half(caplog: pytest.LogCaptureFixture) -> None:
    warn_if_quiet(0.5, 7)
    assert caplog.text == ""
    warn_if_quiet(0.75, 7)
    assert "step 7: all rewards are equal in 75 % of the groups" in caplog.text
