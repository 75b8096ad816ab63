"""Progress of long work on the terminal: a bar for people, a line now and then where the output is a file.

Everything goes to stderr, so that output stays clean. Evaluations are printed either way: they are results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from ..models.train import Progress

SECONDS_PER_LINE = 30.0


@contextmanager
def terminal_bar(total: float, unit: str, console: Console | None = None) -> Iterator[Callable[[float, str], None]]:
    """Show how far long work is, on a terminal only.

    Args:
        total: What the work comes to.
        unit: What is counted, e.g. ``"steps"``; empty to show per cent.
        console: Where to; stderr by default.

    Yields:
        A function of what is done and of a few words about it.
    """
    console = console or Console(file=sys.stderr)
    count = (MofNCompleteColumn(), TextColumn(unit)) if unit else (TextColumn("{task.percentage:3.0f} %"),)
    columns = (TextColumn("{task.description}"), BarColumn(), *count, TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, words: bar.update(task, completed=done, description=words)


@contextmanager
def step_progress(steps: int) -> Iterator[Callable[[Progress], None]]:
    """Show how far a training run is: a bar on a terminal, a line now and then elsewhere."""
    console = Console(file=sys.stderr)
    with terminal_bar(steps, "steps", console) as show:
        lines = _Lines(console)

        def report(progress: Progress) -> None:
            lines(progress)
            show(progress.step, _said(progress))

        yield report


@contextmanager
def part_progress() -> Iterator[Callable[[str, float], None]]:
    """Show which part of an analysis is under way; only on a terminal."""
    with terminal_bar(1.0, "") as show:
        yield lambda part, fraction: show(fraction, part)


class _Lines:
    """Print a plain line for every evaluation, and every half minute where there is no bar."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last = 0.0

    def __call__(self, progress: Progress) -> None:
        """Print what is due."""
        where = f"step {progress.step}/{progress.steps}"
        if progress.evaluation:
            losses = "  ".join(f"T={depth} {loss:.4f}" for depth, loss in progress.evaluation.items())
            self.console.print(f"{where}  held-out loss  {losses}", highlight=False)
        if not self.console.is_terminal and progress.seconds - self.last >= SECONDS_PER_LINE:
            self.last = progress.seconds
            self.console.print(f"{where}  {_said(progress)}", highlight=False)


def _said(progress: Progress) -> str:
    """Return loss and speed in a few words; utilisation where the device's peak is known."""
    said = f"loss {progress.loss:.3f}, {progress.tokens_per_second:.3g} tokens/s"
    return said if progress.utilisation != progress.utilisation else f"{said}, {progress.utilisation:.0%} of peak"
