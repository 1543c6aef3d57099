"""Muon on the hidden matrices, AdamW on everything else, as one optimizer to schedulers and checkpoints.

A tiny policy learns to see and to read from nothing within minutes. On two cores every step counts, and Muon (momentum
whose matrix is made orthogonal) needs about half of AdamW's steps here (docs/log.md). Only the tiny policy's base uses
it; fine-tuning stays with what the paper used.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

LEARNING_RATE = 0.02
"""Of the matrices: the length of a step, in units of an orthogonal matrix."""
LARGEST = 1024
"""Making a larger matrix orthogonal would cost more than the step itself."""


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for matrices up to `LARGEST` a side, `torch.optim.AdamW` for the rest.

    Args:
        named_parameters: names and parameters; those with "embed" or "head" in their names are no hidden matrices.
        adamw_lr: learning rate of the rest.
        weight_decay: of both.
        muon_lr: learning rate of the matrices.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        adamw_lr: float,
        weight_decay: float,
        muon_lr: float = LEARNING_RATE,
    ) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in named_parameters:
            named_hidden = "embed" not in name and "head" not in name
            hidden = named_hidden and parameter.dim() == 2 and max(parameter.shape) <= LARGEST
            (matrices if hidden else rest).append(parameter)
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay))
        if rest:
            self._parts.append(torch.optim.AdamW(rest, lr=adamw_lr, weight_decay=weight_decay))
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both.

        Raises:
            ValueError: for a closure, which would have to run once and not twice.
        """
        if closure is not None:
            raise ValueError("closure: not supported, call backward before step")
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Both states, and the groups that schedulers set the learning rates of."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]
