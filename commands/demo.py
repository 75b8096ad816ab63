"""The demo: the three injections at one hot learning rate, three seeds each, and what the probes say of them.

The runs train in processes of their own. Their progress, and every verdict, is read from their run files, as anybody
could read them from outside.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..rules.diagnosis import Diagnosis, diagnose
from ..runfile.open import open_run
from ..runfile.reader import RunFileError
from .progress import terminal_bar

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
    """Train every run, with progress; a failed run stops the demo with its error."""
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
            for process in active_children():
                process.terminate()
            raise


def _train_one(run: DemoRun) -> None:
    """Train one run, in a process of its own: one thread each, so that two runs use two cores."""
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
def _reporter(runs: list[DemoRun], console: Console) -> Iterator[Callable[[list[Future[None]]], None]]:
    """Show how far the runs are, from their files: a bar on a terminal, a line per finished run elsewhere."""
    lines = 0
    with terminal_bar(STEPS * len(runs), "steps", console) as show:

        def report(futures: list[Future[None]]) -> None:
            nonlocal lines
            finished = [future.done() for future in futures]
            done = sum(finished)
            if console.is_terminal:
                rows = sum(STEPS if end else _rows(run.path) for end, run in zip(finished, runs, strict=True))
                show(rows, f"training, {done} of {len(runs)} runs done")
            elif done > lines:
                console.print(f"  {done} of {len(runs)} runs done")
            lines = done

        yield report


def _rows(path: Path) -> int:
    """Return how many steps a run has recorded so far."""
    try:
        with open_run(path) as run:
            return len(run)
    except RunFileError:  # not there yet
        return 0


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
