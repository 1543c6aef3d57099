"""The identities of docs/theory.md, checked on numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mer_r1.rl.advantages import group_normalise, group_spread, normalise_then_sum, sum_then_normalise
from mer_r1.rl.interference import (
    alignment,
    cosine,
    effective_weights,
    group_correlation,
    norm,
    objective_statistics,
    regress,
)  # fmt: skip

G = 6
SEEDS = st.integers(0, 10_000)


def rewards(seed: int, groups: int = 1, ratio: float = 3.0) -> torch.Tensor:
    """(groups * G, 2) rewards of two correlated objectives, the first `ratio` times as wide."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(groups * G, 2, generator=generator, dtype=torch.float64)
    drawn[:, 1] = 0.6 * drawn[:, 1] + 0.4 * drawn[:, 0]
    return drawn * torch.tensor([ratio, 1.0])


@settings(deadline=None)
@given(SEEDS)
def test_identity_1_summing_first_weighs_by_spread(seed: int) -> None:
    # A = (R + P - mean) / sigma_S = (sigma_R / sigma_S) z_R + (sigma_P / sigma_S) z_P, exactly.
    both = rewards(seed)
    recall, precision = both.T
    rho = group_correlation(recall, precision, G)
    weights = effective_weights(group_spread(recall, G)[:1], group_spread(precision, G)[:1], rho)
    expected = weights[0] * group_normalise(recall, G) + weights[1] * group_normalise(precision, G)
    torch.testing.assert_close(sum_then_normalise(both, torch.ones(2), G), expected)


@settings(deadline=None)
@given(SEEDS)
def test_identity_2_normalising_first_weighs_the_same(seed: int) -> None:
    both = rewards(seed)
    columns = torch.stack([group_normalise(column, G) for column in both.T], dim=1)
    combined = normalise_then_sum(both, torch.ones(2), G)
    torch.testing.assert_close(regress(combined, columns), torch.ones(2, dtype=torch.float64))


@settings(deadline=None)
@given(SEEDS)
def test_identity_3_weights_make_a_unit_variance(seed: int) -> None:
    # w_R^2 + w_P^2 + 2 rho w_R w_P = 1, so |w_R - w_P| <= 1 <= w_R + w_P, and rho < 1 leaves the wider one ahead.
    recall, precision = rewards(seed).T
    rho = group_correlation(recall, precision, G)
    a, b = effective_weights(group_spread(recall, G)[:1], group_spread(precision, G)[:1], rho)
    assert (a**2 + b**2 + 2 * rho * a * b).item() == pytest.approx(1.0)
    assert (a / b).item() == pytest.approx((group_spread(recall, G) / group_spread(precision, G))[0].item())


@given(st.floats(0.05, 3), st.floats(0.05, 3), st.floats(-0.95, 0.95))
def test_identity_4_alignment_follows_the_wider_objective(recall: float, precision: float, rho: float) -> None:
    w = [weight.item() for weight in effective_weights(*torch.tensor([recall, precision, rho], dtype=torch.float64))]
    own, other = alignment(w[0], w[1], rho), alignment(w[1], w[0], rho)
    assert own == pytest.approx(w[0] + rho * w[1])
    assert (own >= other - 1e-9) == (recall >= precision - 1e-9) or own == pytest.approx(other)
    # Normalised first, both are followed the same: the square root of (1 + rho) / 2.
    assert alignment(1, 1, rho) == pytest.approx(math.sqrt((1 + rho) / 2))
    assert min(own, other) <= alignment(1, 1, rho) + 1e-9


@settings(deadline=None)
@given(SEEDS)
def test_identity_5_uncorrelated_scores_turn_correlations_into_cosines(seed: int) -> None:
    # Gradient = sum over rollouts of advantage x score vector. With orthonormal score vectors the map is an isometry.
    both = rewards(seed)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.linalg.qr(torch.randn(40, G, generator=generator, dtype=torch.float64)).Q
    z = [group_normalise(column, G) for column in both.T]
    combined = sum_then_normalise(both, torch.ones(2), G)
    gradients = [[scores @ values] for values in (*z, combined)]
    rho = group_correlation(*both.T, G).item()
    w = effective_weights(*(group_spread(column, G)[:1] for column in both.T), torch.tensor([rho]))
    assert cosine(gradients[0], gradients[1]) == pytest.approx(rho)
    assert cosine(gradients[2], gradients[0]) == pytest.approx(alignment(w[0].item(), w[1].item(), rho), abs=1e-6)


def test_identity_6_a_shared_disagreement_adds_up_over_groups() -> None:
    # Being right points elsewhere in every group (axis i), naming more points the same way in all (the last axis).
    rho, groups = 0.8, 32
    right, more = ((1 + rho) / 2) ** 0.5, ((1 - rho) / 2) ** 0.5
    cosines = []
    for count in (1, groups):
        recall, precision = torch.zeros(groups + 1), torch.zeros(groups + 1)
        recall[:count] = precision[:count] = right
        recall[-1], precision[-1] = count * more, -count * more
        a2, b2 = count * right**2, (count * more) ** 2
        cosines.append(cosine([recall], [precision]))
        assert cosines[-1] == pytest.approx((a2 - b2) / (a2 + b2), abs=1e-6)
    assert cosines[0] == pytest.approx(rho)
    assert cosines[1] < 0 < rho  # in every group the objectives agree, over the batch their gradients conflict


def test_a_batch_shows_what_the_formulas_say() -> None:
    both = rewards(0, groups=8)
    advantages = sum_then_normalise(both, torch.ones(2), G)
    found = objective_statistics(both, advantages, ("recall", "precision"), G)
    assert found["measured_recall"] == pytest.approx(found["predicted_recall"], abs=0.05)
    assert found["measured_recall"] > 2 * found["measured_precision"] > 0
    equal = objective_statistics(both, normalise_then_sum(both, torch.ones(2), G), ("recall", "precision"), G)
    assert (equal["measured_recall"], equal["measured_precision"]) == (pytest.approx(1.0), pytest.approx(1.0))


def test_groups_without_spread_are_left_out() -> None:
    flat = torch.cat([rewards(1), torch.tensor([[0.5, 0.1 * i] for i in range(G)], dtype=torch.float64)])
    rho = group_correlation(*flat.T, G)
    assert not rho[0].isnan()
    assert rho[1].isnan()
    advantages = sum_then_normalise(flat, torch.ones(2), G)
    alone = objective_statistics(flat[:G], advantages[:G], ("recall", "precision"), G)
    assert objective_statistics(flat, advantages, ("recall", "precision"), G) == pytest.approx(alone)
    assert objective_statistics(flat[G:], advantages[G:], ("recall", "precision"), G) == {}
    assert objective_statistics(flat, advantages, ("format", "f1"), G) == {}


def test_opposite_objectives() -> None:
    x = torch.tensor([0.0, 1.0, 2.0])
    assert group_correlation(x, -x, 3).item() == pytest.approx(-1.0)
    weights = effective_weights(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([-1.0]))
    assert all(bool(weight.isnan()) for weight in weights)  # their sum has no spread
    assert cosine([torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 2.0])]) == 0.0
    assert math.isnan(cosine([torch.zeros(2)], [torch.ones(2)]))
    assert norm([torch.tensor([3.0]), torch.tensor([[4.0]])]) == 5.0
