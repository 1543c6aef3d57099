"""What the trainer logs about a step: spreads, confidences, calibration terms, interference, and one rollout as text.

Nothing here enters the update. Shapes: R rollouts (B*G), K objectives, C categories over all partitions.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mer_r1.model.omni import Omni
from mer_r1.rl.advantages import MIN_SPREAD, group_minimum, group_spread
from mer_r1.rl.calibration import partition_mean
from mer_r1.rl.interference import group_correlation, objective_statistics
from mer_r1.rl.method import Advantages

logger = logging.getLogger(__name__)

QUIET_SHARE = 0.5
"""Share of groups without any signal in a batch above which training warns."""

Terms = tuple[Tensor | None, Tensor | None]
"""T+ and T-, (R,) each; None where the method has no such term."""


def known_mean(values: Tensor) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    known = values[~values.isnan()]
    return known.mean().item() if len(known) else float("nan")


def confidence_statistics(
    slow: Tensor, fast: Tensor | None, correct: Tensor, known: Tensor, partition: Tensor
) -> dict[str, Tensor]:
    """Geometric mean over anchors of C(k), averaged over the correct and over the incorrect categories.

    The arguments are those of `calibration.calibration_terms`; fast is None where the method does not read it.

    Returns:
        Log name -> (R,) values in [0, 1]; NaN for a rollout without an anchor.
    """
    found = {}
    for name, scores in (("slow", slow), ("fast", fast)):
        for side, mask in (("correct", correct), ("incorrect", ~correct)):
            if scores is not None:
                present = mask & known & ~scores.isnan()
                found[f"confidence/{name}_{side}"] = partition_mean(scores.exp(), present, partition)
    return found


def group_statistics(
    rewards_per_func: Tensor,
    advantages: Advantages,
    objectives: Sequence[str],
    num_generations: int,
    terms: Terms = (None, None),
    words: Tensor | None = None,
) -> dict[str, float]:
    """Means over the groups of a batch: spread of each objective, calibration terms, signal, interference.

    Args:
        rewards_per_func: (R, K) rewards of all processes, groups contiguous.
        advantages: advantages of the update.
        objectives: names of the K columns.
        num_generations: G.
        terms: T+ and T-.
        words: (R,) number of words of each answer; None if there are no terms.

    Returns:
        Log name -> value.
    """
    spreads = {
        name: group_spread(rewards_per_func[:, column], num_generations)[::num_generations]
        for column, name in enumerate(objectives)
    }
    found = {f"spread/{name}": spread.mean().item() for name, spread in spreads.items()}
    rivals = {name: rewards_per_func[:, column] for column, name in enumerate(objectives) if name != "format"}
    rivals |= {} if words is None else {"words": words}
    for side, term in zip(("correct", "incorrect"), terms, strict=True):
        if term is not None:
            found |= _term_statistics(side, term, rivals, num_generations)
            found["calibration/share"] = advantages.share
    quiet = torch.stack([spread <= MIN_SPREAD for spread in spreads.values()]).all(dim=0)
    found["groups_without_signal"] = quiet.float().mean().item()
    interference = objective_statistics(rewards_per_func, advantages.tokens, objectives, num_generations)
    return found | {f"interference/{name}": value for name, value in interference.items()}


def _term_statistics(side: str, term: Tensor, rivals: Mapping[str, Tensor], num_generations: int) -> dict[str, float]:
    # Mean of a term, its mean spread in a group, and its mean correlation in a group with recall, precision and words.
    spread = group_spread(term, num_generations).mean().item()
    found = {f"calibration/delta_{side}": known_mean(term), f"calibration/spread_{side}": spread}
    filled = group_minimum(term, num_generations)
    for name, values in rivals.items():
        correlation = group_correlation(filled, values, num_generations)
        found[f"calibration/{side}_with_{name}"] = known_mean(correlation)
    return found


def log_used(logs: Mapping[str, Any], metrics: Mapping[str, list[float]], used: Advantages, quiet: float) -> None:
    """Put the advantages of the update, and the share of quiet groups, in TRL's logs in place of what TRL computed."""
    metrics["frac_reward_zero_std"][-1] = quiet
    table = logs["advantages"]
    kept = list(table)[: -len(used.tokens)]
    table.clear()
    table.extend([*kept, *used.tokens.tolist()])
    if used.reasoning is not None:
        logs["extra"]["advantage_added_to_reasoning"].extend(used.reasoning.tolist())


def statistics_by_mode(
    fast: Tensor,
    rewards_per_func: Tensor,
    used: Advantages,
    objectives: Sequence[str],
    size: int,
    terms: Terms,
    words: Tensor | None,
) -> dict[str, float]:
    """`group_statistics` of the groups that think slowly (of all where all answer fast), and mean rewards by mode.

    Args:
        fast: (R,) bool, rollouts of groups that answer fast; without any, the result is that of `group_statistics`.
        rewards_per_func: (R, K) rewards.
        used: advantages of the update.
        objectives: names of the K rewards.
        size: G, rollouts per group.
        terms: T+ and T-.
        words: (R,) words of each answer.

    Returns:
        Log name -> value; of the rewards `slow/recall`, `fast/recall` and so on.
    """
    kept = fast if fast.all() else ~fast
    tokens, reasoning, plus, minus, counted = (
        None if values is None else values[kept] for values in (used.tokens, used.reasoning, *terms, words)
    )
    assert tokens is not None
    part = Advantages(tokens, reasoning, used.share)
    found = group_statistics(rewards_per_func[kept], part, objectives, size, (plus, minus), counted)
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
