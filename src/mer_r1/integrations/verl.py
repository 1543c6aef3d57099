"""Plug-in for verl's PPO trainer: one reward function, and the method's advantages as an estimator.

`compute_score` is verl's custom reward function: it returns the weighted sum as `score` and each objective beside it,
which verl passes to the advantages as columns. verl passes columns to one estimator only, the one named `gdpo`, so ours
takes that place: importing this file (`VERL_USE_EXTERNAL_MODULES=mer_r1.integrations.verl`) replaces `gdpo` in verl's
registry and registers the same function as `mer_r1`. Rows may come in any order: equal `uid` marks one group.

verl computes advantages in a process without a model. So the default here is "ad", and the calibration (method
"mer-r1") needs its two terms as columns `delta_correct` and `delta_incorrect`, from a reward function of yours that can
run the policy (`rl.anchors.terms_of` computes them from confidences); `MER_R1_TERMS=columns` says that it does.

Written against verl 0.9.1 (`trainer/ppo/core_algos.py`, `trainer/ppo/ray_trainer.py`, `trainer/ppo/reward.py`,
`experimental/agent_loop/agent_loop.py`). Its newer trainer (`trainer.use_v1`, the default) passes no columns at all:
set it to False. Tests hold the signatures; docs/engines.md says what was run inside verl itself.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mer_r1.errors import UserError
from mer_r1.integrations.environment import chosen_method, chosen_taxonomy, grouped_advantages
from mer_r1.rl.method import Method
from mer_r1.rl.rewards import reward_function

OBJECTIVES = ("format", "recall", "precision", "f1")
"""Columns of every reward, for the logs; those of a baseline of other papers are added."""
TERMS = ("delta_correct", "delta_incorrect")


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **_: Any
) -> dict[str, float]:
    """Verl's custom reward function, of a completion and its gold labels (a list or a string).

    Returns:
        `score`, the method's weighted sum, 0 where no wheel can place the gold; and the objectives format, recall,
        precision and f1 in [0, 1], of which the last three are NaN there, so that the advantages leave them out. A
        baseline of other papers adds its own.
    """
    method = verl_method()
    found = {}
    for name in dict.fromkeys((*OBJECTIVES, *method.objectives)):
        reward = reward_function(name, chosen_taxonomy(), **method.reward_options)
        value = reward(completions=[solution_str], labels=[ground_truth])[0]
        found[name] = math.nan if value is None else value
    total = sum(weight * found[name] for name, weight in zip(method.objectives, method.weights, strict=True))
    return {"score": 0.0 if math.isnan(total) else total, **found}


def advantages(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Any = None,
    config: Any = None,
    non_tensor_batch: Mapping[str, Any] | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Verl's advantage estimator (`algorithm.adv_estimator=gdpo`).

    Args:
        token_level_rewards: (R, T) sums of the columns; not used.
        response_mask: (R, T) 1 at each token of a response.
        index: R names of prompts (verl's `uid`).
        config: verl's algorithm settings; not used.
        non_tensor_batch: columns of `compute_score`.

    Returns:
        Advantages and returns, (R, T) each, both the rollout's advantage at each of its tokens.

    Raises:
        UserError: a column is missing.
    """
    method = verl_method()
    columns = non_tensor_batch or {}
    wanted = [*method.objectives, *(TERMS if method.calibrates else ())]
    if missing := [name for name in wanted if name not in columns]:
        raise UserError(
            f"method {method.method}: verl's batch has no column {', '.join(missing)} (needs adv_estimator=gdpo, "
            "trainer.use_v1=False, and a reward function that returns them)"
        )
    device = response_mask.device
    found = {name: torch.tensor([float(value) for value in columns[name]], device=device) for name in wanted}
    rewards = torch.stack([found[name] for name in method.objectives], dim=1)
    terms = (found[name] for name in TERMS) if method.calibrates else (None, None)
    result = grouped_advantages(method, rewards, list(index), *terms).unsqueeze(1) * response_mask
    return result, result


def verl_method() -> Method:
    """The method of `MER_R1_METHOD`; "ad" where it names none.

    Raises:
        UserError: it calibrates, and `MER_R1_TERMS` does not say that a reward function returns the terms.
    """
    method = chosen_method("ad")
    if method.calibrates and os.environ.get("MER_R1_TERMS") != "columns":
        raise UserError(
            "MER_R1_METHOD: verl computes advantages without a model, so mer-r1 needs a reward function of yours that "
            f"returns the columns {' and '.join(TERMS)}: set MER_R1_TERMS=columns if it does, or choose f1, rd or ad"
        )
    return method


def install() -> None:
    """Add the estimator to verl's registry; runs when verl imports this file."""
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

    verl_method()  # a mistake in it fails before anything is loaded
    register_adv_est("mer_r1")(advantages)
    ADV_ESTIMATOR_REGISTRY["gdpo"] = advantages


try:
    import verl as _host  # noqa: F401
except ImportError:
    pass  # imported outside verl
else:
    install()
