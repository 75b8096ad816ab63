"""Arrays of any shape in a run file: how one becomes flat bytes with a row that describes it, and back.

For what is measured now and then and fits no table of fixed width: norms after each block, maps over tokens, flight
recordings. The bytes of all arrays lie one after another in the table ``arrays``, little-endian, last axis fastest;
a row of ``array_index`` says what they are and where they end.

Not covered: when they reach the disk (``writer``) and which of them are superseded (``file_source``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .layout import ARRAY_DIMENSIONS, ARRAY_DTYPES, NAME_BYTES

_ITEM_BYTES: Final = {kind.encode(): np.dtype(kind).itemsize for kind in ARRAY_DTYPES}
IndexRow = tuple[int, int, int, bytes, bytes, int, tuple[int, ...]]


def flat_bytes(name: str, values: ArrayLike) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return the bytes of an array as they are stored, and the array they are a view of.

    Raises:
        ValueError: The name is empty, too long, or the values are of a kind that a run file cannot hold.

    >>> data, array = flat_bytes("example", np.array([[1, 2]], dtype=">i2"))
    >>> data.tolist(), array.dtype.str
    ([1, 0, 2, 0], '<i2')
    """
    if not 1 <= len(name.encode()) <= NAME_BYTES or "\0" in name:
        raise ValueError(f"array name {name!r} must have 1 to {NAME_BYTES} bytes, none of them zero")
    given = np.asarray(values)
    dtype = given.dtype.newbyteorder("<")
    if dtype.str not in ARRAY_DTYPES:
        raise ValueError(f"array {name!r} has dtype {given.dtype}; expected one of {', '.join(sorted(ARRAY_DTYPES))}")
    if given.ndim > ARRAY_DIMENSIONS:
        raise ValueError(f"array {name!r} has {given.ndim} axes; expected {ARRAY_DIMENSIONS} at most, reshape it")
    array = np.asarray(given, dtype=dtype, order="C")
    return array.reshape(-1).view(np.uint8), array


def info_bytes(info: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return what was learnt of a whole run as the array `INFO_LATER` holds it."""
    return np.frombuffer(json.dumps(dict(info), default=str).encode(), dtype=np.uint8)


def index_row(step: int, generation: int, end: int, name: str, array: NDArray[Any]) -> IndexRow:
    """Return the row of ``array_index`` of an array whose bytes end at ``end``."""
    shape = (*array.shape, *(0,) * (ARRAY_DIMENSIONS - array.ndim))
    return int(step), generation, end, name.encode(), array.dtype.str.encode(), array.ndim, shape


def number_bytes(index: NDArray[Any]) -> NDArray[np.int64]:
    """Return the bytes of one number for rows of ``array_index``; 0 where the kind is unknown."""
    return np.array([_ITEM_BYTES.get(kind, 0) for kind in index["dtype"].tolist()], dtype=np.int64)


def stored_bytes(index: NDArray[Any]) -> NDArray[np.float64]:
    """Return how many bytes the arrays of rows of ``array_index`` take; NaN where a row describes none.

    >>> from loopscope.runfile.layout import ARRAY_INDEX_DTYPE
    >>> row = index_row(0, 0, 24, "example", np.zeros((2, 3), "<f4"))
    >>> stored_bytes(np.array([row], ARRAY_INDEX_DTYPE))
    array([24.])
    """
    axes, shape, each = index["ndim"], index["shape"], number_bytes(index)
    count = np.where(np.arange(ARRAY_DIMENSIONS) < axes[:, np.newaxis], shape, 1).prod(axis=1, dtype=np.float64)
    known = (each > 0) & (axes >= 0) & (axes <= ARRAY_DIMENSIONS) & np.all(shape >= 0, axis=1)
    return np.where(known, count * each, np.nan)


def from_bytes(row: Any, data: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the array that a row of ``array_index`` describes.

    Raises:
        ValueError: Row and bytes do not belong together.
    """
    dtype = bytes(row["dtype"]).decode("ascii", "replace")
    if dtype not in ARRAY_DTYPES:
        raise ValueError(f"an array has the unknown dtype {dtype!r}")
    array: NDArray[Any] = data.view(dtype).reshape(tuple(row["shape"][: row["ndim"]]))
    return array
