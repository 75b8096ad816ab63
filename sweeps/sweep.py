"""Trains a sweep: what is done stays done, what was begun goes on, what fails is reported and the others go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from .engine import Engine, Train
from .grid import Cell
from .progress import Board


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """How far a sweep is.

    Attributes:
        cells: Cells that have ended, failed ones among them.
        of: Cells in all.
        failed: Cells that failed.
        steps: Training steps recorded, of all cells.
        of_steps: Training steps in all.
        seconds_left: Estimate from the steps done since the sweep was started; NaN before there are any.
    """

    cells: int
    of: int
    failed: int
    steps: int
    of_steps: int
    seconds_left: float


def run_sweep(
    board: Board,
    engine: Engine,
    train: Train,
    *,
    on_progress: Callable[[SweepProgress], None] = lambda progress: None,
) -> None:
    """Train what is left of a sweep.

    A cell whose run file is finished and long enough is done. Any other goes on from its checkpoint, or starts.

    Args:
        board: The sweep; its folder is made where it is missing.
        engine: Where cells are trained.
        train: Trains one of them.
        on_progress: Told how far the sweep is, every two seconds or so.

    Raises:
        ValueError: A run file in the folder is of another sweep; nothing has been trained then.
    """
    board.folder.mkdir(parents=True, exist_ok=True)
    for cell in board.cells:
        if differs := board.mismatch(cell):
            raise ValueError(f"{board.path(cell)}: {differs}; give the sweep another folder or remove the file")
    meter = _Meter(board, on_progress)
    left = [cell for cell in board.cells if not meter.settle(cell)]
    board.write()
    meter.report()
    for ended, error in engine.run(left, [board.path(cell) for cell in left], train):
        if ended is not None:
            if error:
                board.errors[ended.name] = error
            meter.ended(ended)
            board.write()
        meter.report()
    board.write()


class _Meter:
    """Counts what is done, and estimates the time left from the steps of this session."""

    def __init__(self, board: Board, tell: Callable[[SweepProgress], None]) -> None:
        self._board, self._tell = board, tell
        self._began = time.monotonic()
        self._want = {cell.name: cell.run.train_config().steps for cell in board.cells}
        self._steps: dict[str, int] = {}
        self._over: set[str] = set()
        self._first = -1

    def settle(self, cell: Cell) -> bool:
        """Return whether a cell is done already, and count its steps."""
        done = self._board.is_done(cell)
        self._steps[cell.name] = self._want[cell.name] if done else self._board.steps_done(cell)
        if done:
            self._over.add(cell.name)
        return done

    def ended(self, cell: Cell) -> None:
        """Count a cell that has ended."""
        self._over.add(cell.name)
        self._steps[cell.name] = self._want[cell.name]

    def report(self) -> None:
        """Look at the run files that are being written, and tell."""
        for cell in self._board.cells:
            if cell.name not in self._over and self._board.path(cell).exists():
                self._steps[cell.name] = self._board.steps_done(cell)
        done, wanted = sum(self._steps.values()), sum(self._want.values())
        self._first = done if self._first < 0 else self._first
        rate = (done - self._first) / max(time.monotonic() - self._began, 1e-9)
        left = (wanted - done) / rate if rate > 0 else float("nan")
        failed = sum(1 for name in self._board.errors if name in self._over)
        self._tell(SweepProgress(len(self._over), len(self._board.cells), failed, done, wanted, left))


def failures(board: Board) -> list[tuple[str, str]]:
    """Return the cells that failed and why, in their order."""
    return [(cell.name, board.errors[cell.name]) for cell in board.cells if cell.name in board.errors]
