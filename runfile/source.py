"""What stands behind a `Run`: one file, the files of several ranks, or whatever else records loops.

A source answers with arrays over its visible steps and knows nothing of derived numbers, locks or read-only views;
`Run` adds those. A new kind of recording becomes a run by answering these questions.

Not covered: errors of the user, such as names that are not there: `Run` asks for what `names` lists only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .growing import Rows
from .layout import Event
from .ragged import Index, Series

State = Literal["live", "interrupted", "finished"]


class RecordedArray(NamedTuple):
    """One array as it was recorded."""

    step: int
    generation: int
    name: str
    values: NDArray[Any]


class Recording(Protocol):
    """What a recording says about itself; `Run` and every source do."""

    @property
    def path(self) -> Path:
        """The file that names the recording."""

    @property
    def info(self) -> dict[str, Any]:
        """What the writer said about model, loop, configuration, host and versions."""

    @property
    def state(self) -> State:
        """Whether it is being written, ended, or broke off."""

    @property
    def log(self) -> str:
        """Kind of a log that another tool wrote, in which no loop was recorded; empty of a run file."""

    @property
    def generation(self) -> int:
        """How often it was resumed."""

    @property
    def committed_at(self) -> float:
        """When the last row was published, seconds since 1970."""

    @property
    def events(self) -> list[Event]:
        """What happened, superseded steps left out."""

    def history(self, *names: str) -> dict[str, Series]:
        """Return recorded columns over all rows, superseded ones included."""

    def __len__(self) -> int:
        """Return the number of visible steps."""


class Source(Recording, Protocol):
    """The numbers of a recording."""

    @property
    def names(self) -> Sequence[str]:
        """Recorded numbers per step."""

    @property
    def ranks(self) -> Mapping[int, Source]:
        """The sources behind the numbers, by rank; itself for a single file."""

    def values(self, name: str) -> Series:
        """Return one of ``names``, one number per visible step."""

    def loops(self, name: str, rows: Rows = slice(None)) -> Series:
        """Return one of ``LOOP_COLUMNS`` over some visible steps and their loops, NaN where a loop did not run."""

    def last(self, name: str, back: int) -> Series:
        """Return the loop number ``back`` rows before the end of every visible step."""

    def at_loops(self, name: str, loops: Sequence[int]) -> list[Series]:
        """Return one of ``LOOP_COLUMNS`` at some loops of every visible step, NaN where one did not run.

        Negative loops are counted back from the last row.
        """

    @property
    def probe_steps(self) -> Index:
        """Steps of the passes of the fixed probe batch."""

    def probe(self, name: str) -> Series:
        """Return one of ``LOOP_COLUMNS`` over passes and loops."""

    def variable(self, number: int, name: str) -> tuple[Index, Series]:
        """One of ``VARIABLE_COLUMNS`` of a variable over its steps and updates, NaN behind shorter ones."""

    def spectra(self) -> tuple[Index, NDArray[np.complex128]]:
        """Return the eigenvalues over time: steps and a table, NaN padded."""

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of arrays of any shape."""

    def arrays(self, name: str, rows: slice) -> tuple[Index, list[NDArray[Any]]]:
        """Return the arrays of one of ``array_names``: steps and values."""

    def array_steps(self, name: str) -> Index:
        """Return the steps of the arrays of a name, none where there is no such name."""

    def array_table(self, name: str) -> tuple[Index, Series]:
        """Return the short arrays of a name as one table."""

    def array_history(self, prefix: str) -> list[RecordedArray]:
        """Return the arrays whose name starts with a prefix, superseded ones included."""

    def refresh(self) -> bool:
        """Look for what is new; True when anything changed."""

    def close(self) -> None:
        """Give all files back."""
