"""Whether a file is a run, of a version we know, and whole; looks only, changes nothing.

Not covered: bit rot in the numbers of uncompressed live files, which carry no checksum.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
from array import array
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from h5py import h5d
from numpy.typing import NDArray

from ..layout import FORMAT, VERSION, Commit, DamagedRun, NotARun, RunFileError, tables_of
from .contract import Broken, check_compression, check_tables, text, whole_number
from .skeleton import NOT_SEEN, Shapes
from .superblock import SIGNATURE, Superblock, open_clean
from .trial import screen, stamp

READ_ERRORS: Final = (
    OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError, MemoryError
)  # fmt: skip
"""Everything that h5py, NumPy and JSON raise on a file that is not what it should be."""


def check_hdf5(path: Path) -> None:
    """Refuse what is certainly no run file, before HDF5 sees it. The path leads to something (`handle.file_key`)."""
    kind_of_file = path.stat().st_mode
    if stat.S_ISDIR(kind_of_file):
        raise NotARun(f"{path}: is a folder; expected a run file, name one in it")
    if not stat.S_ISREG(kind_of_file):  # a pipe would wait for somebody to write into it
        raise NotARun(f"{path}: is a pipe, a socket or a device; expected a run file, check the path")
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if not head:
        raise DamagedRun(f"{path}: is empty; expected a run file, nothing in it can be recovered")
    if head != SIGNATURE:
        short = head == SIGNATURE[: len(head)]
        kind = DamagedRun if short else NotARun
        said = "is cut off after a few bytes" if short else "is not an HDF5 file"
        raise kind(f"{path}: {said}; expected a run file written by loopscope, check the path")


def inspect(path: Path) -> tuple[int, ...]:
    """Raise unless the file at ``path`` is a whole run; costs milliseconds. Not for files being written.

    Returns:
        The `stamp` of the file that was looked at.

    Raises:
        NotARun: It is something else.
        DamagedRun: Its first bytes, its tables or committed rows are missing.
        RunFileError: It cannot be read, or is of a newer version.
    """
    check_hdf5(path)
    looked_at = stamp(path.stat())
    seen = screen(path)
    try:
        with open_clean(path) as file:
            check_format(path, file, seen)
            _check_extents(path, file)
    except READ_ERRORS as error:
        raise damaged(path, one_line(error)) from None
    if Superblock.read(path) is None:
        raise damaged(path, "its first bytes are wrong")
    return looked_at


def open_sealed(path: Path) -> h5py.File | None:
    """Return a sealed file, open, if it is a whole run whose structure is as written; None of every other file.

    Nobody writes into a sealed file: a resume puts another one in its place. So it is opened only once, and without
    SWMR mode, in which HDF5 would look at it again before each reading.

    Raises:
        DamagedRun: Its tables or committed rows are missing.
        RunFileError: It is of a newer version, or what `check_format` says of it.
    """
    looked_at, seen, block = stamp(path.stat()), screen(path), Superblock.read(path)
    if not seen or block is None or block.flags or block.end_of_file != path.stat().st_size:
        return None
    try:
        file = h5py.File(path, "r", locking=False)
    except READ_ERRORS as error:
        raise damaged(path, one_line(error)) from None
    try:
        if stamp(os.fstat(file.id.get_vfd_handle())) == looked_at:
            check_format(path, file, seen)
            if text(file, "layout") == "sealed":
                _check_extents(path, file)
                return file
    except READ_ERRORS as error:
        file.close()
        raise damaged(path, one_line(error)) from None
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def check_format(path: Path, file: h5py.File, seen: Shapes = NOT_SEEN) -> None:
    """Raise unless an open file names our format and a version we know, and every table is a plain one of its shape.

    Args:
        path: The file.
        file: The same, open.
        seen: What `trial.screen` saw of it; then no more is asked than that leaves open.
    """
    try:
        ours = text(file, "format") == FORMAT
    except Broken:
        ours = False
    except READ_ERRORS as error:
        raise damaged(path, one_line(error)) from None
    if not ours:
        raise NotARun(f"{path}: is HDF5 but not a loopscope run (no format attribute {FORMAT!r}); check the path")
    try:
        version = whole_number(file, "version")
        if version > VERSION:
            raise RunFileError(
                f"{path}: has format version {version}, this loopscope reads {VERSION}; upgrade loopscope"
            )
        if version < 1:
            raise Broken(f"its format version is {version}")
        check_tables(file, path.stat().st_size, seen)
    except READ_ERRORS as error:
        raise damaged(path, one_line(error)) from None


def read_info(file: h5py.File) -> dict[str, Any]:
    """Return what the writer said about the run; raises one of ``READ_ERRORS`` where that is damaged."""
    return dict(json.loads(text(file, "info")))


def tables_in(file: h5py.File) -> tuple[str, ...]:
    """Return the names of the tables that the version of an open file has, ``commit`` not among them."""
    return tables_of(int(file["commit"].shape[-1]))


def table_of(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a table of a file, opened: ``file[name]`` does the same, and takes twice as long."""
    return h5py.Dataset(h5d.open(file.id, name.encode()))


