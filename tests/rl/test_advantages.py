"""Advantages: by hand, by identity, by property, and against the code of TRL itself.

Notation in the comments: R and P are the two rewards of a rollout, sigma their standard deviation in the group with
divisor n - 1, rho their correlation, G the group size.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from trl import GRPOTrainer

from mer_r1.rl.advantages import (
    MIN_SPREAD,
    group_normalise,
    group_spread,
    normalise_each,
    normalise_then_sum,
    sum_then_normalise,
)

NAN = math.nan
ROOT_HALF = math.sqrt(0.5)


def f64(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(found: Tensor, expected: Tensor | list[float], tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_spread_by_hand() -> None:
    # Group 1: mean 2, deviations -2 0 0 2, squares sum to 8, 8/3 by the divisor n - 1. Group 2 is constant.
    close(group_spread(f64(0, 2, 2, 4, 7, 7, 7, 7), 4), [math.sqrt(8 / 3)] * 4 + [0.0] * 4)


def test_spread_leaves_unscorable_rollouts_out_of_mean_and_count() -> None:
    # Scorable: 1 and 3, mean 2, variance (1 + 1) / (2 - 1) = 2. One scorable value, or none, has no spread.
    close(group_spread(f64(1, NAN, 3, NAN, 5, NAN, NAN, NAN, NAN, NAN, NAN, NAN), 4), [math.sqrt(2)] * 4 + [0.0] * 8)


def test_normalise_by_hand() -> None:
    # 0 2 2 4: deviations over sqrt(8/3). 1 and 3: deviations -1 and 1 over sqrt(2).
    unit = 2 / math.sqrt(8 / 3)
    close(group_normalise(f64(0, 2, 2, 4), 4), [-unit, 0, 0, unit])
    close(group_normalise(f64(1, 3, 8, 8), 2), [-ROOT_HALF, ROOT_HALF, 0, 0])


def test_unscorable_rollouts_get_nothing_and_do_not_disturb_the_others() -> None:
    # The two scorable rollouts are normalised as if they were alone.
    close(group_normalise(f64(1, NAN, 3, NAN), 4), [-ROOT_HALF, 0, ROOT_HALF, 0])
    # A single scorable rollout has nobody to be compared with.
    close(group_normalise(f64(NAN, 5, NAN, NAN), 4), [0.0] * 4)
    close(group_normalise(f64(NAN, NAN), 2), [0.0] * 2)


def test_a_group_without_spread_gives_zero_and_not_magnified_rounding() -> None:
    # 0.1 three times has the float32 mean 0.1 + 7e-9: dividing that noise by its own size would give +-0.8.
    close(group_normalise(torch.full((3,), 0.1), 3), [0.0] * 3)
    close(group_normalise(f64(0.5, 0.5 + MIN_SPREAD / 10, 0.5, 0.5), 4), [0.0] * 4)


@pytest.mark.parametrize("group", range(2, 12))
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e4 / 3, -1e7 / 3])
def test_equal_float32_values_have_no_spread_whatever_their_size(value: float, group: int) -> None:
    assert group_normalise(torch.full((group,), value), group).tolist() == [0.0] * group


def test_epsilon_is_added_to_the_standard_deviation() -> None:
    # sigma = sqrt(2): deviations -1 and 1 over sqrt(2) + 0.5.
    close(group_normalise(f64(1, 3), 2, epsilon=0.5), [-1 / (math.sqrt(2) + 0.5), 1 / (math.sqrt(2) + 0.5)])


def test_rd_by_hand() -> None:
    # Weighted sums: 0.1*1 + R + P = 0.1, 1.1, 1.1, 2.1 -> deviations -1 0 0 1 over sqrt(2/3).
    rewards = f64([1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1])
    unit = 1 / math.sqrt(2 / 3)
    close(sum_then_normalise(rewards, f64(0.1, 1, 1).squeeze(0), 4), [-unit, 0, 0, unit])


def test_ad_by_hand_and_what_it_changes() -> None:
    # R = 0 1 0 1 and P = 0.6 0.4 0.4 0.6. Sums 0.6 1.4 0.4 1.6, mean 1: RD prefers rollout 2 to rollout 1, because R
    # varies five times as much. AD weighs both the same: norm(R) = -u u -u u and norm(P) = u -u -u u with
    # u = 0.5 / sqrt(1/3) = sqrt(3)/2, so rollouts 1 and 2 are equally good.
    rewards = f64([0, 0.6], [1, 0.4], [0, 0.4], [1, 0.6])
    weights = f64(1, 1).squeeze(0)
    close(normalise_then_sum(rewards, weights, 4), [0, 0, -math.sqrt(3), math.sqrt(3)])
    deviations = f64(-0.4, 0.4, -0.6, 0.6)
    sigma = math.sqrt((0.16 + 0.16 + 0.36 + 0.36) / 3)
    close(sum_then_normalise(rewards, weights, 4), (deviations / sigma).squeeze(0))


def test_a_weight_scales_an_objectives_advantage() -> None:
    # norm of 0 1 in a pair is -+sqrt(1/2); the first objective counts a tenth, the second is constant.
    close(normalise_then_sum(f64([0, 3], [1, 3]), f64(0.1, 1).squeeze(0), 2), [-0.1 * ROOT_HALF, 0.1 * ROOT_HALF])


def test_unscorable_objectives() -> None:
    weights = f64(1, 1).squeeze(0)
    rewards = f64([0, NAN], [1, NAN], [NAN, NAN], [1, 0.5], [0, 0.5], [1, 0.5])
    # AD, group 1: R of the first two alone -> -+sqrt(1/2); P says nothing; rollout 3 has nothing.
    # Group 2: R = 1 0 1 has mean 2/3 and sigma sqrt(1/3) -> 1/sqrt(3), -2/sqrt(3), 1/sqrt(3).
    third = 1 / math.sqrt(3)
    expected = [-ROOT_HALF, ROOT_HALF, 0, third, -2 * third, third]
    close(normalise_then_sum(rewards, weights, 3), expected)
    # RD: what could not be scored adds nothing to a sum, and rollout 3 without any reward is left out: the same here.
    close(sum_then_normalise(rewards, weights, 3), expected)


@pytest.mark.parametrize(("length", "group", "message"), [(4, 1, "at least 2"), (6, 4, "G = 4"), (3, 2, "shape")])
def test_wrong_shapes_are_named(length: int, group: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_normalise(torch.zeros(length), group)


def test_a_matrix_is_no_column_of_rewards() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 2\)"):
        group_normalise(torch.zeros(4, 2), 2)


# --- the theory: variance-induced interference ------------------------------------------------------------------------


def two_objectives(sigma_r: float, sigma_p: float, rho: float, group: int, seed: int) -> Tensor:
    """One group (G, 2) whose sample standard deviations and correlation are exactly as asked."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, group, dtype=torch.float64, generator=generator)
    first = first - first.mean()
    first = first / first.std()
    second = second - second.mean()
    second = second - (second @ first) / (first @ first) * first
    second = second / second.std()
    mixed = rho * first + math.sqrt(1 - rho**2) * second
    return torch.stack([0.3 + sigma_r * first, 0.6 + sigma_p * mixed], dim=1)


