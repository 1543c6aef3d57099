"""Slow-fast calibration: probabilities, confidences, both terms and where they enter, by hand and by property.

The running example has a vocabulary of five tokens and two partitions: partition 0 with the categories 0 1 2, partition
1 with the categories 3 4. `log` is the natural logarithm, FLOOR the 1e-10 of S(k) = log(C(k) + 1e-10).
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mer_r1.rl.advantages import group_normalise, normalise_then_sum, sum_then_normalise
from mer_r1.rl.calibration import (
    LOG_FLOOR,
    CategoryTokens,
    calibration_terms,
    category_probabilities,
    confidence,
    partition_mean,
)
from mer_r1.rl.method import Method, Space, method_advantages

NAN = math.nan
H = math.sqrt(0.5)  # the advantages of a pair of rollouts are -H and H
PARTITION = torch.tensor([0, 0, 0, 1, 1])
# Token 0 begins words of category 0 (partition 0) and of category 3 (partition 1); tokens 1 and 2 of category 1; token
# 3 of category 4; token 4 of none. Category 2 has no token at all.
TOKENS = CategoryTokens(torch.tensor([0, 1, 2, 0, 3]), torch.tensor([0, 1, 1, 3, 4]), PARTITION)


def close(found: Tensor, expected: object, tolerance: float = 1e-6) -> None:
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0, equal_nan=True)


# --- category confidence ----------------------------------------------------------------------------------------------


def test_probabilities_by_hand() -> None:
    # Next-token probabilities 0.4 0.2 0.1 0.2 0.1 at the first anchor, and all on token 4 at the second.
    logits = torch.stack([torch.tensor([0.4, 0.2, 0.1, 0.2, 0.1]).log() + 3, torch.tensor([-99.0, -99, -99, -99, 0])])
    close(category_probabilities(logits, TOKENS), [[0.4, 0.3, 0.0, 0.4, 0.2], [0, 0, 0, 0, 0]])


def test_probabilities_are_float32_whatever_the_model_computes_in() -> None:
    logits = torch.randn(3, 5).bfloat16()
    found = category_probabilities(logits, TOKENS)
    assert found.dtype == torch.float32
    close(found, category_probabilities(logits.float(), TOKENS))


@given(st.lists(st.floats(-30, 30), min_size=10, max_size=10))
def test_probabilities_of_a_partition_sum_to_at_most_one(values: list[float]) -> None:
    found = category_probabilities(torch.tensor(values).view(2, 5), TOKENS)
    assert (found >= 0).all()
    assert (torch.zeros(2, 2).index_add(1, PARTITION, found) <= 1 + 1e-6).all()


def test_confidence_is_the_log_averaged_over_the_anchors() -> None:
    # Rollout 0 has the anchors 0.5 and 0.125: (log 1/2 + log 1/8) / 2 = -2 log 2. Rollout 1 has none. Rollout 2 has one
    # of probability 0: log FLOOR.
    probabilities = torch.tensor([[0.5], [0.125], [0.0]])
    found = confidence(probabilities, torch.tensor([0, 0, 2]), 3)
    close(found, [[-2 * math.log(2)], [NAN], [math.log(LOG_FLOOR)]])


def test_the_first_anchor_alone() -> None:
    probabilities = torch.tensor([[0.5], [0.125], [0.25], [0.01], [0.02]])
    found = confidence(probabilities, torch.tensor([0, 0, 2, 3, 3]), 4, anchors="first")
    close(found, [[math.log(0.5)], [NAN], [math.log(0.25)], [math.log(0.01)]], 1e-5)


@pytest.mark.parametrize("anchors", ["all", "first"])
def test_without_any_anchor_there_is_no_confidence(anchors: str) -> None:
    found = confidence(torch.empty(0, 5), torch.empty(0, dtype=torch.long), 2, anchors)
    assert found.shape == (2, 5)
    assert found.isnan().all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_all_anchors_and_the_first_agree_on_one_anchor_per_rollout(values: list[float]) -> None:
    probabilities, rollout = torch.tensor(values)[:, None], torch.arange(len(values))
    close(
        confidence(probabilities, rollout, len(values)),
        confidence(probabilities, rollout, len(values), anchors="first"),
    )


# --- the two terms ----------------------------------------------------------------------------------------------------


def test_partition_mean_by_hand() -> None:
    values = torch.tensor([[1.0, 3.0, 100.0, 10.0, 100.0], [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()
    # Row 0: partition 0 has the mean (1 + 3) / 2 = 2, partition 1 has 10; mean 6, and not (1 + 3 + 10) / 3.
    # Row 1: only partition 1 counts. Row 2: nothing does.
    close(partition_mean(values, mask, PARTITION), [6, 5, NAN])


def test_signs_of_both_terms() -> None:
    correct = torch.tensor([[True, False, False, True, False]])
    known = torch.ones(1, 5, dtype=torch.bool)
    fast = torch.full((1, 5), -2.0)
    # Slow thinking is surer of the correct categories: Delta+ is positive, Delta- is not touched.
    surer = fast + correct * 0.5
    assert [term.item() for term in calibration_terms(surer, fast, correct, known, PARTITION)] == [0.5, 0.0]
    # Slow thinking suppresses the incorrect categories: Delta- is positive.
    suppressing = fast - ~correct * 0.25
    assert [term.item() for term in calibration_terms(suppressing, fast, correct, known, PARTITION)] == [0.0, 0.25]
    # The contrary of both costs both.
    worse = fast - correct * 0.5 + ~correct * 0.25
    assert [term.item() for term in calibration_terms(worse, fast, correct, known, PARTITION)] == [-0.5, -0.25]


def test_terms_by_hand() -> None:
    slow = torch.tensor([[-1.0, -2.0, -3.0, -1.0, -5.0]])
    fast = torch.tensor([[-2.0, -2.5, -2.0, -4.0, -2.0]])
    correct = torch.tensor([[True, True, False, True, False]])
    known = torch.ones(1, 5, dtype=torch.bool)
    # slow - fast = 1, 0.5, -1 | 3, -3. Correct: (1 + 0.5) / 2 = 0.75 and 3, mean 1.875. Incorrect, negated: 1 and 3.
    plus, minus = calibration_terms(slow, fast, correct, known, PARTITION)
    close(plus, [1.875])
    close(minus, [2.0])
    # Without partition 1, which could place no gold word: 0.75 and 1.
    plus, minus = calibration_terms(slow, fast, correct, known & (PARTITION == 0), PARTITION)
    close(plus, [0.75])
    close(minus, [1.0])


def test_terms_are_clipped_on_both_sides() -> None:
    # 99 % sure by reasoning, nothing without it: log(0.99) - log(1e-10) = 23, clipped to 5 (or to what is asked).
    slow, fast = torch.tensor([[0.99, 0.0]]), torch.tensor([[0.0, 0.99]])
    slow, fast = (slow + LOG_FLOOR).log(), (fast + LOG_FLOOR).log()
    correct, known, partition = torch.tensor([[True, False]]), torch.ones(1, 2).bool(), torch.tensor([0, 0])
    assert [term.item() for term in calibration_terms(slow, fast, correct, known, partition)] == [5.0, 5.0]
    assert [term.item() for term in calibration_terms(fast, slow, correct, known, partition)] == [-5.0, -5.0]
    assert [term.item() for term in calibration_terms(slow, fast, correct, known, partition, 2.0)] == [2.0, 2.0]


def test_rollouts_without_anchor_or_without_such_a_category_have_no_term() -> None:
    scores = torch.zeros(3, 5)
    scores[0] = NAN  # no anchor
    correct = torch.tensor([[True] * 5, [True] * 5, [False] * 5])
    plus, minus = calibration_terms(scores, torch.zeros(3, 5), correct, torch.ones(3, 5).bool(), PARTITION)
    close(plus, [NAN, 0, NAN])  # rollout 2 has no correct category
    close(minus, [NAN, NAN, 0])  # rollout 1 has no incorrect one


scores = st.lists(st.floats(-23, 0, width=32), min_size=10, max_size=10).map(lambda row: torch.tensor(row).view(2, 5))
masks = st.lists(st.booleans(), min_size=10, max_size=10).map(lambda row: torch.tensor(row).view(2, 5))


@given(scores, scores, masks, masks, st.floats(0.5, 10))
def test_exchanging_slow_and_fast_negates_both_terms_and_both_are_bounded(
    slow: Tensor, fast: Tensor, correct: Tensor, known: Tensor, clip: float
) -> None:
    there = calibration_terms(slow, fast, correct, known, PARTITION, clip)
    back = calibration_terms(fast, slow, correct, known, PARTITION, clip)
    for term, negated in zip(there, back, strict=True):
        close(term, -negated)
        assert (term.isnan() | (term.abs() <= clip + 1e-6)).all()


@given(scores, scores, masks, st.integers(-3, 3))
def test_what_slow_and_fast_share_does_not_count(slow: Tensor, fast: Tensor, correct: Tensor, shift: int) -> None:
    known = torch.ones(2, 5, dtype=torch.bool)
    before = calibration_terms(slow, fast, correct, known, PARTITION)
    after = calibration_terms(slow + shift, fast + shift, correct, known, PARTITION)
    for left, right in zip(before, after, strict=True):
        close(left, right, 1e-4)


@given(scores, scores, masks)
def test_exchanging_correct_and_incorrect_exchanges_the_terms_with_opposite_sign(
    slow: Tensor, fast: Tensor, correct: Tensor
) -> None:
    known = torch.ones(2, 5, dtype=torch.bool)
    plus, minus = calibration_terms(slow, fast, correct, known, PARTITION)
    other_plus, other_minus = calibration_terms(slow, fast, ~correct, known, PARTITION)
    close(other_plus, -minus)
    close(other_minus, -plus)


# --- where the terms enter --------------------------------------------------------------------------------------------

# A pair of rollouts: format and precision are equal (no signal), recall prefers the second: norm(recall) = -H, H.
PAIR = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 0.5]])
PLUS = torch.tensor([3.0, 1.0])  # norm: H, -H
MINUS = torch.tensor([2.0, 0.0])  # norm: H, -H


@pytest.mark.parametrize(
    ("space", "sides", "alpha", "first"),
    [
        # Advantage space: -H + alpha * H for each side that takes part.
        ("advantage", "both", 0.1, -0.8 * H),
        ("advantage", "recall", 0.1, -0.9 * H),
        ("advantage", "precision", 0.1, -0.9 * H),
        ("advantage", "both", 1.0, 1.0 * H),
        # Reward space: recall becomes 0.3, 1.1 (still -H, H); precision 0.7, 0.5 (H, -H, from no signal before).
        ("reward", "both", 0.1, 0.0),
        ("reward", "recall", 0.1, -H),
        ("reward", "precision", 0.1, 0.0),
        # With alpha = 1 recall becomes 3, 2: H, -H.
        ("reward", "recall", 1.0, H),
        ("reward", "both", 1.0, 2 * H),
        # Mixed: recall as in reward space, precision as in advantage space.
        ("mixed", "both", 0.1, -0.9 * H),
        ("mixed", "recall", 0.1, -H),
        ("mixed", "precision", 0.1, -0.9 * H),
        ("mixed", "both", 1.0, 2 * H),
    ],
)
def test_every_space_and_side_by_hand(space: str, sides: str, alpha: float, first: float) -> None:
    method = Method(space=space, sides=sides, alpha=alpha)
    close(method_advantages(method, PAIR, 2, PLUS, MINUS), [first, -first])


def test_each_term_goes_to_its_own_side() -> None:
    # In reward space, with only one objective that varies, each term can be seen alone: recall + 0.1 * 3 against + 0.1.
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    plus, minus = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, -20.0])
    found = method_advantages(Method(space="reward"), rewards, 3, plus, minus)
    # recall: 0.1 0 0. precision: 0 0 -1. Neither would look like this with the terms exchanged.
    expected = group_normalise(torch.tensor([0.1, 0, 0]), 3) + group_normalise(torch.tensor([0.0, 0, -1]), 3)
    close(found, expected)


def test_the_full_formula() -> None:
    # A = norm(recall) + alpha norm(Delta+) + norm(precision) + alpha norm(Delta-) + 0.1 norm(format).
    generator = torch.Generator().manual_seed(0)
    rewards, terms = torch.rand(12, 3, generator=generator), torch.randn(2, 12, generator=generator)
    form, recall, precision = (group_normalise(column, 4) for column in rewards.unbind(dim=1))
    plus, minus = (group_normalise(term, 4) for term in terms)
    expected = (recall + 0.3 * plus) + (precision + 0.3 * minus) + 0.1 * form
    close(method_advantages(Method(alpha=0.3), rewards, 4, *terms), expected, 1e-5)


def test_the_methods_it_is_compared_with() -> None:
    generator = torch.Generator().manual_seed(1)
    rewards = torch.rand(8, 3, generator=generator)
    weights = torch.tensor([0.1, 1.0, 1.0])
    close(method_advantages(Method("rd"), rewards, 4), sum_then_normalise(rewards, weights, 4))
    close(method_advantages(Method("ad"), rewards, 4), normalise_then_sum(rewards, weights, 4))
    close(
        method_advantages(Method("f1", format_weight=0.5), rewards[:, :2], 4),
        sum_then_normalise(rewards[:, :2], torch.tensor([0.5, 1.0]), 4),
    )


@pytest.mark.parametrize("space", list(Space))
def test_alpha_zero_is_advantage_disentanglement(space: str) -> None:
    generator = torch.Generator().manual_seed(2)
    rewards, terms = torch.rand(8, 3, generator=generator), torch.randn(2, 8, generator=generator)
    found = method_advantages(Method(alpha=0.0, space=space), rewards, 4, *terms)
    close(found, method_advantages(Method("ad"), rewards, 4))


@pytest.mark.parametrize("space", list(Space))
def test_terms_that_are_missing_say_nothing(space: str) -> None:
    generator = torch.Generator().manual_seed(3)
    rewards = torch.rand(4, 3, generator=generator)
    nothing = torch.full((4,), NAN)
    close(
        method_advantages(Method(space=space), rewards, 4, nothing, nothing),
        method_advantages(Method("ad"), rewards, 4),
    )


def test_a_rollout_without_anchor_is_left_out_of_the_terms_of_its_group() -> None:
    # Delta+ = 1, NaN, 3: the pair 1 and 3 is normalised alone, the rollout in between keeps its plain advantage.
    rewards = torch.tensor([[1.0, 0.0, 0.5], [1.0, 0.5, 0.5], [1.0, 1.0, 0.5]])
    plain = method_advantages(Method("ad"), rewards, 3)
    found = method_advantages(Method(sides="recall"), rewards, 3, torch.tensor([1.0, NAN, 3.0]), torch.zeros(3))
    close(found - plain, [-0.1 * H, 0, 0.1 * H])


def test_calibration_breaks_ties_between_equal_rewards() -> None:
    # All rewards are equal: without calibration such a group teaches nothing, with it the terms still speak.
    rewards = torch.full((2, 3), 0.5)
    close(method_advantages(Method("ad"), rewards, 2), [0, 0])
    close(method_advantages(Method(), rewards, 2, PLUS, MINUS), [0.2 * H, -0.2 * H])


def test_the_rewards_are_not_changed_in_place() -> None:
    rewards = PAIR.clone()
    method_advantages(Method(space="reward"), rewards, 2, PLUS, MINUS)
    assert torch.equal(rewards, PAIR)


def test_calibrating_needs_both_terms() -> None:
    with pytest.raises(ValueError, match="delta_correct and delta_incorrect are missing"):
        method_advantages(Method(), PAIR, 2, PLUS)


# --- the choices ------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_method_as_it_is_read() -> None:
    assert Method() == Method("mer-r1", 0.1, False, 0.1, "advantage", "both", "all", "category", 5.0)
    assert Method().calibrates
    assert not Method("ad").calibrates


def test_objectives_and_weights() -> None:
    assert Method("f1").objectives == ("format", "f1")
    assert Method("f1").weights == (0.1, 1.0)
    for name in ("rd", "ad", "mer-r1"):
        assert Method(name).objectives == ("format", "recall", "precision")
        assert Method(name, format_weight=0.0).weights == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("field", ["method", "space", "sides", "anchors", "confidence_level"])
def test_unknown_choices_are_refused_with_the_known_ones(field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be one of .*; got 'elsewhere'"):
        Method(**{field: "elsewhere"})


@pytest.mark.parametrize("field", ["method", "space", "sides", "anchors", "confidence_level"])
def test_every_listed_choice_is_accepted(field: str) -> None:
    for value in Method.ALLOWED[field]:
        assert getattr(Method(**{field: value}), field) == value


@pytest.mark.parametrize(
    "change", [{"alpha": -0.1}, {"confidence_clip": 0.0}, {"confidence_clip": -1.0}, {"format_weight": -1.0}]
)
def test_impossible_numbers_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Method(**change)


@pytest.mark.parametrize("field", ["alpha", "confidence_clip", "format_weight"])
def test_a_number_that_is_none_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="must"):
        Method(**{field: NAN})


# --- from logits to an advantage --------------------------------------------------------------------------------------


def test_a_rollout_whose_reasoning_helps_is_preferred() -> None:
    """Two rollouts with the same answer and rewards; the reasoning of the first makes the gold category likelier."""
    tokens = CategoryTokens(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([0, 0]))
    rollout = torch.tensor([0, 1])
    slow = category_probabilities(torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), tokens)
    fast = category_probabilities(torch.zeros(2, 3), tokens)
    correct = torch.tensor([[True, False], [True, False]])
    terms = calibration_terms(
        confidence(slow, rollout, 2), confidence(fast, rollout, 2), correct, torch.ones(2, 2).bool(), tokens.partition
    )
    # exp(2) / (exp(2) + 2) = 0.787 and 1 / (exp(2) + 2) = 0.1065 against 1/3: log-ratios 0.859 and -1.141.
    close(terms[0], [0.859, -1.141], 1e-3)
    close(terms[1], [1.141, -0.859], 1e-3)
    close(method_advantages(Method(), torch.full((2, 3), 0.5), 2, *terms), [0.2 * H, -0.2 * H])
