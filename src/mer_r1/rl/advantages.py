"""Group-relative advantages for several objectives: the dual-objective disentanglement of MER-R1.

GRPO compares the G rollouts of one prompt with each other. With two objectives (recall and precision) there are two
orders: sum the rewards and normalise once (RD), or normalise each objective in its group and sum (AD). Summing first
lets the objective with the larger spread dominate; normalising first gives both the same effective weight.

Nothing here knows about emotions or models: rewards go in, advantages come out.
Source: MER-R1 (arXiv 2606.27652), "dual-objective disentanglement"; docs/paper_map.md.
Shapes: B prompts, G rollouts each (at least 2), K objectives. All functions take the rollouts of a group contiguous,
NaN for an unscorable one, and raise ValueError for a number of rollouts that is no multiple of G, or G < 2.
"""

import torch
from torch import Tensor

SCALES = ("group", "batch", "none")
"""What divides an advantage, TRL's `scale_rewards`."""
MIN_SPREAD = 1e-6
"""A group with no larger standard deviation has no signal; far above float32 rounding, far below a real spread."""


def group_spread(values: Tensor, num_generations: int) -> Tensor:
    """Standard deviation of each group, as every rollout of the group sees it.

    Args:
        values: (B*G,) one number per rollout.
        num_generations: G.

    Returns:
        (B*G,) unbiased standard deviation (divisor n - 1, as TRL uses), 0 where fewer than two rollouts are scorable.

    >>> group_spread(torch.tensor([0.0, 2.0, 5.0, 5.0]), 2).tolist()
    [1.4142135381698608, 1.4142135381698608, 0.0, 0.0]
    """
    grouped = _grouped(values, num_generations)
    count = (~grouped.isnan()).sum(dim=1, keepdim=True)
    variance = (_centred(grouped) ** 2).nansum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
    return variance.sqrt().expand_as(grouped).reshape(-1)


def group_normalise(values: Tensor, num_generations: int, epsilon: float = 0.0, scale: str = "group") -> Tensor:
    """(value - group mean) / standard deviation; 0 for a group without spread and for unscorable rollouts.

    A group whose values are (nearly) equal carries no information about which rollout is better. It gives 0 and not a
    division by a tiny number, which would blow rounding noise up to full size (our reading). TRL's
    ``normalize_then_sum`` adds 1e-4 to every standard deviation instead: to compare, pass `epsilon`.

    Args:
        values: (B*G,) one number per rollout.
        num_generations: G.
        epsilon: added to every standard deviation; 0 is the formula as written.
        scale: TRL's `scale_rewards`, the standard deviation that divides: that of the "group", that of the whole
            "batch", or "none" (centred only, as in the authors' fork).

    Returns:
        (B*G,) advantages; each group sums to 0.

    Raises:
        ValueError: another scale.

    >>> group_normalise(torch.tensor([0.0, 2.0, 5.0, 5.0]), 2).tolist()
    [-0.7071067690849304, 0.7071067690849304, 0.0, 0.0]
    """
    if scale not in SCALES:
        raise ValueError(f"scale_rewards: expected one of {', '.join(SCALES)}, got {scale!r}")
    centred = _centred(_grouped(values, num_generations)).reshape(-1)
    if scale == "none":
        return centred.nan_to_num(0.0)
    spread = group_spread(values, num_generations if scale == "group" else len(values))
    has_signal = (spread > MIN_SPREAD) & ~centred.isnan()
    safe = torch.where(has_signal, spread + epsilon, 1.0)
    return torch.where(has_signal, centred / safe, 0.0)


def group_minimum(values: Tensor, num_generations: int) -> Tensor:
    """The values (B*G,), with the minimum of its group where one is NaN; a group of NaN stays as it is.

    >>> group_minimum(torch.tensor([0.5, torch.nan, torch.nan, torch.nan]), 2).tolist()
    [0.5, 0.5, nan, nan]
    """
    grouped = _grouped(values, num_generations)
    lowest = torch.where(grouped.isnan(), torch.inf, grouped).amin(dim=1, keepdim=True)
    return torch.where(grouped.isnan() & lowest.isfinite(), lowest, grouped).reshape(-1)


def sum_then_normalise(rewards_per_func: Tensor, weights: Tensor, num_generations: int, scale: str = "group") -> Tensor:
    """Baseline (one objective) and RD: the weighted rewards are summed, then normalised once.

    Args:
        rewards_per_func: (B*G, K) rewards, NaN where a reward function could not score.
        weights: (K,) weight of each objective.
        num_generations: G.
        scale: see `group_normalise`.

    Returns:
        (B*G,) advantages. A rollout that no function could score gets 0.
    """
    total = (rewards_per_func * weights).nansum(dim=1)
    total = torch.where(rewards_per_func.isnan().all(dim=1), torch.nan, total)
    return group_normalise(total, num_generations, scale=scale)


def normalise_each(
    rewards_per_func: Tensor, num_generations: int, epsilon: float = 0.0, scale: str = "group"
) -> Tensor:
    """AD, first half: each objective, a column of the rewards (B*G, K), is normalised by itself (`group_normalise`)."""
    columns = rewards_per_func.unbind(dim=1)
    return torch.stack([group_normalise(column, num_generations, epsilon, scale) for column in columns], dim=1)


def normalise_then_sum(
    rewards_per_func: Tensor, weights: Tensor, num_generations: int, epsilon: float = 0.0, scale: str = "group"
) -> Tensor:
    """AD: normalise each objective within its group, then sum the weighted advantages.

    TRL's ``normalize_then_sum`` (GDPO) is this with ``epsilon=1e-4``, then standardised once more over the whole batch,
    which makes the size of the update independent of how many groups carry signal; the paper's formula has none.

    The arguments are those of `sum_then_normalise` and `group_normalise`; returns (B*G,) advantages.
    """
    return (normalise_each(rewards_per_func, num_generations, epsilon, scale) * weights).sum(dim=1)


def _centred(grouped: Tensor) -> Tensor:
    # Deviations from the mean, computed from the least value of each group, so that equal values of any size deviate by
    # exactly 0. Their float32 mean alone can be off by a rounding that no fixed threshold tells from a spread.
    lowest = torch.where(grouped.isnan(), torch.inf, grouped).amin(dim=1, keepdim=True)
    above = grouped - lowest
    return above - above.nanmean(dim=1, keepdim=True)


def _grouped(values: Tensor, num_generations: int) -> Tensor:
    if num_generations < 2:
        raise ValueError(
            f"num_generations must be at least 2 to compare rollouts with each other, got {num_generations}"
        )
    if values.dim() != 1 or values.shape[0] % num_generations:
        raise ValueError(f"expected (B*G,) values with G = {num_generations}, got shape {tuple(values.shape)}")
    return values.view(-1, num_generations)
