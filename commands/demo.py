"""The demo: the three injections at one hot learning rate, three seeds each, and what the probes say of them.

The runs train in processes of their own. Their progress, and every verdict, is read from their run files, as anybody
could read them from outside.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..models.run_config import RunConfig
from ..rules.diagnosis import Diagnosis, diagnose
from ..runfile.open import open_run
from ..sweeps.grid import Cell
from ..sweeps.processes import Processes
from ..sweeps.progress import Board
from ..sweeps.sweep import SweepProgress, failures, run_sweep
from .output import REGIME_STYLES
from .progress import terminal_bar

INJECTIONS = ("addition", "concatenation", "parcae")
SEEDS = (0, 1, 2)
LEARNING_RATE = 0.05
STEPS = 200


@dataclass(frozen=True, slots=True)
class DemoRun:
    """One run of the demo."""

    injection: str
    seed: int
    path: Path

    def cell(self) -> Cell:
        """Return the run as a cell of a sweep."""
        run = RunConfig(
            preset="demo",
            seed=self.seed,
            model={"injection": self.injection, "norm": "pre"},
            train={"lr": LEARNING_RATE, "steps": STEPS},
        )
        return Cell(self.path.stem, {"injection": self.injection, "seed": self.seed}, run)


def run_demo(folder: Path, *, jobs: int = 2) -> None:
    """Train the nine runs and prints the table of verdicts.

    Args:
        folder: Where the run files go; those of an earlier demo are replaced.
        jobs: Runs trained at the same time.
    """
    console = Console(width=None if sys.stdout.isatty() else 150)
    runs = [DemoRun(kind, seed, folder / f"{kind}-seed{seed}.h5") for seed in SEEDS for kind in INJECTIONS]
    for run in runs:
        run.path.unlink(missing_ok=True)
    console.print(
        f"training {len(runs)} looped models of {STEPS} steps at learning rate {LEARNING_RATE}, {jobs} at a time"
    )
    began = time.monotonic()
    _train_all(runs, jobs, console)
    console.print(f"trained in {time.monotonic() - began:.0f} s; run files in {folder}\n")
    console.print(_table([(run, _diagnose(run)) for run in sorted(runs, key=lambda run: run.injection)]))
    console.print(
        "The verdicts are read from the recorded runs; `loopscope check` applies the same rules to any run.\n"
    )


def _train_all(runs: list[DemoRun], jobs: int, console: Console) -> None:
    """Train every run, with progress: a bar on a terminal, a line per finished run elsewhere."""
    board = Board(runs[0].path.parent, [run.cell() for run in runs])
    with terminal_bar(STEPS * len(runs), "steps", console) as show:
        lines = 0

        def report(progress: SweepProgress) -> None:
            nonlocal lines
            said = f"{progress.cells} of {progress.of} runs done"
            show(progress.steps, f"training, {said}")
            if not console.is_terminal and progress.cells > lines:
                lines = progress.cells
                console.print(f"  {said}")

        run_sweep(board, Processes(jobs), _train_one, on_progress=report)
    if failed := failures(board):
        raise RuntimeError(f"{failed[0][0]} failed to train: {failed[0][1]}")


def _train_one(out: Path, run: RunConfig) -> None:
    """Train one run, in a process of its own."""
    from .training import train_run

    logging.getLogger("loopscope").setLevel(logging.ERROR)  # alerts are what the table at the end is about
    train_run(out, run, device="cpu", overwrite=True, measure="inspect")


def _diagnose(run: DemoRun) -> tuple[Diagnosis, float]:
    """Return a run's diagnosis and the state norm after the last loop of the probe batch at its end."""
    with open_run(run.path) as recorded:
        return diagnose(recorded), float(recorded.probe("state_norm")[-1, -1])


def _table(rows: list[tuple[DemoRun, tuple[Diagnosis, float]]]) -> Table:
    """Return the table of verdicts."""
    table = Table(title=f"Looped models after {STEPS} steps at learning rate {LEARNING_RATE}", show_lines=False)
    for name, options in {
        "injection": {},
        "seed": {"justify": "right"},
        "verdict": {},
        "ρ(A̅)": {"justify": "right"},
        "‖h‖, 16 loops": {"justify": "right"},
        "first breach": {},
        "reason": {"ratio": 1},
    }.items():
        table.add_column(name, **options)  # type: ignore[arg-type]
    for run, (diagnosis, norm) in rows:
        breach = diagnosis.first_breach
        style = REGIME_STYLES[diagnosis.verdict]
        table.add_row(
            run.injection,
            str(run.seed),
            f"[{style}]{diagnosis.verdict}[/]",
            f"{diagnosis.radius:.3f}",
            f"{norm:.3g}",
            f"{breach.rule} {breach.name}, step {breach.step}" if breach else "none",
            diagnosis.summary,
            end_section=run.seed == SEEDS[-1],
        )
    return table
