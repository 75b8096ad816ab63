"""Open HDF5 handles: at most one per run file in a process, shared by its readers and its writer.

HDF5 cannot have one file open twice in a process in different modes, and a second reader handle on a live file fails.
So every open goes through here, all multi-call HDF5 work happens under one lock, and a file left behind by a killed
process is made ready for writing here.

Not covered: what the tables mean (``layout``), whether their content is intact (``repair``).
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import h5py
from h5py import h5f, h5p

from ..layout import Commit, DamagedRun, RunFileError, RunInUse
from .integrity import (
    READ_ERRORS,
    check_format,
    check_hdf5,
    chunk_end,
    damaged,
    inspect,
    last_commit,
    one_line,
    open_sealed,
    table_of,
    tables_in,
)
from .lease import is_held
from .skeleton import NOT_SEEN
from .superblock import Superblock, open_clean
from .trial import screen, stamp


class ForkableLock:
    """A re-entrant lock that a fork does not wait for: the child begins with a free one.

    A flush can take as long as a disk likes. A training that starts data-loader workers meanwhile does not wait for it;
    what the recorder's thread was doing does not go on in the child, which never writes this process's runs.

    >>> lock = ForkableLock()
    >>> with lock, lock:
    ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def forget(self) -> None:
        """Become free, whoever held it: for a forked child, in which the holder does not exist."""
        self._lock = threading.RLock()


LOCK: Final = ForkableLock()
"""Held around every group of HDF5 calls that belongs together (h5py serialises single calls anyway)."""

_LIBVER: Final = ("v110", "v110")
_CHUNK_CACHE: Final = 256 << 10  # bytes per table of a writer: the chunk being filled and its successor
_METADATA_CACHE: Final = 1 << 20
Key = tuple[int, int]


@dataclass(eq=False, slots=True)
class Handle:
    """One open run file; ``file`` is None once it was closed, and holders must open it again."""

    file: h5py.File | None
    path: Path
    key: Key
    writing: bool = False
    sealed: tuple[int, ...] = ()  # stamp of a file that nobody should write into any more
    published: int = 0  # commit rows a writer in this process has published
    users: int = 1
    datasets: dict[str, Any] = field(default_factory=dict)

    def table(self, name: str) -> Any:
        """Return the dataset of a table, opened once."""
        if self.file is None:
            raise RunFileError(f"{self.path}: the file was closed; open it again")
        if name not in self.datasets:
            self.datasets[name] = table_of(self.file, name)
        return self.datasets[name]

    def renewed(self, name: str) -> Any:
        """Return the dataset of a table as it is on disk now."""
        dataset = self.table(name)
        if not self.writing and not self.sealed:
            dataset.refresh()
        return dataset

    def written_over(self) -> bool:
        """Return whether somebody wrote into a sealed file after all, as ``cp`` does onto one that is there."""
        return bool(self.sealed) and self.file is not None and _stamp_of(self.file) != self.sealed

    def last_commit(self) -> tuple[Commit | None, int]:
        """Return the newest commit on disk (published, where this process writes) and how many rows lead up to it."""
        table = self.renewed("commit")
        return last_commit(table, self.published if self.writing and self.published else int(table.shape[0]))


_HANDLES: dict[Key, Handle] = {}


