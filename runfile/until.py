"""A recording as it was after one of its steps: everything later is not there.

Rows, passes, spectra, arrays and events of later steps are left out, and the run counts as finished there: it is a
question about a run ("had it ended at step N, what then?"), not about how its process ended.

Not covered: what was lost before that step and came back after it: a rank file that is missing is missing at all steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .disk.handle import LOCK
from .growing import Rows
from .layout import Event
from .ragged import Index, Series
from .run import Run
from .source import RecordedArray, Source, State


def until(run: Run, step: int) -> Run:
    """Return a run as it was after a step, with nothing of the later ones.

    Args:
        run: An opened run; it stays open, and closing the result closes it.
        step: The last step that is there.
    """
    with LOCK:
        return Run(UntilStep(run.source, step))


class UntilStep:
    """The steps of a source up to one of them; implements `Source`."""

    def __init__(self, source: Source, step: int) -> None:
        self._source, self._step = source, step
        self._rows = self._count()

    def _count(self) -> int:
        """Return how many visible steps there are up to the last one."""
        return int(np.searchsorted(self._source.values("step"), self._step, side="right"))

    @property
    def path(self) -> Path:
        """The file that names the recording."""
        return self._source.path

    @property
    def info(self) -> dict[str, Any]:
        """What the writer said."""
        return self._source.info

    @property
    def state(self) -> State:
        """``finished``: as if it had ended there."""
        return "finished"

    @property
    def log(self) -> str:
        """Kind of a log of another tool."""
        return self._source.log

    @property
    def generation(self) -> int:
        """How often it was resumed up to that step."""
        generations = self._source.values("generation")[: self._rows]
        return int(np.nanmax(generations, initial=0.0))

    @property
    def committed_at(self) -> float:
        """When the last of these rows was recorded, seconds since 1970; 0 without rows."""
        times = self._source.values("time")[: self._rows]
        return float(times[-1]) if len(times) and np.isfinite(times[-1]) else 0.0

    @property
    def events(self) -> list[Event]:
        """What had happened by then; how the process ended later is left out."""
        return [event for event in self._source.events if event.step <= self._step]

    def history(self, *names: str) -> dict[str, Series]:
        """Return recorded columns of all rows up to that step, superseded ones included."""
        columns = self._source.history(*names)
        steps = self._source.history("step")["step"]
        return {name: values[steps <= self._step] for name, values in columns.items()}

    def __len__(self) -> int:
        return self._rows

    @property
    def names(self) -> Sequence[str]:
        """Recorded numbers per step."""
        return self._source.names

    @property
    def ranks(self) -> Mapping[int, Source]:
        """The sources behind the numbers, each up to that step."""
        ranks = self._source.ranks
        return {rank: self if source is self._source else UntilStep(source, self._step)
                for rank, source in ranks.items()}  # fmt: skip

    def values(self, name: str) -> Series:
        """Return a number per step."""
        return self._source.values(name)[: self._rows]

    def loops(self, name: str, rows: Rows = slice(None)) -> Series:
        """Return a number per step and loop."""
        within = slice(*rows.indices(self._rows)) if isinstance(rows, slice) else np.arange(self._rows)[rows]
        return self._source.loops(name, within)

    def last(self, name: str, back: int) -> Series:
        """Return the loop number ``back`` rows before the end of every step."""
        return self._source.last(name, back)[: self._rows]

    def at_loops(self, name: str, loops: Sequence[int]) -> list[Series]:
        """Return a number of some loops of every step."""
        return [values[: self._rows] for values in self._source.at_loops(name, loops)]

    @property
    def probe_steps(self) -> Index:
        """Steps of the passes of the fixed probe batch."""
        return self._source.probe_steps[: self._passes]

    @property
    def _passes(self) -> int:
        return int(np.searchsorted(self._source.probe_steps, self._step, side="right"))

    def probe(self, name: str) -> Series:
        """Return a number per pass and loop."""
        return self._source.probe(name)[: self._passes]

    def variable(self, number: int, name: str) -> tuple[Index, Series]:
        """Return a number of a variable over its steps and updates."""
        steps, values = self._source.variable(number, name)
        return steps[steps <= self._step], values[steps <= self._step]

    def spectra(self) -> tuple[Index, NDArray[np.complex128]]:
        """Return eigenvalues over time."""
        steps, values = self._source.spectra()
        return steps[steps <= self._step], values[steps <= self._step]

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of arrays that were there by then."""
        return tuple(name for name in self._source.array_names if len(self.array_steps(name)))

    def arrays(self, name: str, rows: slice) -> tuple[Index, list[NDArray[Any]]]:
        """Return arrays of a name."""
        first, last, stride = rows.indices(len(self.array_steps(name)))
        return self._source.arrays(name, slice(first, max(first, last), stride))

    def array_steps(self, name: str) -> Index:
        """Return the steps of the arrays of a name."""
        steps = self._source.array_steps(name)
        return steps[steps <= self._step]

    def array_table(self, name: str) -> tuple[Index, Series]:
        """Return short arrays of a name as one table."""
        steps, values = self._source.array_table(name)
        return steps[steps <= self._step], values[steps <= self._step]

    def array_history(self, prefix: str) -> list[RecordedArray]:
        """Return arrays whose name starts with a prefix, superseded ones included."""
        return [each for each in self._source.array_history(prefix) if each.step <= self._step]

    def refresh(self) -> bool:
        """Look for what is new; True when anything changed."""
        changed = self._source.refresh()
        self._rows = self._count()
        return changed

    def close(self) -> None:
        """Give all files back."""
        self._source.close()
