"""The demo: the three injections at one hot learning rate, three seeds each, and what the probes say of them.

The runs train in processes of their own. Their progress, and every verdict, is read from their run files, as anybody
could read them from outside.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..rules.diagnosis import Diagnosis, diagnose
from ..runfile.open import open_run
from ..runfile.reader import RunFileError

INJECTIONS = ("addition", "concatenation", "parcae")
SEEDS = (0, 1, 2)
LEARNING_RATE = 0.05
STEPS = 200

STYLES = {"stable": "dodger_blue1", "marginal": "orange3", "unstable": "red", "unknown": "dim"}  # as the dashboard


@dataclass(frozen=True, slots=True)
class DemoRun:
    """One run of the demo."""

    injection: str
    seed: int
    path: Path


def run_demo(folder: Path, *, jobs: int = 2) -> None:
    """Trains the nine runs and prints the table of verdicts.

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
    """Trains every run, with progress; a failed run stops the demo with its error."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool, _reporter(runs, console) as report:
        futures = [pool.submit(_train_one, run) for run in runs]
        try:
            while not all(future.done() for future in futures):
                report(futures)
                time.sleep(0.3)
            for future in futures:
                future.result()
            report(futures)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise


def _train_one(run: DemoRun) -> None:
    """Body of a worker process: one thread each, so that two runs use two cores."""
    import torch

    from ..models.run_config import RunConfig
    from .training import train_run

    torch.set_num_threads(1)
    logging.getLogger("loopscope").setLevel(logging.ERROR)  # alerts are what the table at the end is about
    config = RunConfig(
        preset="demo",
        seed=run.seed,
        model={"injection": run.injection, "norm": "pre"},
        train={"lr": LEARNING_RATE, "steps": STEPS},
    )
    train_run(run.path, config, device="cpu", overwrite=True, measure="inspect")


@contextmanager
def _reporter(runs: list[DemoRun], console: Console) -> Iterator[_Reporter]:
    """A progress bar on a terminal, a line per finished run elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield _Reporter(runs, console, bar)


class _Reporter:
    """Shows how far the runs are, from their files."""

    def __init__(self, runs: list[DemoRun], console: Console, bar: Progress) -> None:
        self.runs, self.console, self.bar = runs, console, bar
        self.task = bar.add_task("training", total=STEPS * len(runs))
        self.finished = 0

    def __call__(self, futures: list[Future[None]]) -> None:
        """Shows the state of now."""
        finished = sum(future.done() for future in futures)
        if self.console.is_terminal:
            rows = sum(
                STEPS if future.done() else _rows(run.path) for run, future in zip(self.runs, futures, strict=True)
            )
            self.bar.update(
                self.task, completed=rows, description=f"training, {finished} of {len(self.runs)} runs done"
            )
        elif finished > self.finished:
            self.console.print(f"  {finished} of {len(self.runs)} runs done")
        self.finished = finished


def _rows(path: Path) -> int:
    """Steps a run has recorded so far."""
    try:
        with open_run(path) as run:
            return len(run)
    except RunFileError:  # not there yet
        return 0


def _diagnose(run: DemoRun) -> tuple[Diagnosis, float]:
    """A run's diagnosis and the state norm after the last loop of the probe batch at its end."""
    with open_run(run.path) as recorded:
        return diagnose(recorded), float(recorded.probe("state_norm")[-1, -1])


def _table(rows: list[tuple[DemoRun, tuple[Diagnosis, float]]]) -> Table:
    """The verdicts."""
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
    for run, (found, norm) in rows:
        breach = found.first_breach
        style = STYLES[found.verdict]
        table.add_row(
            run.injection,
            str(run.seed),
            f"[{style}]{found.verdict}[/]",
            f"{found.radius:.3f}",
            f"{norm:.3g}",
            f"{breach.rule} {breach.name}, step {breach.step}" if breach else "none",
            found.summary,
            end_section=run.seed == SEEDS[-1],
        )
    return table
