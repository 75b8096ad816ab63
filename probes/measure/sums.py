"""Rows of sums, one per loop, on the device, and how they become means on the host.

The tap adds states; nobody waits for the device. Token counts and the place of the next row are known to the host
anyway, so only sums are on the device. Sums add exactly over micro-batches, and are divided when they reach the host.

Means are over the tokens whose state moved in a loop: a sequence that waits or has stopped is not a step of size zero.
Where nothing moved at all, the loop has made a step of zero, and the means are over all its tokens. But where the
loop before took a step too large to end at a fixed point, all have stopped: such a loop counts no tokens.
"""

# Shapes: R rows kept, n sequences, S positions, D width, T loops, M micro-batches.

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from .hashing import batch_hash
from .reduction import ACTIVE, COSINE, LEFT, MOVED, STATE, STEP, SUMS, TURNED, EagerReduction, Reduction

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUT, INJECTION = SUMS, SUMS + 1  # columns of a row, as it reaches the host, behind those of a reduction
WIDTH: Final = SUMS + 2
FAR: Final = 0.02  # of the state: a step that no rounding makes, in bfloat16 either
BATCHES: Final = 64  # micro-batches of a step whose hash is kept

# What the host knows of a row, in the columns of `LoopSums.counts`.
BEGINS, TOKENS, READ, STEPS, SEQUENCES, INPUTS, INJECTED = range(7)
COUNTS: Final = 7
GOES_ON, FIRST, AGAIN = range(3)  # values of BEGINS: a row of the loop under way, the first, or the first if it differs


