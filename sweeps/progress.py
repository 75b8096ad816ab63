"""How far a sweep is, read from its run files: whoever looks, the sweep itself or another process, sees the same.

``sweep.json`` beside the runs keeps what no run file says: which cells there are and why one failed. It is replaced
as a whole at every change, so that a kill leaves the last whole state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from ..runfile.ending import STOPPED_LOST, ending
from ..runfile.layout import RunFileError
from ..runfile.open import open_run
from .grid import Cell

State = Literal["waiting", "running", "done", "failed"]
INDEX: Final = "sweep.json"
VERSION: Final = 1


@dataclass(slots=True)
class Board:
    """The cells of one sweep and what is known of each.

    Attributes:
        folder: Where the run files are.
        cells: The cells.
        errors: Why cells failed, by name.
    """

    folder: Path
    cells: Sequence[Cell]
    errors: dict[str, str] = field(default_factory=dict)

    def path(self, cell: Cell) -> Path:
        """Return the run file of a cell."""
        return self.folder / f"{cell.name}.h5"

    def steps_done(self, cell: Cell) -> int:
        """Return how many steps of a cell are recorded, 0 where there is no file yet."""
        try:
            with open_run(self.path(cell)) as run:
                return int(run["step"][-1]) + 1 if len(run) else 0
        except (RunFileError, OSError):
            return 0

    def is_done(self, cell: Cell) -> bool:
        """Return whether a cell's run has come to the end that the sweep asks for, or was stopped as lost."""
        try:
            with open_run(self.path(cell)) as run:
                recorded = int(run["step"][-1]) + 1 if len(run) else 0
                if run.state == "interrupted":
                    return ending(run).reason.startswith(STOPPED_LOST)
                return run.state == "finished" and recorded >= cell.run.train_config().steps
        except (RunFileError, OSError):
            return False

    def mismatch(self, cell: Cell) -> str:
        """Say in which setting the file of a cell differs from the cell, an empty text when it does not.

        A sweep whose file was edited must not take the runs of the old one for its own.
        """
        try:
            with open_run(self.path(cell)) as run:
                recorded: Mapping[str, Any] = run.info.get("config") or {}
        except (RunFileError, OSError):
            return ""
        wanted = json.loads(json.dumps(cell.run.describe()))
        free = {"steps", "checkpoint_every"}
        for table, values in wanted.items():
            known = recorded.get(table)
            if isinstance(values, dict) and isinstance(known, Mapping):
                for name, value in values.items():
                    if name in known and name not in free and known[name] != value:
                        return f"{table}.{name} is {known[name]!r} in the file and {value!r} in the sweep"
            elif known is not None and known != values:
                return f"{table} is {known!r} in the file and {values!r} in the sweep"
        return ""

    def write(self) -> None:
        """Write the index: every cell with its values and its error."""
        rows = [
            {"name": cell.name, "values": dict(cell.values), "error": self.errors.get(cell.name, "")}
            for cell in self.cells
        ]
        text = json.dumps({"version": VERSION, "cells": rows}, indent=1)
        temporary = self.folder / f".{INDEX}.{os.getpid()}"
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(self.folder / INDEX)