@pytest.mark.parametrize("rho", [-0.8, -0.3, 0.0, 0.5, 0.95])
@pytest.mark.parametrize(("sigma_r", "sigma_p"), [(0.3, 0.3), (0.4, 0.05), (0.02, 0.5)])
def test_effective_weights_of_both_orders(sigma_r: float, sigma_p: float, rho: float) -> None:
    # METHOD: norm(R + P) = (sigma_R / sigma_S) norm(R) + (sigma_P / sigma_S) norm(P) with
    # sigma_S^2 = sigma_R^2 + sigma_P^2 + 2 rho sigma_R sigma_P. Least squares of the advantages on norm(R) and norm(P)
    # finds these weights, and finds 1 and 1 for the other order.
    rewards = two_objectives(sigma_r, sigma_p, rho, group=8, seed=1)
    weights = torch.ones(2, dtype=torch.float64)
    parts = normalise_each(rewards, 8)
    sigma_s = math.sqrt(sigma_r**2 + sigma_p**2 + 2 * rho * sigma_r * sigma_p)
    summed_first = torch.linalg.lstsq(parts, sum_then_normalise(rewards, weights, 8)).solution
    close(summed_first, [sigma_r / sigma_s, sigma_p / sigma_s], 1e-9)
    normalised_first = torch.linalg.lstsq(parts, normalise_then_sum(rewards, weights, 8)).solution
    close(normalised_first, [1, 1], 1e-9)


