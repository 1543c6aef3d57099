"""Muon on the hidden matrices, AdamW on everything else, as one optimizer to schedulers and checkpoints.

A tiny policy learns to see and to read from nothing within minutes. On two cores every step counts, and Muon (momentum
whose matrix is made orthogonal) needs about half of AdamW's steps here (docs/log.md). Only the tiny policy's base uses
it; fine-tuning stays with what the paper used.

The update is that of `torch.optim.Muon`, which does it in bfloat16 and in every process. A CPU without bfloat16
arithmetic takes twice as long for that, and a third of a training step went into it: here it is done in float32, all
matrices of one shape at once, and the processes of a run share the work.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

LEARNING_RATE = 0.02
"""Of the matrices: the length of a step, in units of an orthogonal matrix."""
MOMENTUM = 0.95
LARGEST = 1024
"""Making a larger matrix orthogonal would cost more than the step itself."""
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""Of the Newton-Schulz iteration (Keller Jordan's coefficients): singular values end between about 0.7 and 1.2."""


class MuonAdamW(torch.optim.Optimizer):
    """Muon for matrices up to `LARGEST` a side, `torch.optim.AdamW` for the rest.

    Args:
        named_parameters: names and parameters; those with "embed" or "head" in their names are no hidden matrices.
        adamw_lr: learning rate of the rest.
        weight_decay: of both.
        muon_lr: learning rate of the matrices.
        divided: the processes of a run divide Muon's work among them; all must step with the same gradients.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        adamw_lr: float,
        weight_decay: float,
        muon_lr: float = LEARNING_RATE,
        divided: bool = False,
    ) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in named_parameters:
            named_hidden = "embed" not in name and "head" not in name
            hidden = named_hidden and parameter.dim() == 2 and max(parameter.shape) <= LARGEST
            (matrices if hidden else rest).append(parameter)
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(Muon(matrices, muon_lr, weight_decay, divided))
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


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal; weight decay apart from it.

    Args:
        matrices: two-dimensional parameters.
        lr: length of a step; grows with the square root of height over width where a matrix is taller than wide.
        weight_decay: share of `lr` that a weight loses in a step.
        divided: see `MuonAdamW`.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], lr: float, weight_decay: float, divided: bool = False) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self._divided = divided and distributed.is_available() and distributed.is_initialized()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step for the matrices that have a gradient."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            momenta = [self._momentum(parameter) for parameter in moved]
            for parameter, update in zip(moved, self._orthogonal(momenta), strict=True):
                height, width = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * max(1.0, height / width) ** 0.5)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(state["momentum_buffer"], MOMENTUM)

    def _orthogonal(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        count = distributed.get_world_size() if self._divided else 1
        rank = distributed.get_rank() if self._divided else 0
        updates = [torch.zeros_like(matrix) for matrix in matrices]
        shapes: dict[tuple[int, ...], list[int]] = {}
        for index, matrix in enumerate(matrices):
            shapes.setdefault(tuple(matrix.shape), []).append(index)
        for number, indices in enumerate(shapes.values()):
            mine = indices[(rank + number) % count :: count]
            if mine:
                done = orthogonal(torch.stack([matrices[index] for index in mine]))
                for index, update in zip(mine, done, strict=True):
                    updates[index] = update
        if count == 1:
            return updates
        flat = torch.cat([update.flatten() for update in updates])  # the others' are zero
        distributed.all_reduce(flat)
        parts = flat.split([update.numel() for update in updates])
        return [part.view_as(update) for part, update in zip(parts, updates, strict=True)]


def orthogonal(matrices: Tensor) -> Tensor:
    """Singular vectors kept, singular values brought near 1, by the quintic Newton-Schulz iteration.

    Args:
        matrices: (N, H, W); the reference is `torch.optim.Muon`'s, in the matrices' own precision.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    a, b, c = QUINTIC
    result = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = result @ result.mT
        result = torch.baddbmm(result, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result
