"""Rows of sums, one per loop, on the device, and how they become means on the host.

The tap adds states; nobody waits for the device. Token counts and the place of the next row are known to the host
anyway, so only sums are on the device. Sums add exactly over micro-batches, and are divided when they reach the host.
"""

# Shapes: R rows kept, n sequences, S positions, D width, T loops, M micro-batches.

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .hashing import batch_hash
from .reduction import SUMS, EagerReduction, Reduction

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Columns of a row, as it reaches the host.
STATE, STEP, COSINE, INPUT, INJECTION = range(5)
WIDTH = 5
BATCHES = 64  # micro-batches of a step whose hash is kept


class LoopSums:
    """The rows of the forwards of one step, or of one pass of the probe batch.

    Rows beyond the capacity all land in the last row and are counted in ``cursor`` only: nothing is hidden.

    Args:
        capacity: Rows kept.
        device: Where the states are.
        reduction: How a state is reduced; default: eagerly.

    Attributes:
        cursor: Rows added since `reset`.

    >>> sums = LoopSums(8, torch.device("cpu"))
    >>> sums.begin()
    >>> for h in ([[3.0, 4.0]], [[3.0, 0.0]]):
    ...     sums.add(torch.tensor([h]))
    >>> loop_means(sums.device_rows()["sums"].numpy(), sums.counts)[0][:, 0].tolist()
    [5.0, 3.0]
    """

    def __init__(self, capacity: int, device: torch.device, reduction: Reduction | None = None) -> None:
        self.capacity, self.device = capacity, device
        self.reduction = reduction or EagerReduction()
        self.cursor = 0
        self._rows = torch.zeros(capacity, self.reduction.parts, SUMS, device=device)
        self._given = torch.zeros(capacity, WIDTH - SUMS, device=device)
        self._counts: list[tuple[int, ...]] = []
        self._batches = torch.zeros(BATCHES, dtype=torch.int64, device=device)
        self._batch_count = 0
        self.first = 0  # the row of h_0 of the forward under way

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
        """Over how many tokens each kept sum is, ``(R, WIDTH)``; a copy."""
        return np.array(self._counts, dtype=np.int64).reshape(-1, WIDTH)

    def reset(self) -> None:
        """Forgets the rows; the next one is the first."""
        self.reduction.settle()
        self.cursor = self.first = self._batch_count = 0
        self._counts.clear()

    def begin(self, batch: Tensor | None = None) -> None:
        """Begins a forward.

        Args:
            batch: Its input, for the hash.
        """
        self.first = self.cursor
        self.reduction.forget()
        if batch is not None and self._batch_count < BATCHES:
            self._batches[self._batch_count] = batch_hash(batch)
            self._batch_count += 1

    def add(self, state: Tensor, given: Tensor | None = None, b_bar: Tensor | None = None) -> None:
        """Adds the next state of a forward.

        Args:
            state: ``h_t (n, S, D)``.
            given: The input ``e``, with ``h_0``.
            b_bar: B̅, when the norm of ``B̅ e`` is due.
        """
        at = min(self.cursor, self.capacity - 1)
        tokens = self.reduction.add(state.detach(), self._rows, at)
        counts = (*tokens, 0, 0) if given is None else (*tokens, *self._add_given(at, given.detach().float(), b_bar))
        if self.cursor < self.capacity:
            self._counts.append(counts)
        else:
            self._counts[-1] = counts
        self.cursor += 1

    def _add_given(self, at: int, e: Tensor, b_bar: Tensor | None) -> tuple[int, int]:
        """Writes the sums of ‖e‖ and, where B̅ is given, ‖B̅e‖; returns over how many tokens they are."""
        tokens = e.shape[:-1].numel()
        _norm_sum(e, self._given[at, 0])
        if b_bar is None:
            return tokens, 0
        _norm_sum(e @ b_bar.mT if b_bar.ndim == 2 else b_bar * e, self._given[at, 1])
        return tokens, tokens

    def add_missing(self, like: Tensor) -> None:
        """Adds a row for an ``h_0`` that no module receives: what is missing is recorded as such."""
        self.add(torch.full_like(like, torch.nan))

    def device_rows(self) -> dict[str, Tensor]:
        """What has to come off the device: ``sums (R, WIDTH)`` and ``batches (M,)``."""
        self.reduction.settle()
        kept = min(self.cursor, self.capacity)
        sums = torch.cat([self._rows[:kept].sum(1), self._given[:kept]], dim=1)
        return {"sums": sums, "batches": self._batches[: self._batch_count]}


def _norm_sum(x: Tensor, out: Tensor) -> None:
    """Writes the sum over tokens of the Euclidean norm."""
    torch.sum(torch.linalg.vector_norm(x, dim=-1), dim=None, out=out)


def loop_means(sums: NDArray[np.float32], counts: NDArray[np.int64]) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Turns the rows of one step into per-loop means and the numbers that a step has once.

    Args:
        sums: ``(rows, WIDTH)`` in the order they were added; several micro-batches follow each other.
        counts: Over how many tokens each is.

    Returns:
        ``(T + 1, 4)`` with the columns state_norm, residual_norm, step_cosine, tokens, and the values of ``depth``,
        ``depth_min``, ``depth_max`` (loops) and, where they were measured, ``input_norm`` and ``injection_norm``. ``T``
        is the largest depth of the step; a row averages over the tokens that reached that loop.

    >>> sums = np.array([[2.0, 0, 0, 3.0, 0], [5.0, 4.0, 0, 0, 0]], dtype=np.float32)
    >>> means, once = loop_means(sums, np.array([[1, 0, 0, 1, 0], [1, 1, 0, 0, 0]]))
    >>> means[:, 0].tolist(), means[0, 1].item(), once["depth"], once["input_norm"]
    ([2.0, 5.0], 4.0, 1.0, 3.0)
    """
    firsts = np.flatnonzero(counts[:, STEP] == 0)  # only h_0 has no step behind it
    lengths = np.diff(np.append(firsts, len(counts)))
    loops = int(lengths.max())
    loop = np.arange(len(counts)) - np.repeat(firsts, lengths)  # of each row
    total, tokens = np.zeros((loops, WIDTH)), np.zeros((loops, WIDTH))
    np.add.at(total, loop, np.where(counts > 0, sums, 0.0))  # a sum over no tokens was never written
    np.add.at(tokens, loop, counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / tokens
    means = np.full((loops, 4), np.nan, dtype=np.float32)
    means[:, 0] = mean[:, STATE]
    # A row of sums holds the step that led to its state; residual_norm[t] is the step that leaves h_t.
    means[:-1, 1] = mean[1:, STEP]
    means[:-1, 2] = mean[1:, COSINE]
    means[:, 3] = tokens[:, STATE]
    lasts = np.append(firsts[1:], len(counts)) - 1
    ran = np.ones(len(counts), dtype=bool)
    ran[lasts] = False
    finished = np.repeat(counts[lasts, STATE], lengths)  # tokens of the row's forward at its end
    fewest = np.add.reduceat((ran & (counts[:, STATE] == finished)).astype(np.int64), firsts)
    once = {
        "depth": float(counts[ran, STATE].sum() / counts[lasts, STATE].sum()),
        "depth_min": float(fewest.min()),
        "depth_max": float(loops - 1),
    }
    if tokens[0, INPUT]:
        once["input_norm"] = float(mean[0, INPUT])
    if tokens[0, INJECTION]:
        once["injection_norm"] = float(mean[0, INJECTION])
    return means, once
