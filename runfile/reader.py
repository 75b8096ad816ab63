"""Reads run files: live, killed and finished ones alike, without changing a byte of them.

Columns are read when first asked for and kept; ``refresh`` reads only what was added since. Everything needs numpy and
h5py alone.

A row is *superseded* by any later row whose step is not greater: after a resume or a rollback the steps from there on
belong to a branch that no longer exists. The series of a ``Run`` leave superseded rows out, so that steps strictly
increase; ``Run.history`` shows all rows.

A ``Run`` is one file; the files of several ranks are seen as one run through `merged_run`, which `open_run` chooses.

Not covered: bit rot in uncompressed live files, which carry no checksum of their numbers (sealed ones do).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import from_bytes, stored_bytes
from .disk import handle as handles
from .disk.handle import LOCK, Handle
from .disk.integrity import READ_ERRORS, damaged, one_line, read_info
from .disk.lease import is_held
from .growing import Growing, Rows, Standing, standing_rows
from .layout import (
    ARRAY_INDEX_DTYPE,
    FIRST_COLUMNS,
    LARGEST_STEP,
    LOOP_COLUMNS,
    PROBE_DERIVED,
    STEP_COLUMNS,
    STEP_DERIVED,
    TABLES,
    Commit,
    DamagedRun,
    Event,
    NotARun,
    RunFileError,
    RunInUse,
    unpack_event,
)
from .rank_names import rank_of
from .ratios import late_ratios

__all__ = ["DamagedRun", "NotARun", "Run", "RunFileError", "RunInUse"]

State = Literal["live", "interrupted", "finished"]
Series = NDArray[np.float64]
_BLOCK: Final = 16384  # rows read at a time
_READ_AHEAD: Final = 128 << 10  # bytes of arrays read at once: a chunk, which HDF5 fetches whole anyway
_EMPTY: Final = Commit(dict.fromkeys(TABLES, 0), 0, False, 0)


class RecordedArray(NamedTuple):
    """One array as it was recorded."""

    step: int
    generation: int
    name: str
    values: NDArray[Any]


class Run:
    """One run, as arrays over its steps. Made by ``open_run``; safe to use from several threads.

    ``Run(path)`` is that one file, whatever lies beside it.

    Every array is float64 unless said otherwise, has one entry per visible step, and is read-only: it is shared with
    the cache. NaN means "not recorded", or a NaN that the training gave (then ``run["nonfinite"]`` is positive there).

    Attributes:
        path: The file.
        info: What the writer said about model, loop, configuration, host and versions.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info: dict[str, Any] = {}
        self._run_id = ""
        self._forget()
        self._handle: Handle | None = None
        with LOCK:
            try:
                self._attach()
                self._load()
            except BaseException:
                self.close()
                raise

    # -- what the run is ------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """``live`` while a process writes it, ``finished`` when it ended, ``interrupted`` when its writer is gone."""
        if is_held(self.path):
            return "live"
        return "finished" if self._commit.finished else "interrupted"

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that ``run[name]`` and ``run.series(name)`` know."""
        return (*self._names, *STEP_DERIVED, *PROBE_DERIVED)

    @property
    def generation(self) -> int:
        """How often the run was resumed."""
        return self._commit.generation

    @property
    def committed_at(self) -> float:
        """When the last row was published, seconds since 1970; 0 for a run without any commit."""
        return self._commit.time_ns / 1e9

    @property
    def ranks(self) -> Mapping[int, Run]:
        """The files behind these numbers, by the rank that wrote them, each as a run of its own."""
        return {rank_of(self.path): self}

    @property
    def kept_bytes(self) -> int:
        """Bytes of the columns that are kept in memory."""
        return sum(column.values().nbytes for column in self._columns.values())

    def __len__(self) -> int:
        return len(self._standing)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.state}, {len(self)} steps)"

    # -- numbers per step -----------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Series:
        """Return one number per step.

        Args:
            name: One of ``names``. The ratios measured on the probe batch are NaN at steps without a probe pass.

        Raises:
            KeyError: There is no such name (the message lists the known ones).
        """
        with LOCK:
            if name in self._names:
                return _frozen(self._values(name))
            if name == "last_state_norm":
                return _frozen(self._last("state_norm", 0))
            if name == "last_residual_norm":
                return _frozen(self._last("residual_norm", 1))
            if name in PROBE_DERIVED:
                return _frozen(self._on_steps(name))
        raise KeyError(f"{self.path} has no {name!r}; it has {', '.join(self.names)}")

    def series(self, name: str) -> tuple[NDArray[np.int64], Series]:
        """Return the steps at which ``name`` was recorded and its values there, NaNs left out."""
        with LOCK:
            if name in PROBE_DERIVED:
                steps, values = self.probe_steps, self._ratios(name)
            else:
                values = self[name]
                steps = self["step"].astype(np.int64)
            recorded = ~np.isnan(values)
            return steps[recorded], values[recorded]

    def loops(self, name: str, rows: slice | NDArray[np.int64] = slice(None)) -> Series:
        """Return one number per step and loop.

        Args:
            name: ``state_norm``, ``residual_norm``, ``step_cosine`` or ``tokens`` (of that loop).
            rows: Which visible steps; all of them by default.

        Returns:
            ``(steps, T + 1)`` for the deepest of those steps, NaN where a loop did not run. Column t is loop t:
            ``state_norm`` of h_t, ``residual_norm`` of h_{t+1} − h_t (NaN at the last), ``step_cosine`` of that update
            with the one before (NaN at the first and last).
        """
        with LOCK:
            start, end = self._spans(rows)
            first = self._first_loop(name, rows, start)
            if first is None:
                return _pad(self._column("loops", _loop_column(name)), start, end)
            flat = self._read("loops", (slice(first, int(end.max(initial=first))), _loop_column(name)))
            return _pad(flat, start - first, end - first)

    # -- the fixed probe batch ------------------------------------------------------------------------------------

    @property
    def probe_steps(self) -> NDArray[np.int64]:
        """Steps at which the fixed probe batch was run, shape ``(P,)``."""
        with LOCK:
            steps, index = self._passes()
            return _frozen(steps[index])

    def probe(self, name: str) -> Series:
        """Return one number per probe pass and loop, ``(P, D + 1)``, as ``loops`` does for training steps."""
        with LOCK:
            _, index = self._passes()
            ends = self._ends("probe_index", self._column("probe_index", 2, np.int64), "probe")
            start, end = _starts_and_ends(ends, index)
            return _pad(self._column("probe", _loop_column(name)), start, end)

    def spectra(self) -> tuple[NDArray[np.int64], NDArray[np.complex128]]:
        """Return eigenvalues of A̅ over time: steps ``(K,)``, values ``(K, E)``, largest modulus first, NaN padded."""
        with LOCK:
            length = self._commit.lengths["spectra"]
            rows = np.asarray(self._read("spectra", slice(0, length)), dtype=np.float64)
            count = (rows.shape[1] - 2) // 2
            index = self._unsuperseded(rows[:, 0], rows[:, 1])
            values = rows[index, 2 : 2 + count] + 1j * rows[index, 2 + count :]
            return rows[index, 0].astype(np.int64), values

    # -- arrays of any shape --------------------------------------------------------------------------------------

    @property
    def array_names(self) -> tuple[str, ...]:
        """Every name that ``arrays`` knows, in the order in which they first appeared."""
        with LOCK:
            names = dict.fromkeys(self._array_index()["name"].tolist())
            return tuple(name.decode("utf-8", "replace") for name in names)

    def arrays(self, name: str, rows: slice = slice(None)) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
        """Return the arrays recorded under one name; reads them and what lies between them, and keeps none of them.

        Args:
            name: One of ``array_names``.
            rows: Which of them; all by default, ``slice(-1, None)`` for the newest.

        Returns:
            Steps ``(K,)``, strictly increasing, and K arrays of the dtypes and shapes they were given with. An array is
            superseded by a later one of the same name whose step is not greater, and by a later generation that ran its
            step again.

        Raises:
            KeyError: There is no such name (the message lists the known ones).
        """
        with LOCK:
            mine, standing = self._array_rows(name)
            if not len(mine):
                raise KeyError(f"{self.path} has no arrays {name!r}; it has {', '.join(self.array_names) or 'none'}")
            mine = mine[standing][rows]
            return self._array_index()["step"][mine], self._array_values(mine)

    def array_steps(self, name: str) -> NDArray[np.int64]:
        """Return the steps of ``arrays(name)`` without reading the arrays; none where there is no such name."""
        with LOCK:
            mine, standing = self._array_rows(name)
            return self._array_index()["step"][mine[standing]]

    def array_table(self, name: str) -> tuple[NDArray[np.int64], Series]:
        """Return the arrays of a name as one table, for short ones with one axis: norms per block or per loop.

        They are kept as columns are: asked again after ``refresh``, it reads only the new ones.

        Returns:
            Steps ``(K,)``, strictly increasing, and values ``(K, longest)``, NaN behind shorter arrays; ``(0,)`` and
            ``(0, 0)`` where there is no such name.
        """
        with LOCK:
            mine, standing = self._array_rows(name)
            flat = self._columns.setdefault((f"array {name}", 0), Growing(np.float64))
            ends = self._columns.setdefault((f"array {name}", 1), Growing(np.int64))
            if fresh := self._array_values(mine[len(ends) :]):
                ends.append(len(flat) + np.cumsum([values.size for values in fresh]))
                flat.append(np.concatenate([values.reshape(-1) for values in fresh]))
            end = ends.values(len(mine))
            start = np.concatenate([[0], end])[:-1]
            table = _pad(flat.values(), start[standing], end[standing])
            return self._array_index()["step"][mine[standing]], table

    def array_history(self, prefix: str) -> list[RecordedArray]:
        """Return every array whose name starts with ``prefix``, in file order, superseded ones included."""
        with LOCK:
            index = self._array_index()
            rows = np.flatnonzero(np.char.startswith(index["name"], prefix.encode())) if len(index) else index["step"]
            return [
                RecordedArray(int(row["step"]), int(row["generation"]), row["name"].decode("utf-8", "replace"), values)
                for row, values in zip(index[rows], self._array_values(rows), strict=True)
            ]

    def _array_index(self) -> NDArray[Any]:
        """Return the committed rows that say what the arrays are, reading only those not cached yet."""
        index = self._cached("array_index", None, ARRAY_INDEX_DTYPE)
        known, ends = self._sound.get("arrays", 0), self._ends("array_index", index["end"], "arrays")
        if np.any(stored_bytes(index[known:]) != np.diff(ends[known:], prepend=ends[known - 1] if known else 0)):
            raise damaged(self.path, "rows of array_index describe no arrays")
        self._sound["arrays"] = len(index)
        return index

    def _array_rows(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of the index that have a name, and which of these stand."""
        index = self._array_index()
        mine = np.flatnonzero(index["name"] == name.encode())
        return mine, self._unsuperseded(index["step"][mine], index["generation"][mine])

    def _array_values(self, rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Return the arrays of some rows of the index, which increase."""
        if not len(rows):
            return []
        index, handle = self._array_index(), self._open()
        ends = index["end"]
        starts = np.concatenate([[0], ends[:-1]])
        last = int(ends[rows[-1]])

        def read() -> list[NDArray[Any]]:
            data = handle.renewed("arrays")
            found, low, high, block = [], 0, 0, np.empty(0, np.uint8)
            for row, start, end in zip(index[rows], starts[rows].tolist(), ends[rows].tolist(), strict=True):
                if end > high:
                    low, high = start, max(end, min(start + _READ_AHEAD, last))
                    block = data[low:high]
                found.append(from_bytes(row, block[start - low : end - low].copy()))
            return found

        found: list[NDArray[Any]] = self._guard(read)
        return found

    @property
    def events(self) -> list[Event]:
        """Events in the order they were found; those of steps that a later generation ran again are left out."""
        return list(self._events)

    def history(self, *names: str) -> dict[str, NDArray[np.float64]]:
        """Return recorded columns, all or those named, over all rows in file order, superseded ones included."""
        with LOCK:
            return {name: _frozen(self._column("steps", self._names[name])) for name in names or self._names}

    # -- following a live run -------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Look for new rows; True when anything changed. Reads the commit row and, later on demand, only the tail.

        After a resume that went back, ``len`` can shrink and earlier entries change: compare ``generation``.
        """
        with LOCK:
            self._follow()
            before = self._commit
            self._load()
            return self._commit != before

    def close(self) -> None:
        """Give the file back; what was read stays usable. Harmless when repeated."""
        with LOCK:
            if self._handle is not None:
                handles.release(self._handle)
                self._handle = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- behind it ------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Start anew: nothing of the run is known."""
        self._columns: dict[tuple[str, int | None], Growing] = {}
        self._commit = _EMPTY
        self._names: dict[str, int] = {}
        self._events: list[Event] = []
        self._standing = Standing()
        self._sound: dict[str, int] = {}  # rows of ragged tables that were checked
        self._lowest = np.empty(0)  # of the first generations, their lowest steps
        self._lowest_of = 0  # rows
        self._changed_from = -math.inf  # step from which on other rows stand than when a merged view looked last

    def _attach(self) -> Handle:
        """Open the file and take over its identity; caches survive when it is the same run in a new file."""
        handle = handles.acquire(self.path)
        self._handle = handle
        assert handle.file is not None
        file = handle.file
        run_id = self._guard(lambda: str(file.attrs["run_id"]))
        if run_id != self._run_id:
            self._forget()
            self.info = self._guard(lambda: read_info(file))
            self._run_id = run_id
        return handle

    def _follow(self) -> Handle:
        """Return a handle on the file that is at the path now: sealing and resuming put a new one there."""
        handle = self._handle
        if handle is not None and handle.file is not None:
            try:
                if handles.file_key(self.path) == handle.key:
                    return handle
            except RunFileError:  # deleted: go on with what we hold
                return handle
            handles.release(handle)
        return self._attach()

    def _open(self) -> Handle:
        """Return a usable handle, opening the file again where a writer of this process closed it."""
        handle = self._handle
        return handle if handle is not None and handle.file is not None else self._attach()

    def _load(self) -> None:
        """Read the newest commit row and whatever is small enough to be kept whole."""
        handle = self._open()
        found, _ = self._guard(handle.last_commit)
        commit = found or _EMPTY
        if any(commit.lengths[table] < length for table, length in self._commit.lengths.items()):
            self._forget()  # what could not be read any more was left out by a repair
        before, self._commit = self._commit, commit
        if commit.lengths["columns"] != len(self._names):
            encoded = self._read("columns", slice(0, commit.lengths["columns"]))
            names = [bytes(name).decode("utf-8", "replace") for name in encoded]
            if names[:FIRST_COLUMNS] != list(STEP_COLUMNS[:FIRST_COLUMNS]):
                raise damaged(self.path, "the names of its columns are gone")
            self._names = {name: i for i, name in enumerate(names)}
        if commit.lengths["steps"] != self._standing.seen:
            self._changed_from = min(self._changed_from, self._standing.take_in(self._column("steps", 0)))
        if commit.lengths["events"]:
            lowest = self._lowest.copy()
            new = commit.lengths["events"] != before.lengths["events"]
            if not np.array_equal(lowest, self._lowest_steps()) or new:
                self._events = self._visible_events()

    def _visible_events(self) -> list[Event]:
        """Return the events whose step no later generation has run again."""
        rows = self._read("events", slice(0, self._commit.lengths["events"]))
        kept = ~self._run_again(rows["step"], rows["generation"])
        return [unpack_event(row) for row in rows[kept]]

    def _passes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the steps of all passes of the probe batch, and which of these stand."""
        steps = self._column("probe_index", 0, np.int64)
        return steps, self._unsuperseded(steps, self._column("probe_index", 1, np.int64))

    def _unsuperseded(self, steps: NDArray[Any], generations: NDArray[Any]) -> NDArray[np.int64]:
        """Return the rows of a table of its own that nothing supersedes: no later row of it and no later generation."""
        index = standing_rows(steps)
        return index[~self._run_again(steps[index], generations[index])]

    def _run_again(self, steps: NDArray[Any], generations: NDArray[Any]) -> NDArray[np.bool_]:
        """Return of which rows a later generation has recorded the step, or one before it."""
        if not self._commit.generation or not len(steps):
            return np.zeros(len(steps), dtype=bool)
        from_then_on = np.minimum.accumulate(self._lowest_steps()[::-1])[::-1]
        own = np.clip(np.nan_to_num(generations), 0, self._commit.generation).astype(np.int64)
        found: NDArray[np.bool_] = steps >= from_then_on[own + 1]
        return found

    def _lowest_steps(self) -> NDArray[np.float64]:
        """Return the lowest step that each generation recorded, infinite without; nothing where there is only one."""
        if not self._commit.generation:
            return self._lowest
        new, last = slice(self._lowest_of, None), self._commit.generation
        step, generation = self._column("steps", 0)[new], self._column("steps", self._names["generation"])[new]
        self._lowest = np.append(self._lowest, np.full(last + 2 - len(self._lowest), np.inf))
        known = (np.abs(step) < LARGEST_STEP) & (generation >= 0) & (generation <= last)
        np.minimum.at(self._lowest, generation[known].astype(np.int64), step[known])
        self._lowest_of += len(step)
        return self._lowest

    def _column(self, table: str, column: int, dtype: type[Any] = np.float64) -> NDArray[Any]:
        """Return the committed part of one column, reading only what is not cached yet."""
        kept = np.float32 if table in ("loops", "probe") else dtype  # as recorded
        return self._cached(table, column, kept)

    def _cached(self, table: str, column: int | None, dtype: type[Any] | np.dtype[Any]) -> NDArray[Any]:
        """Return the committed rows of a table, or one column of them, reading only those that are not kept yet."""
        kept = self._columns.setdefault((table, column), Growing(dtype))
        length = self._commit.lengths[table]
        if len(kept) < length:
            new = slice(len(kept), length)
            kept.append(self._read(table, new if column is None else (new, column)))
        return kept.values(length)

    def _read(self, table: str, where: slice | tuple[slice, int]) -> NDArray[Any]:
        """Read rows, or one column of them, after telling HDF5 to look at the disk again."""
        handle = self._open()
        found: NDArray[Any] = self._guard(lambda: _rows(handle.renewed(table), where))
        return found

    def _guard(self, read: Callable[[], Any]) -> Any:
        """Call ``read``, turning every way in which HDF5 fails into one line for a person."""
        try:
            return read()
        except RunFileError:
            raise
        except READ_ERRORS as error:
            raise damaged(self.path, one_line(error)) from None

    def _values(self, name: str, rows: Rows = slice(None)) -> Series:
        """Return a step column at some visible steps."""
        return self._standing.pick(self._column("steps", self._names[name]), rows)

    def _step_at(self, row: int) -> int:
        """Return one of the visible steps, counted as in a list."""
        return int(self._values("step", slice(row, row + 1 or None))[0])

    def _first_at(self, step: float) -> int:
        """Return how many visible steps are lower than ``step``."""
        return self._standing.first_at(self._column("steps", 0), step)

    def _spans(self, rows: Rows = slice(None)) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where the loop rows of some visible steps start and end."""
        ends = self._ends("loop_end", self._cached("loop_end", None, np.int64), "loops")
        return _starts_and_ends(ends, self._standing.numbers(rows))

    def _ends(self, table: str, ends: NDArray[np.int64], of: str) -> NDArray[np.int64]:
        """Return where the entries of a ragged table end, once it is certain that all lie within it."""
        known = self._sound.get(table, 0)
        new = ends[max(0, known - 1) :]
        if len(new) and (new[0] < 0 or np.any(new[1:] < new[:-1]) or new[-1] > self._commit.lengths[of]):
            raise damaged(self.path, f"rows of {table} lead out of {of}")
        self._sound[table] = len(ends)
        return ends

    def _first_loop(self, name: str, rows: Rows, start: NDArray[np.int64]) -> int | None:
        """Return the first of the loops that a stretch of steps needs, None where the whole column is or becomes kept.

        Whoever looks at a long run piece by piece must not have all of it in memory.
        """
        kept = self._columns.get(("loops", _loop_column(name)))
        if not isinstance(rows, slice) or rows == slice(None) or not len(start):
            return None
        if kept is not None and len(kept) == self._commit.lengths["loops"]:
            return None
        return int(start.min())

    def _at_loop(self, name: str, loop: int, rows: Rows = slice(None)) -> Series:
        """Return a number of one loop at some visible steps, a negative ``loop`` counted from the last row."""
        flat = self._column("loops", _loop_column(name))
        start, end = self._spans(rows)
        at = end + loop if loop < 0 else start + loop
        ran = (at >= start) & (at < end)
        found = np.full(len(at), np.nan)
        found[ran] = flat[at[ran]]
        return found

    def _last(self, name: str, back: int) -> Series:
        """Return the loop number ``back`` rows before the end of every visible step."""
        return self._at_loop(name, -1 - back)

    def _ratios(self, name: str) -> Series:
        """Return a late-loop ratio of every probe pass, NaN where the trajectory was too short to have one."""
        residual, state = self.probe("residual_norm"), self.probe("state_norm")
        rows = np.count_nonzero(~np.isnan(self.probe("tokens")), axis=1)
        found = np.full(len(rows), np.nan)
        for n in np.unique(rows[rows > 1]):  # one group per depth of the probe pass: usually one
            at = rows == n
            ratios = late_ratios(residual[at, : n - 1], state[at, :n])
            found[at] = ratios[PROBE_DERIVED.index(name)]
        return found

    def _on_steps(self, name: str) -> Series:
        """Spread a probe series over all steps, NaN where none was measured."""
        steps = self["step"]
        found = np.full(len(steps), np.nan)
        at = np.searchsorted(steps, self.probe_steps)
        known = at < len(steps)
        known[known] = steps[at[known]] == self.probe_steps[known]
        found[at[known]] = self._ratios(name)[known]
        return found


def _rows(dataset: Any, where: slice | tuple[slice, int]) -> NDArray[Any]:
    """Read rows or one column of them; a column of whole-row chunks in blocks, which HDF5 does faster than a stride."""
    if isinstance(where, slice) or dataset.chunks[1] == 1:
        found: NDArray[Any] = dataset[where]
        return found
    rows, column = where
    found = np.empty(rows.stop - rows.start, dataset.dtype)
    for start in range(rows.start, rows.stop, _BLOCK):
        stop = min(start + _BLOCK, rows.stop)
        found[start - rows.start : stop - rows.start] = dataset[start:stop][:, column]
    return found


def _starts_and_ends(ends: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where some rows of a ragged table start and end, from where all of them end."""
    return np.where(rows > 0, ends[rows - 1], 0), ends[rows]


def _pad(flat: NDArray[Any], start: NDArray[np.int64], end: NDArray[np.int64]) -> Series:
    """Turn ragged rows into a rectangle, NaN behind the shorter ones."""
    count = end - start
    width = int(count.max(initial=0))
    found = np.full((len(count), width), np.nan)
    if not width:
        return found
    ran = np.arange(width) < count[:, np.newaxis]
    if np.array_equal(start[1:], end[:-1]):  # the usual case: one uninterrupted stretch
        found[ran] = flat[start[0] : end[-1]]
    else:
        found[ran] = flat[(start[:, np.newaxis] + np.arange(width))[ran]]
    return found


def _loop_column(name: str) -> int:
    """Return which column of a loop table holds ``name``."""
    if name not in LOOP_COLUMNS:
        raise KeyError(f"no per-loop number {name!r}; there are {', '.join(LOOP_COLUMNS)}")
    return LOOP_COLUMNS.index(name)


def _frozen(values: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view."""
    view = values.view()
    view.flags.writeable = False
    return view
