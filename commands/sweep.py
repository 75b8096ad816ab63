"""The body of ``loopscope sweep``: a grid of recorded runs, trained wherever an engine trains them."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from ..models.run_config import RunConfig
from ..probes.stopping import LoopUnstable
from ..rules.diagnosis import diagnose
from ..runfile.ending import STOPPED_LOST
from ..runfile.layout import RunFileError
from ..runfile.open import open_run
from ..runfile.text import plain
from ..sweeps.engine import Engine, Train
from ..sweeps.grid import load_sweep
from ..sweeps.on_ray import OnRay
from ..sweeps.processes import Processes
from ..sweeps.progress import Board
from ..sweeps.slurm import JobArray, submit
from ..sweeps.sweep import SweepProgress, failures, run_sweep
from .progress import terminal_bar
from .training import train_run

EngineName = Literal["processes", "ray", "slurm"]
COPY = "sweep.toml"
LOST_RULE = "LS071"  # the rule that says a run is lost


def train_cell(out: Path, run: RunConfig, *, device: str, measure: str, stop_lost: bool = False) -> None:
    """Train one run of a sweep, going on where its checkpoint ends."""
    lost = (LOST_RULE,) if stop_lost else ()
    try:
        train_run(out, run, device=device, resume=True, measure=measure, stop_on=lost)
    except LoopUnstable:
        return  # its file says so, and counts as done


def sweep(
    grid: Path,
    folder: Path,
    *,
    engine: Engine,
    device: str = "cpu",
    measure: str = "inspect",
    stop_lost: bool = False,
    only: int | None = None,
) -> Board:
    """Train a sweep, with progress on stderr, and return its board.

    Args:
        grid: The sweep's TOML file; a copy goes beside the runs.
        folder: Where the run files go.
        engine: Where cells are trained.
        device: Of every cell.
        measure: Preset of the probe.
        stop_lost: End a run early when its risk says that it is lost; such a run counts as done.
        only: Train this cell alone, as a task of a job array does.

    Raises:
        ValueError: The file is not a sweep, or the folder holds the runs of another one.
    """
    cells = load_sweep(grid)
    if only is not None and not 0 <= only < len(cells):
        raise ValueError(f"--cell {only}: {grid} has the cells 0 to {len(cells) - 1}")
    board = Board(folder, cells if only is None else cells[only : only + 1])
    folder.mkdir(parents=True, exist_ok=True)
    if only is None:
        (folder / COPY).write_bytes(grid.read_bytes())
    train: Train = partial(train_cell, device=device, measure=measure, stop_lost=stop_lost)
    console = Console(file=sys.stderr)
    with terminal_bar(1.0, "", console) as show:
        lines = 0

        def report(progress: SweepProgress) -> None:
            nonlocal lines
            show(progress.steps / max(progress.of_steps, 1), _said(progress))
            if not console.is_terminal and progress.cells > lines:
                lines = progress.cells
                console.print(f"  {_said(progress)}", highlight=False)

        run_sweep(board, engine, train, on_progress=report)
    return board


def write_job_array(
    grid: Path, folder: Path, *, jobs: int, gpus: int, device: str, measure: str, stop_lost: bool = False
) -> tuple[Path, str]:
    """Write the job script of a sweep beside its runs, submit it, and return the script and what Slurm said."""
    cells = load_sweep(grid)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder.resolve() / COPY
    copy.write_bytes(grid.read_bytes())
    words = ["--device", device, "--measure", measure, *(["--stop-lost"] if stop_lost else [])]
    script = folder.resolve() / "sweep.sbatch"
    array = JobArray(jobs=jobs, gpus=gpus)
    script.write_text(array.script(copy, folder.resolve(), len(cells), words), encoding="utf-8")
    return script, submit(script)


def chosen_engine(name: EngineName, *, jobs: int, address: str, gpus: float) -> Engine:
    """Return the engine of a name."""
    return OnRay(address=address, jobs=jobs, gpus=gpus) if name == "ray" else Processes(jobs=jobs)


def table(board: Board) -> Table:
    """Return the verdict of every cell, and why one failed."""
    shown = Table(title=f"{len(board.cells)} runs in {plain(str(board.folder))}", show_lines=False)
    for column in ("run", "steps", "verdict", "ρ(A̅)", "loss", "first breach"):
        shown.add_column(column, justify="left" if column in ("run", "verdict", "first breach") else "right")
    for cell in board.cells:
        try:
            with open_run(board.path(cell)) as run:
                said = diagnose(run)
                loss = float(run["loss"][-1]) if len(run) else float("nan")
                breach = said.first_breach
                where = f"{breach.rule} {breach.name}, step {breach.step}" if breach else "none"
                verdict = "lost, stopped" if said.ending.reason.startswith(STOPPED_LOST) else said.verdict
                shown.add_row(cell.name, str(len(run)), verdict, f"{said.radius:.3f}", f"{loss:.3f}", where)
        except RunFileError as error:
            shown.add_row(cell.name, "0", "unknown", "", "", plain(board.errors.get(cell.name, str(error))))
    return shown


def print_table(board: Board) -> None:
    """Print the verdicts to stdout, wide enough for their columns where the output is piped."""
    Console(width=None if sys.stdout.isatty() else 120).print(table(board))


def summary(board: Board) -> str:
    """Return one line a failed cell, or the empty text."""
    return "\n".join(f"{name}: {plain(error)}" for name, error in failures(board))


def _said(progress: SweepProgress) -> str:
    """Say how far a sweep is."""
    left = "" if progress.seconds_left != progress.seconds_left else f", about {_time(progress.seconds_left)} left"
    failed = f", {progress.failed} failed" if progress.failed else ""
    return f"{progress.cells} of {progress.of} runs done{failed}{left}"


def _time(seconds: float) -> str:
    """Say a span of time."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
