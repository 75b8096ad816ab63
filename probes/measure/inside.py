"""Inside a training step, for the preset ``study``: what each block does to the state, and how the loss depends on it.

In the first loop of a forward, the norm of the state after the injection and after every block of the body, and before
the loop after every block of the prelude: whether the state jumps because the input is injected, or at a block.
In the backward pass, the norm of ∂L/∂h_t at every loop: it tells whether the gradient grows or dies on its way back.

Not covered: gradients in compiled code and inside reentrant checkpoints, where the state that the tap sees is not the
one that gradients reach; they are recorded as missing. With several micro-batches the norms after blocks are means over
all of them, and gradient norms are of all their tokens together.
"""

# Shapes: T loops, K places.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...loops.site import LoopSite
from ...runfile.layout import BLOCK_NORM, GRADIENT_NORM
from .tap import LoopTap

DEEPEST = 1024  # loops whose gradient norm is kept


@dataclass(frozen=True, slots=True)
class InsideCounts:
    """Tokens behind each place, and whether the gradient of each loop arrived."""

    tokens: tuple[int, ...]
    arrived: tuple[bool, ...]

    def norms(self, inside: NDArray[Any], gradients: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the step's arrays: NaN where nothing was measured, infinite where what was measured is not finite.

        An array of which nothing was measured is left out.

        Args:
            inside: Sums of norms ``(K,)``.
            gradients: Squares of norms ``(T + 1,)``.

        >>> counts = InsideCounts((2, 0), (False, True, True))
        >>> norms = counts.norms(np.array([6.0, 0.0]), np.array([0.0, 4.0, np.nan]))
        >>> {name: values.tolist() for name, values in norms.items()}
        {'block_state_norm': [3.0, nan], 'state_gradient_norm': [nan, 2.0, inf]}
        """
        tokens, arrived = np.array(self.tokens), np.array(self.arrived, dtype=bool)
        norms = {}
        if tokens.any():
            norms[BLOCK_NORM] = _where(tokens > 0, inside / np.maximum(tokens, 1))
        if arrived.any():
            norms[GRADIENT_NORM] = _where(arrived, np.sqrt(gradients))
        return norms


def _where(measured: NDArray[np.bool_], values: NDArray[Any]) -> NDArray[np.float32]:
    """Return values where there are any, NaN elsewhere; a NaN that was measured becomes an infinity."""
    return np.where(measured, np.nan_to_num(values, nan=np.inf, posinf=np.inf), np.nan).astype(np.float32)


class InsideTap:
    """Collects the inner norms of one training step; tensors on the device, nothing waited for.

    Args:
        site: Where its loop is.
        tap: The tap of the loop, which tells when a forward is recorded.
        device: Where the model computes.

    Attributes:
        places: Names of the modules whose output is measured, prelude first, in running order.
    """

    def __init__(self, site: LoopSite, tap: LoopTap, device: torch.device) -> None:
        self.places = (*site.prelude, *site.sublayers)
        self._tap = tap
        self._norms = torch.zeros(len(self.places), device=device)
        self._gradients = torch.zeros(DEEPEST, device=device)
        self._tokens = [0] * len(self.places)
        self._done: set[int] = set()  # places seen in the forward under way
        self._forward = -1  # its first row
        self._reached: set[int] = set()  # loops whose gradient arrived
        self._broken = False
        if self.places:
            tap.watch_inside(self.places)

    def enable(self, due: bool) -> None:
        """Say whether the next step is measured, and forget the last one."""
        due = due and not self._broken
        self._tap.on_inner = self._inner if due else None
        self._tap.on_state = self._state if due else None
        self._norms.zero_()
        self._gradients.zero_()
        self._tokens = [0] * len(self.places)
        self._done, self._reached, self._forward = set(), set(), -1

    def device_rows(self) -> dict[str, Tensor]:
        """Return sums over tokens of the norms ``(K,)`` and of squared gradient norms ``(T + 1,)``, where they are."""
        deepest = max(self._reached, default=-1)
        return {"inside": self._norms.clone(), "gradients": self._gradients[: deepest + 1].clone()}

    @property
    def counts(self) -> InsideCounts:
        """What the host knows about those sums."""
        deepest = max(self._reached, default=-1)
        return InsideCounts(tuple(self._tokens), tuple(t in self._reached for t in range(deepest + 1)))

    @torch.no_grad()
    def _inner(self, place: int, output: Tensor) -> None:
        """Add what a module returned, the first time that it runs in a forward."""
        sums = self._tap.recorded
        assert sums is not None
        if sums.first != self._forward:
            self._forward, self._done = sums.first, set()
        if place in self._done:
            return
        self._done.add(place)
        norms = torch.linalg.vector_norm(_wide(output.detach()), dim=-1, dtype=torch.float32)
        self._norms[place] += norms.sum()
        self._tokens[place] += norms.numel()

    def _state(self, loop: int, state: Tensor) -> None:
        """Wait for the gradient of a state; a hook that returns nothing changes nothing."""
        if not state.requires_grad or loop >= DEEPEST:
            return

        def arrive(gradient: Tensor) -> None:
            try:
                self._add_gradient(loop, gradient)
            except Exception as error:  # in the middle of the user's backward pass
                self._broken = True
                self._tap.report("gradients_lost", f"gradients of states are measured no more: {error}", error)

        state.register_hook(arrive)

    @torch.no_grad()
    def _add_gradient(self, loop: int, gradient: Tensor) -> None:
        """Add the square of a gradient's norm: squares add over micro-batches."""
        norm = torch.linalg.vector_norm(_wide(gradient), dtype=torch.float32)
        self._gradients[loop] += norm * norm
        self._reached.add(loop)


def _wide(x: Tensor) -> Tensor:
    """Return float64 as float32, which a float32 norm needs."""
    return x.float() if x.dtype == torch.float64 else x
