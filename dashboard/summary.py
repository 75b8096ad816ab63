"""One row of the runs table per run: what a person needs to choose which run to look at.

Rows appear at once with what the folder says; a thread reads the runs one after another and fills them in. What was
read of a run that nobody writes is kept on disk, so that the next start has it at once. A run that cannot be read is a
row too, with its one-line error.

Not covered: what is read of a run (`row_cells`), how a row is drawn (`pages.runs`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

from .. import __version__
from ..runfile.disk.lease import is_held
from ..runfile.layout import RunFileError
from .index import Entry, RunIndex
from .reading import LONG_BYTES, Helper, Stamp, helpers_for, stamp_of
from .row_cells import Row, cells_of, read_once
from .rule_choice import choice_for
from .text import shown

LIVE_REST: Final = 10.0  # a live run is read again after its cost, this many times over
LIVE_SECONDS: Final = 2.0  # and not before so many seconds
IDLE_SECONDS: Final = 15.0  # nobody asked for so long: the thread ends
DETAILS: Final = ("numbers", "alerts")
"""What is read of a run for other pages, and not sent with its row."""
CACHE_VERSION: Final = f"6 {__version__}"
_VERDICTS: Final = ("unstable", "marginal", "unknown", "stable")
_GATES: Final = ("fail", "error", "pass")


class RunTable:
    """The rows over the runs of an index.

    Args:
        index: The runs.
        cache: Folder of what is kept over restarts; None keeps nothing.
    """

    def __init__(self, index: RunIndex, cache: Path | None = None) -> None:
        self.index = index
        self._file = None if cache is None else cache / "rows.json"
        self._lock = threading.RLock()
        self._rows: dict[str, Row] = {}
        self._stamps: dict[str, Stamp] = {}
        self._serials: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._serial = 0
        self._due: dict[str, float] = {}  # of live runs: when they are read again
        self._asked = 0.0
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._kept = self._load()
        self._dirty = False

    # -- asked by pages -------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Return the rows as far as they are known, and set the reading of the others off."""
        with self._lock:
            self._survey()
            self._start()
            return [_slim(self._rows[entry.id]) for entry in self.index.entries() if entry.id in self._rows]

    def details(self, name: str) -> dict[str, Any]:
        """Return one of the `DETAILS` of every run that was read, by the run's id."""
        with self._lock:
            return {one: row[name] for one, row in self._rows.items() if name in row}

    def since(self, serial: int) -> tuple[int, list[Row], list[str]]:
        """Return what changed after a serial number: the new number, changed or new rows, ids of rows that went."""
        with self._lock:
            self._survey()
            self._start()
            changed = [_slim(self._rows[one]) for one, at in self._serials.items() if at > serial and one in self._rows]
            return self._serial, changed, [one for one, at in self._gone.items() if at > serial]

    @property
    def reading(self) -> int:
        """How many rows are not filled in yet."""
        with self._lock:
            return sum(row["state"] == "reading" for row in self._rows.values())

    @property
    def still(self) -> str:
        """Say how many runs are still being read, as a sentence with a space before it; empty where all were."""
        count = self.reading
        return f" {count:,} of {len(self._rows):,} runs are still being read." if count else ""

    def read_all(self) -> list[Row]:
        """Return all rows filled in; for those who can wait."""
        self._survey()
        for entry in self.index.entries():
            if self._needs(entry):
                self._read(entry)
        return self.rows()

    # -- behind it ------------------------------------------------------------------------------------------------

    def _survey(self) -> None:
        """Take note of files that appeared, changed or went."""
        self._asked = time.monotonic()
        entries = {entry.id: entry for entry in self.index.entries()}
        with self._lock:
            for one in set(self._rows) - set(entries):
                del self._rows[one]
                self._stamps.pop(one, None)
                self._serials.pop(one, None)
                self._serial += 1
                self._gone[one] = self._serial
            for entry in entries.values():
                if entry.id not in self._rows:
                    self._gone.pop(entry.id, None)
                    self._put(entry, self._known(entry) or {"state": "reading"})

    def _known(self, entry: Entry) -> Row | None:
        """Return the row of an earlier start, where the file is as it was then."""
        kept = self._kept.get(entry.id)
        stamp = _stamp(entry)
        if not isinstance(kept, dict) or kept.get("stamp") != stamp or not isinstance(kept.get("row"), dict):
            return None
        self._stamps[entry.id] = stamp
        return dict(kept["row"])

    def _put(self, entry: Entry, cells: Row) -> None:
        """Make cells the row of a run, with a new serial number where they are news."""
        row = identity(entry) | cells
        row["attention"] = attention(row)
        with self._lock:
            if row != self._rows.get(entry.id):
                self._serial += 1
                self._serials[entry.id] = self._serial
                self._rows[entry.id] = row

    def _needs(self, entry: Entry) -> bool:
        """Say whether a run has to be read: its file changed, or it is live and time has passed."""
        if self._rows.get(entry.id, {}).get("state") == "live":
            return time.monotonic() >= self._due.get(entry.id, 0.0)
        return self._stamps.get(entry.id) != _stamp(entry)

    def _start(self) -> None:
        """Let the thread go on, or begin."""
        self._wake.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="loopscope rows", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """Read runs as long as somebody asks: those being written first, then the small ones."""
        while time.monotonic() - self._asked < IDLE_SECONDS:
            todo = [entry for entry in self.index.entries() if entry.id in self._rows and self._needs(entry)]
            self._read_some(deque(sorted(todo, key=_order)))
            if not todo:
                self._save()
            self._wake.clear()
            self._wake.wait(1.0)
        self._save()

    def _read_some(self, waiting: deque[Entry]) -> None:
        """Read runs, with helpers where there are many; long ones beside the others."""
        long = deque(entry for entry in waiting if _is_long(entry))
        waiting = deque(entry for entry in waiting if not _is_long(entry))
        helpers = [
            threading.Thread(target=self._read_with_helper, args=(waiting,), name="loopscope rows helper", daemon=True)
            for _ in range(helpers_for(len(waiting)))
        ]
        if long:
            helpers.append(threading.Thread(target=self._read_from, args=(long,), name="loopscope long", daemon=True))
        for helper in helpers:
            helper.start()
        self._read_from(waiting)
        for helper in helpers:
            helper.join()

    def _read_with_helper(self, waiting: deque[Entry]) -> None:
        """Read runs with the help of a process."""
        try:
            helper = Helper()
        except OSError:
            return
        try:
            self._read_from(waiting, helper)
        finally:
            helper.close()

    def _read_from(self, waiting: deque[Entry], helper: Helper | None = None) -> None:
        """Read runs as long as some wait and somebody asks."""
        while time.monotonic() - self._asked < IDLE_SECONDS:
            try:
                entry = waiting.popleft()
            except IndexError:
                return
            self._read(entry, helper)

    def _read(self, entry: Entry, helper: Helper | None = None) -> None:
        """Read one run and fill its row in."""
        stamp, began = _stamp(entry), time.monotonic()
        alone = helper is not None and not entry.fault and not is_held(entry.path)
        read = helper.read(entry.path) if helper is not None and alone else None
        cells = read.cells if read is not None else self._cells(entry)
        now = time.monotonic()
        if cells["state"] == "live":
            self._due[entry.id] = now + max(LIVE_SECONDS, LIVE_REST * (now - began))
        with self._lock:
            self._stamps[entry.id] = stamp
            if cells["state"] in ("finished", "interrupted"):
                self._kept[entry.id] = {"stamp": stamp, "row": cells}
                self._dirty = True
        self._put(entry, cells)

    def _cells(self, entry: Entry) -> Row:
        """Return the cells of a run; a fault of its file is a cell."""
        try:
            if entry.fault:
                raise RunFileError(f"{shown(entry.path)}: {entry.fault}")
            live = is_held(entry.path)
            if _is_long(entry):
                return self.index.long_runs.read(entry.path, live=live).cells
            if live:
                return cells_of(self.index.open(entry))
            return read_once(entry.path, cells_of)
        except RunFileError as error:
            fault = shown(error).removeprefix(f"{shown(entry.path)}: ")  # the row names the run already
        except Exception as error:  # whatever a hostile file brings about costs its own row, never the page
            logging.getLogger(__name__).warning("%s cannot be shown", shown(entry.path), exc_info=True)
            fault = f"cannot be shown ({type(error).__name__}: {shown(error, 120)})"
        return {"state": "unreadable", "fault": fault}

    def _load(self) -> dict[str, Any]:
        """Read what an earlier start left; nothing where it is of another version or no such thing."""
        if self._file is None:
            return {}
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        rows = kept.get("rows") if isinstance(kept, dict) and kept.get("version") == CACHE_VERSION else None
        return rows if isinstance(rows, dict) else {}

    def _save(self) -> None:
        """Leave what was read to the next start; a disk that refuses costs the next start its time, nothing else."""
        with self._lock:
            if self._file is None or not self._dirty:
                return
            text = json.dumps({"version": CACHE_VERSION, "rows": self._kept})
            self._dirty = False
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            aside = self._file.with_suffix(f".{os.getpid()}.tmp")
            aside.write_text(text, encoding="utf-8")
            aside.replace(self._file)


