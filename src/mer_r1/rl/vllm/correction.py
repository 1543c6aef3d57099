"""Truncated importance sampling: each sampled token weighs by the ratio of the policy's and the engine's probability.

TRL computes the ratios in a forward pass of their own. Where no update lies between sampling and training, that pass
equals the forward of the loss, so the trainer computes the ratios there, from these functions.

Source: TRL 1.16, `vllm_importance_sampling_*` of GRPOConfig; docs/vllm.md. Shapes: R rollouts, T completion tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImportanceRatios:
    """Ratios and gaps of a training batch.

    Attributes:
        ratios: (R, T), or (R, 1) for whole rollouts; what the loss is multiplied by.
        counted: the ratios that are logged: those of real tokens, or of all rollouts.
        gaps: absolute differences of the log-probabilities of real tokens, in nats.
    """

    ratios: Tensor
    counted: Tensor
    gaps: Tensor

    def statistics(self, gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Gap and ratios over all processes, under TRL's names; 0 where there is no token.

        Args:
            gather: collects a number of every process into one tensor.
        """
        gaps, ratios = (part if part.numel() else part.new_zeros(1) for part in (self.gaps, self.counted))
        gap, ratio = "sampling/sampling_logp_difference", "sampling/importance_sampling_ratio"
        return {
            f"{gap}/mean": gather(gaps.mean()).mean().item(),
            f"{gap}/max": gather(gaps.max()).max().item(),
            f"{ratio}/min": gather(ratios.min()).min().item(),
            f"{ratio}/mean": gather(ratios.mean()).mean().item(),
            f"{ratio}/max": gather(ratios.max()).max().item(),
        }


def importance_ratios(args: Any, logps: Tensor, batch: dict[str, Any]) -> ImportanceRatios:
    """The ratios of a training batch, bounded as the arguments say.

    Args:
        args: `vllm_importance_sampling_mode` ("token_truncate", "token_mask", "sequence_truncate" or "sequence_mask"),
            `_clip_min` and `_clip_max`. Outside of the bounds a ratio is set to the bound, or to 0 by the masks.
        logps: (R, T) log-probabilities of the policy.
        batch: `sampling_per_token_logps` and `completion_mask`, (R, T) each. A token whose log-probability the engine
            did not give (NaN) has ratio 1 and no gap.
    """
    mask, sampled = batch["completion_mask"], batch["sampling_per_token_logps"]
    mode = args.vllm_importance_sampling_mode
    low, high = args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max
    low, high = torch.finfo(logps.dtype).min if low is None else low, torch.inf if high is None else high
    difference = ((logps - sampled) * mask).nan_to_num(nan=0.0)
    of_tokens = mode.startswith("token")
    ratios = (difference if of_tokens else difference.sum(dim=1, keepdim=True)).exp()
    if mode.endswith("truncate"):
        ratios = ratios.clamp(low, high)
    else:
        ratios = ratios.masked_fill((ratios < low) | (ratios > high), 0.0)
    known = mask.bool() & ~sampled.isnan()
    counted = ratios[mask.bool()] if of_tokens else ratios.flatten()
    return ImportanceRatios(ratios, counted, (logps - sampled).abs()[known])
