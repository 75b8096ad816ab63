"""Rows of different lengths that lie one after another in one table: where each starts, and as a rectangle.

Not covered: reading them (`tables`) and whether the ends make sense (`Tables.ends`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]
Index = NDArray[np.int64]
_SMALL: Final = 1 << 22  # numbers of a rectangle that are never too many
_SPARSEST: Final = 64  # times that a rectangle may be larger than what was recorded of it


def starts_and_ends(ends: Index, rows: slice | Index) -> tuple[Index, Index]:
    """Return where some rows of a ragged table start and end, from where all of them end; a slice has no step.

    >>> starts_and_ends(np.array([2, 5, 5]), np.array([0, 2]))
    (array([0, 5]), array([2, 5]))
    """
    if isinstance(rows, slice):
        first = rows.start or 0
        return np.append(ends[first - 1] if first else 0, ends[rows])[: len(ends[rows])], ends[rows]
    return np.where(rows > 0, ends[rows - 1], 0), ends[rows]


def pad(flat: NDArray[Any], start: Index, end: Index) -> Series:
    """Turn ragged rows into a rectangle, NaN behind the shorter ones.

    Raises:
        ValueError: The rectangle would hold almost nothing but NaN: one row is far longer than the others.

    >>> pad(np.array([1.0, 2.0, 3.0]), np.array([0, 1]), np.array([1, 3]))
    array([[ 1., nan],
           [ 2.,  3.]])
    """
    count = end - start
    width = int(count.max(initial=0))
    if width * len(count) > _SMALL + _SPARSEST * int(count.sum()):
        raise ValueError(f"one of {len(count)} ragged rows has {width} entries")
    one_stretch = np.array_equal(start[1:], end[:-1])
    if width and one_stretch and np.all(count == width):  # the usual case: as deep in every step
        return flat[start[0] : end[-1]].reshape(len(count), width).astype(np.float64)
    table = np.full((len(count), width), np.nan)
    if not width:
        return table
    ran = np.arange(width) < count[:, np.newaxis]
    if one_stretch:
        table[ran] = flat[start[0] : end[-1]]
    else:
        table[ran] = flat[(start[:, np.newaxis] + np.arange(width))[ran]]
    return table
