"""The lease: proof that a live process is writing a run.

An exclusive ``flock`` on ``<run>.lease``. The kernel drops it when the process dies, however it dies, so a held lease
means a live writer and a free one means there is none; nobody has to guess from ages or process ids. Forked children
(data-loader workers) close their copy at once, so that they cannot keep a dead run looking alive.

Not covered: writers on two machines over a network file system whose ``flock`` is local to each machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import weakref
from pathlib import Path

from ..layout import RunFileError, RunInUse

_HELD: weakref.WeakSet[Lease] = weakref.WeakSet()


def lease_path(path: Path) -> Path:
    """Return where the lease of the run at ``path`` lies."""
    return path.with_name(path.name + ".lease")


class Lease:
    """Exclusive right to write one run, held until ``release`` or the end of the process.

    Args:
        path: The run file (it need not exist yet).
        patience: Seconds to keep trying; a reader that tests the lease holds it for microseconds.

    Raises:
        RunInUse: A live process holds it (the message names it).
        RunFileError: The folder cannot be written to.
    """

    def __init__(self, path: Path, *, patience: float = 0.5) -> None:
        self.path = lease_path(path)
        self._fd: int | None = None
        deadline = time.monotonic() + patience
        while (fd := self._try_lock()) is None:
            if time.monotonic() > deadline:
                raise RunInUse(f"{path}: {_in_use(self.path)}")
            time.sleep(0.01)
        self._fd = fd
        with contextlib.suppress(OSError):  # the text is for people; a full disk must not refuse the lease
            os.ftruncate(fd, 0)
            os.pwrite(fd, _this_process().encode(), 0)
        _HELD.add(self)

    def _try_lock(self) -> int | None:
        """Lock the lease file and return its descriptor, or None while somebody else has it."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunFileError(f"{self.path}: cannot be created ({reason}); choose a folder you can write to") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file between our open and our lock.
            if os.fstat(fd).st_ino == self.path.stat().st_ino:
                return fd
        except OSError:
            pass
        os.close(fd)
        return None

    def release(self) -> None:
        """Give the lease back and remove its file; a second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(fd)

    def _abandon_in_child(self) -> None:
        """Close a forked copy without unlocking, which would take the lease from the parent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def is_held(path: Path) -> bool:
    """Return whether a live process is writing the run at ``path``; a file that cannot be tested counts as free."""
    try:
        fd = os.open(lease_path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # it may be a pipe
    except (OSError, ValueError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _this_process() -> str:
    """Return what a holder writes about itself."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def _in_use(path: Path) -> str:
    """Return who holds a lease, by what it wrote about itself, and what to do."""
    try:
        owner = path.read_text(errors="replace").strip() or "another process"
    except OSError:
        owner = "another process"
    if owner == _this_process():  # a cell of a notebook that was run again, say
        return "this process is writing this run already; end that recording first (probe.close())"
    return f"{owner} is writing this run; wait for it or stop it first"


def _after_fork_in_child() -> None:
    """Drop every inherited lease in a forked child."""
    for lease in list(_HELD):
        lease._abandon_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
