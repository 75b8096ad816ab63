"""What one state of a loop is reduced to: its norm, the step that led to it, and the cosine with the step before.

`EagerReduction` is made of torch operations, works on every device, and is the oracle of `fused.FusedReduction`, which
does the same in one pass over memory on CUDA. Both remember what they need of the states before; both write sums over
tokens and return over how many.

A token whose state is exactly what it was has not moved: its sequence waits, or has stopped. How many moved is known to
the device alone, so it is one of the sums.

Sequences may join a loop late: the batch then grows, and is always a prefix of the next one. A step is measured on the
sequences that were already there. Where a state is smaller than the one before, or of another shape, nobody can tell
which of its tokens were there before: the step that led to it is not measured, and the next one begins anew.

Not covered: sequences that join anywhere but at the end of the batch.
"""

# Shapes: n sequences active in this loop, S positions, D width.

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

STATE, STEP, COSINE, LEFT, MOVED, TURNED, ACTIVE = range(7)
SUMS = 7
MOST_WAITING = 32  # states whose sums are made at a time
WAITING_BYTES = 4 << 20  # of what is kept of their tokens
TINY = torch.finfo(torch.float32).tiny


class Tokens(NamedTuple):
    """Over how many tokens each sum of a row is, as far as the host knows.

    Args:
        state: Tokens of the state.
        step: Those of them whose state before is known, so that they may have moved.
        cosine: Those of them whose step before is known.
        sequences: Sequences that the tokens of ``step`` belong to.
    """

    state: int
    step: int
    cosine: int
    sequences: int


class Reduction(Protocol):
    """Reduces the states ``h_0 … h_T`` of a forward, one after another, to rows of sums over tokens.

    The columns of a row, of which those over no tokens mean nothing:

    - ``STATE``: the sum of ‖h_t‖.
    - ``STEP``: the sum of ‖h_t − h_{t−1}‖. What has not moved adds nothing.
    - ``COSINE``: the sum of the cosine of that step with the one before it.
    - ``LEFT``: the sum of ‖h_{t−1}‖ over the tokens that have moved since.
    - ``MOVED``: how many these are.
    - ``TURNED``: how many of them moved in the step before too: the tokens behind ``COSINE``.
    - ``ACTIVE``: the sequences in which any token has moved.
    """

    parts: int
    """Partial sums that a row consists of."""

    def forget(self) -> None:
        """Begin a new forward; rows that wait are written first."""

    def add(self, state: Tensor, rows: Tensor, at: int) -> Tokens:
        """Take the next state ``(n, …, D)``, for row ``at`` of ``rows (R, parts, SUMS)``; it may change afterwards."""

    def settle(self) -> None:
        """Write the rows that wait."""


