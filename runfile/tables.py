"""The tables of one open run file: its newest commit, and columns that are read once and then grow.

Only committed rows are read, each number once. Every way in which HDF5 fails becomes one `RunFileError`.

Not covered: what the columns mean and which rows are superseded (`file_source`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .disk import handle as handles
from .disk.chunks import can_pick, pick, read_repeating
from .disk.contract import text
from .disk.handle import Handle
from .disk.integrity import READ_ERRORS, damaged, one_line, read_info
from .growing import Growing
from .layout import FIRST_COLUMNS, STEP_COLUMNS, TABLES, Commit, DamagedRun, RunFileError
from .ragged import Index

_BLOCK: Final = 4096  # rows read at a time: what the processor's caches hold
_NEIGHBOURS: Final = 4  # columns that are kept when one of them is read: step, time, generation and loss, …
_SHORT: Final = 1 << 14  # rows of a table of which all columns are kept when one is read, which cost little more ...
_NARROW: Final = 8  # ... where they are no more than these
_MOST_GENERATIONS: Final = 1 << 20
_MOST_EVENTS: Final = 1 << 18
NOTHING: Final = Commit(dict.fromkeys(TABLES, 0), 0, False, 0)


class Tables:
    """One run file, open; what was read of it is kept.

    Args:
        path: The file.
        forgotten: Called when the file turns out to hold another run, or fewer rows than before.

    Attributes:
        run_id: Which run it holds.
        info: What the writer said.
        commit: The newest commit that was read.
        names: Columns of ``steps`` by name.
    """

    def __init__(self, path: Path, forgotten: Callable[[], None]) -> None:
        self.path, self._forgotten = path, forgotten
        self.run_id = ""
        self.info: dict[str, Any] = {}
        self._handle: Handle | None = None
        self.commit = NOTHING
        self.names: dict[str, int] = {}
        self._columns: dict[tuple[str, int | None], Growing] = {}
        self._used: dict[tuple[str, int | None], int] = {}  # columns by when they were looked at last
        self._looks = 0
        self._looked_at: dict[str, tuple[Handle, Commit]] = {}  # tables by what they were looked up for last
        self._sound: dict[str, int] = {}  # rows of ragged tables that were checked

    def forget(self) -> None:
        """Start anew: nothing of the run is known, here and where it was made something of."""
        self.commit = NOTHING
        self.names, self._columns, self._sound = {}, {}, {}
        self._forgotten()

    def follow(self) -> bool:
        """Make sure that the file is the one at the path now: sealing and resuming put a new one there.

        Returns:
            Whether there is a file at the path; without, the one that was open stays so.
        """
        handle = self._handle
        if handle is not None and handle.file is not None:
            try:
                same = handles.file_key(self.path) == handle.key
            except RunFileError:  # deleted: go on with what is open
                return False
            if same and not handle.written_over():
                return True
            if same:
                self.run_id = ""  # whatever is kept may be otherwise now, even of the same run
            handles.release(handle)
            self._handle = None
        self._open()
        return True

    def load(self) -> bool:
        """Read the newest commit row and the names of the columns; return whether the file lost rows since."""
        handle = self._open()
        newest, _ = self.guard(handle.last_commit)
        commit = newest or NOTHING
        self._check(commit)
        shorter = any(commit.lengths[table] < length for table, length in self.commit.lengths.items())
        if shorter:
            self.forget()
        self.commit = commit
        if commit.lengths["columns"] != len(self.names):
            encoded = self.read("columns", slice(0, commit.lengths["columns"]))
            names = [bytes(name).decode("utf-8", "replace") for name in encoded]
            self.names = {name: names.index(name) for name in names}
        if newest is not None and [*self.names][:FIRST_COLUMNS] != [*STEP_COLUMNS[:FIRST_COLUMNS]]:
            raise damaged(self.path, "the names of its columns are gone")
        return shorter

    def close(self) -> None:
        """Give the file back; what was read stays."""
        if self._handle is not None:
            handles.release(self._handle)
            self._handle = None

    def column(self, table: str, column: int, dtype: type[Any] = np.float64) -> NDArray[Any]:
        """Return the committed part of one column, reading only what is not kept yet."""
        return self.kept(
            table, column, np.float32 if table in ("loops", "probe", "variables") else dtype
        )  # as recorded

    def kept(self, table: str, column: int | None, dtype: type[Any] | np.dtype[Any]) -> NDArray[Any]:
        """Return the committed rows of a table, or one column of them, reading only those that are not kept yet.

        In a live file the columns of a row lie together, and reading one of them reads all from the disk: its
        neighbours are kept along with it. Of a short and narrow table all are, since a reading costs more than numbers.
        """
        known = self._columns.setdefault((table, column), Growing(dtype))
        self._used[table, column] = self._looks = self._looks + 1
        length = self.commit.lengths[table]
        if len(known) < length and column is None:
            known.take(self.read(table, slice(len(known), length)))
        elif len(known) < length and column is not None:
            together = _NARROW if length <= _SHORT else _NEIGHBOURS
            first = column // together * together
            group = [self._columns.setdefault((table, c), Growing(dtype)) for c in range(first, first + together)]
            alike = [c for c, other in enumerate(group, first) if len(other) == len(known)]
            values = self.read_columns(table, slice(len(known), length), [column, *(c for c in alike if c != column)])
            for at, part in values.items():
                self._columns[table, at].take(part)
        return known.values(length)

    def is_kept(self, table: str, column: int) -> bool:
        """Say whether all committed rows of a column are kept."""
        known = self._columns.get((table, column))
        return known is not None and len(known) == self.commit.lengths[table]

    @property
    def kept_bytes(self) -> int:
        """Bytes of the columns that are kept."""
        return sum(column.kept_bytes for column in self._columns.values())

    def trim(self, most: int) -> None:
        """Let go of the columns that were looked at longest ago, until at most so many bytes are kept."""
        kept = self.kept_bytes
        for key in sorted(self._columns, key=lambda one: self._used.get(one, 0)):
            if kept <= most:
                break
            kept -= self._columns.pop(key).kept_bytes

    def ends(self, table: str, ends: Index, of: str) -> Index:
        """Return where the entries of a ragged table end, once it is certain that all lie within it."""
        known = self._sound.get(table, 0)
        new = ends[max(0, known - 1) :]
        if len(new) and (new[0] < 0 or np.any(new[1:] < new[:-1]) or new[-1] > self.commit.lengths[of]):
            raise damaged(self.path, f"rows of {table} lead out of {of}")
        self._sound[table] = len(ends)
        return ends

    def read(self, table: str, rows: slice) -> NDArray[Any]:
        """Read rows, after telling HDF5 to look at the disk again."""
        handle = self._open()
        values: NDArray[Any] = self.guard(lambda: self._renewed(handle, table)[rows])
        if len(values) != rows.stop - rows.start:
            raise self._too_short(table)
        return values

    def read_columns(self, table: str, rows: slice, columns: list[int]) -> dict[int, NDArray[Any]]:
        """Read the first of some columns, and those of the others that come with it at no cost."""
        handle = self._open()
        if handle.sealed and rows.start == 0 and rows.stop > _SHORT:
            same = self.guard(lambda: _repeating(handle.table(table), columns[0], rows.stop))
            if same is not None:
                return {columns[0]: same}
        values: dict[int, NDArray[Any]] = self.guard(lambda: _columns(self._renewed(handle, table), rows, columns))
        if any(len(part) != rows.stop - rows.start for part in values.values()):
            raise self._too_short(table)
        return values

    def pick(self, table: str, column: int, wanted: Sequence[Index]) -> list[NDArray[Any]] | None:
        """Return a column at some committed rows in rising order, of which nothing is kept; None where all is read."""
        handle = self._open()
        dataset = self.guard(lambda: handle.table(table))
        if not handle.sealed or not self.guard(lambda: can_pick(dataset)):
            return None
        if self.guard(lambda: dataset.shape[0]) < self.commit.lengths[table]:
            raise self._too_short(table)
        picked: list[NDArray[Any]] = self.guard(lambda: pick(dataset, column, wanted))
        return picked

    def _renewed(self, handle: Handle, table: str) -> Any:
        """Return a table as it is on the disk now, with all rows of the newest commit that was read.

        Rows are there before the commit that counts them: to look once after it is enough.
        """
        if self._looked_at.get(table) == (handle, self.commit):
            return handle.table(table)
        dataset = handle.renewed(table)
        self._looked_at[table] = handle, self.commit
        return dataset

    def _too_short(self, table: str) -> DamagedRun:
        """Return the error for a table that holds less than was committed."""
        return damaged(self.path, f"table {table} holds fewer rows than were committed")

    def dataset(self, table: str) -> Any:
        """Return the dataset of a table as it is on the disk now; call it, and what it gives, within `guard`."""
        return self._open().renewed(table)

    def guard(self, read: Callable[[], Any]) -> Any:
        """Call ``read``, turning every way in which HDF5 fails into one line for a person."""
        try:
            return read()
        except RunFileError:
            raise
        except READ_ERRORS as error:
            raise damaged(self.path, one_line(error)) from error

    def _open(self) -> Handle:
        """Return a usable handle; caches survive when it is the same run in a new file."""
        handle = self._handle
        if handle is not None and handle.file is not None:
            return handle
        handle = handles.acquire(self.path)
        self._handle = handle
        file = handle.file
        run_id = self.guard(lambda: text(file, "run_id"))
        if run_id != self.run_id:
            self.forget()
            self.info = self.guard(lambda: read_info(file))
            self.run_id = run_id
        return handle

    def _check(self, commit: Commit) -> None:
        """Raise where a commit says what no writer says."""
        if min(commit.lengths.values()) < 0 or not 0 <= commit.generation < _MOST_GENERATIONS:
            raise damaged(self.path, "its commit rows make no sense")
        if commit.lengths["steps"] != commit.lengths["loop_end"]:
            raise damaged(self.path, "steps and loop_end have different lengths")
        if commit.lengths["events"] > _MOST_EVENTS:
            raise damaged(self.path, f"it claims {commit.lengths['events']} events")


def _repeating(dataset: Any, column: int, length: int) -> NDArray[Any] | None:
    """Return the first rows of a column whose first two chunks are the same; None for others or where rows are gone."""
    there = length <= dataset.shape[0] and column < dataset.shape[1]
    return read_repeating(dataset, column, length) if there and can_pick(dataset) else None


def _columns(dataset: Any, rows: slice, columns: list[int]) -> dict[int, NDArray[Any]]:
    """Read the first of some columns where each has long chunks of its own, else all of them, in blocks of whole rows.

    HDF5 reads whole rows faster than one number of each.
    """
    length, width = dataset.shape
    if dataset.chunks is not None and dataset.chunks[1] == 1 and (width > _NARROW or rows.stop > _SHORT):
        return {columns[0]: dataset[rows, columns[0]]}
    columns = [column for column in columns if column < width]
    if rows.stop > length:
        return dict.fromkeys(columns, np.empty(0, dataset.dtype))
    values = {column: np.empty(rows.stop - rows.start, dataset.dtype) for column in columns}
    for start in range(rows.start, rows.stop, _BLOCK):
        block = dataset[start : min(start + _BLOCK, rows.stop)]
        at = slice(start - rows.start, start - rows.start + len(block))
        for column, part in values.items():
            part[at] = block[:, column]
    return values
