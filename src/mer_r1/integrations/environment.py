"""Settings and helpers that the plug-ins for ms-swift and verl share.

Each plug-in is one file, which its host loads (docs/integrations.md has the command lines). They pass plain tensors and
texts to the functions of our own trainer (`rl.rewards`, `rl.advantages`, `rl.calibration`, `rl.anchors`). The hosts
have no place for our settings, so these come from the environment:

- `MER_R1_METHOD`: fields of `rl.method.Method` as a JSON object, e.g. `{"method": "ad", "format_weight": 0.1}`;
- `MER_R1_WHEELS`: folder of the official emotion wheels; the built-in wheels if not set.
"""

import json
import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mer_r1.emotions import wheels
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.rl.method import Method, method_advantages

logger = logging.getLogger(__name__)

GOLD_COLUMNS = ("gold", "labels", "solution")
"""Columns that may hold the gold emotion words; the first one with a value counts."""
RENAMED = {"name": "method", "level": "confidence_level", "clip": "confidence_clip"}
"""Field names of version 0.1 and their successors; the next release drops the old names."""
_load_wheels = lru_cache(maxsize=1)(wheels.load)


def chosen_method(default: str = "mer-r1") -> Method:
    """The method of `MER_R1_METHOD`.

    Args:
        default: `Method.method` where the variable names none: what works in the host.

    Raises:
        UserError: the variable is not a JSON object of the method's fields, or its advantages differ between the tokens
            of a rollout: hosts take one each.
    """
    method = _method_of(os.environ.get("MER_R1_METHOD", "{}"), default)
    if method.calibrates and method.calibration == "reasoning":
        raise UserError("MER_R1_METHOD: calibration=reasoning needs an advantage per token; use mer-r1 rl for it")
    return method


@lru_cache(maxsize=2)
def _method_of(text: str, default: str) -> Method:
    # Cached: a plug-in asks at every step, and the note on old names should appear once.
    try:
        given = json.loads(text)
        method = Method(**{"method": default} | {RENAMED.get(key, key): value for key, value in given.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"MER_R1_METHOD: {error}; expected a JSON object of the method's fields") from error
    if old := [name for name in given if name in RENAMED]:
        changes = ", ".join(f"{name!r} is now {RENAMED[name]!r}" for name in old)
        logger.warning("MER_R1_METHOD: %s; the next release drops the old spelling", changes)
    return method


def chosen_taxonomy() -> Taxonomy:
    """The wheels in the folder `MER_R1_WHEELS`, or the built-in ones."""
    return _load_wheels(os.environ.get("MER_R1_WHEELS"))


def gold_of(columns: Mapping[str, Any]) -> Any:
    """Gold labels of a row or of a batch of rows.

    Raises:
        UserError: no such column has a value.
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
        method: choices.
        rewards_per_func: (R, K) in the order of ``method.objectives``; NaN where unscorable.
        groups: R names; rows with the same name are rollouts of one prompt.
        delta_correct: (R,) T+, if the method calibrates.
        delta_incorrect: (R,) T-.

    Returns:
        (R,) advantages; 0 for a rollout that is alone in its group.
    """
    names = list(dict.fromkeys(groups))
    members = [[row for row, group in enumerate(groups) if group == name] for name in names]
    size = max(2, max(map(len, members), default=2))
    # Smaller groups are padded with an unscorable last row, which does not count.
    rows = torch.tensor([[*group, *([-1] * (size - len(group)))] for group in members]).reshape(-1)

    def arranged(values: Tensor) -> Tensor:
        return torch.cat([values, torch.full_like(values[:1], torch.nan)])[rows.to(values.device)]

    plus, minus = (None if term is None else arranged(term) for term in (delta_correct, delta_incorrect))
    advantages = method_advantages(method, arranged(rewards_per_func), size, plus, minus).tokens
    rows = rows.to(advantages.device)
    result = torch.zeros_like(advantages[: len(groups)])
    result[rows[rows >= 0]] = advantages[rows >= 0]
    return result
