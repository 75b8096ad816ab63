"""What one state of a loop is reduced to: its norm, the step that led to it, and the cosine with the step before.

`EagerReduction` is made of torch operations, works on every device, and is the oracle of `fused.FusedReduction`, which
does the same in one pass over memory on CUDA. Both remember what they need of the states before; both write sums over
tokens and return over how many.

Sequences may join a loop late: the batch then grows, and is always a prefix of the next one. A step is measured on the
sequences that were already there.

Not covered: sequences that join anywhere but at the end of the batch.
"""

# Shapes: n sequences active in this loop, S positions, D width.

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

STATE, STEP, COSINE = range(3)
SUMS = 3
MOST_WAITING = 32  # states reduced at a time
WAITING_BYTES = 4 << 20  # of them and their steps
TINY = torch.finfo(torch.float32).tiny


class Tokens(NamedTuple):
    """Over how many tokens each sum of a row is."""

    state: int
    step: int
    cosine: int


class Reduction(Protocol):
    """Reduces the states ``h_0 … h_T`` of a forward, one after another, to rows of sums over tokens.

    The columns of a row are the sums of ‖h_t‖, of ‖h_t − h_{t−1}‖, and of the cosine of that step with the one before
    it. A column over no tokens is left as it is.
    """

    parts: int
    """Partial sums that a row consists of."""

    def forget(self) -> None:
        """Begins a new forward; rows that wait are written first."""

    def add(self, state: Tensor, rows: Tensor, at: int) -> Tokens:
        """Takes the next state ``(n, …, D)``, for row ``at`` of ``rows (R, parts, 3)``; it may change afterwards."""

    def settle(self) -> None:
        """Writes the rows that wait."""


class EagerReduction:
    """The sums by torch operations, in float32 whatever the state is in.

    States are copied and reduced several at a time: behind a layer of the model nothing of ours is in the processor's
    caches any more, and then ten small operations cost more than the arithmetic (3 ms a step against 1.2 at width 256).

    Args:
        keep_steps: How many tokens' step norms of every loop are kept besides, from the first positions of each
            sequence; 0 keeps none.

    Attributes:
        steps: The step norms kept since `forget`, ``(n, positions)`` each, one per loop.

    >>> reduction, rows = EagerReduction(), torch.zeros(3, 1, SUMS)
    >>> for at, h in enumerate(([[3.0, 4.0]], [[3.0, 0.0]], [[3.0, -1.0]])):
    ...     tokens = reduction.add(torch.tensor([h]), rows, at)
    >>> reduction.settle()
    >>> rows[2].tolist(), tokens.cosine
    ([[3.1622776985168457, 1.0, 1.0]], 1)
    """

    parts = 1

    def __init__(self, keep_steps: int = 0) -> None:
        self._keep = keep_steps
        self._states = self._steps = torch.empty(0)  # slot 0: h_{t-1} and its step; then the waiting ones
        self._lengths = torch.empty(0)  # norms of the steps
        self._waiting, self._full = 0, False
        self._rows, self._at, self._limits = self._states, 0, (0, 0)  # where the waiting ones go
        self.forget()

    def forget(self) -> None:
        """Begins a new forward; rows that wait are written first."""
        self.settle()
        self._known = 0  # states of this forward before the waiting ones
        self._last_rows = self._before_rows = 0  # sequences in h_{t-1} and h_{t-2}
        self.steps: list[Tensor] = []

    def add(self, state: Tensor, rows: Tensor, at: int) -> Tokens:
        """As `Reduction.add`."""
        n, inner = len(state), state.shape[1:-1].numel()
        grew = not {self._last_rows, self._before_rows} <= {0, n}
        if self._waiting and (self._full or grew or at != self._at + self._waiting or rows is not self._rows):
            self.settle()
        if state.shape != self._states.shape[1:] or state.device != self._states.device:
            self._make_room(state)
        if not self._waiting:
            self._rows, self._at, self._limits = rows, at, (self._last_rows, self._before_rows)
            self._full = grew  # a chunk holds states of as many sequences, and steps and cosines too
        self._waiting += 1
        self._states[self._waiting].copy_(state)
        self._full = self._full or self._waiting == len(self._states) - 1
        tokens = Tokens(n * inner, self._last_rows * inner, self._before_rows * inner)
        self._last_rows, self._before_rows = n, self._last_rows
        return tokens

    def settle(self) -> None:
        """Writes the rows that wait."""
        count, self._waiting = self._waiting, 0
        if not count:
            return
        first = max(0, 1 - self._known)  # the first waiting state that has a step behind it
        second = max(0, 2 - self._known)
        n, m = (limit if limit and count == 1 else None for limit in self._limits)
        states, steps, lengths = self._states, self._steps, self._lengths
        out = self._rows[self._at : self._at + count, 0]
        out[:, STATE] = torch.linalg.vector_norm(states[1 : count + 1], dim=-1).flatten(1).sum(1)
        if first < count:
            after, before = slice(first + 1, count + 1), slice(first, count)
            torch.sub(states[after, :n], states[before, :n], out=steps[after, :n])
            torch.linalg.vector_norm(steps[after, :n], dim=-1, out=lengths[after, :n])
            out[first:, STEP] = lengths[after, :n].flatten(1).sum(1)
            if self._keep:
                self.steps += list(lengths[after, :n, : self._keep].clone())
        if second < count:
            after, before = slice(second + 1, count + 1), slice(second, count)
            cosines = torch.linalg.vecdot(steps[after, :m], steps[before, :m])
            # One length after the other: their product leaves float32 sooner than they do. A step of zero has no
            # direction; its cosine counts as zero.
            norms = lengths[second : count + 1, :m].clamp(min=TINY)
            out[second:, COSINE] = cosines.div_(norms[1:]).div_(norms[:-1]).flatten(1).sum(1)
        states[0], steps[0], lengths[0] = states[count], steps[count], lengths[count]
        self._known += count

    def _make_room(self, state: Tensor) -> None:
        """Slots for states of this shape; what slot 0 holds of fewer sequences is kept."""
        slots = 1 + max(1, min(MOST_WAITING, WAITING_BYTES // (8 * max(1, state.numel()))))
        old = self._states, self._steps, self._lengths
        self._states = torch.empty(slots, *state.shape, dtype=torch.float32, device=state.device)
        self._steps, self._lengths = torch.empty_like(self._states), torch.empty_like(self._states[..., 0])
        if self._last_rows:
            for new, one in zip((self._states, self._steps, self._lengths), old, strict=True):
                new[0, : self._last_rows] = one[0]


def reduction_for(device: torch.device) -> Reduction:
    """The fastest reduction of states on this device."""
    if device.type == "cuda":
        try:
            from .fused import FusedReduction
        except ImportError:  # no Triton: the eager one is right, and slower
            pass
        else:
            return FusedReduction()
    return EagerReduction()


def _tokens(x: Tensor) -> int:
    """Number of tokens of ``x (n, …, D)``."""
    return x.shape[:-1].numel()