class LoopSums:
    """The rows of the forwards of one step, or of one pass of the probe batch.

    Rows beyond the capacity all land in the last row and are counted in ``cursor`` only: nothing is hidden.

    Args:
        capacity: Rows kept.
        device: Where the states are expected; where they are elsewhere, the rows go there.
        reduction: How a state is reduced; default: eagerly.

    Attributes:
        cursor: Rows added since `reset`.
        first: The row of h_0 of the forward under way.

    >>> sums = LoopSums(8, torch.device("cpu"))
    >>> _ = sums.begin()
    >>> for h in ([[3.0, 4.0]], [[3.0, 0.0]]):
    ...     sums.add(torch.tensor([h]))
    >>> loop_means(sums.device_rows()["sums"].numpy(), sums.counts)[0][:, 0].tolist()
    [5.0, 3.0]
    """

    def __init__(self, capacity: int, device: torch.device, reduction: Reduction | None = None) -> None:
        self.capacity, self.device = capacity, device
        self.reduction = reduction or EagerReduction()
        self.cursor = self.first = 0
        self._counts: list[tuple[int, ...]] = []
        self._batch_count = self._batches_before = 0
        self._has_gradients = False  # whether any forward of the step has
        self._allocate(device)

    def _allocate(self, device: torch.device) -> None:
        """Make room for the rows where the states are."""
        self.device = device
        self._rows = torch.zeros(self.capacity, self.reduction.parts, SUMS, device=device)
        self._given = torch.zeros(self.capacity, WIDTH - SUMS, device=device)
        self._batches = torch.zeros(BATCHES, dtype=torch.int64, device=device)

    @property
    def loop(self) -> int:
        """States of the forward under way that were added."""
        return self.cursor - self.first

    @property
    def rows_cut(self) -> int:
        """Rows that did not fit."""
        return max(0, self.cursor - self.capacity)

    @property
    def counts(self) -> NDArray[np.int64]:
        """What the host knows of each kept row, ``(R, COUNTS)``; a copy.

        The columns are how the row begins, the tokens of its state, over how many tokens the sums of the state, the
        step, the input and the injection are, and the sequences behind the step.
        """
        return np.array(self._counts, dtype=np.int64).reshape(-1, COUNTS)

    def reset(self) -> None:
        """Forget the rows; the next one is the first."""
        self.reduction.settle()
        self.cursor = self.first = self._batch_count = 0
        self._has_gradients = False
        self._counts.clear()

    def begin(self, batch: Tensor | None = None, *, has_gradients: bool = True) -> bool:
        """Begin a forward.

        Args:
            batch: Its input, for the hash.
            has_gradients: Whether it runs with gradients.

        Returns:
            Whether it is part of the step. Forwards without gradients are not, in a step that has others with them.
        """
        if has_gradients and not self._has_gradients and self.cursor:
            self.reset()
        elif self._has_gradients and not has_gradients:
            return False
        self._has_gradients = has_gradients
        self.first, self._batches_before = self.cursor, self._batch_count
        self.reduction.forget()
        if batch is not None and self._batch_count < BATCHES:
            self._batches[self._batch_count] = batch_hash(batch)
            self._batch_count += 1
        return True

    def drop_from(self, row: int) -> None:
        """Forget rows of the forward under way: all of them if it raised and is no part of the step.

        Args:
            row: The first that is forgotten, `first` or behind it.
        """
        self.reduction.forget()
        if row == self.first:
            self._batch_count = self._batches_before
        self.cursor = row
        del self._counts[row:]

    def add(
        self, state: Tensor, given: Tensor | None = None, b_bar: Tensor | None = None, *, again: bool = False
    ) -> None:
        """Add the next state of a forward.

        Args:
            state: ``h_t (n, S, D)``, or ``(tokens, D)``.
            given: The input ``e``, with ``h_0``.
            b_bar: B̅, when the norm of ``B̅ e`` is due.
            again: Whether the loop was seen to end before this state: it begins a second run of the loop if it differs
                from the last one, and is the last one once more if not.

        Raises:
            ValueError: The state is not one that has norms.
        """
        if state.is_complex():  # its norm is that of its real and imaginary parts
            state = torch.view_as_real(state.resolve_conj()).flatten(-2)
        if state.ndim < 2 or not state.is_floating_point():
            raise ValueError(f"a state of {state.ndim} axes in {state.dtype} on {state.device} has no norm per token")
        if not state.numel():
            raise ValueError(f"a state of shape {tuple(state.shape)} holds no token")
        if state.device != self.device:
            self._move(state.device)
        cursor = self.cursor
        at = cursor if cursor < self.capacity else self.capacity - 1
        tokens, steps, _, sequences = self.reduction.add(state.detach(), self._rows, at)
        begins = AGAIN if again else GOES_ON if cursor > self.first else FIRST
        given_to, injected = (0, 0) if given is None else self._add_given(at, given.detach().float(), b_bar)
        self._note((begins, tokens, tokens, steps, sequences, given_to, injected))

    def add_missing(self, like: Tensor | None = None) -> None:
        """Add a row for a state that could not be read: what is missing is recorded as such.

        Args:
            like: A state with as many tokens, if there is one; else there are as many as before.
        """
        before = self._counts[-1][TOKENS] if self.loop and self._counts else 0
        tokens = before if like is None else like.shape[:-1].numel()
        begins = GOES_ON if self.loop else FIRST
        self.reduction.forget()  # the step to the next state is not known either
        self._note((begins, tokens, 0, 0, 0, 0, 0))

    def _note(self, counts: tuple[int, ...]) -> None:
        """Note what the host knows of a row."""
        if self.cursor < self.capacity:
            self._counts.append(counts)
        else:
            self._counts[-1] = counts
        self.cursor += 1

    def _move(self, device: torch.device) -> None:
        """Go to another device: the model was moved, or made on meta, after the probe was attached."""
        self.reduction.settle()
        held = (self._rows, self._given, self._batches)
        self._allocate(device)
        for new, old in zip((self._rows, self._given, self._batches), held, strict=True):
            new.copy_(old)

    def _add_given(self, at: int, e: Tensor, b_bar: Tensor | None) -> tuple[int, int]:
        """Write the sums of ‖e‖ and, where B̅ is given, ‖B̅e‖; return over how many tokens they are."""
        tokens = e.shape[:-1].numel()
        _norm_sum(e, self._given[at, 0])
        if b_bar is None:
            return tokens, 0
        _norm_sum(e @ b_bar.mT if b_bar.ndim == 2 else b_bar * e, self._given[at, 1])
        return tokens, tokens

    def device_rows(self) -> dict[str, Tensor]:
        """Return what has to come off the device: ``sums (R, WIDTH)`` and ``batches (M,)``."""
        self.reduction.settle()
        kept = min(self.cursor, self.capacity)
        rows = self._rows[:kept]
        whole = rows[:, 0] if self.reduction.parts == 1 else rows.sum(1)
        sums = torch.cat([whole, self._given[:kept]], dim=1)
        return {"sums": sums, "batches": self._batches[: self._batch_count]}


