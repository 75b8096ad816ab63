"""Open HDF5 handles: at most one per run file in a process, shared by its readers and its writer.

HDF5 cannot have one file open twice in a process in different modes, and a second reader handle on a live file fails.
So every open goes through here, all multi-call HDF5 work happens under one lock, and a file left behind by a killed
process is made ready for writing here.

Not covered: what the tables mean (``layout``), whether their content is intact (``repair``).
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from h5py import h5f, h5p

from .layout import FORMAT, TABLES, VERSION, Commit, DamagedRun, NotARun, RunFileError, RunInUse
from .superblock import SIGNATURE, Superblock

LOCK: Final = threading.RLock()
"""Held around every group of HDF5 calls that belongs together (h5py serialises single calls anyway)."""

_LIBVER: Final = ("v110", "v110")
READ_ERRORS: Final = (OSError, RuntimeError, KeyError, ValueError, TypeError)
Key = tuple[int, int]


@dataclass(eq=False, slots=True)
class Handle:
    """One open run file; ``file`` is None once it was closed, and holders must open it again."""

    file: h5py.File | None
    path: Path
    key: Key
    writing: bool = False
    published: int = 0  # commit rows a writer in this process has published
    users: int = 1
    datasets: dict[str, Any] = field(default_factory=dict)

    def table(self, name: str) -> Any:
        """Return the dataset of a table, opened once."""
        if self.file is None:
            raise RunFileError(f"{self.path}: the file was closed; open it again")
        if name not in self.datasets:
            self.datasets[name] = self.file[name]
        return self.datasets[name]


_HANDLES: dict[Key, Handle] = {}


def file_key(path: Path) -> Key:
    """Return device and inode of a file; raises ``RunFileError`` where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise RunFileError(f"{path}: no such file; expected a run file, check the path") from None
    except OSError as error:
        raise RunFileError(
            f"{path}: cannot be reached ({error.strerror}); check the path and its permissions"
        ) from None
    return status.st_dev, status.st_ino


def acquire(path: Path) -> Handle:
    """Return the process's handle on the run at ``path``, opening it for reading where there is none.

    Raises:
        NotARun: The path is something else.
        DamagedRun: It is a run that HDF5 cannot open.
        RunFileError: There is no such file, or no permission.
    """
    with LOCK:
        key = file_key(path)
        handle = _HANDLES.get(key)
        if handle is not None and handle.file is not None:
            handle.users += 1
            return handle
        handle = Handle(_open_reading(path), path, key)
        _HANDLES[key] = handle
        return handle


def release(handle: Handle) -> None:
    """Give a handle from ``acquire`` back; the last reader closes it, a writer's stays open."""
    with LOCK:
        handle.users -= 1
        if handle.users <= 0 and not handle.writing:
            close(handle)


def close(handle: Handle) -> None:
    """Close the file under every holder; readers notice and open it again by path."""
    with LOCK:
        file, handle.file = handle.file, None
        handle.datasets.clear()
        if _HANDLES.get(handle.key) is handle:
            del _HANDLES[handle.key]
        if file is not None:
            file.close()


def acquire_writing(path: Path) -> Handle:
    """Open the run at ``path`` as a SWMR writer; the caller holds its lease. Readers of this process give way."""
    with LOCK:
        make_writable(path)
        access = h5p.create(h5p.FILE_ACCESS)
        access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
        access.set_fclose_degree(h5f.CLOSE_STRONG)
        access.set_file_locking(False, True)
        # Opening straight into SWMR mode leaves no moment at which a kill makes the file unreadable.
        flags = h5f.ACC_RDWR | h5f.ACC_SWMR_WRITE
        try:
            file = h5py.File(_patiently(lambda: h5f.open(os.fsencode(path), flags, access)))
        except OSError as error:
            raise RunFileError(f"{path}: cannot be opened for writing ({one_line(error)})") from None
        _drop_hdf5_lock(file)
        handle = Handle(file, path, file_key(path), writing=True)
        _HANDLES[handle.key] = handle
        return handle


def make_writable(path: Path) -> bool:
    """Undo what a kill leaves in the superblock; True where there was something to undo. Readers here give way."""
    with LOCK:
        key = file_key(path)
        handle = _HANDLES.get(key)
        if handle is not None and handle.writing:
            raise RunInUse(f"{path}: this process is writing the run already; close its writer first")
        if handle is not None:
            close(handle)
        block = Superblock.read(path)
        if block is None or (block.flags == 0 and block.end_of_file == path.stat().st_size):
            return False
        end = path.stat().st_size
        if block.flags & Superblock.SWMR:
            file = _open_reading(path)
            end = max([end, *(chunk_end(file[name]) for name in (*TABLES, "commit"))])
            file.close()
        else:
            end = max(end, block.end_of_file)
        block.settle(path, end)
        return True


def create_file(path: Path) -> h5py.File:
    """Create an empty file with the format's library version, for the schema or for a rewrite."""
    return h5py.File(path, "w", libver=_LIBVER, locking=False)


def chunk_end(dataset: Any) -> int:
    """Return the largest file address any chunk of the dataset reaches to."""
    if dataset.chunks is None:
        return int((dataset.id.get_offset() or 0) + dataset.id.get_storage_size())
    ends = [0]
    dataset.id.chunk_iter(lambda chunk: ends.append(chunk.byte_offset + chunk.size))
    return max(ends)


