"""Which runs exist: the files under the given paths, by id.

A page or callback names a run by an id that is looked up here and never becomes part of a path, so nothing outside the
given paths can be asked for. What is not covered: file systems that hide changes; folders are read again every second.
"""

import hashlib
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flask import current_app

from ..runfile.rank_names import rank_files, rank_of, run_path, whole_runs
from .opened import OpenRun

CONFIG_KEY = "LOOPSCOPE_INDEX"
RESCAN_SECONDS = 1.0
RESCAN_REST = 20.0  # a folder that takes long to search is searched again only after this many times as long
KEPT_OPEN = 24  # finished runs kept open for a quick return to their page; live ones are always kept


@dataclass(frozen=True, slots=True)
class Entry:
    """One run: ``id`` for addresses, ``name`` for people (relative to the path that was given), ``path`` of its file.

    ``others`` are the files of its further ranks.
    """

    id: str
    name: str
    path: Path
    others: tuple[Path, ...] = ()


class RunIndex:
    """The runs under some paths, found again as they appear, each opened once.

    Args:
        paths: Run files, and folders whose ``*.h5`` files at any depth are runs. A file that does not exist yet is
            listed once it does. Links that lead out of a folder are not followed. The files of a run's further ranks
            belong to its entry.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._roots = [Path(path) for path in paths]
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._due = -float("inf")
        self._opened: dict[str, OpenRun] = {}

    def entries(self) -> list[Entry]:
        """Return the runs that exist now, by name; reads the folders at most once a second."""
        with self._lock:
            began = time.monotonic()
            if began >= self._due:
                self._entries = {entry.id: entry for root in whole_runs(self._roots) for entry in _scan(root)}
                now = time.monotonic()
                self._due = now + max(RESCAN_SECONDS, RESCAN_REST * (now - began))
                for gone in set(self._opened) - set(self._entries):
                    self._opened.pop(gone).close()
            return sorted(self._entries.values(), key=lambda entry: entry.name)

    def find(self, run_id: str) -> Entry | None:
        """Return the run with this id, or None; any string is allowed."""
        self.entries()
        return self._entries.get(run_id)

    def open(self, entry: Entry) -> OpenRun:
        """Return the run, opened on first use and brought up to date.

        Raises:
            RunFileError: The file is no run, is damaged, or has gone.
        """
        with self._lock:
            held = self._opened.pop(entry.id, None) or OpenRun(entry.path)
            self._opened[entry.id] = held  # popped and put back: the dict stays ordered by last use
            self._close_surplus()
        held.refresh()
        return held

    def _close_surplus(self) -> None:
        """Close the finished runs that were not looked at for longest."""
        finished = [run_id for run_id, held in self._opened.items() if held.run.state == "finished"]
        for run_id in finished[:-KEPT_OPEN]:
            self._opened.pop(run_id).close()

    def close(self) -> None:
        """Close every run that is open."""
        with self._lock:
            while self._opened:
                self._opened.popitem()[1].close()


def _scan(root: Path) -> list[Entry]:
    """List the run files of one given path; an unreadable folder has none."""
    try:
        if not root.is_dir():
            return [_entry(root, root.name, tuple(rank_files(root).values()))] if root.is_file() else []
        home = root.resolve()
        found = [path for path in root.rglob("*.h5") if path.resolve().is_relative_to(home) and path.is_file()]
    except OSError:
        return []
    others: dict[Path, list[Path]] = {}
    for path in found:
        if rank_of(path):
            others.setdefault(run_path(path), []).append(path)
    return [
        _entry(path, path.relative_to(root).with_suffix("").as_posix(), tuple(others.get(path, ())))
        for path in whole_runs(found)
    ]


def _entry(path: Path, name: str, others: tuple[Path, ...]) -> Entry:
    """Name one file; the id holds its stem for people and a digest of the whole path to be unique."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in path.stem)
    return Entry(f"{stem}-{digest}", name, path, others)


def current_index() -> RunIndex:
    """Return the index of the app that answers the current request (there may be several apps in one process)."""
    index = current_app.config[CONFIG_KEY]
    assert isinstance(index, RunIndex)
    return index