def _norm_sum(x: Tensor, out: Tensor) -> None:
    """Write the sum over tokens of the Euclidean norm."""
    out.copy_(torch.linalg.vector_norm(x, dim=-1).sum())  # e may be on another device than the states


def loop_means(sums: NDArray[np.float32], counts: NDArray[np.int64]) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Turn the rows of one step into per-loop means and the numbers that a step has once.

    Args:
        sums: ``(rows, WIDTH)`` in the order they were added; several micro-batches follow each other.
        counts: What the host knows of them, as `LoopSums.counts` gives it.

    Returns:
        ``(T + 1, 4)`` with the columns state_norm, residual_norm, step_cosine, tokens, and the values of ``depth``,
        ``depth_min``, ``depth_max`` (loops) and, where they were measured, ``input_norm`` and ``injection_norm``. ``T``
        is the largest depth of the step; row ``t`` averages over the tokens that moved in loop ``t``, row ``T`` over
        all. NaN is what was not measured; what was measured and is not finite is infinite.

    >>> state, rest = np.array([[2.0], [5.0]]), np.zeros((2, 3))  # one token, at rest at first, then moved by 4
    >>> moved = np.array([[0.0, 0, 0, 0, 0, 0], [4.0, 0, 2.0, 1, 0, 1]])
    >>> sums = np.hstack([state, moved, [[3.0, 0], [0, 0]]]).astype(np.float32)
    >>> means, once = loop_means(sums, np.array([[1, 1, 1, 0, 0, 1, 0], [0, 1, 1, 1, 1, 0, 0]]))
    >>> means[:, 0].tolist(), means[0, 1].item(), once["depth"], once["input_norm"]
    ([2.0, 5.0], 4.0, 1.0, 3.0)
    """
    wide, counts = _joined(sums.astype(np.float64), counts)
    firsts = np.flatnonzero(counts[:, BEGINS] == FIRST)
    lengths = np.diff(np.append(firsts, len(counts)))
    loop = np.arange(len(counts)) - np.repeat(firsts, lengths)  # of each row
    loops = int(lengths.max())
    means = np.full((loops, 4), np.nan, dtype=np.float32)
    means[:, :3], means[:, 3] = _means(wide, counts, loop, loops)
    once = _depths(wide, counts, firsts, lengths)
    for name, column, over in (("input_norm", INPUT, INPUTS), ("injection_norm", INJECTION, INJECTED)):
        tokens = counts[loop == 0, over].sum()
        if tokens:
            once[name] = float(wide[(loop == 0) & (counts[:, over] > 0), column].sum() / tokens)
    return means, once


def _joined(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Resolve rows that begin a second run of the loop if they differ from the last state; else they are that one."""
    again = counts[:, BEGINS] == AGAIN
    if not again.any():
        return sums, counts
    differs = again & ((counts[:, STEPS] == 0) | (sums[:, MOVED] != 0))
    counts = counts.copy()
    counts[differs, BEGINS] = FIRST
    keep = ~again | differs
    return sums[keep], counts[keep]


