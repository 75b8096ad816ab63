"""Cells in processes on this machine, each with one thread.

A process that dies takes its cell's attempt with it and nothing else: the cell goes on from its checkpoint in another
process, three attempts in all.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from ..models.run_config import RunConfig
from .engine import Train
from .grid import Cell

ATTEMPTS: Final = 3
SECONDS: Final = 2.0  # between looks at runs that go on; the end of one is seen at once


@dataclass(frozen=True, slots=True)
class Processes:
    """Engine of this machine.

    Args:
        jobs: Cells trained at the same time; 0 means one per processor.
    """

    jobs: int = 0

    def run(self, cells: Sequence[Cell], paths: Sequence[Path], train: Train) -> Iterator[tuple[Cell | None, str]]:
        """Train every cell; see `Engine.run`."""
        left = deque(zip(cells, paths, strict=True))
        attempts: Counter[str] = Counter()
        with ExitStack() as open_slots:
            slots = [_Slot(open_slots) for _ in range(min(self.jobs or os.cpu_count() or 1, len(left)))]
            while left or any(slot.future for slot in slots):
                for slot in slots:
                    if left and slot.future is None:
                        slot.begin(*left.popleft(), train)
                busy = {slot.future: slot for slot in slots if slot.future is not None}
                ended, _ = wait(busy, timeout=SECONDS, return_when=FIRST_COMPLETED)
                for future in ended:
                    cell, path, error = busy[future].take()
                    attempts[cell.name] += 1
                    if error is not None:
                        yield cell, error
                    elif attempts[cell.name] < ATTEMPTS:
                        left.append((cell, path))
                    else:
                        yield cell, f"its process died {ATTEMPTS} times"
                if not ended:
                    yield None, ""


class _Slot:
    """One process that trains one cell after another; a pool of its own, so that a death is that of its cell."""

    def __init__(self, open_slots: ExitStack) -> None:
        self._open_slots = open_slots
        self._pool: ProcessPoolExecutor | None = None
        self._cell: tuple[Cell, Path] | None = None
        self.future: Future[str] | None = None

    def begin(self, cell: Cell, path: Path, train: Train) -> None:
        """Start a cell."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=one_thread)
            # After Ctrl-C the cell that is being trained saves its checkpoint first.
            self._open_slots.callback(self._pool.shutdown, wait=True, cancel_futures=True)
        self._cell, self.future = (cell, path), self._pool.submit(train_one, train, path, cell.run)

    def take(self) -> tuple[Cell, Path, str | None]:
        """Return the cell that has ended, its file, and its error; None when its process died."""
        assert self.future is not None and self._cell is not None
        future, (cell, path) = self.future, self._cell
        self.future = None
        try:
            return cell, path, future.result()
        except BrokenProcessPool:
            self._pool = None
            return cell, path, None


def one_thread() -> None:
    """Give a process one thread, so that as many cells as processors run side by side."""
    import torch

    torch.set_num_threads(1)


def train_one(train: Train, path: Path, run: RunConfig) -> str:
    """Train one cell and return what went wrong, in one line."""
    try:
        train(path, run)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""