def _slim(row: Row) -> Row:
    """Return a row as the table of runs shows it."""
    return {name: value for name, value in row.items() if name not in DETAILS}


def default_cache() -> Path:
    """Return the folder in which this user's programs keep what they can make again."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "loopscope"


def rows(index: RunIndex) -> list[Row]:
    """Return the rows of an index, read now."""
    return RunTable(index).read_all()


def identity(entry: Entry) -> Row:
    """Return the cells that are known without reading the run."""
    return {"id": entry.id, "name": entry.name, "path": shown(entry.path), "href": f"/run/{entry.id}"}


def _stamp(entry: Entry) -> Stamp:
    """Return what changes whenever somebody writes a file of the run, or the rules of its project."""
    stamp = stamp_of([entry.path, *entry.others], links=not entry.fault)
    return stamp if entry.fault else [*stamp, list(choice_for(entry.path.parent).stamp)]


def _is_long(entry: Entry) -> bool:
    """Say whether reading a run takes long."""
    return not entry.fault and sum(size for _, size, _ in stamp_of([entry.path, *entry.others])) >= LONG_BYTES


def _order(entry: Entry) -> tuple[bool, int]:
    """Return when a run is read: those being written first, then by size."""
    size = _stamp(entry)[0][1]
    return not (entry.fault or is_held(entry.path)), size


def attention(row: Row) -> float:
    """Return the place of a row in the order of who needs a look.

    Live runs come first; then what fails the gate, then the worse verdict, then the earlier first alert.

    >>> unstable, stable = {"verdict": "unstable", "gate": "fail"}, {"verdict": "stable", "gate": "fail"}
    >>> attention({"state": "live"} | stable) < attention({"state": "finished"} | unstable)
    True
    >>> attention({"state": "finished"} | stable) < attention({"verdict": "marginal", "gate": "pass"})
    True
    >>> attention({"alert_step": 13} | unstable) < attention({"alert_step": 36} | unstable) < attention(unstable)
    True
    """
    verdict, gate, alert = row.get("verdict"), row.get("gate"), row.get("alert_step")
    worse = _VERDICTS.index(verdict) if verdict in _VERDICTS else 2
    failing = _GATES.index(gate) if gate in _GATES else 2
    later = {"live": 0, "interrupted": 1, "finished": 1, "reading": 2, "unreadable": 3}.get(str(row.get("state")), 2)
    early = alert / (alert + 1.0) if isinstance(alert, int) and alert >= 0 else 1.0
    return 100.0 * later + 10.0 * failing + 2.0 * worse + early