def _means(
    sums: NDArray[np.float64], counts: NDArray[np.int64], loop: NDArray[np.int64], loops: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the means ``(T + 1, 3)`` and over how many tokens they are; row ``t`` is of the loop that leaves h_t."""
    inside = loop > 0  # the rows that a loop led to; row r - 1 holds the state it left
    steps = np.where(inside, counts[:, STEPS], 0)
    stopped = _stopped(sums, counts, loop)
    rests = (steps > 0) & (sums[:, MOVED] == 0)  # nothing moved at all: a step of zero, over all its tokens
    moved = np.where(steps > 0, np.where(rests, steps, sums[:, MOVED]), 0)
    turned = np.where((loop > 1) & (moved > 0), sums[:, TURNED], 0)
    left = np.where(rests, np.roll(sums[:, STATE], 1), sums[:, LEFT])
    total, tokens = np.zeros((loops, 3)), np.zeros((loops, 3))
    present = np.zeros(loops)

    def gather(column: int, at: NDArray[np.int64], values: NDArray[np.float64], over: NDArray[np.float64]) -> None:
        np.add.at(total[:, column], at[over > 0], values[over > 0])  # a sum over no tokens was never written
        np.add.at(tokens[:, column], at[over > 0], over[over > 0])

    before = np.maximum(loop - 1, 0)
    gather(0, before, left, np.where(stopped, 0, moved))
    gather(1, before, sums[:, STEP], np.where(stopped, 0, moved))
    over = np.where(stopped & (tokens[before, 0] == 0), moved, 0)  # a batch that has stopped, where no other goes on
    gather(0, before, left, over)
    gather(1, before, sums[:, STEP], over)
    gather(2, before, sums[:, COSINE], turned)
    # States whose next step was not measured: the last of a forward, and those before a change of the batch.
    alone = np.append(moved[1:] == 0, True)
    gather(0, loop, sums[:, STATE], np.where(alone, counts[:, READ], 0))
    np.add.at(present, before, np.where(inside & ~stopped, moved, 0))
    np.add.at(present, loop, np.where(alone, counts[:, TOKENS], 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = total / tokens
    return np.where((tokens > 0) & np.isnan(means), np.inf, means), present


def _stopped(sums: NDArray[np.float64], counts: NDArray[np.int64], loop: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the rows to which no token moved because all have stopped, not because the loop has come to a fixed point.

    In the last loop in which any token moved, they went farther than rounding takes a state. Where nobody saw the state
    before the loop, and nothing moves behind its first pass, nothing says that this pass came to rest.

    Args:
        sums: The rows.
        counts: What the host knows of them.
        loop: Of each row, the loop that led to it.
    """
    steps = np.where(loop > 0, counts[:, STEPS], 0)
    moved = np.where(steps > 0, sums[:, MOVED], 0)
    still = (moved == 0) & (steps > 0)
    last = np.maximum.accumulate(np.where(still, 0, np.arange(len(steps))))  # the row before, to which any token moved
    far = np.where(moved > 0, sums[:, STEP] >= FAR * sums[:, LEFT], (loop == 1) & (steps == 0))
    return np.asarray(still & far[last])


def _depths(
    sums: NDArray[np.float64], counts: NDArray[np.int64], firsts: NDArray[np.intp], lengths: NDArray[np.intp]
) -> dict[str, float]:
    """Return how many loops ran: the mean over sequences, the fewest, and the most.

    A sequence runs a loop if any of its tokens moved in it, or if nothing moved at all and it has not stopped.
    """
    stopped = _stopped(sums, counts, np.arange(len(counts)) - np.repeat(firsts, lengths))
    known = (counts[:, SEQUENCES] > 0) & (sums[:, ACTIVE] > 0)
    share = np.where(known, sums[:, ACTIVE] / np.maximum(counts[:, SEQUENCES], 1), np.where(stopped, 0.0, 1.0))
    entered = np.append(0, counts[:-1, TOKENS]) * share  # tokens that went into the loop that led to a row
    entered[firsts] = 0
    most = np.maximum.reduceat(counts[:, TOKENS], firsts)
    whole = entered >= np.repeat(most, lengths)
    whole[firsts] = False
    return {
        "depth": float(entered.sum() / max(1, most.sum())),
        "depth_min": float(np.add.reduceat(whole.astype(np.int64), firsts).min()),
        "depth_max": float(lengths.max() - 1),
    }
