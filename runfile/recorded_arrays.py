"""Arrays of any shape in one run file: the table of their bytes and the one that says what they are.

Not covered: how an array becomes bytes (`arrays`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .arrays import from_bytes, stored_bytes
from .disk.integrity import damaged
from .growing import Growing
from .layout import ARRAY_INDEX_DTYPE
from .ragged import Index, Series, pad
from .source import RecordedArray
from .superseded import Branches
from .tables import Tables

_READ_AHEAD: Final = 128 << 10  # bytes of arrays read at once: a chunk, which HDF5 fetches whole anyway


class RecordedArrays:
    """The arrays of a run file; ``arrays`` and its siblings of `Run` say what each method gives.

    Args:
        tables: The open file.
        branches: Gives what is known of branches that were left, up to date.
    """

    def __init__(self, tables: Tables, branches: Callable[[], Branches]) -> None:
        self._tables, self._branches = tables, branches
        self._short: dict[str, tuple[Growing, Growing]] = {}  # of arrays kept as a table: numbers, and where each ends
        self._checked = 0

    def names(self) -> tuple[str, ...]:
        """Return every name, in the order in which they first appeared."""
        names = dict.fromkeys(self._index()["name"].tolist())
        return tuple(name.decode("utf-8", "replace") for name in names)

    def steps(self, name: str) -> Index:
        """Return the steps of the arrays of a name."""
        mine, standing = self._rows(name)
        return self._index()["step"][mine[standing]]

    def arrays(self, name: str, rows: slice) -> tuple[Index, list[NDArray[Any]]]:
        """Return steps and arrays of a name, reading them and what lies between them."""
        mine, standing = self._rows(name)
        mine = mine[standing][rows]
        return self._index()["step"][mine], self._values(mine)

    def table(self, name: str) -> tuple[Index, Series]:
        """Return the arrays of a name as one table, reading those only that are new."""
        mine, standing = self._rows(name)
        flat, ends = self._short.setdefault(name, (Growing(np.float64), Growing(np.int64)))
        if fresh := self._values(mine[len(ends) :]):
            ends.append(len(flat) + np.cumsum([values.size for values in fresh]))
            flat.append(np.concatenate([values.reshape(-1).real for values in fresh]))
        end = ends.values(len(mine))
        start = np.concatenate([[0], end])[:-1]
        table: Series = self._tables.guard(lambda: pad(flat.values(), start[standing], end[standing]))
        return self._index()["step"][mine[standing]], table

    def history(self, prefix: str) -> list[RecordedArray]:
        """Return every array whose name starts with a prefix, in file order, superseded ones included."""
        index = self._index()
        rows = np.flatnonzero(np.char.startswith(index["name"], prefix.encode())) if len(index) else index["step"]
        return [
            RecordedArray(int(row["step"]), int(row["generation"]), row["name"].decode("utf-8", "replace"), values)
            for row, values in zip(index[rows], self._values(rows), strict=True)
        ]

    def _index(self) -> NDArray[Any]:
        """Return the committed rows that say what the arrays are."""
        index = self._tables.kept("array_index", None, ARRAY_INDEX_DTYPE)
        known, ends = self._checked, self._tables.ends("array_index", index["end"], "arrays")
        if np.any(stored_bytes(index[known:]) != np.diff(ends[known:], prepend=ends[known - 1] if known else 0)):
            raise damaged(self._tables.path, "rows of array_index describe no arrays")
        self._checked = len(index)
        return index

    def _rows(self, name: str) -> tuple[Index, Index]:
        """Return the rows of the index that have a name, and which of these stand."""
        index = self._index()
        mine = np.flatnonzero(index["name"] == name.encode())
        return mine, self._branches().standing(index["step"][mine], index["generation"][mine])

    def _values(self, rows: Index) -> list[NDArray[Any]]:
        """Return the arrays of some rows of the index, which increase."""
        if not len(rows):
            return []
        index = self._index()
        ends = index["end"]
        starts = np.concatenate([[0], ends[:-1]])
        last = int(ends[rows[-1]])

        def read() -> list[NDArray[Any]]:
            """Read the arrays, some neighbours at a time."""
            data = self._tables.dataset("arrays")
            arrays, low, high, block = [], 0, 0, np.empty(0, np.uint8)
            for row, start, end in zip(index[rows], starts[rows].tolist(), ends[rows].tolist(), strict=True):
                if end > high:
                    low, high = start, max(end, min(start + _READ_AHEAD, last))
                    block = data[low:high]
                arrays.append(from_bytes(row, block[start - low : end - low].copy()))
            return arrays

        arrays: list[NDArray[Any]] = self._tables.guard(read)
        return arrays
