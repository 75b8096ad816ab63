"""What trains the cells of a sweep. An engine gets the cells that are left and reports each as it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ..models.run_config import RunConfig
from .grid import Cell

Train = Callable[[Path, RunConfig], None]
"""Trains one run to its end, going on where its checkpoint ends; a function of a module, for other processes."""


class Engine(Protocol):
    """Trains cells somewhere."""

    def run(self, cells: Sequence[Cell], paths: Sequence[Path], train: Train) -> Iterator[tuple[Cell | None, str]]:
        """Train every cell.

        Args:
            cells: What is left of a sweep.
            paths: The run file of each.
            train: Trains one of them.

        Yields:
            A cell that has ended and its error (empty: none), or None now and then while nothing ends.
        """