def last_commit(handle: Handle) -> tuple[Commit | None, int]:
    """Return the newest whole commit row and how many rows lead up to it."""
    table = handle.table("commit")
    end = handle.published if handle.writing and handle.published else int(table.shape[0])
    while end > 0:
        start = max(0, end - 64)
        block = table[start:end]
        for offset in range(end - start - 1, -1, -1):
            if (commit := Commit.unpack(block[offset])) is not None:
                return commit, start + offset + 1
        end = start
    return None, 0


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line; of HDF5's long ones, what the system said."""
    said = re.search(r"error message = '([^']+)'", str(error))
    if said:
        return said[1]
    return " ".join(str(error).split()) or type(error).__name__


def check_hdf5(path: Path) -> None:
    """Refuse what is certainly no run file, before HDF5 sees it."""
    if path.is_dir():
        raise NotARun(f"{path}: is a folder; expected a run file, name one in it")
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


def _open_reading(path: Path) -> h5py.File:
    """Open a file for SWMR reading and make sure that it is a run of a version we know."""
    check_hdf5(path)
    try:
        file = _patiently(lambda: h5py.File(path, "r", swmr=True, locking=False))
    except READ_ERRORS as error:
        raise _why_unopenable(path, error) from None
    try:
        _drop_hdf5_lock(file)
        _check_format(path, file)
    except BaseException:
        file.close()
        raise
    return file


def _check_format(path: Path, file: h5py.File) -> None:
    """Raise unless the open file names our format, a version we know, and has every table."""
    try:
        name, version = file.attrs.get("format"), file.attrs.get("version")
        missing = [table for table in (*TABLES, "commit") if table not in file]
    except READ_ERRORS as error:
        raise _damaged(path, error) from None
    if name != FORMAT:
        raise NotARun(f"{path}: is HDF5 but not a loopscope run (no format attribute {FORMAT!r}); check the path")
    if not isinstance(version, (int, np.integer)) or int(version) > VERSION:
        raise RunFileError(f"{path}: has format version {version}, this loopscope reads {VERSION}; upgrade loopscope")
    if missing:
        raise DamagedRun(f"{path}: table {missing[0]!r} is missing; expected a whole run file, try `loopscope repair`")


def _why_unopenable(path: Path, error: Exception) -> RunFileError:
    """Tell a foreign HDF5 file (older superblock, opened by others) from a damaged run."""
    block = Superblock.read(path)
    if block is None:
        try:
            with h5py.File(path, "r", locking=False) as file:
                if file.attrs.get("format") != FORMAT:
                    return NotARun(f"{path}: is HDF5 but not a loopscope run; check the path")
        except READ_ERRORS:
            pass
    return _damaged(path, error)


def _damaged(path: Path, error: BaseException) -> DamagedRun:
    return DamagedRun(f"{path}: is damaged ({one_line(error)}); expected a readable run, try `loopscope repair`")


def _patiently(attempt: Any) -> Any:
    """Call ``attempt`` again for up to a second while somebody holds HDF5's own file lock for a moment."""
    deadline = time.monotonic() + 1.0
    while True:
        try:
            return attempt()
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _drop_hdf5_lock(file: h5py.File) -> None:
    """Release HDF5's own lock: ``HDF5_USE_FILE_LOCKING`` overrides ``locking=False``, and a lock stops a resume."""
    fcntl.flock(file.id.get_vfd_handle(), fcntl.LOCK_UN)


def check_extents(handle: Handle, commit: Commit) -> None:
    """Raise ``DamagedRun`` where committed rows lie beyond the end of the file (HDF5 would read them as zeros)."""
    size = handle.path.stat().st_size
    block = Superblock.read(handle.path)
    if block is not None and block.flags == 0 and block.end_of_file <= size:
        return
    for table in (*TABLES, "commit"):
        needed = commit.lengths.get(table, 0)
        whole = readable_rows(handle.table(table), size)
        if whole < needed:
            raise DamagedRun(
                f"{handle.path}: is cut off, table {table} holds {whole} of {needed} rows; "
                "restore the whole file or try `loopscope repair`"
            )


def readable_rows(dataset: Any, size: int) -> int:
    """Return how many leading rows of a table lie wholly inside a file of ``size`` bytes."""
    length = int(dataset.shape[0])
    if dataset.chunks is None:
        end = (dataset.id.get_offset() or 0) + dataset.id.get_storage_size()
        return length if end <= size else 0
    rows = dataset.chunks[0]
    across = int(
        np.prod([-(-n // c) for n, c in zip(dataset.shape[1:], dataset.chunks[1:], strict=True)], dtype=np.int64)
    )
    whole = np.zeros(-(-length // rows), dtype=np.int64)

    def count(chunk: Any) -> None:
        block = chunk.chunk_offset[0] // rows
        if block < len(whole) and chunk.byte_offset + chunk.size <= size:
            whole[block] += 1

    dataset.id.chunk_iter(count)
    missing = np.flatnonzero(whole < across)
    return length if len(missing) == 0 else min(length, int(missing[0]) * rows)


def _after_fork_in_child() -> None:
    """Keep a forked child from ever writing the parent's run: its HDF5 would flush the same file at exit."""
    for handle in list(_HANDLES.values()):
        if handle.writing and handle.file is not None:
            divert(handle)
            del _HANDLES[handle.key]
    LOCK.release()


def divert(handle: Handle) -> None:
    """Point a writing handle's descriptor at nothing, so that whatever HDF5 still wants to write changes no file."""
    if handle.file is not None and handle.file.id.valid:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, handle.file.id.get_vfd_handle(), inheritable=False)
        os.close(null)


os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=_after_fork_in_child)
