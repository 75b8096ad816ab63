"""A log of another tool behind `Run`: the numbers that it has, and no loop.

What it does not have is missing, as it is in a run file that did not record it; `Run.log` says what kind of log it is,
so that whoever judges it can say that the loop was not seen.

Not covered: reading (`recognise`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..ending import RUN_INTERRUPTED
from ..growing import Rows
from ..layout import STEP_COLUMNS, Event, RunFileError
from ..ragged import Index, Series
from ..source import RecordedArray, Source, State
from ..text import plain
from .recognise import Reader
from .table import LogError, LogTable

_ZERO: Final = frozenset({"generation", "rows_dropped"})  # columns that are 0 in every row of a log


class LogSource:
    """A log as a source of numbers; implements `Source`.

    Args:
        path: What names it: a file, or a folder of event files.
        reader: What reads it.

    Raises:
        RunFileError: It cannot be read.
    """

    def __init__(self, path: Path, reader: Reader) -> None:
        self._path, self._reader = path, reader
        self._stamp = self._look()
        self._table = self._read()

    def _read(self) -> LogTable:
        """Read the log, whatever its content does to the reader."""
        try:
            return self._reader(self._path)
        except RunFileError:
            raise
        except (ValueError, RecursionError, MemoryError, OverflowError) as error:
            raise LogError(f"{plain(self._path)}: cannot be read as a log: {plain(error)}") from None

    def _look(self) -> tuple[tuple[str, int, int], ...]:
        """Return what changes when the log does."""
        files = sorted(self._path.iterdir()) if self._path.is_dir() else [self._path]
        stats = [(str(file), file.stat()) for file in files if file.exists()]
        return tuple((name, status.st_size, status.st_mtime_ns) for name, status in stats)

    @property
    def path(self) -> Path:
        """The log."""
        return self._path

    @property
    def log(self) -> str:
        """Its kind."""
        return self._table.kind

    @property
    def info(self) -> dict[str, Any]:
        """Its kind, the settings that it has, and which of its names is which number."""
        return {"log": self._table.kind, "config": dict(self._table.config), "log_names": dict(self._table.names)}

    @property
    def state(self) -> State:
        """How the run ended, as far as the log says; most say nothing and count as finished."""
        return self._table.state

    @property
    def generation(self) -> int:
        """Nothing is known of resumes."""
        return 0

    @property
    def committed_at(self) -> float:
        """When the log was changed last, seconds since 1970."""
        return max((time for _, _, time in self._stamp), default=0) / 1e9

    @property
    def events(self) -> list[Event]:
        """Why the run was interrupted, where the log says so."""
        if not self._table.reason:
            return []
        step = int(self._table.columns["step"][-1])
        return [Event(step, 0.0, RUN_INTERRUPTED, "warning", message=self._table.reason)]

    def history(self, *names: str) -> dict[str, Series]:
        """Return columns; those of a log have no history."""
        return {name: self.values(name) for name in names or self.names}

    def __len__(self) -> int:
        return len(self._table.columns["step"])

    @property
    def names(self) -> Sequence[str]:
        """The numbers of a run file, most of them not recorded."""
        return STEP_COLUMNS

    @property
    def ranks(self) -> Mapping[int, Source]:
        """This log."""
        return {0: self}

    def values(self, name: str) -> Series:
        """Return one number per step."""
        if name in self._table.columns:
            return self._table.columns[name]
        if name == "nonfinite":
            return self._table.nonfinite
        return np.full(len(self), 0.0 if name in _ZERO else np.nan)

    def loops(self, name: str, rows: Rows = slice(None)) -> Series:
        """Return nothing for each step: no loop was recorded."""
        return np.empty((len(np.arange(len(self))[rows]), 0))

    def last(self, name: str, back: int) -> Series:
        """Return that no loop was recorded."""
        return np.full(len(self), np.nan)

    def at_loops(self, name: str, loops: Sequence[int]) -> list[Series]:
        """Return that no loop was recorded."""
        return [np.full(len(self), np.nan) for _ in loops]

    @property
    def probe_steps(self) -> Index:
        """None."""
        return np.empty(0, np.int64)

    def probe(self, name: str) -> Series:
        """Return no passes."""
        return np.empty((0, 0))

    def variable(self, number: int, name: str) -> tuple[Index, Series]:
        """Return no steps."""
        return np.empty(0, np.int64), np.empty((0, 0))

    def spectra(self) -> tuple[Index, NDArray[np.complex128]]:
        """Return no spectra."""
        return np.empty(0, np.int64), np.empty((0, 0), np.complex128)

    @property
    def array_names(self) -> tuple[str, ...]:
        """None."""
        return ()

    def arrays(self, name: str, rows: slice) -> tuple[Index, list[NDArray[Any]]]:
        """Return no arrays."""
        return np.empty(0, np.int64), []

    def array_steps(self, name: str) -> Index:
        """Return no steps."""
        return np.empty(0, np.int64)

    def array_table(self, name: str) -> tuple[Index, Series]:
        """Return no table."""
        return np.empty(0, np.int64), np.empty((0, 0))

    def array_history(self, prefix: str) -> list[RecordedArray]:
        """Return no arrays."""
        return []

    def refresh(self) -> bool:
        """Read the log again where it has changed; one that cannot be read just now stays as it was."""
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return False
            self._table, self._stamp = self._read(), stamp
        except (OSError, RunFileError):
            return False
        return True

    def close(self) -> None:
        """Nothing is open."""
