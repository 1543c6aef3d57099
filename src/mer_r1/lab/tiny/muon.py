"""Muon for the hidden matrices and AdamW for the rest, as one optimizer for schedulers and checkpoints.

Muon (momentum whose matrix is orthogonalised) needs about half as many steps as AdamW to pretrain the tiny policy
(docs/log.md). Only the tiny policy's base uses it; fine-tuning uses the paper's optimizer.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

LEARNING_RATE = 0.02
"""Learning rate of the matrices, in units of an orthogonal matrix."""
LARGEST = 1024
"""Largest side of a matrix for Muon: orthogonalising a larger one would cost more than the training step."""


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for matrices with sides up to `LARGEST`, `torch.optim.AdamW` for the rest.

    Args:
        named_parameters: names and parameters; names with "embed" or "head" are not hidden matrices.
        adamw_lr: learning rate of AdamW.
        weight_decay: weight decay of both.
        muon_lr: learning rate of Muon.
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
            ValueError: if a closure is given; both parts would run it.
        """
        if closure is not None:
            raise ValueError("closure: not supported, call backward before step")
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load both states and expose their parameter groups to schedulers."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]
