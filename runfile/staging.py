"""Rows waiting in memory for the next flush, one buffer per table of a run file.

Not covered: the order of flushes and the commit row, which are ``writer``'s.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .layout import LOOP_COLUMNS, MOST_VARIABLES, VARIABLE_COLUMNS

_ROWS: Final = 64  # room of an empty buffer
COMPOUND: Final = ("events", "array_index")  # tables whose rows have named fields
_KEPT_BYTES: Final = 1 << 20  # a buffer that had to grow beyond this gives its memory back after the flush


class Table:
    """Rows of one dataset waiting for the next flush, and the committed length they go behind."""

    def __init__(self, dataset: Any, length: int) -> None:
        self.dataset, self.length, self.count = dataset, length, 0
        self._extent = int(dataset.shape[0])  # may be beyond the committed length after a kill; overwritten then
        self._buffer: NDArray[Any] = self._empty()

    @property
    def staged_bytes(self) -> int:
        """Size of the waiting rows."""
        return self.count * self._buffer[:1].nbytes

    def rows(self) -> NDArray[Any]:
        """Return the waiting rows."""
        return self._buffer[: self.count]

    def next(self) -> NDArray[Any]:
        """Return a new waiting row to fill in."""
        self._reserve(1)
        self.count += 1
        row: NDArray[Any] = self._buffer[self.count - 1]
        return row

    def extend(self, rows: Any) -> None:
        """Add waiting rows."""
        self._reserve(len(rows))
        self._buffer[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    def write(self) -> None:
        """Write the waiting rows behind the committed ones and flush this dataset alone."""
        if not self.count:
            return
        end = self.length + self.count
        if end > self._extent:
            self.dataset.resize(end, axis=0)
            self._extent = end
        self.dataset[self.length : end] = self._buffer[: self.count]
        self.dataset.flush()
        self.length, self.count = end, 0
        if self._buffer.nbytes > _KEPT_BYTES:
            self._buffer = self._empty()

    def _empty(self) -> NDArray[Any]:
        """Return a new small buffer."""
        return np.empty((_ROWS, *self.dataset.shape[1:]), self.dataset.dtype)

    def _reserve(self, more: int) -> None:
        """Double the buffer until ``more`` rows fit."""
        needed = self.count + more
        if needed > len(self._buffer):
            grown = np.empty((max(needed, 2 * len(self._buffer)), *self._buffer.shape[1:]), self._buffer.dtype)
            grown[: self.count] = self._buffer[: self.count]
            self._buffer = grown


class CompoundTable(Table):
    """A table whose rows have named fields: they arrive as tuples."""

    def extend(self, rows: Any) -> None:
        """Add waiting rows."""
        super().extend(np.array(rows, dtype=self._buffer.dtype))


def loop_rows(loops: ArrayLike) -> NDArray[np.float32]:
    """Return loop rows as float32 ``(n, 4)``."""
    with np.errstate(over="ignore"):  # a norm beyond float32 is recorded as infinite
        rows = np.asarray(loops, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != len(LOOP_COLUMNS):
        raise ValueError(f"loops must have shape (depth + 1, {len(LOOP_COLUMNS)}) as {LOOP_COLUMNS}, got {rows.shape}")
    return rows


def spectrum_row(eigenvalues: ArrayLike, kept: int) -> NDArray[np.float64]:
    """Return real parts, then imaginary parts of so many eigenvalues, largest modulus first, NaN where fewer."""
    values = np.atleast_1d(np.asarray(eigenvalues, dtype=np.complex128)).ravel()
    values = values[np.argsort(-np.abs(values), kind="stable")][:kept]
    row = np.full(2 * kept, np.nan)
    row[: len(values)], row[kept : kept + len(values)] = values.real, values.imag
    return row


def variable_rows(variable: int, rows: ArrayLike) -> NDArray[np.float32]:
    """Return rows of a variable as float32 ``(n, 6)``, as ``VARIABLE_COLUMNS``."""
    if not 0 <= variable < MOST_VARIABLES:
        raise ValueError(f"a loop has at most {MOST_VARIABLES} variables, not one of number {variable}")
    with np.errstate(over="ignore"):
        table = np.asarray(rows, dtype=np.float32)
    if table.ndim != 2 or table.shape[1] != len(VARIABLE_COLUMNS):
        raise ValueError(
            f"rows of a variable must be (n, {len(VARIABLE_COLUMNS)}) as {VARIABLE_COLUMNS}, got {table.shape}"
        )
    return table


def count_nonfinite(rows: NDArray[np.float32]) -> int:
    """Count NaN and infinite norms of loops that ran (the last row has no update; a cosine may be undefined)."""
    ran = rows[:, 3] > 0
    return int(
        np.count_nonzero(ran & ~np.isfinite(rows[:, 0])) + np.count_nonzero(ran[:-1] & ~np.isfinite(rows[:-1, 1]))
    )
