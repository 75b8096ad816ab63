"""Runs read by helpers, processes of their own: reading one run keeps one processor busy, and pages have to be drawn.

A helper is this module run as a program. It gets paths on its standard input and answers each with what it read. What
a helper cannot say, the process that asked reads itself.

Not covered: which runs are read, and when (`summary`, `opened`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..runfile.layout import RunFileError
from ..runfile.rank_names import rank_files
from .opened import OpenRun
from .row_cells import Row, cells_of
from .rule_choice import choice_for
from .story import Story
from .text import shown

WORTH: Final = 24
"""So many runs that wait to be read are worth the start of a helper, which takes about a second."""
MOST: Final = 3
LONG_BYTES: Final = 10 << 20
"""A run file from this size on is read by a helper, however few wait."""
KEPT: Final = 32
REST: Final = 10.0  # what was read of a live run counts for so many times the time that it took

Stamp = list[list[int]]


class Reading(NamedTuple):
    """What was read of a run: the cells of its row, its verdict, and the `OpenRun.version` that both are of."""

    cells: Row
    story: Story
    version: str


def helpers_for(waiting: int) -> int:
    """Return how many helpers so many waiting runs are worth on this machine: one processor is for the page.

    >>> helpers_for(3)
    0
    """
    return min(MOST, (os.cpu_count() or 1) - 1, waiting // WORTH)


def read_whole(path: Path) -> Reading:
    """Open a run and read all that a row and a verdict need, while its numbers are in memory.

    Raises:
        RunFileError: The file is no run, is damaged, or has gone.
    """
    held = OpenRun(path)
    try:
        story = held.judged_now()
        return Reading(cells_of(held, story), story, held.version)
    finally:
        held.close()


class Helper:
    """A process that reads runs. It ends when it is closed, or with this process.

    Args:
        patience: By how much it gives way to others, as `os.nice` counts: a training may run on this machine.
    """

    def __init__(self, patience: int = 10) -> None:
        command = [sys.executable, "-m", __name__, str(patience)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._asked = Connection(os.dup(self._process.stdin.fileno()), readable=False)
        self._answers = Connection(os.dup(self._process.stdout.fileno()), writable=False)

    def read(self, path: Path) -> Reading | None:
        """Return what it read of a run; None where it has nothing, or is gone."""
        try:
            self._asked.send(str(path))
            said = self._answers.recv()
        except (OSError, EOFError):
            return None
        return said if isinstance(said, Reading) else None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()
            self._asked.close()
            self._answers.close()


class LongRuns:
    """The long runs of an index, each read once for its row and for its page, by one helper that is kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helper: Helper | None = None
        self._closed = False
        self._kept: dict[Path, tuple[Stamp, Reading, float]] = {}

    def read(self, path: Path, *, live: bool) -> Reading:
        """Return what was read of a run, read now where it is news.

        Args:
            path: The run file.
            live: Whether the run is being written: then the verdict may be a little older than the last row.

        Raises:
            RunFileError: The file is no run, is damaged, or has gone; or nobody is served any more.
        """
        with self._lock:
            stamp = stamp_of([path, *rank_files(path).values()])
            stamp.append(list(choice_for(path.parent).stamp))
            kept = self._kept.get(path)
            if kept and (kept[0] == stamp or (live and time.monotonic() < kept[2])):
                return kept[1]
            began = time.monotonic()
            read = self._asked(path)
            if read is None and self._closed:
                raise RunFileError(f"{shown(path)}: not read, since the dashboard ends")
            read = read or read_whole(path)
            now = time.monotonic()
            self._kept.pop(path, None)
            self._kept[path] = stamp, read, now + REST * (now - began)
            for surplus in list(self._kept)[:-KEPT]:
                del self._kept[surplus]
            return read

    def _asked(self, path: Path) -> Reading | None:
        """Ask the helper; a new one where the last one cannot answer."""
        if self._helper is not None:
            read = self._helper.read(path)
            if read is not None:
                return read
        self._end()
        if self._closed:
            return None
        try:
            self._helper = Helper(patience=0)  # a person waits for the verdict
        except OSError:
            return None
        return self._helper.read(path)

    def _end(self) -> None:
        """End the helper."""
        if self._helper is not None:
            self._helper.close()
        self._helper = None

    def close(self) -> None:
        """End the helper, whatever it is at, and start no other."""
        self._closed = True
        helper = self._helper
        if helper is not None:
            helper.close()


def stamp_of(paths: list[Path], *, links: bool = True) -> Stamp:
    """Return what changes whenever somebody writes one of these files; ``links`` says whether links are followed."""
    made = []
    for path in paths:
        try:
            status = path.stat(follow_symlinks=links)
        except OSError:
            made.append([0, 0, 0])
        else:
            made.append([status.st_ino, status.st_size, status.st_mtime_ns])
    return made


def _environment() -> dict[str, str]:
    """Return an environment in which a helper finds this package, wherever this process has it from."""
    home = str(Path(__file__).resolve().parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, home])}


def main() -> None:
    """Answer paths with what is read of them until there are no more."""
    from . import reading  # what is sent must be of the module that reads it, not of the program that this one is

    with contextlib.suppress(OSError):
        os.nice(int(sys.argv[1]))
    asked, answers = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    while True:
        said: Any = None
        try:
            path = Path(asked.recv())
        except (OSError, EOFError):
            return
        with contextlib.suppress(Exception):  # whatever a hostile file brings about: the asker finds the words for it
            said = reading.read_whole(path)
        answers.send(said)


if __name__ == "__main__":
    main()
