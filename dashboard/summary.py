"""One row of the runs table per run: what a person needs to choose which run to look at.

A run that cannot be read is a row too, with its one-line error.
"""

import logging
import math
from typing import Any
from weakref import WeakKeyDictionary

from ..rules.diagnosis import Diagnosis
from ..runfile.layout import RunFileError
from .index import Entry, RunIndex
from .opened import OpenRun
from .text import shown

Row = dict[str, Any]
Stamp = tuple[tuple[int, int, int], ...]

# Rows of runs that nobody writes, with the stamp of the file they were made of: an old run costs one stat, not a read.
_KNOWN: WeakKeyDictionary[RunIndex, dict[str, tuple[Stamp, Row]]] = WeakKeyDictionary()


def rows(index: RunIndex) -> list[Row]:
    """Return the rows of the table, JSON-ready, in the order of the runs' names."""
    return [row(index, entry) for entry in index.entries()]


def row(index: RunIndex, entry: Entry) -> Row:
    """Return one row, made anew only if the run is live or its file has changed."""
    known = _KNOWN.setdefault(index, {})
    stamp = _stamp(entry)
    if entry.id in known and known[entry.id][0] == stamp:
        return known[entry.id][1]
    made = _make(index, entry)
    if made["state"] == "live":
        known.pop(entry.id, None)
    else:
        known[entry.id] = (stamp, made)
    return made


def _stamp(entry: Entry) -> Stamp:
    """Return what changes whenever somebody writes a file of the run."""
    found = []
    for path in (entry.path, *entry.others):
        try:
            status = path.stat()
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def _make(index: RunIndex, entry: Entry) -> Row:
    """Read one row off its run; numbers that are not finite become None or words, since JSON has neither."""
    identity: Row = {"id": entry.id, "name": entry.name, "path": shown(entry.path), "href": f"/run/{entry.id}"}
    try:
        held = index.open(entry)
        return identity | _read(held) | _diagnosed(held.diagnosis())
    except RunFileError as error:
        fault = shown(error).removeprefix(f"{shown(entry.path)}: ")  # the row names the run already
        return identity | {"state": "unreadable", "fault": fault, "verdict": None}
    except Exception as error:  # whatever a hostile file brings about costs its own row, never the page
        logging.getLogger(__name__).warning("%s cannot be shown", shown(entry.path), exc_info=True)
        fault = f"cannot be shown ({type(error).__name__}: {shown(error, 120)})"
        return identity | {"state": "unreadable", "fault": fault, "verdict": None}


def _read(held: OpenRun) -> Row:
    """Return the cells that are read off the run."""
    run = held.run
    return {
        "state": run.state,
        "fault": None if len(run) else _no_rows(run.state),
        "steps": len(run),
        "loss": cell(last(held, "loss")),
        "radius": cell(last(held, "a_bar_radius")),
        "state_norm": cell(last(held, "last_state_norm")),
    }


def _no_rows(state: str) -> str:
    """Say that a run is empty, and whether that may change."""
    return "no step was recorded yet" if state == "live" else "no step was recorded, so nothing can be said"


def _diagnosed(diagnosis: Diagnosis) -> Row:
    """Return the cells that come from the verdict."""
    first = diagnosis.first_breach
    return {
        **diagnosis.regimes,
        "verdict": diagnosis.verdict,
        "breach": f"step {first.step:,}: {first.name}" if first else "none",
        "summary": diagnosis.summary,
    }


def last(held: OpenRun, name: str) -> float:
    """Return the newest recorded value of a quantity, NaN when there is none."""
    values = held.series(name).values
    return float(values[-1]) if len(values) else math.nan


def cell(value: float) -> float | str | None:
    """Return a number as JSON can carry it.

    >>> cell(1.5), cell(math.inf), cell(math.nan)
    (1.5, 'inf', None)
    """
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)
