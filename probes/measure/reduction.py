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
MOST_WAITING = 32  # states whose sums are made at a time
WAITING_BYTES = 4 << 20  # of their norms and products
TINY = torch.finfo(torch.float32).tiny


class Tokens(NamedTuple):
    """Over how many tokens each sum of a row is."""

    state: int
    step: int
    cosine: int


class Reduction(Protocol):
    """Reduces the states ``h_0 … h_T`` of a forward, one after another, to rows of sums over tokens.

    The columns of a row are the sums of ‖h_t‖, of ‖h_t − h_{t−1}‖, and of the cosine of that step with the one before
    it. What is in a column over no tokens means nothing.
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

    Behind a layer of the model nothing of ours is in the processor's caches any more, and then small operations cost
    more than arithmetic, and what we read and write takes the model's place there. So a state takes six operations in
    two buffers of its size, which leave norms and products for every token; sums over tokens are made of several states
    at a time (a state of 0.5 MB on a CPU: 0.12 ms; with a copy of every state and step kept apart 0.18 ms).

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
        self._shape, self._device, self._inner = torch.Size(), torch.device("cpu"), 0
        self._state = self._step = torch.empty(0)  # h_{t-1} and the step that led to it, (n, …, D)
        self._norms = self._products = torch.empty(0)
        # Views of one waiting state each, since making a view costs as much as a small operation; before them, of the
        # last settled one.
        self._waiting_norms: list[tuple[Tensor, Tensor]] = []
        self._waiting_products: list[Tensor] = []
        self._rows, self._at = torch.empty(0), 0  # where the waiting rows go
        self._waiting, self._room = 0, 0
        self.forget()

    def forget(self) -> None:
        """Begins a new forward; rows that wait are written first."""
        self.settle()
        self._known = 0  # states of this forward
        self._last_count = self._before_count = 0  # sequences in h_{t-1} and h_{t-2}
        self.steps: list[Tensor] = []

    def add(self, state: Tensor, rows: Tensor, at: int) -> Tokens:
        """As `Reduction.add`."""
        if self._waiting == self._room or at != self._at + self._waiting or rows is not self._rows:
            self.settle()
            self._rows, self._at = rows, at
        if state.shape != self._shape or state.device != self._device:
            self.settle()
            self._at = at
            self._make_room(state)
        self._waiting = waiting = self._waiting + 1
        n, m, count = self._last_count, self._before_count, len(state)
        # The last state becomes the step, in place, and the last step makes room for the state.
        self._state, self._step = now, step = self._step, self._state
        if n == count:
            torch.sub(state, step, out=step)
        else:  # sequences without a step behind them count with zero
            torch.sub(state[:n], step[:n], out=step[:n])
            step[n:].zero_()
        if m:
            torch.sum(now.mul_(step), -1, out=self._waiting_products[waiting])
        now.copy_(state)  # the model may update it in place before the next loop
        state_norms, step_norms = self._waiting_norms[waiting]
        torch.linalg.vector_norm(now, dim=-1, out=state_norms)
        torch.linalg.vector_norm(step, dim=-1, out=step_norms)
        self._known += 1
        self._last_count, self._before_count = count, n
        return Tokens(count * self._inner, n * self._inner, m * self._inner)

    def settle(self) -> None:
        """Writes the rows that wait."""
        count, self._waiting = self._waiting, 0
        if not count:
            return
        norms, rows = self._norms, self._rows[self._at : self._at + count, 0]
        rows[:, STATE:COSINE] = norms[1 : count + 1].flatten(2).sum(2)
        second = max(0, 2 - (self._known - count))  # the first waiting state with two steps behind it
        if second < count:
            # One length after the other: their product leaves float32 sooner than they do. A step of zero has no
            # direction; its cosine counts as zero.
            lengths = norms[second : count + 1, 1].clamp(min=TINY)
            cosines = self._products[second + 1 : count + 1].div_(lengths[1:]).div_(lengths[:-1])
            rows[second:, COSINE] = cosines.flatten(1).sum(1)
        if self._keep:
            first = max(0, 1 - (self._known - count))
            self.steps += list(norms[first + 1 : count + 1, 1, :, : self._keep].clone())
        norms[0] = norms[count]

    def _make_room(self, state: Tensor) -> None:
        """Buffers for states of this shape; what is known of the sequences that were already there is kept."""
        tokens = state.shape[:-1].numel()
        slots = 1 + max(1, min(MOST_WAITING, WAITING_BYTES // (12 * max(1, tokens))))
        old_state, old_step, old_norms, n = self._state, self._step, self._norms, self._last_count
        self._shape, self._device, self._inner = state.shape, state.device, state.shape[1:-1].numel()
        self._state, self._step = (torch.zeros(state.shape, device=state.device) for _ in range(2))
        self._norms = torch.zeros(slots, 2, *state.shape[:-1], device=state.device)
        self._products = torch.zeros(slots, *state.shape[:-1], device=state.device)
        self._waiting_norms = [(norms[0], norms[1]) for norms in self._norms]
        self._waiting_products = list(self._products)
        self._room = slots - 1
        if n:
            self._state[:n], self._step[:n] = old_state, old_step
            self._norms[0, :, :n] = old_norms[0]
