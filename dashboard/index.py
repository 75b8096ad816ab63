"""Which runs exist: the files under the given paths, by id.

A page or callback names a run by an id that is looked up here and never becomes part of a path, so nothing outside the
given paths can be asked for. What is not a run file but looks like one is listed with the reason.

Not covered: file systems that hide changes; folders are read again every second.
"""

import errno
import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flask import current_app

from ..runfile.foreign.folders import logs_among
from ..runfile.layout import RunFileError
from ..runfile.rank_names import rank_files, rank_of, run_path
from ..runfile.ranks.companions import belongs, separate_runs
from .opened import OpenRun
from .reading import LongRuns
from .text import shown

CONFIG_KEY = "LOOPSCOPE_INDEX"
RESCAN_SECONDS = 1.0
RESCAN_REST = 20.0  # a folder that takes long to search is searched again only after this many times as long
MOST_NAMES = 20_000  # files of a folder without run files that are looked at for logs
KEPT_OPEN = 24  # finished runs kept open for a quick return to their page; live ones are always kept
KEPT_BYTES = 600 << 20  # over all open runs: the finished ones looked at longest ago are closed above it


@dataclass(frozen=True, slots=True)
class Entry:
    """One run: ``id`` for addresses, ``name`` for people (relative to the path that was given), ``path`` of its file.

    ``others`` are the files of its further ranks; ``fault`` says why the path cannot be a run at all.
    """

    id: str
    name: str
    path: Path
    others: tuple[Path, ...] = ()
    fault: str = ""


class RunIndex:
    """The runs under some paths, found again as they appear, each opened once.

    Args:
        paths: Run files, and folders whose ``*.h5`` files at any depth are runs; of a folder without any, the logs of
            other tools are. A file that does not exist yet is listed once it does. Links that lead out of a folder are
            not followed. The files of a run's further ranks belong to its entry.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._roots = [Path(path) for path in paths]
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._due = -float("inf")
        self._opened: dict[str, OpenRun] = {}
        self.long_runs = LongRuns()

    def entries(self) -> list[Entry]:
        """Return the runs that exist now, by name; reads the folders at most once a second."""
        with self._lock:
            began = time.monotonic()
            if began >= self._due:
                self._entries = {entry.id: entry for root in separate_runs(self._roots) for entry in _scan(root)}
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
        if entry.fault:
            raise RunFileError(f"{shown(entry.path)}: {entry.fault}")
        with self._lock:
            held = self._opened.pop(entry.id, None) or OpenRun(entry.path, self.long_runs)
            self._opened[entry.id] = held  # popped and put back: the dict stays ordered by last use
            self._close_surplus()
        try:
            held.refresh()
        except RunFileError:
            raise
        except Exception as error:  # such as a file that is written over in place while it is read
            with self._lock:
                self._opened.pop(entry.id, None)
            held.close()
            words = f"cannot be read as it is now ({type(error).__name__}): it changes in a way no run does"
            raise RunFileError(f"{shown(entry.path)}: {words}; load the page again") from error
        return held

    def _close_surplus(self) -> None:
        """Close the finished runs that were not looked at for longest, over the count or over the bytes."""
        finished = [run_id for run_id, held in self._opened.items() if held.run.state == "finished"]
        surplus = finished[:-KEPT_OPEN]
        kept = sum(held.kept_bytes for held in self._opened.values())
        for run_id in finished[len(surplus) : -1]:
            if kept <= KEPT_BYTES:
                break
            kept -= self._opened[run_id].kept_bytes
            surplus.append(run_id)
        for run_id in surplus:
            self._opened.pop(run_id).close()

    def close(self) -> None:
        """Close every run that is open, and end who reads the long ones."""
        self.long_runs.close()
        with self._lock:
            while self._opened:
                self._opened.popitem()[1].close()


def _scan(root: Path) -> list[Entry]:
    """List the run files of one given path, and what looks like one but is none."""
    if not root.is_dir():
        if not os.path.lexists(root):
            return []
        fault = _fault(root, None)
        return [_entry(root, root.name, () if fault else tuple(rank_files(root).values()), fault)]
    home = os.path.realpath(root)
    faults: dict[Path, str] = {}
    broken: list[Entry] = []
    for path, fault in _candidates(root):
        faults[path] = fault or _fault(path, home)
    if not any(path.suffix == ".h5" for path in faults):
        faults |= {log: _fault(log, home, log=True) for log in _logs(root)}
    others: dict[Path, list[Path]] = {}
    for path, fault in faults.items():
        if rank_of(path) and not fault and belongs(path):
            others.setdefault(run_path(path), []).append(path)
    sound = separate_runs([path for path, fault in faults.items() if not fault])
    broken = [_entry(path, _relative(path, root), (), fault) for path, fault in faults.items() if fault]
    return [_entry(path, _relative(path, root), tuple(others.get(path, ()))) for path in sound] + broken


def _candidates(root: Path) -> Iterator[tuple[Path, str]]:
    """Walk a folder: every ``*.h5`` that is no folder, and every folder that cannot be read with the reason."""
    closed: list[OSError] = []
    for folder, _, files in os.walk(root, onerror=closed.append):
        for name in files:
            if name.endswith(".h5"):
                yield Path(folder, name), ""
    for error in closed:
        yield Path(os.fsdecode(error.filename)), f"this folder cannot be read: {error.strerror}"


def _logs(root: Path) -> list[Path]:
    """Return the logs of other tools under a folder; hidden folders are left out, and names beyond a limit."""
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        if len(files) > MOST_NAMES:
            break
    return logs_among(files[:MOST_NAMES])


def _fault(path: Path, home: str | None, *, log: bool = False) -> str:
    """Say why a path cannot be a run file or a log, without opening it; a pipe would wait for ever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not path.is_symlink():
            return f"cannot be looked at: {error.strerror}"
        loop = error.errno == errno.ELOOP
        return "a link that leads to itself" if loop else "a link that leads to nothing"
    if not stat.S_ISREG(mode) and not (log and stat.S_ISDIR(mode)):
        kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
        kind = next((name for test, name in kinds if test(mode)), "a device")
        return f"{kind}, not a file"
    if home is not None and path.is_symlink() and Path(home) not in Path(os.path.realpath(path)).parents:
        return "a link that leads out of this folder; to see the run, start loopscope dash where it leads to"
    return ""


def _relative(path: Path, root: Path) -> str:
    """Return the name of a file, or of a folder that is a log, under a folder that was given."""
    if path == root:
        return root.absolute().name
    name = path.relative_to(root)
    return (name.with_suffix("") if path.suffix == ".h5" else name).as_posix()


def _entry(path: Path, name: str, others: tuple[Path, ...], fault: str = "") -> Entry:
    """Name one file; the id holds its stem for people and a digest of the whole path to be unique."""
    place = path if fault else Path(os.path.realpath(path))
    digest = hashlib.sha256(os.fsencode(place.absolute())).hexdigest()[:8]
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in path.stem)
    return Entry(f"{stem}-{digest}", shown(name), path, others, fault)


def current_index() -> RunIndex:
    """Return the index of the app that answers the current request (there may be several apps in one process)."""
    index = current_app.config[CONFIG_KEY]
    assert isinstance(index, RunIndex)
    return index
