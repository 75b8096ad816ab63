"""What is kept of a table that grows: its columns, and which of its rows stand.

A row *stands* when no later row has its step or a lower one. New rows are taken in at a cost in proportion to them.

Not covered: reading (``file_source``); a table whose kept rows change, which has to be kept anew.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .layout import LARGEST_STEP

Rows = slice | NDArray[np.int64]


class Growing:
    """One column that grows at its end; what was handed out of it never changes.

    >>> column = Growing(np.float64)
    >>> column.append(np.array([1.0, 2.0]))
    >>> column.values()
    array([1., 2.])
    """

    def __init__(self, dtype: type[Any] | np.dtype[Any]) -> None:
        self._buffer: NDArray[Any] = np.empty(0, dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, tail: NDArray[Any]) -> None:
        """Add values, moving the old ones only when the buffer has to grow by a quarter."""
        needed = self._length + len(tail)
        if needed > len(self._buffer):
            self._move(needed if self._length == 0 else max(needed, len(self._buffer) + len(self._buffer) // 4))
        self._buffer[self._length : needed] = tail
        self._length = needed

    def take(self, tail: NDArray[Any]) -> None:
        """Add values that nobody else holds: the first ones are kept as they are, without a copy."""
        if self._length == 0 and tail.dtype == self._buffer.dtype and tail.flags.owndata and tail.flags.c_contiguous:
            self._buffer, self._length = tail, len(tail)
        else:
            self.append(tail)

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` values; costs a copy of them, since others may still look at the rest."""
        if length < self._length:
            self._length = length
            self._move(len(self._buffer))

    def values(self, length: int | None = None) -> NDArray[Any]:
        """Return the first ``length`` values, or all, without copying."""
        return self._buffer[: self._length if length is None else length]

    @property
    def kept_bytes(self) -> int:
        """Bytes in memory, room to grow in included."""
        return self._buffer.nbytes

    def _move(self, room: int) -> None:
        """Go on in a new buffer."""
        grown = np.empty(room, self._buffer.dtype)
        grown[: self._length] = self._buffer[: self._length]
        self._buffer = grown


class Standing:
    """Which rows of a growing table stand: their steps strictly increase.

    Attributes:
        seen: How many rows of the table were taken in.

    >>> standing, steps = Standing(), np.array([0.0, 1.0, 2.0, 3.0, 2.0, 3.0])
    >>> standing.take_in(steps[:4]), len(standing), standing.take_in(steps)
    (0.0, 4, 2.0)
    >>> standing.pick(np.arange(6)).tolist()
    [0, 1, 4, 5]
    """

    def __init__(self) -> None:
        self.seen = 0
        self._rows: Growing | None = None  # None: all of them stand

    def __len__(self) -> int:
        return self.seen if self._rows is None else len(self._rows)

    def take_in(self, steps: NDArray[Any]) -> float:
        """Take in what was added to the table; return the step from which on other rows stand than before.

        Args:
            steps: The steps of all rows, those known already among them.
        """
        tail = steps[self.seen :]
        new = standing_rows(tail)
        lowest = float(tail[new[0]]) if len(new) else math.inf
        kept = self.first_at(steps, lowest)
        if self._rows is None and (kept, len(new)) != (self.seen, len(tail)):
            self._rows = Growing(np.int64)
            self._rows.append(np.arange(self.seen))
        if self._rows is not None:
            self._rows.truncate(kept)
            self._rows.append(new + self.seen)
        self.seen = len(steps)
        return lowest

    def first_at(self, steps: NDArray[Any], step: float) -> int:
        """Return how many standing rows are of lower steps than ``step``."""
        if self._rows is None:
            return int(np.searchsorted(steps[: self.seen], step))
        rows = self._rows.values()
        return bisect_left(range(len(rows)), step, key=lambda i: steps[rows[i]])

    def pick(self, values: NDArray[Any], rows: Rows = slice(None)) -> NDArray[Any]:
        """Return the values of some standing rows, of all by default, out of those of all rows."""
        return values[: self.seen][rows] if self._rows is None else values[self._rows.values()[rows]]

    def numbers(self, rows: Rows = slice(None)) -> Rows:
        """Return which rows of the table some standing rows are, as a slice where they follow one another."""
        if self._rows is None and isinstance(rows, slice):
            return slice(*rows.indices(self.seen)) if rows.step in (None, 1) else np.arange(*rows.indices(self.seen))
        if self._rows is None:
            return np.arange(self.seen)[rows]
        return self._rows.values()[rows]


def standing_rows(steps: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rows that no later row supersedes; one whose step is no number supersedes none and never stands.

    >>> standing_rows(np.array([0, 1, 2, 3, 2, 3, 4])).tolist()
    [0, 1, 4, 5, 6]
    """
    if len(steps) and np.abs(steps[0]) < LARGEST_STEP and steps[-1] < LARGEST_STEP and np.all(steps[1:] > steps[:-1]):
        return np.arange(len(steps))  # the usual case: nothing was run again
    possible = np.abs(steps) < LARGEST_STEP  # false for NaN
    steps = steps if possible.all() else np.where(possible, steps, LARGEST_STEP)
    lowest_after = np.minimum.accumulate(steps[::-1])[::-1][1:]
    return np.flatnonzero(possible & np.append(steps[:-1] < lowest_after, True)[: len(steps)])
