"""What the trainer logs about a step: spreads, confidences, calibration terms, interference, and one rollout as text.

Nothing here enters the update. Shapes: R rollouts (B*G), K objectives, C categories over all partitions.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from mer_r1.model.omni import Omni
from mer_r1.rl.advantages import MIN_SPREAD, group_spread
from mer_r1.rl.calibration import partition_mean
from mer_r1.rl.interference import objective_statistics

logger = logging.getLogger(__name__)

QUIET_SHARE = 0.5
"""Share of groups without any signal in a batch above which training warns."""

Terms = tuple[Tensor | None, Tensor | None]
"""Delta+ and Delta-, (R,) each; None where the method does not calibrate."""


def known_mean(values: Tensor) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    known = values[~values.isnan()]
    return known.mean().item() if len(known) else float("nan")


def confidence_statistics(
    slow: Tensor, fast: Tensor, correct: Tensor, known: Tensor, partition: Tensor
) -> dict[str, Tensor]:
    """Geometric mean over anchors of C(k), averaged over the correct and over the incorrect categories.

    The arguments are those of `calibration.calibration_terms`.

    Returns:
        Log name -> (R,) values in [0, 1]; NaN for a rollout without an anchor.
    """
    found = {}
    for name, scores in (("slow", slow), ("fast", fast)):
        for side, mask in (("correct", correct & known), ("incorrect", ~correct & known)):
            mean = partition_mean(scores.exp().nan_to_num(0.0), mask, partition)
            found[f"confidence/{name}_{side}"] = mean.masked_fill(scores.isnan().any(dim=1), torch.nan)
    return found


def group_statistics(
    rewards_per_func: Tensor, advantages: Tensor, objectives: Sequence[str], num_generations: int, terms: Terms
) -> dict[str, float]:
    """Means over the groups of a batch: spread of each objective, calibration terms, signal, interference.

    The arguments are those of `interference.objective_statistics`, of all processes, and Delta+ and Delta-.

    Returns:
        Log name -> value.
    """
    spreads = {
        name: group_spread(rewards_per_func[:, column], num_generations)[::num_generations]
        for column, name in enumerate(objectives)
    }
    found = {f"spread/{name}": spread.mean().item() for name, spread in spreads.items()}
    for name, term in zip(("delta_correct", "delta_incorrect"), terms, strict=True):
        if term is not None:
            found[f"calibration/{name}"] = known_mean(term)
    quiet = torch.stack([spread <= MIN_SPREAD for spread in spreads.values()]).all(dim=0)
    found["groups_without_signal"] = quiet.float().mean().item()
    interference = objective_statistics(rewards_per_func, advantages, objectives, num_generations)
    return found | {f"interference/{name}": value for name, value in interference.items()}


def statistics_by_mode(
    fast: Tensor, rewards_per_func: Tensor, advantages: Tensor, objectives: Sequence[str], size: int, terms: Terms
) -> dict[str, float]:
    """`group_statistics` of the groups that think slowly (of all where all answer fast), and mean rewards by mode.

    Args:
        fast: (R,) bool, rollouts of groups that answer fast; without any, the result is that of `group_statistics`.
        rewards_per_func: (R, K) rewards.
        advantages: (R,) advantages.
        objectives: names of the K rewards.
        size: G, rollouts per group.
        terms: Delta+ and Delta-.

    Returns:
        Log name -> value; of the rewards `slow/recall`, `fast/recall` and so on.
    """
    kept = fast if fast.all() else ~fast
    correct, incorrect = (None if term is None else term[kept] for term in terms)
    found = group_statistics(rewards_per_func[kept], advantages[kept], objectives, size, (correct, incorrect))
    if fast.any():
        for mode, rows in (("slow", ~fast), ("fast", fast)):
            means = {name: known_mean(rewards_per_func[rows, column]) for column, name in enumerate(objectives)}
            found |= {f"{mode}/{name}": mean for name, mean in means.items()}
    return found


def warn_if_quiet(share: float, step: int) -> None:
    """Log a warning if more than `QUIET_SHARE` of the groups have no signal (all their rewards are equal)."""
    if share > QUIET_SHARE:
        logger.warning(
            "step %d: all rewards are equal in %.0f %% of the groups; they teach nothing (temperature too low, "
            "completions cut off, or labels that no wheel can place?)",
            step,
            100 * share,
        )


def show_rollout(
    omni: Omni, prompt: Tensor, completion: Sequence[int], labels: object, rewards: Tensor, objectives: Sequence[str]
) -> None:
    """Log one rollout as text: prompt (P,) with its media placeholders counted, completion, gold, (K,) rewards."""
    text = omni.tokenizer.decode(prompt)
    for token in (omni.processor.video_token, omni.processor.audio_token):
        count = text.count(token)
        text = text.replace(token * count, f"{token} x{count}") if count else text
    names, values = ", ".join(objectives), ", ".join(f"{value:.2f}" for value in rewards.tolist())
    logger.info("first rollout\n%s%s\ngold: %s\n%s: %s", text, omni.tokenizer.decode(completion), labels, names, values)
