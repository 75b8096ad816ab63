"""The backward solve of a fixed point: how often its gradient is carried through one call of the loop's map.

A model that solves for its state (a deep equilibrium model) finds the gradient by solving, too: backward runs the map
once more and asks autograd for products with its Jacobian until they settle. A state that is seen in that call says how
many those are: its gradient arrives once in each. That is counted on the host, and the gradients are not touched.

Where every state is made once and its gradient arrives once (training through all loops, or with checkpoints), nothing
solves, and there is no number.

Not covered: states inside compiled graphs, and the residual of the backward solve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class BackwardSolves:
    """Counts how often gradients arrive at states, from one row to the next.

    >>> solves = BackwardSolves()
    >>> h = torch.ones(2, requires_grad=True)
    >>> solves.watch(h)
    >>> made = torch.tanh(h)
    >>> for _ in range(5):
    ...     gradient = torch.autograd.grad(made.sum(), h, retain_graph=True)
    >>> solves.take()
    {'backward_depth': 5.0}
    >>> solves.take()
    {}
    """

    def __init__(self) -> None:
        self._counts: list[list[int]] = []
        self._handles: list[RemovableHandle] = []

    def watch(self, state: Tensor, *, kept: bool = False) -> None:
        """Count the gradients that arrive at a state until the next row.

        Args:
            state: It is the argument of the map in the call that is solved with.
            kept: Whether that call is the forward's own: the last gradient that arrives is then the solution itself.
        """
        if not (state.requires_grad and torch.is_grad_enabled()):
            return
        count = [-int(kept)]

        def arrived(gradient: Tensor) -> None:
            count[0] += 1

        self._counts.append(count)
        self._handles.append(state.register_hook(arrived))

    def take(self) -> dict[str, float]:
        """Return the mean over solves by its name in the next row, and begin anew; empty without a solve."""
        counts = [count for (count,) in self._counts if count > 1]
        for handle in self._handles:
            handle.remove()
        self._counts, self._handles = [], []
        return {"backward_depth": sum(counts) / len(counts)} if counts else {}
