"""Muon for the hidden matrices and AdamW for the rest, as one optimizer for schedulers and checkpoints.

Muon (momentum whose matrix is orthogonalised) needs about half as many steps as AdamW to pretrain the tiny policy
(docs/log.md). Only the tiny policy's base uses it; fine-tuning uses the paper's optimizer.

The update is that of `torch.optim.Muon`, which computes it in bfloat16 and in every process. It is computed in float32
here, all matrices of one shape at once, and the processes of a run share the work. `torch.optim.Muon` does not replace
it, because the weights are not bit-identical: they differ by 2e-4 after one step of 200 on random gradients, by 2e-3
after all (it takes 0.4 times our CPU time on a processor with bfloat16 arithmetic, twice our time on one without).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

LEARNING_RATE = 0.02
"""Learning rate of the matrices, in units of an orthogonal matrix."""
MOMENTUM = 0.95
LARGEST = 1024
"""Largest side of a matrix for Muon: orthogonalising a larger one would cost more than the training step."""
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""Newton-Schulz iteration (Keller Jordan's coefficients): singular values end between about 0.7 and 1.2."""


class MuonAdamW(torch.optim.Optimizer):
    """Muon for matrices with sides up to `LARGEST`, `torch.optim.AdamW` for the rest.

    Args:
        named_parameters: names and parameters; names with "embed" or "head" are not hidden matrices.
        adamw_lr: learning rate of AdamW.
        weight_decay: weight decay of both.
        muon_lr: learning rate of Muon.
        divided: whether the processes of a run share Muon's work; all must step with the same gradients.
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


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum with decoupled weight decay.

    Args:
        matrices: two-dimensional parameters.
        lr: learning rate; multiplied by sqrt(height / width) for matrices that are taller than wide.
        weight_decay: weight decay per step, in units of `lr`.
        divided: whether processes share the work, see `MuonAdamW`.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], lr: float, weight_decay: float, divided: bool = False) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self._divided = divided and distributed.is_available() and distributed.is_initialized()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of all matrices with a gradient."""
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
        flat = torch.cat([update.flatten() for update in updates])  # zero where other processes do the work
        distributed.all_reduce(flat)
        parts = flat.split([update.numel() for update in updates])
        return [part.view_as(update) for part, update in zip(parts, updates, strict=True)]


def orthogonal(matrices: Tensor) -> Tensor:
    """Orthogonalise matrices by the quintic Newton-Schulz iteration: same singular vectors, singular values near 1.

    Args:
        matrices: (N, H, W); computed in their own precision.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    a, b, c = QUINTIC
    result = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = result @ result.mT
        result = torch.baddbmm(result, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result