def follows(state: Tensor, last: Tensor, *, shrunk: bool) -> bool:
    """Return whether the tokens of a state are those of the one before it, perhaps with more behind them.

    Args:
        state: The state.
        last: The state before it.
        shrunk: Whether the batch has become smaller in this forward; what grows then may be in any order.

    >>> h = torch.ones(4, 3, 8)
    >>> follows(h, h[:2], shrunk=False), follows(h[:2], h, shrunk=False), follows(h, h[:2], shrunk=True)
    (True, False, False)
    """
    if state.shape[1:] != last.shape[1:] or state.device != last.device:
        return False
    return len(state) == len(last) if shrunk else len(state) >= len(last)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """The columns of the states that wait to be summed, as views.

    Args:
        lengths: Of the step that led to each, ``(count, n, …)``.
        lengths_around: Those, and the length before, from the first with two steps behind it on.
        states_before: Norm of the state before each.
        left, moved: Columns of all.
        cosines, turned: Columns of those with two steps behind them.
        moved_second, moved_first: Whether their steps, and the steps before those, moved.
        no_cosines: Both columns of the others.
        by_token: All columns, ``(count, ACTIVE, tokens)``.
        by_sequence: ``moved`` as ``(count, n, tokens of a sequence)``.
    """

    lengths: Tensor
    lengths_around: Tensor
    states_before: Tensor
    left: Tensor
    moved: Tensor
    cosines: Tensor
    turned: Tensor
    moved_second: Tensor
    moved_first: Tensor
    no_cosines: Tensor
    by_token: Tensor
    by_sequence: Tensor

    @classmethod
    def of(cls, tokens: Tensor, second: int) -> _Waiting:
        """Return the views of states ``(1 + count, ACTIVE, n, …)``, of which the first is settled.

        Args:
            tokens: The states.
            second: The first waiting one with two steps behind it.
        """
        waiting, before = tokens[1:], tokens[:-1]
        moved = waiting[:, MOVED]
        return cls(
            lengths=waiting[:, STEP],
            lengths_around=tokens[second:, STEP],
            states_before=before[:, STATE],
            left=waiting[:, LEFT],
            moved=moved,
            cosines=waiting[second:, COSINE],
            turned=waiting[second:, TURNED],
            moved_second=moved[second:],
            moved_first=before[second:, MOVED],
            no_cosines=waiting[:second, COSINE :: TURNED - COSINE],
            by_token=waiting.flatten(2),
            by_sequence=moved.flatten(2) if moved.ndim > 2 else moved[..., None],
        )


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
        steps: The step norms kept since `forget`, ``(n, positions)`` each, one per loop; of a forward in which the
            batch changes, those since it did.

    >>> reduction, rows = EagerReduction(), torch.zeros(3, 1, SUMS)
    >>> for at, h in enumerate(([[3.0, 4.0]], [[3.0, 0.0]], [[3.0, -1.0]])):
    ...     tokens = reduction.add(torch.tensor([h]), rows, at)
    >>> reduction.settle()
    >>> [round(number, 3) for number in rows[2, 0].tolist()], tokens.cosine
    ([3.162, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0], 1)
    """

    parts = 1

    def __init__(self, keep_steps: int = 0) -> None:
        self._keep = keep_steps
        self._shape, self._device, self._count, self._inner = torch.Size(), torch.device("cpu"), 0, 0
        self._all = Tokens(0, 0, 0, 0)  # of a state with two steps behind all its sequences
        self._state = self._step = torch.empty(0)  # h_{t-1} and the step that led to it, (n, …, D)
        # Of every token, the columns before ACTIVE: (1 + waiting, ACTIVE, n, …). The first is the last settled state.
        self._tokens = torch.empty(0)
        # Views are made once, since making one costs as much as a small operation.
        self._measured: list[tuple[Tensor, Tensor, Tensor]] = []  # STATE, STEP, COSINE of one waiting state each
        self._views: dict[tuple[int, int], _Waiting] = {}
        self._zero = torch.empty(0)
        self._rows, self._at = torch.empty(0), 0  # where the waiting rows go
        self._waiting, self._room = 0, 0
        self.forget()

    def forget(self) -> None:
        """Begin a new forward; rows that wait are written first."""
        self.settle()
        self._known = 0  # states since the forward, or the batch of now, began
        self._shrunk = False
        self._last_count = self._before_count = 0  # sequences in h_{t-1} and h_{t-2}
        self.steps: list[Tensor] = []

    def add(self, state: Tensor, rows: Tensor, at: int) -> Tokens:
        """Take the next state, as `Reduction.add` says."""
        if state.dtype == torch.float64:  # else its rounding would be a step, of sequences that wait too
            state = state.float()
        moved = rows is not self._rows  # they are where the states are
        if moved or self._waiting == self._room or at != self._at + self._waiting:
            self.settle()
            self._rows, self._at = rows, at
        if state.shape != self._shape or (moved and state.device != self._device):
            self.settle()
            self._at = at
            self._change(state)
        self._waiting = waiting = self._waiting + 1
        n, m, count = self._last_count, self._before_count, self._count
        # The last state becomes the step, in place, and the last step makes room for the state.
        self._state, self._step = now, step = self._step, self._state
        if n == count:
            torch.sub(state, step, out=step)
        else:  # sequences without a step behind them count with zero
            torch.sub(state[:n], step[:n], out=step[:n])
            step[n:].zero_()
        state_norms, step_norms, products = self._measured[waiting]
        if m:
            torch.sum(now.mul_(step), -1, out=products)
        now.copy_(state)  # the model may update it in place before the next loop
        torch.linalg.vector_norm(now, dim=-1, out=state_norms)
        torch.linalg.vector_norm(step, dim=-1, out=step_norms)
        self._known += 1
        self._last_count, self._before_count = count, n
        if m == count:
            return self._all
        return Tokens(count * self._inner, n * self._inner, m * self._inner, n)

    def settle(self) -> None:
        """Write the rows that wait."""
        count, self._waiting = self._waiting, 0
        if not count:
            return
        rows = self._rows[self._at : self._at + count, 0]
        # The first waiting states may have no two steps behind them.
        second = min(count, max(0, 2 - (self._known - count)))
        view = self._views.get((count, second)) or self._view(count, second)
        has_moved = view.lengths != 0  # a NaN has moved
        view.moved.copy_(has_moved)
        torch.where(has_moved, view.states_before, self._zero, out=view.left)
        if second:
            view.no_cosines.zero_()
        if second < count:
            # One length after the other: their product leaves float32 sooner than they do. A step of zero has no
            # direction, and is not among those that turned.
            longer = view.lengths_around.clamp(min=TINY)
            view.cosines.div_(longer[1:]).div_(longer[:-1])
            torch.mul(view.moved_second, view.moved_first, out=view.turned)
        torch.sum(view.by_token, 2, out=rows[:, :ACTIVE])
        torch.sum(view.by_sequence.amax(2), 1, out=rows[:, ACTIVE])
        if self._keep and view.moved.ndim > 2:
            first = max(0, 1 - (self._known - count))
            self.steps += list(view.lengths[first:, :, : self._keep].clone())
        self._tokens[0] = self._tokens[count]

    def _view(self, count: int, second: int) -> _Waiting:
        """Return the parts of ``count`` waiting states, and keep them: every forward of a run asks for the same."""
        self._views[count, second] = view = _Waiting.of(self._tokens[: count + 1], second)
        return view

    def _change(self, state: Tensor) -> None:
        """Make room for states of another shape; steps go on from the state before, where its tokens are known."""
        self.steps = []
        if self._known and not follows(state, self._state[: self._last_count], shrunk=self._shrunk):
            self._shrunk, self._known, self._last_count, self._before_count = True, 0, 0, 0
        self._make_room(state)

    def _make_room(self, state: Tensor) -> None:
        """Allocate buffers for states of this shape; what is known of the sequences that were already there is kept."""
        tokens = state.shape[:-1].numel()
        slots = 1 + max(1, min(MOST_WAITING, WAITING_BYTES // (4 * ACTIVE * max(1, tokens))))
        old_state, old_step, old_tokens, n = self._state, self._step, self._tokens, self._last_count
        self._shape, self._device = state.shape, state.device
        self._count, self._inner = len(state), state.shape[1:-1].numel()
        self._all = Tokens(tokens, tokens, tokens, self._count)
        self._state, self._step = (torch.zeros(state.shape, device=state.device) for _ in range(2))
        self._tokens = torch.zeros(slots, ACTIVE, *state.shape[:-1], device=state.device)
        self._zero = torch.zeros((), device=state.device)
        self._views = {}
        self._measured = [(columns[STATE], columns[STEP], columns[COSINE]) for columns in self._tokens]
        self._room = slots - 1
        if n:
            self._state[:n], self._step[:n] = old_state, old_step
            self._tokens[0, :, :n] = old_tokens[0]
