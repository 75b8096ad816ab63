"""Long series kept so that any stretch of them is drawn at once: per bucket of rows, what a picture must not lose.

A `Line` knows of every bucket the rows of its lowest and highest value, its first and last recorded row, and its first
row that is not finite. A `Sheet` knows of every bucket and loop the number that is largest in size. Rows are taken in
once, as they come; a picture of the whole run costs as much at 10⁶ rows as at 10⁴, and loses no single step.

Not covered: which rows a run has (`tracks`); nothing here is fit for statistics.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from .downsample import bin_rows

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
BUCKET: Final = 64
_NONE: Final = -1


class Line:
    """The buckets of one series.

    >>> line = Line()
    >>> values = np.zeros(10_000)
    >>> values[[4321, 7777]] = 9.0, np.inf
    >>> line.take_in(values, ~np.isfinite(values))
    >>> {0, 4321, 7777, 9999} <= set(line.rows(values, slice(0, 10_000), 200).tolist())
    True
    """

    def __init__(self) -> None:
        self.seen = 0
        self._picked = np.empty((0, 5), dtype=np.int64)  # rows of: lowest, highest, first, last, first broken

    def take_in(self, values: NDArray[np.floating], broken: NDArray[np.bool_]) -> None:
        """Take in the rows that were added.

        Args:
            values: ``(rows,)``, all of them, NaN where nothing was recorded.
            broken: ``(rows,)``, whether a number was given that is not finite.
        """
        whole = self.seen // BUCKET  # buckets that cannot change any more
        start = whole * BUCKET
        added = _buckets(values[start:], broken[start:])
        self._picked = np.concatenate([self._picked[:whole], np.where(added < 0, _NONE, added + start)])
        self.seen = len(values)

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept."""
        return self._picked.nbytes

    def rows(self, values: NDArray[np.floating], where: slice, points: int) -> Rows:
        """Return about ``points`` rows, increasing, that draw the same line as all rows of a stretch.

        Args:
            values: ``(rows,)``, those that were taken in: looked up, never copied.
            where: The stretch.
            points: How many rows a picture is worth.
        """
        first = -(-where.start // BUCKET)
        last = where.stop // BUCKET if where.stop < self.seen else len(self._picked)
        # Of buckets that are in view in part, every row in view: their lowest and highest may be out of it.
        edges = [np.arange(where.start, first * BUCKET), np.arange(max(last * BUCKET, where.start), where.stop)]
        picked = self._picked[first : max(first, last)]
        groups = bin_rows(len(picked), max(points // 4, 1))
        if len(groups) == len(picked):
            return _inside(np.concatenate([*edges, picked.ravel()]), where)
        some = np.where(picked < 0, np.iinfo(np.int64).max, picked)
        rows = [
            _best(values, picked[:, 0], groups, np.fmin),
            _best(values, picked[:, 1], groups, np.fmax),
            np.minimum.reduceat(some[:, 2], groups),
            np.maximum.reduceat(picked[:, 3], groups),
            np.minimum.reduceat(some[:, 4], groups),
        ]
        return _inside(np.concatenate([*edges, *rows]), where)


def _inside(rows: Rows, where: slice) -> Rows:
    """Return the different rows of a stretch in order."""
    return np.unique(rows[(rows >= where.start) & (rows < where.stop)])


def _best(values: NDArray[np.floating], rows: Rows, groups: Rows, better: np.ufunc) -> Rows:
    """Return the row of every group whose value is best, ``_NONE`` where the group has none."""
    known = np.where(rows >= 0, values[np.maximum(rows, 0)], np.nan)
    best = better.reduceat(known, groups)
    ends = np.append(groups[1:], len(rows))
    same = known == np.repeat(best, ends - groups)
    at = np.where(same, np.arange(len(rows)), len(rows))
    first = np.minimum.reduceat(at, groups)
    return np.where(first < len(rows), rows[np.minimum(first, len(rows) - 1)], _NONE)


def _buckets(values: NDArray[np.floating], broken: NDArray[np.bool_]) -> Rows:
    """Return what is kept of every bucket, counted from the first of these rows."""
    count = -(-len(values) // BUCKET)
    room = count * BUCKET - len(values)
    table = np.pad(np.asarray(values, np.float64), (0, room), constant_values=np.nan).reshape(count, BUCKET)
    lost = np.pad(broken, (0, room)).reshape(count, BUCKET)
    finite = np.isfinite(table)
    start = np.arange(count) * BUCKET
    low = np.argmin(np.where(finite, table, np.inf), axis=1)
    high = np.argmax(np.where(finite, table, -np.inf), axis=1)
    first, last = np.argmax(finite, axis=1), BUCKET - 1 - np.argmax(finite[:, ::-1], axis=1)
    picked = np.stack([low, high, first, last], axis=1) + start[:, np.newaxis]
    picked[~finite.any(axis=1)] = _NONE
    gone = np.where(lost.any(axis=1), np.argmax(lost, axis=1) + start, _NONE)
    return np.concatenate([picked, gone[:, np.newaxis]], axis=1)


class Sheet:
    """The buckets of one number per row and loop, float32: the largest in size, infinite where one was lost.

    >>> sheet = Sheet()
    >>> loops = np.ones((1000, 4), np.float32)
    >>> loops[500, 2] = np.inf
    >>> sheet.take_in(0, loops)
    >>> bool(np.isinf(sheet.columns(slice(0, 1000), 5)[1]).sum() == 1)
    True
    """

    def __init__(self) -> None:
        self.seen = 0
        self._kept = np.empty((0, 0), np.float32)
        self._count = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept."""
        return self._kept.nbytes

    def take_in(self, start: int, loops: NDArray[np.floating]) -> None:
        """Take in rows from ``start`` on, which begins a bucket; those known of it are replaced."""
        whole = start // BUCKET
        rows, width = loops.shape
        needed, wide = whole + -(-rows // BUCKET), max(width, self._kept.shape[1])
        if needed > len(self._kept) or wide > self._kept.shape[1]:
            grown = np.full((max(needed, 2 * len(self._kept)), wide), np.nan, np.float32)
            grown[: self._count, : self._kept.shape[1]] = self._kept[: self._count]
            self._kept = grown
        self._count = needed
        self._kept[whole:needed] = np.nan
        if rows and width:
            self._kept[whole:needed, :width] = _largest_of_buckets(loops)
        self.seen = start + rows

    def columns(self, where: slice, limit: int) -> tuple[Rows, NDArray[np.float32], int]:
        """Return at most ``limit`` columns of a stretch: their middle rows, ``(C, T)`` values, and rows in each."""
        first, last = where.start // BUCKET, -(-where.stop // BUCKET)
        kept = self._kept[first : min(last, self._count)]
        groups = bin_rows(len(kept), limit)
        ends = np.append(groups[1:], len(kept))
        middle = (groups + ends) * BUCKET // 2 + first * BUCKET
        return np.minimum(middle, self.seen - 1), _largest(kept, groups), int(np.max(ends - groups)) * BUCKET


def _largest_of_buckets(loops: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return `_largest` of every bucket; halves are compared, since `reduceat` takes three times as long."""
    count, width = -(-len(loops) // BUCKET), loops.shape[1]
    table = np.full((count * BUCKET, width), np.nan, np.float32)
    table[: len(loops)] = loops
    high = low = table.reshape(count, BUCKET, width)
    while high.shape[1] > 1:
        high, low = np.fmax(high[:, ::2], high[:, 1::2]), np.fmin(low[:, ::2], low[:, 1::2])
    return _farther(high[:, 0], low[:, 0])


def _largest(values: NDArray[np.floating], starts: Rows) -> NDArray[np.float32]:
    """Return the number of largest size in every stretch of rows, with its sign."""
    return _farther(np.fmax.reduceat(values, starts, axis=0), np.fmin.reduceat(values, starts, axis=0))


def _farther(high: NDArray[np.floating], low: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return of two numbers the one that is farther from zero."""
    with np.errstate(invalid="ignore"):
        farther: NDArray[np.float32] = np.where(np.abs(low) > np.abs(high), low, high).astype(np.float32)
    return farther
