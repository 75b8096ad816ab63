"""One run file as a source of numbers: live, killed or finished, read without changing a byte of it.

Columns are read when first asked for and kept; ``refresh`` reads only what was added since.

A row is *superseded* by any later row whose step is not greater: after a resume or a rollback the steps from there on
belong to a branch that no longer exists. Superseded rows are left out of everything but ``history``.

Not covered: bit rot in uncompressed live files, which carry no checksum of their numbers (sealed ones do).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .disk.handle import LOCK
from .disk.lease import is_held
from .growing import Rows, Standing
from .layout import INFO_LATER, LOOP_COLUMNS, VARIABLE_COLUMNS, Event, RunFileError, Severity, unpack_event
from .ragged import Index, Series, pad, starts_and_ends
from .rank_names import rank_of
from .recorded_arrays import RecordedArrays
from .source import RecordedArray, Source, State
from .superseded import Branches
from .tables import Tables

FILE_EVENTS: Final = ("file_deleted", "file_replaced", "file_shortened", "run_resumed")
"""Kinds of the events that a reader adds when the file at the path changed under it in more than its length."""


_LOOPS_AT_ONCE: Final = 1 << 18  # rows of loops that are looked at together: whole chunks of a sealed file

_MOST_INFO: Final = 64  # of what the writer added later, the newest
LARGEST_INFO: Final = 8 << 20  # bytes


class FileSource:
    """One run file; implements `Source`. Its callers hold the lock of `disk.handle`.

    Attributes:
        path: The file.
        changed_from: Step from which on other rows stand than when `looked` was called last.
    """

    _info_of: int  # rows of the index of arrays in which `_info_later` was looked for
    _info_later: dict[str, Any]

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tables = Tables(path, self._forget)
        self._notes: list[Event] = []
        self._forget()
        try:
            self._tables.follow()
            self._load()
        except BaseException:
            self.close()
            raise

    # -- what the run is ------------------------------------------------------------------------------------------

    @property
    def info(self) -> dict[str, Any]:
        """What the writer said, at first and later."""
        rows = self._tables.commit.lengths["array_index"]
        if rows != self._info_of:
            self._info_of = rows
            self._info_later = {}
            with suppress(RunFileError):  # a caller that reads the arrays themselves gets the error
                for said in self._arrays.arrays(INFO_LATER, slice(-_MOST_INFO, None))[1]:
                    self._info_later |= _as_info(said)
        return self._tables.info | self._info_later if self._info_later else self._tables.info

    @property
    def state(self) -> State:
        """``live`` while a process writes it, ``finished`` when it ended, ``interrupted`` when its writer is gone."""
        if is_held(self.path):
            return "live"
        return "finished" if self._tables.commit.finished else "interrupted"

    @property
    def names(self) -> Sequence[str]:
        """Recorded numbers per step."""
        return tuple(self._tables.names)

    @property
    def log(self) -> str:
        """No log of another tool."""
        return ""

    @property
    def generation(self) -> int:
        """How often the run was resumed."""
        return self._tables.commit.generation

    @property
    def committed_at(self) -> float:
        """When the last row was published, seconds since 1970; 0 for a run without any commit."""
        return self._tables.commit.time_ns / 1e9

    @property
    def ranks(self) -> Mapping[int, Source]:
        """This file, by the rank that wrote it; a name that is only like a rank's (``lora.rank8.h5``) says nothing."""
        rank, size = rank_of(self.path), self.info.get("world_size")
        return {0 if isinstance(size, int) and 0 < size <= rank else rank: self}

    @property
    def events(self) -> list[Event]:
        """What happened to the file under its reader, then events in the order they were found."""
        return self._notes + self._events

    def __len__(self) -> int:
        return len(self._standing)

    def __contains__(self, name: object) -> bool:
        return name in self._tables.names

    # -- numbers --------------------------------------------------------------------------------------------------

    def values(self, name: str, rows: Rows = slice(None)) -> Series:
        """Return a step column at some visible steps."""
        return self._standing.pick(self._tables.column("steps", self._tables.names[name]), rows)

    def step_at(self, row: int) -> int:
        """Return one of the visible steps, counted as in a list."""
        return int(self.values("step", slice(row, row + 1 or None))[0])

    def first_at(self, step: float) -> int:
        """Return how many visible steps are lower than ``step``."""
        return self._standing.first_at(self._tables.column("steps", 0), step)

    def loops(self, name: str, rows: Rows = slice(None)) -> Series:
        """Return a per-loop number at some visible steps."""
        start, end = self._spans(rows)
        whole = not isinstance(rows, slice) or rows == slice(None) or not len(start)
        if whole or self._tables.is_kept("loops", LOOP_COLUMNS.index(name)):
            first, flat = 0, self._per_loop("loops", name, self._ends())
        else:
            first = int(start.min())
            flat = self._stretch(name, first, int(end.max()))
        table: Series = self._tables.guard(lambda: pad(flat, start - first, end - first))
        return table

    @property
    def kept_bytes(self) -> int:
        """Bytes of the numbers that are kept in memory."""
        return self._tables.kept_bytes

    def trim(self, most: int) -> None:
        """Let go of what was looked at longest ago, until at most so many bytes are kept."""
        with LOCK:
            self._tables.trim(most)

    def at_loop(self, name: str, loop: int, rows: Rows = slice(None)) -> Series:
        """Return a number of one loop at some visible steps, a negative ``loop`` counted from the last row."""
        return self._at(name, [loop], rows, self._tables.column("loops", LOOP_COLUMNS.index(name)))[0]

    def at_loops(self, name: str, loops: Sequence[int]) -> list[Series]:
        """Return a number of some loops of every visible step; of a finished run it is read for this and not kept."""
        length, kept = self._tables.commit.lengths["loops"], self._tables.is_kept("loops", LOOP_COLUMNS.index(name))
        if kept or not self._tables.commit.finished or length <= _LOOPS_AT_ONCE:
            return self._at(name, loops, slice(None), self._tables.column("loops", LOOP_COLUMNS.index(name)))
        return self._at(name, loops, slice(None))

    def _at(self, name: str, loops: Sequence[int], rows: Rows, flat: NDArray[Any] | None = None) -> list[Series]:
        """Return a number of some loops at some visible steps, from a column or, without one, read piece by piece.

        A norm of a loop that ran and was not finite is infinite, as in `_per_loop`.
        """
        start, end = self._spans(rows)
        wanted = [end + loop if loop < 0 else start + loop for loop in loops]
        ran = [np.flatnonzero((at >= start) & (at < end)) for at in wanted]
        picked = self._pick(name, [at[here] for at, here in zip(wanted, ran, strict=True)], flat)
        for at, here, values in zip(wanted, ran, picked, strict=True):
            if name in ("state_norm", "residual_norm"):
                gone = np.isnan(values) & (at[here] != start[here])
                gone &= (at[here] != end[here] - 1) | (name == "state_norm")
                if gone.any():
                    values[gone] = np.where(self._pick("tokens", [at[here[gone]]])[0] > 0, math.inf, math.nan)
        return [_spread(values, here, len(start)) for values, here in zip(picked, ran, strict=True)]

    def _pick(self, name: str, wanted: Sequence[Index], flat: NDArray[Any] | None = None) -> list[NDArray[Any]]:
        """Return a per-loop number at rows of the table of loops, in rising order, from a column or piece by piece."""
        if flat is not None:
            return [flat[at] for at in wanted]
        if (picked := self._tables.pick("loops", LOOP_COLUMNS.index(name), wanted)) is not None:
            return picked
        values = [np.empty(len(at), np.float32) for at in wanted]
        for first in range(0, self._tables.commit.lengths["loops"], _LOOPS_AT_ONCE):
            last = min(first + _LOOPS_AT_ONCE, self._tables.commit.lengths["loops"])
            here = [slice(*np.searchsorted(at, [first, last]).tolist()) for at in wanted]
            if any(inside.start < inside.stop for inside in here):
                piece = self._column_of(name, slice(first, last))
                for at, inside, each in zip(wanted, here, values, strict=True):
                    each[inside] = piece[at[inside] - first]
        return values

    def last(self, name: str, back: int) -> Series:
        """Return the loop number ``back`` rows before the end of every visible step."""
        return self.at_loop(name, -1 - back)

    @property
    def probe_steps(self) -> Index:
        """Steps at which the fixed probe batch was run."""
        steps, index = self._passes()
        return steps[index]

    def probe(self, name: str) -> Series:
        """Return one number per probe pass and loop."""
        _, index = self._passes()
        ends = self._tables.ends("probe_index", self._tables.column("probe_index", 2, np.int64), "probe")
        start, end = starts_and_ends(ends, index)
        flat = self._per_loop("probe", name, ends)
        table: Series = self._tables.guard(lambda: pad(flat, start, end))
        return table

    def variable(self, number: int, name: str) -> tuple[Index, Series]:
        """Return steps, and a number of one variable per step and update."""
        step, generation, of = (self._tables.column("variable_index", c, np.int64) for c in range(3))
        ends = self._tables.ends("variable_index", self._tables.column("variable_index", 3, np.int64), "variables")
        own = np.flatnonzero(of == number)
        index = own[self._up_to_date().standing(step[own], generation[own])]
        start, end = starts_and_ends(ends, index)
        flat = self._tables.column("variables", VARIABLE_COLUMNS.index(name))
        if name in ("state_norm", "residual_norm"):
            lost = _not_finite(name, flat, 0, ends)
            tokens = self._tables.column("variables", VARIABLE_COLUMNS.index("tokens"))
            flat = flat.copy()
            flat[lost[tokens[lost] > 0]] = math.inf
        return step[index], self._tables.guard(lambda: pad(flat, start, end))

    def spectra(self) -> tuple[Index, NDArray[np.complex128]]:
        """Return eigenvalues of A̅ over time."""
        rows = np.asarray(self._tables.read("spectra", slice(0, self._tables.commit.lengths["spectra"])), np.float64)
        count = (rows.shape[1] - 2) // 2
        index = self._up_to_date().standing(rows[:, 0], rows[:, 1])
        values = rows[index, 2 : 2 + count] + 1j * rows[index, 2 + count :]
        return rows[index, 0].astype(np.int64), values

    def history(self, *names: str) -> dict[str, Series]:
        """Return recorded columns over all rows in file order."""
        return {name: self._tables.column("steps", self._tables.names[name]) for name in names or self._tables.names}

    # -- arrays of any shape --------------------------------------------------------------------------------------

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of arrays."""
        return tuple(name for name in self._arrays.names() if name != INFO_LATER)

    def arrays(self, name: str, rows: slice) -> tuple[Index, list[NDArray[Any]]]:
        """Return steps and arrays of a name."""
        return self._arrays.arrays(name, rows)

    def array_steps(self, name: str) -> Index:
        """Return the steps of the arrays of a name."""
        return self._arrays.steps(name)

    def array_table(self, name: str) -> tuple[Index, Series]:
        """Return the arrays of a name as one table."""
        return self._arrays.table(name)

    def array_history(self, prefix: str) -> list[RecordedArray]:
        """Return the arrays whose names start with a prefix."""
        return self._arrays.history(prefix)

    # -- following ------------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Look for new rows, and whether the file is still the one that was opened."""
        commit, run_id, notes = self._tables.commit, self._tables.run_id, len(self._notes)
        if not self._tables.follow():
            self._note("file_deleted", "the file was deleted or moved; these are the numbers that were read before")
        shorter = self._load()
        if self._tables.run_id != run_id:
            self._notes.clear()
            self._note("file_replaced", f"another run took the place of run {run_id}; these are its numbers")
        elif shorter:
            self._note("file_shortened", "the file holds fewer rows than before: it was repaired, or is an older copy")
        elif self.generation > commit.generation:
            self._note("run_resumed", f"the run was resumed and goes on as generation {self.generation}", "note")
        return self._tables.commit != commit or len(self._notes) != notes

    def looked(self) -> None:
        """Take note that everything up to here was looked at: ``changed_from`` starts anew."""
        self.changed_from = math.inf

    def close(self) -> None:
        """Give the file back; what was read stays usable."""
        self._tables.close()

    # -- behind it ------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Start anew: nothing of the run is known."""
        self._events: list[Event] = []
        self._events_of = 0  # rows of the table
        self._not_finite: dict[tuple[str, str], int] = {}  # rows of per-loop norms in which NaN was looked for
        self._standing = Standing()
        self._branches = Branches()
        self._arrays = RecordedArrays(self._tables, self._up_to_date)
        self._info_of = 0
        self._info_later = {}
        self.changed_from = -math.inf

    def _load(self) -> bool:
        """Read the newest commit row and whatever is small enough to be kept whole; return whether rows were lost."""
        shorter = self._tables.load()
        lengths = self._tables.commit.lengths
        if lengths["steps"] != self._standing.seen:
            self.changed_from = min(self.changed_from, self._standing.take_in(self._tables.column("steps", 0)))
        if lengths["events"] and (self._up_to_date().changed or lengths["events"] != self._events_of):
            rows = self._tables.read("events", slice(0, lengths["events"]))
            again = self._branches.run_again(rows["step"], rows["generation"])
            self._events = [unpack_event(row) for row in rows[~again]]
            self._events_of = lengths["events"]
            self._branches.changed = False
        return shorter

    def _up_to_date(self) -> Branches:
        """Return what is known of branches that were left, with the newest rows taken in."""
        if generation := self.generation:
            step, of = self._tables.column("steps", 0), self._tables.names["generation"]
            self._branches.take_in(step, self._tables.column("steps", of), generation)
        return self._branches

    def _note(self, kind: str, message: str, severity: Severity = "warning") -> None:
        """Say what happened to the file; what stays as it is, once."""
        if kind == "run_resumed" or all(note.kind != kind for note in self._notes):
            step = self.step_at(-1) if len(self._standing) else 0
            self._notes.append(Event(step, time.time(), kind, severity, message=message))

    def _passes(self) -> tuple[Index, Index]:
        """Return the steps of all passes of the probe batch, and which of these stand."""
        steps = self._tables.column("probe_index", 0, np.int64)
        return steps, self._up_to_date().standing(steps, self._tables.column("probe_index", 1, np.int64))

    def _spans(self, rows: Rows = slice(None)) -> tuple[Index, Index]:
        """Return where the loop rows of some visible steps start and end."""
        return starts_and_ends(self._ends(), self._standing.numbers(rows))

    def _ends(self) -> Index:
        """Return where the loop rows of all steps end."""
        return self._tables.ends("loop_end", self._tables.kept("loop_end", None, np.int64), "loops")

    def _per_loop(self, table: str, name: str, ends: Index) -> NDArray[Any]:
        """Return a per-loop number of all rows; a norm of a loop that ran and was not finite is infinite.

        As recorded it may be NaN, which stands for "not there" everywhere else: at h_0 where it was not seen, and for
        the update after the last loop.
        """
        flat = self._tables.column(table, LOOP_COLUMNS.index(name))
        if name not in ("state_norm", "residual_norm"):
            return flat
        known = self._not_finite.get((table, name), 0)
        lost = known + _not_finite(name, flat[known:], known, ends)
        if len(lost):
            tokens = self._tables.column(table, LOOP_COLUMNS.index("tokens"))
            flat[lost[tokens[lost] > 0]] = math.inf  # new rows: nobody has seen them yet
        self._not_finite[table, name] = len(flat)
        return flat

    def _stretch(self, name: str, first: int, last: int) -> NDArray[Any]:
        """Return a per-loop number of some rows of the loops, read for this look and not kept.

        Whoever looks at a long run piece by piece must not have all of it in memory.
        """
        rows = slice(first, last)
        flat = self._column_of(name, rows)
        if name in ("state_norm", "residual_norm"):
            lost = _not_finite(name, flat, first, self._ends())
            if len(lost):
                flat[lost[self._column_of("tokens", rows)[lost] > 0]] = math.inf
        return flat

    def _column_of(self, name: str, rows: slice) -> NDArray[Any]:
        """Read a per-loop number of some rows of the loops."""
        column = LOOP_COLUMNS.index(name)
        return self._tables.read_columns("loops", rows, [column])[column]