def file_key(path: Path) -> Key:
    """Return device and inode of a file; raises ``RunFileError`` where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise RunFileError(f"{path}: no such file; expected a run file, check the path") from None
    except (OSError, ValueError) as error:  # a name with a zero byte in it is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunFileError(f"{path}: cannot be reached ({reason}); check the path and its permissions") from None
    return status.st_dev, status.st_ino


def look(path: Path) -> None:
    """Raise what a file of unusual structure gives; call it without the lock, since a trial takes its time."""
    file_key(path)
    check_hdf5(path)
    screen(path)


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
        if handle is not None and handle.written_over():
            close(handle)
        elif handle is not None and handle.file is not None:
            handle.users += 1
            return handle
        file = _open_reading(path)
        handle = Handle(file, path, key, sealed=() if file.swmr_mode else _stamp_of(file))
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
        _keep_small(access)
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


def _keep_small(access: Any) -> None:
    """Bound what HDF5 keeps in memory for a writer: its defaults grow to 1 MiB per table and 32 MiB of metadata."""
    _, slots, _, preemption = access.get_cache()
    access.set_cache(0, slots, _CHUNK_CACHE, preemption)
    config = access.get_mdc_config()
    config.set_initial_size, config.initial_size = True, _METADATA_CACHE
    config.min_size = config.max_size = _METADATA_CACHE
    config.incr_mode = config.flash_incr_mode = config.decr_mode = 0  # off: it stays as it is
    access.set_mdc_config(config)


def make_writable(path: Path) -> bool:
    """Undo what a kill leaves in the superblock; True where there was something to undo. Readers here give way.

    The caller holds the lease and has called ``integrity.inspect``.
    """
    with LOCK:
        key = file_key(path)
        handle = _HANDLES.get(key)
        if handle is not None and handle.writing:
            raise RunInUse(
                f"{path}: this process has the run open for writing; close its writer, or resume it from a new process"
            )
        if handle is not None:
            close(handle)
        block = Superblock.read(path)
        if block is None or (block.flags == 0 and block.end_of_file == path.stat().st_size):
            return False
        end = path.stat().st_size
        with open_clean(path) as file:  # a chunk may have been given an address and never been written
            end = max([end, *(chunk_end(file[name]) for name in (*tables_in(file), "commit"))])
        block.settle(path, end)
        return True


def create_file(path: Path) -> h5py.File:
    """Create an empty file with the format's library version, for the schema or for a rewrite.

    Its owner writes it and the group reads it, less what the umask takes: a run names hosts, paths and commands.
    """
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640))
    return h5py.File(path, "w", libver=_LIBVER, locking=False)


def _open_reading(path: Path) -> h5py.File:
    """Open a file for SWMR reading, after making sure that it is a whole run."""
    inspected: tuple[int, ...] = ()  # stamp of the file that was looked at
    seen, screened = NOT_SEEN, None  # of a live one: what was seen of its structure, and its key
    for attempts_left in (2, 1, 0):
        check_hdf5(path)
        if is_held(path):  # being written: only its writer knows what is whole
            screened, seen = file_key(path), screen(path)
            break
        try:
            if (sealed := open_sealed(path)) is not None:
                return sealed
            inspected = inspect(path)
            break
        except DamagedRun:  # perhaps a writer has just started or finished
            if not attempts_left:
                raise
            time.sleep(0.02)
    try:
        file = _patiently(lambda: h5py.File(path, "r", swmr=True, locking=False))
    except READ_ERRORS as error:
        raise damaged(path, one_line(error)) from None
    try:
        _drop_hdf5_lock(file)
        opened = _stamp_of(file)
        if opened != inspected:  # another file than the one that was looked at
            check_format(path, file, seen if screened == opened[:2] else NOT_SEEN)
    except BaseException:
        file.close()
        raise
    return file


def _stamp_of(file: h5py.File) -> tuple[int, ...]:
    """Return what changes whenever an open file does."""
    return stamp(os.fstat(file.id.get_vfd_handle()))


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


def _after_fork_in_child() -> None:
    """Keep a forked child from ever writing the parent's run: its HDF5 would flush the same file at exit."""
    LOCK.forget()
    for handle in list(_HANDLES.values()):
        if handle.writing and handle.file is not None:
            divert(handle)
            del _HANDLES[handle.key]


def whereabouts(handle: Handle, path: Path) -> str:
    """Say why a path does not lead to the file of a handle any more; an empty text where it does."""
    try:
        status = path.stat()
    except OSError:
        return "the file was deleted or moved while it was written"
    return "" if (status.st_dev, status.st_ino) == handle.key else "another file was put in its place"


def abandon(handle: Handle) -> None:
    """Let go of a handle after a failed flush, without a word to HDF5.

    Closing ids can crash inside HDF5 then, so they are leaked. At exit, what HDF5 still wants to write goes nowhere.
    """
    for owner in (handle.file, *handle.datasets.values()):
        if owner is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner.id))
    atexit.register(divert, handle)


def divert(handle: Handle) -> None:
    """Point a writing handle's descriptor at nothing, so that whatever HDF5 still wants to write changes no file."""
    if handle.file is not None and handle.file.id.valid:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, handle.file.id.get_vfd_handle(), inheritable=False)
        os.close(null)


os.register_at_fork(after_in_child=_after_fork_in_child)
