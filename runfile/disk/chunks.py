"""Reads columns from their compressed chunks, where most of what HDF5 would do is of no use.

Where one number in nine is wanted, as of a run of millions of loops those of some loops, putting bytes in order and
copying is done for numbers that nobody looks at. And of the columns of a run most were never recorded: every chunk of
theirs is the same bytes, which need to be unpacked once. A sealed file holds every column in chunks of its own,
shuffled (all first bytes of its numbers, then all second ones, and so on) and packed by gzip, whose check value is
compared here as HDF5 does.

Not covered: files that are not sealed, and other filters; `can_pick` tells.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
from h5py import h5z
from numpy.typing import NDArray

from ..ragged import Index


def can_pick(dataset: h5py.Dataset) -> bool:
    """Return whether every column of a table lies in chunks of its own, shuffled and then packed by gzip."""
    if dataset.chunks is None or dataset.chunks[1:] != (1,):
        return False
    creation = dataset.id.get_create_plist()
    filters = [creation.get_filter(number)[0] for number in range(creation.get_nfilters())]
    return filters == [h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE]


def pick(dataset: h5py.Dataset, column: int, wanted: Sequence[Index]) -> list[NDArray[Any]]:
    """Return the numbers of a column at some rows, for each of several lists of rows.

    Args:
        dataset: A table of which `can_pick` is true.
        column: Which column.
        wanted: Rows of the table, in rising order.

    Raises:
        OSError: A chunk cannot be unpacked, or holds another number of bytes than it should.
    """
    rows, length = dataset.chunks[0], dataset.shape[0]
    values = [np.empty(len(at), dataset.dtype) for at in wanted]
    before: tuple[int, bytes] | None = None
    planes = np.empty((dataset.dtype.itemsize, 0), np.uint8)
    for first in range(0, length, rows):
        here = [slice(*np.searchsorted(at, [first, first + rows]).tolist()) for at in wanted]
        if any(inside.start < inside.stop for inside in here):
            packed = _packed(dataset, first, column)
            if packed != before:  # a number that never changes, as how many tokens a loop has, is packed the same
                planes, before = _unpacked(dataset, first, column, packed), packed
            for at, inside, each in zip(wanted, here, values, strict=True):
                numbers = np.ascontiguousarray(planes.take(at[inside] - first, axis=1).T)
                each[inside] = numbers.view(dataset.dtype)[:, 0]
    return values


def read_repeating(dataset: h5py.Dataset, column: int, length: int) -> NDArray[Any] | None:
    """Return a column that begins with the same chunk twice; None for others, which HDF5 reads as fast.

    Args:
        dataset: A table of which `can_pick` is true.
        column: Which column.
        length: How many of its rows.

    Raises:
        OSError: As `pick`.
    """
    rows = dataset.chunks[0]
    if length < 2 * rows or _packed(dataset, 0, column) != _packed(dataset, rows, column):
        return None
    values = np.empty(length, dataset.dtype)
    before: tuple[int, bytes] | None = None
    numbers = values[:0]
    for first in range(0, length, rows):
        packed = _packed(dataset, first, column)
        if packed != before:
            planes = _unpacked(dataset, first, column, packed)
            numbers, before = np.ascontiguousarray(planes.T).view(dataset.dtype)[:, 0], packed
        values[first : first + rows] = numbers[: length - first]
    return values


def _packed(dataset: h5py.Dataset, first: int, column: int) -> tuple[int, bytes]:
    """Return which filters were skipped for one chunk, and its bytes as they are in the file."""
    skipped, packed = dataset.id.read_direct_chunk((first, column))
    return skipped, packed


def _unpacked(dataset: h5py.Dataset, first: int, column: int, chunk: tuple[int, bytes]) -> NDArray[np.uint8]:
    """Return the bytes of one chunk as `_packed` gave it, unpacked, ``(bytes of a number, rows)``."""
    skipped, packed = chunk
    size, rows = dataset.dtype.itemsize, dataset.chunks[0]
    if skipped:  # a filter that failed when this chunk was written: HDF5 knows what to do
        numbers: NDArray[Any] = dataset[first : first + rows, column]
        return numbers.view(np.uint8).reshape(-1, size).T
    unpack = zlib.decompressobj()
    try:
        content = unpack.decompress(packed, size * rows + 1)
    except zlib.error as error:
        raise OSError(f"a chunk cannot be unpacked: {error}") from None
    if not unpack.eof or len(content) != size * rows:
        raise OSError("a chunk holds another number of bytes than it should")
    return np.frombuffer(content, np.uint8).reshape(size, rows)
