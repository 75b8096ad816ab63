"""Writes a run file: rows are staged in memory, flushed in order, and published by a commit row written last.

A flush that returned True is an acknowledgement: what was appended before it survives ``kill -9``. Nothing raises
because of the disk once the writer exists; on a failure it marks itself dead, counts the rows lost and logs it once.

Not covered: power loss (the page cache is trusted while the run is live; sealing does wait for the disk), network file
systems, and threads: one thread owns a writer.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from .arrays import flat_bytes, index_row
from .disk import handle as handles
from .disk.handle import LOCK, Handle
from .disk.integrity import check_hdf5, inspect, one_line
from .disk.layouts import replace_by_sealed, restore_live_layout
from .disk.lease import Lease
from .disk.rewrite import create_run, free_bytes, temporary_path
from .ending import RUN_INTERRUPTED
from .layout import (
    DISK_RESERVE,
    MAX_EIGENVALUES,
    SPARE_COLUMNS,
    STEP_COLUMNS,
    TABLES,
    Commit,
    DamagedRun,
    Event,
    RunFileError,
    pack_event,
    wrong_scalar_name,
)
from .staging import COMPOUND, CompoundTable, Table, count_nonfinite, loop_rows, spectrum_row, variable_rows

_LOG: Final = logging.getLogger("loopscope")
_FLUSH_AT: Final = 1024  # staged steps that force a flush
_KEEP_AT_MOST: Final = 4096  # staged steps kept while the disk is full; later ones are counted as lost
_FLUSH_ARRAYS_AT: Final = 8 << 20  # staged bytes of arrays that force a flush
_KEEP_ARRAYS: Final = 64 << 20  # staged bytes of arrays kept at most, and the largest array that can be recorded
_LAST_WORDS: Final = 256 << 10  # free bytes it takes to say in the file that the disk is full
_WRITE_ERRORS: Final = (OSError, RuntimeError, ValueError, KeyError, RunFileError)
_WRITERS: weakref.WeakSet[RunWriter] = weakref.WeakSet()


class RunWriter:
    """Appends to one run file. Made by ``RunWriter.create`` or ``RunWriter.resume``; owned by one thread.

    Appending costs a few microseconds and touches no disk; ``flush`` does (about a millisecond). Leaving a ``with``
    block seals the run, or only closes it when an exception is on its way (the run then reads as interrupted).

    Attributes:
        path: The run file.
        generation: 0 for the first writer of the run, one more after every resume.
        rows: Steps appended and not lost, in all generations.
        rows_lost: Steps that could not be written.
        arrays_lost: Arrays that could not be written.
        failure: Why the writer is dead, ``""`` while it is well.

    >>> import tempfile
    >>> one_loop = [[1.0, 0.5, math.nan, 64], [1.2, math.nan, math.nan, 64]]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RunWriter.create(Path(folder) / "run.h5", info={"model": "toy"}, scalars=("accuracy",)) as writer:
    ...         writer.append_step({"step": 0, "loss": 2.5, "accuracy": 0.1}, one_loop)
    ...         writer.flush()
    True
    """

    def __init__(self, path: Path, lease: Lease, handle: Handle, commit: Commit, commits: int) -> None:
        self.path = path
        self.generation = commit.generation
        self.rows_lost = self.arrays_lost = 0
        self.failure = ""
        self._lease, self._handle, self._last = lease, handle, commit
        self._tables = {
            name: (CompoundTable if name in COMPOUND else Table)(handle.table(name), commit.lengths[name])
            for name in TABLES
            if name != "columns"
        }
        self._commits = Table(handle.table("commit"), commits)
        encoded = handle.table("columns")[: commit.lengths["columns"]]
        self._index = {bytes(name).decode("utf-8", "replace"): i for i, name in enumerate(encoded)}
        self._unnamed: list[str] = []  # names given since the last flush
        self._refused: set[str] = set()
        self._loop_rows, self._probe_rows = commit.lengths["loops"], commit.lengths["probe"]
        self._array_bytes, self._variable_rows = commit.lengths["arrays"], commit.lengths["variables"]
        self._lost_before = self._arrays_lost_before = 0
        self._interrupted: Event | None = None
        self._finished = self._closed = self._starved = False
        _WRITERS.add(self)
        self._handle.published = commits
        self._dirty = self.generation > 0  # publish the new generation at once
        self.flush()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        info: Mapping[str, Any],
        scalars: Iterable[str] = (),
        eigenvalues: int = MAX_EIGENVALUES,
        overwrite: bool = False,
    ) -> RunWriter:
        """Create a run file and open it for writing; a reader never sees it half made.

        Args:
            path: The file; missing folders are created.
            info: Anything JSON can hold about model, loop, configuration, host and versions. Fixed from here on.
            scalars: Names of the user's own numbers per step. Others may come later, up to ``SPARE_COLUMNS``.
            eigenvalues: Leading eigenvalues kept per spectrum, 1 to 64.
            overwrite: Replace an existing file.

        Raises:
            ValueError: A scalar name is empty, too long, doubled or already taken; ``eigenvalues`` is out of range.
            RunFileError: The file exists, or the folder cannot be written to.
            RunInUse: A live process is writing the run.
        """
        target = Path(path)
        names = (*STEP_COLUMNS, *scalars)
        for position, name in enumerate(names):
            if wrong := wrong_scalar_name(name, names[:position]):
                raise ValueError(f"scalar {name!r} {wrong}")
        if not 1 <= eigenvalues <= MAX_EIGENVALUES:
            raise ValueError(f"eigenvalues must be between 1 and {MAX_EIGENVALUES}, not {eigenvalues}")
        text = json.dumps(dict(info), default=str)
        if target.is_dir() or (target.exists() and not overwrite):
            raise RunFileError(f"{target}: exists already; resume it, choose another path, or ask to overwrite it")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFileError(
                f"{target.parent}: cannot be created ({error.strerror}); choose a folder you can write to"
            ) from None
        lease = Lease(target)
        temporary = temporary_path(target)
        try:
            with LOCK:
                commit = create_run(temporary, info=text, names=names, eigenvalues=eigenvalues)
                temporary.replace(target)
                return cls(target, lease, handles.acquire_writing(target), commit, commits=1)
        except OSError as error:
            lease.release()
            temporary.unlink(missing_ok=True)
            raise RunFileError(f"{target}: cannot be created ({one_line(error)}); check folder and disk") from None
        except BaseException:
            lease.release()
            raise

    @classmethod
    def resume(cls, path: str | os.PathLike[str]) -> RunWriter:
        """Open a killed, closed or finished run to append to it, as its next generation.

        Nothing committed is lost or changed. A finished run, or one of an older version of the format, is first brought
        into today's live layout (one copy).

        Raises:
            RunInUse: A live process is writing the run.
            NotARun, DamagedRun, RunFileError: As ``open_run``.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with RunWriter.create(Path(folder) / "a.h5", info={}) as writer:
        ...         writer.append_step({"step": 0})
        ...     with RunWriter.resume(writer.path) as writer:
        ...         writer.generation, writer.rows
        (1, 1)
        """
        target = Path(path)
        handles.file_key(target)
        check_hdf5(target)
        lease = Lease(target)
        try:
            inspect(target)
            with LOCK:
                handles.make_writable(target)
                restore_live_layout(target)
                handle = handles.acquire_writing(target)
                last, commits = handle.last_commit()
                if last is None:
                    handles.close(handle)
                    raise DamagedRun(f"{target}: holds no commit row; expected a whole run, try `loopscope repair`")
                commit = Commit(last.lengths, last.generation + 1, False, time.time_ns())
                return cls(target, lease, handle, commit, commits)
        except OSError as error:
            lease.release()
            raise RunFileError(f"{target}: cannot be resumed ({one_line(error)}); check folder and disk") from None
        except BaseException:
            lease.release()
            raise

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the step columns in file order."""
        return tuple(self._index)

    @property
    def rows(self) -> int:
        """Steps appended and not lost, in all generations."""
        steps = self._tables["steps"]
        return self._last.lengths["steps"] if self.failure else steps.length + steps.count

    def append_step(self, values: Mapping[str, float], loops: ArrayLike | None = None) -> None:
        """Stage one step.

        Args:
            values: Numbers by name; ``step`` is required, ``time`` defaults to now, ``generation`` is set here. Names
                left out are recorded as NaN, "not recorded"; a NaN or infinity given is stored as it is and counted in
                ``nonfinite``, unless that count is given too. A new name takes a spare column.
            loops: Rows ``(depth + 1, 4)`` as ``LOOP_COLUMNS``, or None.

        Raises:
            ValueError: ``step`` is missing or no finite number, or ``loops`` has another width.
        """
        step = values.get("step", math.nan)
        if not math.isfinite(step):
            raise ValueError(f"append_step needs a finite 'step', got {step!r}")
        measured = None if loops is None else loop_rows(loops)
        if not self._accepting():
            self.rows_lost += 1
            return
        row = self._tables["steps"].next()
        row.fill(math.nan)
        index = self._index
        nonfinite = 0 if measured is None else count_nonfinite(measured)
        for name, value in values.items():
            column = index.get(name)
            if column is None and (column := self._name_spare(name)) is None:
                continue
            number = float(value)
            row[column] = number
            if number - number != 0.0:
                nonfinite += 1
        if "nonfinite" not in values:
            row[index["nonfinite"]] = nonfinite
        row[index["generation"]] = self.generation
        if "time" not in values:
            row[index["time"]] = time.time()
        if measured is not None:
            self._tables["loops"].extend(measured)
            self._loop_rows += len(measured)
        self._tables["loop_end"].extend(np.array([self._loop_rows]))
        self._dirty = True
        if self._tables["steps"].count >= _FLUSH_AT:
            self.flush()

    def append_probe(self, step: int, loops: ArrayLike) -> None:
        """Stage one pass of the fixed probe batch: rows ``(depth + 1, 4)`` as ``LOOP_COLUMNS``."""
        measured = loop_rows(loops)
        if self._accepting():
            self._probe_rows += len(measured)
            self._tables["probe"].extend(measured)
            self._tables["probe_index"].extend(np.array([[int(step), self.generation, self._probe_rows]]))
            self._dirty = True

    def append_variable(self, step: int, variable: int, rows: ArrayLike) -> None:
        """Stage what variable number ``variable`` of the loop did in a step, ``(updates + 1, 6)``."""
        measured = variable_rows(variable, rows)
        if self._accepting():
            self._tables["variables"].extend(measured)
            self._variable_rows += len(measured)
            self._tables["variable_index"].extend([[int(step), self.generation, variable, self._variable_rows]])
            self._dirty = True

    def append_spectrum(self, step: int, eigenvalues: ArrayLike) -> None:
        """Stage the eigenvalues of A̅ at a step: largest modulus first, as many as the run keeps, NaN where fewer."""
        if self._accepting():
            row = self._tables["spectra"].next()
            row[2:] = spectrum_row(eigenvalues, (len(row) - 2) // 2)
            row[:2] = int(step), self.generation
            self._dirty = True

    def append_event(self, event: Event) -> None:
        """Stage one event."""
        if self._accepting():
            self._tables["events"].extend([pack_event(event, self.generation)])
            self._dirty = True

    def append_array(self, step: int, name: str, values: ArrayLike) -> None:
        """Stage one array, for what is measured now and then and fits no column; a step has one array of each name.

        Args:
            step: Step it belongs to.
            name: 1 to 64 bytes; series of arrays under one name are read together.
            values: Booleans, integers, floats or complex numbers with at most 4 axes and 64 MiB; the shape may differ
                from step to step. An array for which there is no room is counted in ``arrays_lost``.

        Raises:
            ValueError: The name or the kind of array cannot be stored (the message says what can).
        """
        data, array = flat_bytes(name, values)
        staged = self._tables["arrays"]
        if staged.count + len(data) > _KEEP_ARRAYS:
            self.flush()
        if not self._accepting() or staged.count + len(data) > _KEEP_ARRAYS:
            self.arrays_lost += 1
            self._dirty = True
            return
        staged.extend(data)
        self._array_bytes += len(data)
        row = index_row(step, self.generation, self._array_bytes, name, array)
        self._tables["array_index"].extend([row])
        self._dirty = True
        if staged.count >= _FLUSH_ARRAYS_AT:
            self.flush()

    def flush(self) -> bool:
        """Write everything staged and publish it; True once all of it would survive a kill.

        False means that it is still only in memory (full disk, tried again at the next flush) or lost (``failure``).
        """
        if self.failure or self._closed:
            return False
        if not self._dirty:
            return True
        with LOCK:
            try:
                if not self._file_in_place():
                    return False
                if not self._enough_room():
                    return False
                self._note_losses()
                self._write_out()
            except _WRITE_ERRORS as error:
                self._fail(f"writing failed ({one_line(error)})")
                return False
        return True

    def interrupt(self, why: str, *, step: int = -1) -> None:
        """Say in the file that the run was broken off, and why, for `loopscope.runfile.ending` to read.

        Args:
            why: The reason, for a person.
            step: The last step.
        """
        self._interrupted = Event(step, time.time(), RUN_INTERRUPTED, "warning", message=why)
        self.append_event(self._interrupted)

    def seal(self) -> None:
        """End the run: mark it finished, compress it, close it. The run stays readable throughout."""
        if self._closed or self.failure:
            self.close()
            return
        self._finished = self._dirty = True
        if self.flush():
            with LOCK:
                replace_by_sealed(self._handle, self.path, self._last)
        self.close()

    def close(self) -> None:
        """Flush and close without ending the run, which then reads as interrupted. A second call does nothing."""
        if self._closed:
            return
        if not self.flush() and not self.failure:
            self._give_up_staged()
        with LOCK:
            if not self.failure and not self._enough_room(0):
                self._fail("the disk is full")  # HDF5 may crash the process when a close cannot write
            self._closed = True
            if not self.failure:
                try:
                    handles.close(self._handle)
                except _WRITE_ERRORS as error:
                    self._fail(f"closing failed ({one_line(error)})")
        self._lease.release()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.seal()
        else:
            self.close()

    def _accepting(self) -> bool:
        """Return whether a row can be staged: not dead, not closed, and not out of memory budget on a full disk."""
        return not (self.failure or self._closed) and self._tables["steps"].count < _KEEP_AT_MOST

    def _name_spare(self, name: str) -> int | None:
        """Give a new scalar the next spare column, or refuse it once with an event."""
        if name in self._refused:
            return None
        wrong = wrong_scalar_name(name, self._index)
        if not wrong and len(self._index) >= self._handle.table("columns").shape[0]:
            wrong = f"came after the run was created and all {SPARE_COLUMNS} spare columns are taken"
        if wrong:
            self._refused.add(name)
            message = f"scalar {name!r} {wrong}; it is not recorded"
            _LOG.warning("%s: %s", self.path, message)
            self.append_event(Event(-1, time.time(), "number_refused", "warning", message=message))
            return None
        self._index[name] = len(self._index)
        self._unnamed.append(name)
        return self._index[name]

    def _write_out(self) -> None:
        """Bring every staged row into the file, then the commit row: in this order a kill loses no committed row."""
        if self._unnamed:
            columns = self._handle.table("columns")
            for name in self._unnamed:
                columns[self._index[name]] = name.encode()
            columns.flush()
            self._unnamed.clear()
        for name in TABLES:
            if name != "columns":
                self._tables[name].write()
        lengths = {name: table.length for name, table in self._tables.items()} | {"columns": len(self._index)}
        self._last = Commit(lengths, self.generation, self._finished, time.time_ns())
        self._commits.extend(self._last.pack()[np.newaxis])
        self._commits.write()
        self._handle.published = self._commits.length
        self._dirty = False

    def _file_in_place(self) -> bool:
        """Make sure the path still leads to the file we write: an unlinked file takes writes silently."""
        if gone := handles.whereabouts(self._handle, self.path):
            self._fail(gone)
        return not gone

    def _enough_room(self, needed: int | None = None) -> bool:
        """Return whether the disk can take a flush; a write that fails inside HDF5 can end the training process."""
        if needed is None:
            needed = 2 * sum(table.staged_bytes for table in self._tables.values())
        enough = free_bytes(self.path) >= needed + DISK_RESERVE
        if not enough and not self._starved:
            _LOG.warning("%s: the disk is nearly full; recording waits until there is room", self.path)
        self._starved = not enough
        return enough

    def _note_losses(self) -> None:
        """Record in the file what was lost since the last such record."""
        if lost := self.rows_lost - self._lost_before:
            self._note_loss(
                "rows_lost", lost, f"{lost} steps before this one were not recorded because the disk was full"
            )
        if lost := self.arrays_lost - self._arrays_lost_before:
            why = f"the disk was full, or they had more than {_KEEP_ARRAYS >> 20} MiB"
            self._note_loss("arrays_lost", lost, f"arrays before this step that were not recorded: {lost}; {why}")
        self._lost_before, self._arrays_lost_before = self.rows_lost, self.arrays_lost

    def _note_loss(self, kind: str, lost: int, message: str) -> None:
        """Say a loss in the log and, as an event, in the file."""
        _LOG.warning("%s: %s", self.path, message)
        steps = self._tables["steps"]
        step = int(steps.rows()[-1, 0]) if steps.count else -1
        event = Event(step, time.time(), kind, "warning", float(lost), message=message)
        self._tables["events"].extend([pack_event(event, self.generation)])

    def _give_up_staged(self) -> None:
        """Count what is still in memory as lost: the disk stayed full until the end."""
        self.rows_lost += self.rows - self._last.lengths["steps"]
        for table in self._tables.values():
            table.count = 0
        self._unnamed.clear()
        said = f"the disk stayed full, {self.rows_lost} steps were not recorded"
        _LOG.error("%s: %s", self.path, said)
        before = self._interrupted
        step, why = (-1, said) if before is None else (before.step, f"{said}; {before.message}")
        self._finished = False
        self.interrupt(why, step=step)
        with LOCK:
            if free_bytes(self.path) >= _LAST_WORDS:  # of the reserve, which is there for this
                try:
                    self._write_out()
                except _WRITE_ERRORS as error:
                    self._fail(f"writing failed ({one_line(error)})")

    def _fail(self, reason: str) -> None:
        """Mark the writer dead for good, count what is lost, say it once, and never let HDF5 touch the file again."""
        self.rows_lost += self.rows - self._last.lengths["steps"]
        self.failure = reason
        _LOG.error("%s: recording has stopped: %s; training goes on unrecorded", self.path, reason)
        handles.abandon(self._handle)
        self._lease.release()


def _after_fork_in_child() -> None:
    """Let no forked copy of a writer write."""
    for writer in (w for w in _WRITERS if not w._closed):
        writer.failure = "this process is a forked copy of the one that records"


os.register_at_fork(after_in_child=_after_fork_in_child)