def _spread(values: NDArray[Any], rows: Index, length: int) -> Series:
    """Return values at some of so many rows, NaN at the others."""
    if len(rows) == length:
        return values.astype(np.float64)
    spread = np.full(length, np.nan)
    spread[rows] = values
    return spread


def _as_info(said: NDArray[Any]) -> dict[str, Any]:
    """Return what a run learnt of itself later; nothing where that cannot be read."""
    try:
        info = json.loads(bytes(said.astype(np.uint8).ravel()[:LARGEST_INFO]).decode())
    except (ValueError, RecursionError):
        return {}
    return info if isinstance(info, dict) else {}


def _not_finite(name: str, flat: NDArray[Any], first: int, ends: Index) -> Index:
    """Return where a norm is NaN although its loop may have run, counted from ``first``, the row of ``flat[0]``."""
    lost = np.flatnonzero(np.isnan(flat))
    if not len(lost):
        return lost
    inside = slice(*np.searchsorted(ends, [first, first + len(flat) + 1]).tolist())
    is_end = np.zeros(len(flat) + 1, dtype=bool)
    is_end[ends[inside] - first] = True
    is_end[0] |= first == 0
    lost = lost[~is_end[lost]]
    return lost[~is_end[lost + 1]] if name == "residual_norm" else lost
