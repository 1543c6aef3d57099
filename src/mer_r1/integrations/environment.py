"""The method inside other trainers' engines: ms-swift and verl get our rewards, advantages and calibration as plug-ins.

Each file is one plug-in, loaded by its host from the command line (docs/integrations.md has the lines). They hand plain
tensors and texts to the functions that our own trainer calls (`rewards`, `advantages`, `calibration`, `anchors`), and
nothing of ours imports them. Hosts have no place for our settings, so these come from the environment:

- `MER_R1_METHOD`: the choices of `method.Method` as a JSON object, e.g. `{"method": "ad", "format_weight": 0.1}`;
- `MER_R1_WHEELS`: folder of the official emotion wheels; the built-in wheels if not set.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mer_r1.emotions import wheels
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.rl.method import Method, method_advantages

GOLD_COLUMNS = ("gold", "labels", "solution")
"""Where a data set may keep the gold emotion words, in this order."""


RENAMED = {"name": "method", "level": "confidence_level", "clip": "confidence_clip"}
"""Spellings of version 0.1, which the next release drops."""


def chosen_method() -> Method:
    """The method of `MER_R1_METHOD`; the full one if not set.

    Raises:
        UserError: it is no JSON object of the method's choices.
    """
    text = os.environ.get("MER_R1_METHOD", "{}")
    try:
        given = json.loads(text)
        return Method(**{RENAMED.get(key, key): value for key, value in given.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"MER_R1_METHOD: {error}; expected a JSON object of the method's choices") from error


def chosen_taxonomy() -> Taxonomy:
    """The wheels of `MER_R1_WHEELS`, or the built-in ones."""
    return wheels.load(os.environ.get("MER_R1_WHEELS"))


def gold_of(columns: Mapping[str, Any]) -> Any:
    """The gold of a row or of a batch of rows.

    Raises:
        UserError: there is no such column.
    """
    for name in GOLD_COLUMNS:
        if columns.get(name) is not None:
            return columns[name]
    raise UserError(f"no gold labels: expected one of the columns {', '.join(GOLD_COLUMNS)}, got {sorted(columns)}")


def grouped_advantages(
    method: Method,
    rewards_per_func: Tensor,
    groups: list[Any],
    delta_correct: Tensor | None = None,
    delta_incorrect: Tensor | None = None,
) -> Tensor:
    """`method_advantages` for rows in any order and groups of any size.

    Args:
        method: the choices.
        rewards_per_func: (R, K) in the order of ``method.objectives``; NaN where unscorable.
        groups: R names; rows with the same name are rollouts of one prompt.
        delta_correct: (R,) the calibration's terms, where the method calibrates.
        delta_incorrect: (R,).

    Returns:
        (R,) advantages; 0 for a rollout that is alone in its group.
    """
    names = list(dict.fromkeys(groups))
    members = [[row for row, group in enumerate(groups) if group == name] for name in names]
    size = max(2, max(map(len, members), default=2))
    # Smaller groups are filled up with rows that no function could score: they count for nothing.
    rows = torch.tensor([[*group, *([-1] * (size - len(group)))] for group in members]).reshape(-1)

    def arranged(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        found = values[rows.clamp(min=0).to(values.device)].clone()
        found[rows.to(values.device) < 0] = torch.nan
        return found

    rewards = arranged(rewards_per_func)
    assert rewards is not None
    advantages = method_advantages(method, rewards, size, arranged(delta_correct), arranged(delta_incorrect))
    real = rows >= 0
    result = torch.zeros_like(advantages[: len(groups)])
    result[rows[real].to(result.device)] = advantages[real.to(result.device)]
    return result