def damaged(path: Path, what: str) -> DamagedRun:
    """Return the error for a run that cannot be read as it is."""
    return DamagedRun(f"{path}: is damaged ({what}); expected a whole run file, try `loopscope repair`")


def last_commit(table: Any, end: int) -> tuple[Commit | None, int]:
    """Return the newest whole row among the first ``end`` of the commit table, and how many rows lead up to it."""
    while end > 0:
        start = max(0, end - 64)
        block = table[start:end]
        for offset in range(end - start - 1, -1, -1):
            if (commit := Commit.unpack(block[offset])) is not None:
                return commit, start + offset + 1
        end = start
    return None, 0


def _check_extents(path: Path, file: h5py.File) -> None:
    """Raise where committed rows lie beyond the end of the file, which HDF5 would read as zeros, or claim too much."""
    size = path.stat().st_size
    commits = table_of(file, "commit")
    newest, at = last_commit(commits, readable_rows(commits, size))
    if newest is None or not commits_whole(commits, at):
        raise damaged(path, "commit rows are missing")
    for table, needed in newest.lengths.items():
        if not needed:  # nothing was committed, or the file is too old to have the table
            continue
        dataset = table_of(file, table)
        whole = readable_rows(dataset, size)
        if not 0 <= needed <= whole:
            raise damaged(path, f"cut off, table {table} holds {whole} of {needed} rows")
        if dataset.compression is not None:
            row_bytes = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
            check_compression(table, needed, row_bytes, dataset.id.get_storage_size())


def readable_rows(dataset: Any, size: int) -> int:
    """Return how many leading rows of a table lie inside a file of ``size`` bytes.

    Takes memory for the chunks that the file has, whatever number of rows it declares.
    """
    length = int(dataset.shape[0])
    if not length:
        return 0
    if dataset.chunks is None:
        end = (dataset.id.get_offset() or 0) + dataset.id.get_storage_size()
        return length if end <= size else 0
    rows, *width = dataset.chunks
    across = math.prod(-(-n // c) for n, c in zip(dataset.shape[1:], width, strict=True))
    row_bytes = math.prod(width) * dataset.dtype.itemsize
    whole = array("q")  # blocks of rows, once for each chunk that is there
    cut: dict[int, int] = {}  # rows inside of a block that is cut in half

    def count(chunk: Any) -> None:
        block = chunk.chunk_offset[0] // rows
        if chunk.byte_offset + chunk.size <= size:
            whole.append(block)
        elif across == 1 and dataset.compression is None:
            cut[block] = max(0, size - chunk.byte_offset) // row_bytes

    with contextlib.suppress(OSError, RuntimeError):  # the list of chunks may be cut off too: then what it still lists
        dataset.id.chunk_iter(count)
    leading = _before_a_gap(np.frombuffer(whole, np.int64), across)
    return int(min(length, leading * rows + cut.get(leading, 0)))


def _before_a_gap(blocks: NDArray[np.int64], across: int) -> int:
    """Return how many blocks, from the first on, are there without a gap, each ``across`` times."""
    if np.array_equal(blocks, np.arange(len(blocks)) // across):  # as written, in order
        return len(blocks) // across
    blocks, chunks = np.unique(blocks, return_counts=True)
    blocks = blocks[chunks >= across]
    return int(np.searchsorted(blocks - np.arange(len(blocks)), 0, side="right"))


def commits_whole(commits: Any, valid: int) -> bool:
    """Return whether the last of the ``valid`` leading commit rows is the newest.

    A kill may leave room for one row that was never written; of several, rows were written that are gone now.
    """
    return valid >= int(commits.shape[0]) - 1


def chunk_end(dataset: Any) -> int:
    """Return the largest file address any chunk of the dataset reaches to."""
    if dataset.chunks is None:
        return int((dataset.id.get_offset() or 0) + dataset.id.get_storage_size())
    ends = [0]
    dataset.id.chunk_iter(lambda chunk: ends.append(chunk.byte_offset + chunk.size))
    return max(ends)


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line; of HDF5's long ones, what the system said."""
    said = re.search(r"error message = '([^']+)'", str(error))
    if said:
        return said[1]
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