def test_the_objective_with_the_larger_spread_dominates_when_summed_first() -> None:
    rewards = two_objectives(0.4, 0.02, rho=0.0, group=8, seed=2)
    summed = sum_then_normalise(rewards, torch.ones(2, dtype=torch.float64), 8)
    correlation = [torch.corrcoef(torch.stack([summed, column]))[0, 1].item() for column in rewards.unbind(1)]
    assert correlation[0] > 0.99
    assert correlation[1] < 0.1


# --- properties -------------------------------------------------------------------------------------------------------

reward = st.floats(min_value=0, max_value=1).map(lambda value: round(value, 3))
maybe_reward = st.one_of(reward, reward, reward, st.just(NAN))


@st.composite
def batches(draw: st.DrawFn, objectives: int = 2, values: st.SearchStrategy[float] = reward) -> tuple[Tensor, int]:
    group = draw(st.integers(2, 6))
    rows = group * draw(st.integers(1, 4))
    flat = draw(st.lists(values, min_size=rows * objectives, max_size=rows * objectives))
    return torch.tensor(flat, dtype=torch.float64).reshape(rows, objectives), group


@given(batches(values=maybe_reward))
def test_every_group_sums_to_zero_and_is_finite(batch: tuple[Tensor, int]) -> None:
    rewards, group = batch
    for advantages in (
        sum_then_normalise(rewards, torch.ones(2, dtype=torch.float64), group),
        normalise_then_sum(rewards, torch.ones(2, dtype=torch.float64), group),
    ):
        assert advantages.isfinite().all()
        close(advantages.view(-1, group).sum(dim=1), [0.0] * (len(rewards) // group), 1e-9)


@given(batches(objectives=1), st.floats(-5, 5), st.floats(0.1, 10))
def test_a_constant_shift_and_a_positive_scale_are_ignored(
    batch: tuple[Tensor, int], shift: float, scale: float
) -> None:
    values, group = batch[0][:, 0], batch[1]
    close(group_normalise(scale * values + shift, group), group_normalise(values, group), 1e-7)


@given(batches(), st.lists(st.tuples(st.floats(0.1, 10), st.floats(-5, 5)), min_size=4, max_size=4))
def test_ad_ignores_the_scale_of_each_objective_in_each_group(
    batch: tuple[Tensor, int], changes: list[tuple[float, float]]
) -> None:
    rewards, group = batch
    weights = torch.ones(2, dtype=torch.float64)
    changed = rewards.clone()
    for index in range(len(rewards) // group):
        scale, shift = changes[index]
        changed[index * group : (index + 1) * group, 0] = (
            changed[index * group : (index + 1) * group, 0] * scale + shift
        )
    close(normalise_then_sum(changed, weights, group), normalise_then_sum(rewards, weights, group), 1e-7)


@given(batches(objectives=1, values=maybe_reward))
def test_with_one_objective_both_orders_are_the_same(batch: tuple[Tensor, int]) -> None:
    rewards, group = batch
    weights = torch.ones(1, dtype=torch.float64)
    close(sum_then_normalise(rewards, weights, group), normalise_then_sum(rewards, weights, group))


@given(batches(), st.randoms(use_true_random=False))
def test_groups_and_rollouts_may_stand_in_any_order(batch: tuple[Tensor, int], rng: object) -> None:
    rewards, group = batch
    groups = list(range(len(rewards) // group))
    rng.shuffle(groups)  # type: ignore[attr-defined]
    order = []
    for index in groups:
        rows = list(range(index * group, (index + 1) * group))
        rng.shuffle(rows)  # type: ignore[attr-defined]
        order += rows
    weights = torch.tensor([1.0, 0.5], dtype=torch.float64)
    for method in (sum_then_normalise, normalise_then_sum):
        close(method(rewards[order], weights, group), method(rewards, weights, group)[order], 1e-9)


@given(batches(), st.data())
def test_what_is_unscorable_is_as_if_it_were_not_there(batch: tuple[Tensor, int], data: st.DataObject) -> None:
    rewards, group = batch
    assume(group > 2)
    lost = data.draw(st.integers(0, group - 1))
    with_gap = rewards[:group].clone()
    with_gap[lost] = NAN
    rest = [row for row in range(group) if row != lost]
    weights = torch.ones(2, dtype=torch.float64)
    for method in (sum_then_normalise, normalise_then_sum):
        advantages = method(with_gap, weights, group)
        close(advantages[rest], method(rewards[rest], weights, group - 1), 1e-9)
        assert advantages[lost] == 0


@given(batches(objectives=1, values=st.floats(-10, 10, width=32)))
def test_advantages_have_unit_spread_or_none(batch: tuple[Tensor, int]) -> None:
    values, group = batch[0][:, 0], batch[1]
    spread = group_spread(group_normalise(values, group), group)
    assert (((spread - 1).abs() < 1e-6) | (spread == 0)).all()


@given(batches(objectives=1))
def test_a_better_rollout_of_a_group_never_gets_less(batch: tuple[Tensor, int]) -> None:
    values, group = batch[0][:, 0], batch[1]
    advantages = group_normalise(values, group)
    for index in range(0, len(values), group):
        order = values[index : index + group].argsort()
        assert (advantages[index : index + group][order].diff() >= 0).all()


# --- the code of TRL itself -------------------------------------------------------------------------------------------


def advantages_of_trl(rewards: Tensor, weights: Tensor, group: int, aggregation: str) -> Tensor:
    """Run TRL's own, unaltered `GRPOTrainer._generate_and_score_completions` and return its advantages.

    The method is called as a plain function on a stand-in that has no model: sampling brings one token a rollout, the
    rewards are ours, and everything between the rewards and the advantages is TRL's code. A new attribute that a later
    TRL reads is missing here and fails loudly.
    """
    rows, objectives = rewards.shape
    names = [f"objective {index}" for index in range(objectives)]

    class Metrics(dict[str, list[float]]):
        def __missing__(self, key: str) -> list[float]:
            return self.setdefault(key, [])

    def generate(prompts: list[str]) -> tuple[object, ...]:
        one_token = [[1]] * len(prompts)
        return one_token, one_token, None, ["a"] * len(prompts), None, {}, None, None

    stand_in = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), process_index=0, gather=lambda value: value),
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        environment_factories=None,
        environments=None,
        tools=None,
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        num_iterations=1,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        beta=0.0,
        log_multimodal=False,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        args=SimpleNamespace(
            per_device_train_batch_size=rows,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            gradient_checkpointing_kwargs=None,
        ),
        _generate=generate,
        _calculate_rewards=lambda *_: rewards,
        num_generations=group,
        num_generations_eval=group,
        multi_objective_aggregation=aggregation,
        scale_rewards="group",
        reward_weights=weights,
        reward_funcs=names,
        reward_func_names=names,
        _metrics={"train": Metrics()},
        _logs={"prompt": [], "completion": [], "advantages": [], "rewards": {name: [] for name in names}, "extra": {}},
        _pending_extra_logs={},
        _pending_metrics={},
    )
    inputs = [{"prompt": "?"}] * rows
    return GRPOTrainer._generate_and_score_completions(stand_in, inputs)["advantages"]  # type: ignore[arg-type]


def standardised_like_trl(advantages: Tensor) -> Tensor:
    """The last step of TRL's normalize_then_sum: standardise once more over the whole batch."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-4)


def random_rewards(seed: int, rows: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 3, generator=generator, dtype=torch.float64)


WEIGHTS = torch.tensor([0.1, 1.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("group", [2, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_ad_equals_trl_normalize_then_sum(seed: int, group: int) -> None:
    rewards = random_rewards(seed)
    theirs = advantages_of_trl(rewards, WEIGHTS, group, "normalize_then_sum")
    close(standardised_like_trl(normalise_then_sum(rewards, WEIGHTS, group, epsilon=1e-4)), theirs, 1e-6)


@pytest.mark.parametrize("group", [2, 4, 8])
def test_baseline_and_rd_equal_trl_sum_then_normalize(group: int) -> None:
    rewards = random_rewards(7)
    theirs = advantages_of_trl(rewards, WEIGHTS, group, "sum_then_normalize")
    close(group_normalise((rewards * WEIGHTS).sum(dim=1), group, epsilon=1e-4), theirs, 1e-6)
    # Ours has no epsilon: the difference is 1e-4 in sigma, so within 1e-4 / sigma of the advantage.
    spread = group_spread((rewards * WEIGHTS).sum(dim=1), group)
    ours = sum_then_normalise(rewards, WEIGHTS, group)
    assert ((ours - theirs).abs() <= theirs.abs() * 1e-4 / spread * 1.001 + 1e-9).all()


def test_zero_spread_and_unscorable_rollouts_equal_trl() -> None:
    rewards = random_rewards(3, rows=16)
    rewards[0:4, 0] = 1.0  # the format is right everywhere in group 1,
    rewards[4:8] = 0.5  # group 2 has no signal at all,
    rewards[9] = NAN  # and in group 3 one rollout could not be scored.
    theirs = advantages_of_trl(rewards, WEIGHTS, 4, "normalize_then_sum")
    ours = normalise_then_sum(rewards, WEIGHTS, 4, epsilon=1e-4)
    scorable = torch.arange(16) != 9
    close(standardised_like_trl(ours[scorable]), theirs[scorable], 1e-6)
    assert ours[9] == theirs[9] == 0
    theirs = advantages_of_trl(rewards, WEIGHTS, 4, "sum_then_normalize")
    total = (rewards * WEIGHTS).sum(dim=1)
    close(group_normalise(total, 4, epsilon=1e-4), theirs, 1e-6)


def test_where_ours_and_trl_part_a_tiny_spread() -> None:
    # Three equal rewards and one that is off by rounding (3e-7): TRL divides the deviation by 1.5e-7 + 1e-4 and gives
    # the odd rollout 2e-3 of an advantage; ours says that such a group has no signal.
    rewards = torch.full((4, 1), 0.5, dtype=torch.float64)
    rewards[0] += 3e-7
    one = torch.ones(1, dtype=torch.float64)
    theirs = advantages_of_trl(rewards, one, 4, "sum_then_normalize")
    assert theirs[0] == pytest.approx(2.25e-7 / (1.5e-7 + 1e-4), rel=1e-6)
    assert sum_then_normalise(rewards, one, 4).tolist() == [0.0] * 4
    # normalize_then_sum magnifies the same noise to full size when no other group has signal, by its last step.
    theirs = advantages_of_trl(rewards, one, 4, "normalize_then_sum")
    assert theirs[0] > 1.3
    assert normalise_then_sum(rewards, one, 4).tolist() == [0.0] * 4


def test_where_ours_and_trl_part_a_small_true_spread() -> None:
    # Rewards 1e-4 apart are a real difference, well above rounding: ours gives it full size, TRL's epsilon shrinks it.
    # sigma = 1e-4 / sqrt(2), deviation 5e-5: TRL 5e-5 / (7.07e-5 + 1e-4) = 0.2929, ours sqrt(1/2) = 0.7071.
    rewards, one = f64([0.5], [0.5001]), torch.ones(1, dtype=torch.float64)
    assert advantages_of_trl(rewards, one, 2, "sum_then_normalize")[1] == pytest.approx(0.2929, abs=1e-4)
    assert sum_then_normalise(rewards, one, 2)[1] == pytest.approx(ROOT_HALF, abs=1e-9)
