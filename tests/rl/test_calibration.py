"""Slow-fast calibration: probabilities, confidences, both terms and where they enter, by hand and by property.

The running example has a vocabulary of five tokens and two partitions: partition 0 with the categories 0 1 2, partition
1 with the categories 3 4. `log` is the natural logarithm, FLOOR the 1e-10 of S(k) = log(C(k) + 1e-10).
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mer_r1.rl.advantages import group_minimum, group_normalise, normalise_then_sum, sum_then_normalise
from mer_r1.rl.calibration import (
    LOG_FLOOR,
    CategoryTokens,
    answer_terms,
    calibration_terms,
    category_probabilities,
    conditional,
    confidence,
    hinge_terms,
    partition_mean,
    reasoning_term,
)
from mer_r1.rl.method import Method, method_advantages

NAN = math.nan
FORMULAS = Method.ALLOWED["calibration"]
H = math.sqrt(0.5)  # the advantages of a pair of rollouts are -H and H
PARTITION = torch.tensor([0, 0, 0, 1, 1])
# Token 0 begins words of category 0 (partition 0) and of category 3 (partition 1); tokens 1 and 2 of category 1; token
# 3 of category 4; token 4 of none. Category 2 has no token at all.
TOKENS = CategoryTokens(torch.tensor([0, 1, 2, 0, 3]), torch.tensor([0, 1, 1, 3, 4]), PARTITION)


def close(found: Tensor, expected: object, tolerance: float = 1e-6) -> None:
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0, equal_nan=True)


def today(**changes: object) -> Method:
    """The reading of version 0.1: mean log differences of raw sums, at every word, with a fixed weight."""
    reading = {"calibration": "difference", "conditional": False, "anchors": "all", "alpha": 0.1, "spread_floor": 0.0}
    return Method(**(reading | changes))  # type: ignore[arg-type]


def advantages(*given: object, **named: object) -> Tensor:
    return method_advantages(*given, **named).tokens  # type: ignore[arg-type]


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


def test_an_anchor_counts_for_the_categories_that_the_mask_says() -> None:
    # Rollout 0: category 0 at both anchors, category 1 at the second alone. Rollout 1: category 1 alone.
    probabilities = torch.tensor([[0.5, 0.5], [0.125, 0.25], [0.9, 0.1]])
    counted = torch.tensor([[True, False], [True, True], [False, True]])
    found = confidence(probabilities, torch.tensor([0, 0, 1]), 2, counted)
    close(found, [[-2 * math.log(2), math.log(0.25)], [NAN, math.log(0.1)]], 1e-5)


def test_without_any_anchor_there_is_no_confidence() -> None:
    found = confidence(torch.empty(0, 5), torch.empty(0, dtype=torch.long), 2)
    assert found.shape == (2, 5)
    assert found.isnan().all()


def test_conditional_confidence_by_hand() -> None:
    # Partition 0 has the mass 0.5, partition 1 has 0.1, in the second row none.
    found = conditional(torch.tensor([[0.1, 0.4, 0.0, 0.025, 0.075], [0.2, 0.1, 0.1, 0.0, 0.0]]), PARTITION)
    close(found, [[0.2, 0.8, 0, 0.25, 0.75], [0.5, 0.25, 0.25, 0, 0]])


@given(st.lists(st.floats(0, 1, width=32), min_size=10, max_size=10))
def test_conditional_confidence_is_a_distribution_on_each_partition(values: list[float]) -> None:
    probabilities = torch.tensor(values).view(2, 5)
    found = conditional(probabilities, PARTITION)
    mass, given_mass = (torch.zeros(2, 2).index_add(1, PARTITION, p) for p in (found, probabilities))
    close(mass[given_mass > 1e-6], torch.ones(int((given_mass > 1e-6).sum())), 1e-5)
    assert ((found >= 0) & (found <= 1 + 1e-6)).all()
    # What has mass 1 already stays as it is: the raw sums are a special case.
    close(conditional(found, PARTITION)[given_mass.gt(1e-6)[:, PARTITION]], found[given_mass.gt(1e-6)[:, PARTITION]])


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


# --- the other formulations ------------------------------------------------------------------------------------------

ALL = torch.ones(1, 5, dtype=torch.bool)
GOLD = torch.tensor([[True, True, False, True, False]])
"""Categories 0 and 1 of partition 0, and 3 of partition 1."""


def test_answer_terms_by_hand() -> None:
    # Two anchors. U(k) = 1 - (1 - first)(1 - second): partition 0 0.75 0.2 0.4, partition 1 0.5 and 0.75.
    slow = torch.tensor([[0.5, 0.0, 0.2, 0.0, 0.75], [0.5, 0.2, 0.25, 0.5, 0.0]])
    plus, minus = answer_terms(slow, torch.tensor([0, 0]), ALL.expand(2, 5), GOLD, ALL, PARTITION)
    close(plus, [((0.75 + 0.2) / 2 + 0.5) / 2])
    close(minus, [(0.95 / 1.35 + 0.5 / 1.25) / 2])
    # Partition 1 places no gold word: it does not count.
    gold = GOLD & (PARTITION == 0)
    plus, minus = answer_terms(slow, torch.tensor([0, 0]), ALL.expand(2, 5), gold, ALL & (PARTITION == 0), PARTITION)
    close(plus, [0.475])
    close(minus, [0.95 / 1.35])


def test_answer_terms_count_an_anchor_on_each_partition_by_itself() -> None:
    # The second anchor does not count on partition 0, and none counts on partition 1, which gives 0 on both sides.
    slow = torch.tensor([[0.5, 0.0, 0.5, 0.9, 0.1], [0.5, 0.5, 0.0, 0.9, 0.1]])
    counted = torch.tensor([[True, True, True, False, False], [False] * 5])
    plus, minus = answer_terms(slow, torch.tensor([0, 0]), counted, GOLD, ALL, PARTITION)
    close(plus, [(0.25 + 0) / 2])
    close(minus, [(0.5 / 1.0 + 0) / 2])


def test_a_rollout_in_which_no_anchor_counts_has_no_answer_term() -> None:
    counted = torch.tensor([[True] * 5, [False] * 5])
    for term in answer_terms(
        torch.rand(2, 5), torch.tensor([0, 2]), counted, *(m.expand(3, 5) for m in (GOLD, ALL)), PARTITION
    ):
        assert term.isnan().tolist() == [False, True, True]


probability_rows = st.lists(st.floats(0, 1, width=32), min_size=10, max_size=10).map(
    lambda row: torch.tensor(row).view(2, 5)
)


@given(probability_rows)
def test_with_one_anchor_the_answer_names_a_category_with_its_confidence(values: Tensor) -> None:
    slow, rollout = conditional(values + 0.01, PARTITION), torch.arange(2)
    gold, known = GOLD.expand(2, 5), ALL.expand(2, 5)
    plus, minus = answer_terms(slow, rollout, known, gold, known, PARTITION)
    close(plus, partition_mean(slow, gold, PARTITION), 1e-5)
    # All of a partition's mass is 1, so that the share of the gold is its sum.
    close(minus, ((slow[:, 0] + slow[:, 1]) + slow[:, 3]) / 2, 1e-5)


@given(probability_rows, probability_rows, masks)
def test_answer_terms_are_shares_and_know_no_order(first: Tensor, second: Tensor, gold: Tensor) -> None:
    slow, rollout = torch.cat([first, second]), torch.tensor([0, 1, 0, 1])
    every = torch.ones(4, 5, dtype=torch.bool)
    known = torch.ones(2, 5, dtype=torch.bool)
    terms = answer_terms(slow, rollout, every, gold, known, PARTITION)
    turned = answer_terms(slow.flip(0), rollout.flip(0), every, gold, known, PARTITION)
    order = torch.tensor([2, 0, 1, 4, 3])  # within the partitions
    renamed = answer_terms(slow[:, order], rollout, every, gold[:, order], known, PARTITION)
    for term, other, third in zip(terms, turned, renamed, strict=True):
        assert (term.isnan() | ((term >= 0) & (term <= 1 + 1e-5))).all()
        assert term.isnan().tolist() == (~gold.any(dim=1)).tolist()
        close(other, term, 1e-5)
        close(third, term, 1e-5)


def test_reasoning_term_by_hand() -> None:
    # C(Y) = 0.6 and 0.5 with the reasoning, 0.3 and 0.25 without it: log 2 on both partitions.
    slow, fast = torch.tensor([[0.5, 0.1, 0.4, 0.5, 0.5]]), torch.tensor([[0.0, 0.3, 0.7, 0.25, 0.75]])
    close(reasoning_term(slow, fast, GOLD, ALL, PARTITION), [math.log(2)], 1e-5)
    # Partition 1 alone: log 0.5 - log 1; and clipped, with nothing left of the gold.
    gold = GOLD & (PARTITION == 1)
    certain = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]])
    close(reasoning_term(slow, certain, gold, ALL & (PARTITION == 1), PARTITION), [-math.log(2)], 1e-5)
    close(reasoning_term(1 - certain, certain, gold, ALL & (PARTITION == 1), PARTITION, 3.0), [-3.0])
    assert reasoning_term(slow * NAN, fast, GOLD, ALL, PARTITION).isnan().all()


@given(probability_rows, probability_rows, st.floats(0.25, 1))
def test_what_fast_thinking_shares_in_a_group_cancels(slow: Tensor, values: Tensor, factor: float) -> None:
    """At the first anchor fast thinking is the same for the rollouts of a prompt: a constant of the group."""
    slow, fast = slow * 0.4 + 0.1, values[:1].expand(2, 5) * 0.4 + 0.1
    gold, known = GOLD.expand(2, 5), ALL.expand(2, 5)
    terms = [reasoning_term(slow, fast * scale, gold, known, PARTITION) for scale in (1.0, factor)]
    close(terms[0] - terms[0][0], terms[1] - terms[1][0], 1e-5)
    alone = partition_mean(
        (torch.zeros(2, 2).index_add(1, PARTITION, slow * gold)).log(), ALL[:, :2].expand(2, 2), torch.tensor([0, 0])
    )
    close(terms[0] - terms[0][0], alone - alone[0], 1e-5)


def test_hinge_terms_by_hand() -> None:
    # Correct: 0.25 of 0.5 is a shortfall of log 2, 0.2 above 0.1 earns nothing, 0.5 keeps 0.5.
    # Incorrect: 0.55 against 0.4 on partition 0 is an excess, 0.5 on partition 1 is none.
    slow, reference = torch.tensor([[0.25, 0.2, 0.55, 0.5, 0.5]]), torch.tensor([[0.5, 0.1, 0.4, 0.5, 0.5]])
    plus, minus = hinge_terms(slow, reference, GOLD, ALL, PARTITION)
    close(plus, [(-math.log(2) / 2 + 0) / 2])
    close(minus, [math.log(0.4 / 0.55) / 2])
    # Two incorrect categories are held against the reference as one mass: 0.3 + 0.2 against 0.1 + 0.4.
    gold = torch.tensor([[True, False, False, False, False]])
    known = ALL & (PARTITION == 0)
    slow, reference = torch.tensor([[0.5, 0.3, 0.2, 0, 0]]), torch.tensor([[0.5, 0.1, 0.4, 0, 0]])
    assert [term.item() for term in hinge_terms(slow, reference, gold, known, PARTITION)] == [0.0, 0.0]


@given(probability_rows, probability_rows, masks, st.floats(0.5, 10))
def test_hinge_terms_are_never_a_reward(slow: Tensor, reference: Tensor, gold: Tensor, clip: float) -> None:
    known = torch.ones(2, 5, dtype=torch.bool)
    for term in hinge_terms(slow, reference, gold, known, PARTITION, clip):
        assert (term.isnan() | ((term <= 0) & (term >= -clip - 1e-6))).all()
    for term in hinge_terms(slow, slow, gold, known, PARTITION, clip):
        assert (term.isnan() | (term == 0)).all()
    assert hinge_terms(slow * NAN, reference, GOLD.expand(2, 5), known, PARTITION)[0].isnan().all()


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
    method = today(space=space, sides=sides, alpha=alpha)
    close(advantages(method, PAIR, 2, PLUS, MINUS), [first, -first])


def test_each_term_goes_to_its_own_side() -> None:
    # In reward space, with only one objective that varies, each term can be seen alone: recall + 0.1 * 3 against + 0.1.
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    plus, minus = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, -20.0])
    found = advantages(today(space="reward"), rewards, 3, plus, minus)
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
    close(advantages(today(alpha=0.3), rewards, 4, *terms), expected, 1e-5)


def test_the_methods_it_is_compared_with() -> None:
    generator = torch.Generator().manual_seed(1)
    rewards = torch.rand(8, 3, generator=generator)
    weights = torch.tensor([0.1, 1.0, 1.0])
    close(advantages(Method("rd"), rewards, 4), sum_then_normalise(rewards, weights, 4))
    close(advantages(Method("ad"), rewards, 4), normalise_then_sum(rewards, weights, 4))
    close(
        advantages(Method("f1", format_weight=0.5), rewards[:, :2], 4),
        sum_then_normalise(rewards[:, :2], torch.tensor([0.5, 1.0]), 4),
    )


@pytest.mark.parametrize("space", Method.ALLOWED["space"])
def test_alpha_zero_is_advantage_disentanglement(space: str) -> None:
    generator = torch.Generator().manual_seed(2)
    rewards, terms = torch.rand(8, 3, generator=generator), torch.randn(2, 8, generator=generator)
    found = advantages(today(alpha=0.0, space=space), rewards, 4, *terms)
    close(found, advantages(Method("ad"), rewards, 4))


@pytest.mark.parametrize("space", Method.ALLOWED["space"])
def test_terms_that_are_missing_say_nothing(space: str) -> None:
    generator = torch.Generator().manual_seed(3)
    rewards = torch.rand(4, 3, generator=generator)
    nothing = torch.full((4,), NAN)
    close(
        advantages(today(space=space), rewards, 4, nothing, nothing),
        advantages(Method("ad"), rewards, 4),
    )


@pytest.mark.parametrize("space", Method.ALLOWED["space"])
def test_a_rollout_without_a_term_gets_the_minimum_of_its_group(space: str) -> None:
    rewards = torch.rand(6, 3, generator=torch.Generator().manual_seed(4))
    method = today(space=space)
    plus, minus = torch.tensor([1.0, NAN, 3.0, NAN, NAN, 2.0]), torch.tensor([-1.0, NAN, -3.0, NAN, NAN, NAN])
    filled = torch.tensor([1.0, 1.0, 3.0, 2.0, 2.0, 2.0]), torch.tensor([-1.0, -3.0, -3.0, 0.0, 0.0, 0.0])
    close(advantages(method, rewards, 3, plus, minus), advantages(method, rewards, 3, *filled))
    assert group_minimum(plus, 3).tolist() == filled[0].tolist()
    # The second group has no precision term at all: nothing is added to its precision side.
    one_sided = today(space=space, sides="precision")
    close(advantages(one_sided, rewards, 3, plus, minus)[3:], advantages(Method("ad"), rewards, 3)[3:])


def test_calibration_breaks_ties_between_equal_rewards() -> None:
    # All rewards are equal: without calibration such a group teaches nothing, with it the terms still speak.
    rewards = torch.full((2, 3), 0.5)
    close(advantages(Method("ad"), rewards, 2), [0, 0])
    close(advantages(today(), rewards, 2, PLUS, MINUS), [0.2 * H, -0.2 * H])
    # A share of a batch without any variance is nothing.
    close(advantages(Method(), rewards, 2, PLUS, MINUS), [0, 0])


random_rewards = st.integers(0, 10_000).map(
    lambda seed: torch.rand(12, 3, generator=torch.Generator().manual_seed(seed))
)


@pytest.mark.parametrize("calibration", ["answer", "reasoning", "hinge", "difference", "noise"])
@settings(max_examples=25)
@given(random_rewards, st.floats(0, 0.9))
def test_the_terms_hold_the_share_that_is_asked(calibration: str, rewards: Tensor, share: float) -> None:
    plus, minus = rewards[:, 0] * 3 - 1, torch.cos(7 * rewards[:, 1])
    method = Method(calibration=calibration, calibration_share=share)
    found = method_advantages(method, rewards, 4, plus, None if calibration == "reasoning" else minus)
    plain = method_advantages(Method("ad"), rewards, 4).tokens
    added = found.tokens - plain if found.reasoning is None else found.reasoning
    held, rest = added.double().var(correction=0), plain.double().var(correction=0)
    assert (held / (held + rest)).item() == pytest.approx(share, abs=1e-5)
    assert found.share == pytest.approx(share, abs=1e-5)


def test_the_share_is_a_fixed_weight_within_a_batch() -> None:
    generator = torch.Generator().manual_seed(5)
    rewards, terms = torch.rand(12, 3, generator=generator), torch.randn(2, 12, generator=generator)
    plain = advantages(Method("ad"), rewards, 4)
    added = sum(group_normalise(term, 4, 0.01) for term in terms)  # 0.01, the floor of "answer"
    weight = math.sqrt(0.15 / 0.85 * plain.square().mean() / added.square().mean())
    close(advantages(Method(), rewards, 4, *terms), plain + weight * added, 1e-5)
    close(advantages(Method(alpha=weight), rewards, 4, *terms), plain + weight * added, 1e-5)


def test_the_share_of_a_fixed_weight_is_reported() -> None:
    # -H, H of recall, and H, -H with weight 0.1 on each side: 0.2^2 / (0.2^2 + 1).
    assert method_advantages(today(), PAIR, 2, PLUS, MINUS).share == pytest.approx(0.04 / 1.04)
    assert method_advantages(Method("ad"), PAIR, 2).share == 0.0


def test_reasoning_adds_to_the_tokens_before_the_answer_only() -> None:
    method = Method(calibration="reasoning", alpha=0.5, spread_floor=0.0)
    found = method_advantages(method, PAIR, 2, PLUS)
    close(found.tokens, [-H, H])
    assert found.reasoning is not None
    close(found.reasoning, [0.5 * H, -0.5 * H])
    assert method_advantages(today(), PAIR, 2, PLUS, MINUS).reasoning is None


def test_a_small_spread_stays_small() -> None:
    # A spread of 0.001 nats is rounding in bfloat16: divided by 0.001 + 0.05 it is 1/51 of a standard deviation.
    rewards, tiny = torch.full((2, 3), 0.5), torch.tensor([0.0, 0.001 / H])
    flat = torch.zeros(2)
    close(advantages(today(spread_floor=None, alpha=1.0), rewards, 2, tiny * H * H * 2, flat), [-H / 51, H / 51], 1e-5)
    close(advantages(Method(alpha=1.0), rewards, 2, tiny * H * H * 2, flat), [-H / 11, H / 11], 1e-5)
    close(advantages(today(alpha=1.0), rewards, 2, tiny, flat), [-H, H], 1e-5)


def test_one_scale_makes_the_root_mean_square_one() -> None:
    rewards = torch.rand(12, 3, generator=torch.Generator().manual_seed(6))
    for name in ("f1", "rd", "ad"):
        columns = rewards[:, :2] if name == "f1" else rewards
        plain, scaled = (advantages(Method(name, one_scale=on), columns, 4) for on in (False, True))
        assert scaled.square().mean().item() == pytest.approx(1.0, abs=1e-5)
        close(scaled, plain / plain.square().mean().sqrt(), 1e-5)
    plus = torch.rand(12, generator=torch.Generator().manual_seed(7))
    found = method_advantages(Method(calibration="reasoning", one_scale=True), rewards, 4, plus)
    assert found.reasoning is not None
    assert (found.tokens + found.reasoning).square().mean().item() == pytest.approx(1.0, abs=1e-5)
    close(advantages(Method("ad", one_scale=True), torch.full((4, 3), 0.5), 4), torch.zeros(4))


def test_rewards_that_are_only_centred_or_divided_by_the_batch() -> None:
    # Groups with recall 0, 1 and 0.4, 0.6; everything else is equal.
    rewards = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 0.5], [1.0, 0.4, 0.5], [1.0, 0.6, 0.5]])
    centred = torch.tensor([-0.5, 0.5, -0.1, 0.1])
    spread = torch.tensor([0.0, 1.0, 0.4, 0.6]).std()
    for name in ("rd", "ad"):
        close(advantages(Method(name), rewards, 2, scale_rewards=True), [-H, H, -H, H])
        for none in ("none", False):
            close(advantages(Method(name), rewards, 2, scale_rewards=none), centred)
        close(advantages(Method(name), rewards, 2, scale_rewards="batch"), centred / spread)
    with pytest.raises(ValueError, match="scale_rewards: expected one of group, batch, none, got 'rows'"):
        method_advantages(Method("ad"), rewards, 2, scale_rewards="rows")


def test_raw_nats_in_the_reward_as_the_authors_fork_adds_them() -> None:
    # A = r - mean with r = recall + 0.08 Delta+ + precision + 0.08 Delta-, nothing divided.
    method = today(space="reward", alpha=0.08)
    total = PAIR[:, 0] * 0.1 + PAIR[:, 1] + PAIR[:, 2] + 0.08 * (PLUS + MINUS)
    close(advantages(method, PAIR, 2, PLUS, MINUS, scale_rewards="none"), total - total.mean())
    # In advantage space terms are divided by their spread whatever the rewards are.
    close(advantages(today(), PAIR, 2, PLUS, MINUS, scale_rewards="none"), [-0.5 + 0.2 * H, 0.5 - 0.2 * H])


def test_the_rewards_are_not_changed_in_place() -> None:
    rewards = PAIR.clone()
    method_advantages(today(space="reward"), rewards, 2, PLUS, MINUS)
    assert torch.equal(rewards, PAIR)


def test_calibrating_needs_both_terms() -> None:
    with pytest.raises(ValueError, match="delta_correct and delta_incorrect are missing"):
        method_advantages(Method(), PAIR, 2, PLUS)


# --- the choices ------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_method_as_it_is_read() -> None:
    expected = {
        "method": "mer-r1",
        "format_weight": 0.1,
        "distinct_words": False,
        "known_words": False,
        "absent_channels": False,
        "strict_answers": True,
        "strict_labels": True,
        "matching": "wheels",
        "calibration": "answer",
        "conditional": True,
        "anchors": "mentions",
        "calibration_share": None,
        "alpha": None,
        "spread_floor": None,
        "space": "advantage",
        "sides": "both",
        "confidence_level": "category",
        "confidence_clip": 5.0,
        "one_scale": False,
    }
    assert vars(Method()) == expected
    assert Method().share == 0.15
    assert Method().calibrates
    assert not Method("ad").calibrates


def test_only_formulations_that_compare_with_fast_thinking_need_it() -> None:
    needs = {name: (Method(calibration=name).needs_fast, Method(calibration=name).needs_reference) for name in FORMULAS}
    assert [name for name, (fast, _) in needs.items() if fast] == ["reasoning", "difference"]
    assert [name for name, (_, reference) in needs.items() if reference] == ["hinge"]
    assert not Method("ad", calibration="difference").needs_fast
    assert not Method("ad", calibration="hinge").needs_reference


def test_choices_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha and calibration_share both weigh the calibration terms: give one"):
        Method(alpha=0.1, calibration_share=0.15)
    for space in ("reward", "mixed"):
        with pytest.raises(ValueError, match=f"space={space} adds the terms to the rewards: it needs a fixed .* alpha"):
            Method(space=space)
    for change in ({"sides": "precision"}, {"space": "reward", "alpha": 0.1}):
        with pytest.raises(ValueError, match="calibration=reasoning has one term"):
            Method(calibration="reasoning", **change)  # type: ignore[arg-type]
    assert Method(calibration="reasoning", sides="recall").sides == "recall"


def test_objectives_and_weights() -> None:
    assert Method("f1").objectives == ("format", "f1")
    assert Method("f1").weights == (0.1, 1.0)
    for name in ("rd", "ad", "mer-r1"):
        assert Method(name).objectives == ("format", "recall", "precision")
        assert Method(name, format_weight=0.0).weights == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("field", list(Method.ALLOWED))
def test_unknown_choices_are_refused_with_the_known_ones(field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be one of .*; got 'elsewhere'"):
        Method(**{field: "elsewhere"})


@pytest.mark.parametrize("field", list(Method.ALLOWED))
def test_every_listed_choice_is_accepted(field: str) -> None:
    for value in Method.ALLOWED[field]:
        assert getattr(Method(**{"alpha": 0.1, field: value}), field) == value  # type: ignore[arg-type]


IMPOSSIBLE = [("alpha", -0.1), ("confidence_clip", 0.0), ("confidence_clip", -1.0), ("format_weight", -1.0)]
IMPOSSIBLE += [("spread_floor", -0.1), ("calibration_share", -0.1), ("calibration_share", 1.0)]


@pytest.mark.parametrize("change", [{field: value} for field, value in IMPOSSIBLE])
def test_impossible_numbers_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Method(**change)


@pytest.mark.parametrize("field", sorted({field for field, _ in IMPOSSIBLE}))
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
    close(advantages(today(), torch.full((2, 3), 0.5), 2, *terms), [0.2 * H, -0.2 * H])
