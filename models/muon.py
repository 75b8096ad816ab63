"""Muon: momentum, then the nearest orthogonal matrix as the update.

Source: Jordan et al., Muon (2024), with the quintic Newton-Schulz coefficients published there.

Not covered: the per-row second-moment rescaling that some variants add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .distributed import shard_like, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Move the singular values of each matrix close to 1, roughly into [0.7, 1.2].

    Runs in bfloat16 on a GPU, in the given precision on the CPU. Costs ``steps`` times three matrix products.

    Args:
        matrices: ``(..., rows, columns)``.
        steps: Newton-Schulz steps.

    Returns:
        Matrices of the same shape and dtype.

    >>> sizes = torch.linalg.svdvals(orthogonalize(torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))))
    >>> bool(sizes.min() > 0.6 and sizes.max() < 1.3)
    True
    """
    x: Tensor = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; matrices of one shape are treated in one batch.

    The step is ``lr * sqrt(max(1, rows / columns))`` times the orthogonal matrix; weight decay is decoupled.

    Args:
        params: Matrices, or groups of them.
        lr: Learning rate.
        momentum: Decay of the momentum.
        weight_decay: Shrinks weights by ``lr * weight_decay`` per step.
    """

    def __init__(self, params: Iterable[Any], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure here
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for parameters in shapes.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices that share a shape; sharded ones are orthogonalised whole, on every rank."""
        rows, columns = parameters[0].shape
        updates = []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            updates.append(whole(gradient.lerp(state["momentum"], group["momentum"])))
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        for parameter, update in zip(parameters, orthogonalize(torch.stack(updates)), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(shard_like(update, parameter), alpha=-rate)
