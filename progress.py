"""Progress of a training run on the terminal: a bar for people, a line now and then where the output is a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from .models.train import Progress

SECONDS_PER_LINE = 30.0


@contextmanager
def step_progress(steps: int) -> Iterator[Callable[[Progress], None]]:
    """A function that shows how far a run is; on stderr, so that output stays clean."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=steps, loss=float("nan"))
        yield lambda progress: bar.update(task, completed=progress.step, loss=progress.loss)


@contextmanager
def part_progress() -> Iterator[Callable[[str, float], None]]:
    """A function that shows which part of an analysis is under way; on stderr, and only on a terminal."""
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda part, fraction: bar.update(task, completed=fraction, description=part)


def _lines(console: Console) -> Callable[[Progress], None]:
    """A plain line every half minute."""
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        if progress.seconds - last >= SECONDS_PER_LINE:
            last = progress.seconds
            console.print(f"step {progress.step}/{progress.steps}  loss {progress.loss:.3f}", highlight=False)

    return report
