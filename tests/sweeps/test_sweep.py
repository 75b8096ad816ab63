"""A sweep trained for real, tiny: what is done stays done, a killed one goes on, a failed cell is reported."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from loopscope import open_run
from loopscope.models.run_config import RunConfig
from loopscope.runfile.ending import ending
from loopscope.sweeps.grid import Cell, load_sweep
from loopscope.sweeps.processes import Processes
from loopscope.sweeps.progress import Board
from loopscope.sweeps.slurm import JobArray, submit
from loopscope.sweeps.sweep import SweepProgress, run_sweep

GRID = """
preset = "demo"
[train]
steps = {steps}
checkpoint_every = 5
[grid]
injection = [{injections}]
lr = [0.01]
seed = [0, 1]
"""


def write_grid(folder: Path, steps: int = 12, injections: str = '"concatenation", "parcae"') -> Path:
    path = folder / "grid.toml"
    path.write_text(GRID.format(steps=steps, injections=injections))
    return path


def losses(folder: Path) -> dict[str, list[float]]:
    by_file = {}
    for path in sorted(folder.glob("*.h5")):
        with open_run(path) as run:
            assert run.state == "finished", path
            by_file[path.name] = run["loss"].tolist()
    return by_file


def command(grid: Path, out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "loopscope", "sweep", str(grid), "-o", str(out), "--jobs", "2", *words]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A sweep of four cells, trained by the command."""
    folder = tmp_path_factory.mktemp("sweep")
    grid = write_grid(folder)
    done = subprocess.run(command(grid, folder / "out"), capture_output=True, text=True, check=True)
    return grid, folder / "out", done.stdout


def test_every_cell_is_a_finished_run_and_is_in_the_table(trained: tuple[Path, Path, str]) -> None:
    grid, out, said = trained
    names = [cell.name for cell in load_sweep(grid)]
    assert sorted(losses(out)) == sorted(f"{name}.h5" for name in names)
    assert all(name in said for name in names)
    index = json.loads((out / "sweep.json").read_text())
    assert [cell["name"] for cell in index["cells"]] == names and not any(cell["error"] for cell in index["cells"])
    with open_run(out / f"{names[0]}.h5") as run:
        assert run.info["config"]["model"]["injection"] == "concatenation" and len(run) == 12


def test_a_sweep_that_is_done_trains_nothing_again(trained: tuple[Path, Path, str]) -> None:
    grid, out, _ = trained
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    subprocess.run(command(grid, out), capture_output=True, check=True)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.h5")} == before


def test_a_killed_sweep_goes_on_to_the_same_numbers(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    grid, out, _ = trained
    process = subprocess.Popen(command(grid, tmp_path / "out"), start_new_session=True, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while time.monotonic() < until and not any(
        (tmp_path / "out").glob("*.checkpoint/*") if (tmp_path / "out").exists() else ()
    ):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert sum(1 for _ in (tmp_path / "out").glob("*.h5")) >= 1
    subprocess.run(command(grid, tmp_path / "out"), capture_output=True, check=True)
    again, before = losses(tmp_path / "out"), losses(out)
    assert again.keys() == before.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(again[name], values)


def test_the_folder_of_another_sweep_is_refused(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, out, _ = trained
    other = write_grid(tmp_path)
    other.write_text(other.read_text().replace("checkpoint_every = 5", "batch_size = 3"))
    done = subprocess.run(command(other, out), capture_output=True, text=True)
    assert done.returncode == 2 and "train.batch_size is 8 in the file and 3 in the sweep" in done.stderr


def fails(out: Path, run: RunConfig) -> None:
    if run.seed == 1:
        raise RuntimeError("no such\nluck")


def dies_at_first(out: Path, run: RunConfig) -> None:
    out.parent.mkdir(exist_ok=True)
    marker = out.with_suffix(".tried")
    if run.seed == 1 and not marker.exists():
        marker.touch()
        os._exit(9)


def dies_always(out: Path, run: RunConfig) -> None:
    if run.seed == 1:
        os._exit(9)


@pytest.mark.parametrize(
    ("train", "error"), [(fails, "RuntimeError: no such luck"), (dies_at_first, ""), (dies_always, "process died")]
)
def test_a_cell_that_fails_is_told_and_the_others_go_on(train: object, error: str, tmp_path: Path) -> None:
    board = Board(tmp_path / "out", load_sweep(write_grid(tmp_path)))
    told: list[SweepProgress] = []
    run_sweep(board, Processes(jobs=1), train, on_progress=told.append)  # type: ignore[arg-type]
    assert told[-1].cells == told[-1].of == 4
    bad = {cell.name for cell in board.cells if cell.run.seed == 1}
    assert set(board.errors) == (bad if error else set())
    assert all(error in said and "\n" not in said for said in board.errors.values())


def test_the_time_left_is_estimated_from_steps_of_this_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("loopscope.sweeps.sweep.time", SimpleNamespace(monotonic=lambda: clock[0]))

    class Ending:
        def run(self, cells: list[Cell], paths: list[Path], train: object) -> Iterator[tuple[Cell | None, str]]:
            for cell in cells:
                clock[0] += 0.05
                yield cell, ""

    told: list[SweepProgress] = []
    board = Board(tmp_path, load_sweep(write_grid(tmp_path)))
    run_sweep(board, Ending(), fails, on_progress=told.append)  # type: ignore[arg-type]
    assert np.isnan(told[0].seconds_left) and told[-1].seconds_left == 0
    assert told[1].seconds_left == pytest.approx(0.15) and told[1].steps == 12


def test_a_job_array_holds_the_command_and_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out of order"
    script = JobArray(jobs=3, gpus=1, options=("--time=01:00:00",)).script(
        tmp_path / "g.toml", folder, 4, ["--measure", "watch"]
    )
    assert "#SBATCH --array=0-3%3\n" in script and "#SBATCH --time=01:00:00\n" in script
    path = tmp_path / "sweep.sbatch"
    path.write_text(script)
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="no sbatch"):
        submit(path)
    fake = tmp_path / "sbatch"
    fake.write_text('#!/bin/sh\necho "Submitted batch job 17 $1"\n')
    fake.chmod(0o755)
    assert submit(path) == f"Submitted batch job 17 {path}"
    with pytest.raises(ValueError, match="expected one line"):
        JobArray(options=("--wrap=x\nrm",)).script(path, folder, 4)


def test_a_task_of_a_job_array_trains_its_cell_alone(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, steps=3)
    subprocess.run(command(grid, tmp_path / "out", "--engine", "slurm", "--cell", "2"), capture_output=True, check=True)
    assert list(losses(tmp_path / "out")) == [f"{load_sweep(grid)[2].name}.h5"]
    done = subprocess.run(command(grid, tmp_path / "out", "--cell", "4"), capture_output=True, text=True)
    assert done.returncode == 2 and "cells 0 to 3" in done.stderr


def test_ray_gives_the_numbers_of_processes(trained: tuple[Path, Path, str], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the optional package ray is not installed")
    grid = write_grid(
        tmp_path, injections='"parcae"'
    )  # one run for each of two workers: it is starting them that costs
    subprocess.run(command(grid, tmp_path / "out", "--engine", "ray"), capture_output=True, check=True)
    by_ray, by_processes = losses(tmp_path / "out"), losses(trained[1])
    assert list(by_ray) == [f"parcae-lr0.01-seed{seed}.h5" for seed in (0, 1)]
    assert by_ray == {name: by_processes[name] for name in by_ray}


HOT = """
preset = "demo"
[train]
steps = 400
checkpoint_every = 0
[grid]
injection = ["concatenation"]
lr = [0.1]
seed = [2]
"""


def test_a_run_that_is_lost_ends_early_says_so_and_counts_as_done(tmp_path: Path) -> None:
    grid, out = tmp_path / "hot.toml", tmp_path / "out"
    grid.write_text(HOT)
    words = ["--measure", "watch", "--stop-lost"]
    said = subprocess.run(command(grid, out, *words), capture_output=True, text=True, check=True).stdout
    assert "lost, stopped" in said
    (cell,) = load_sweep(grid)
    with open_run(out / f"{cell.name}.h5") as run:
        steps, end = len(run), ending(run)
    assert end.state == "interrupted" and steps < 300
    assert end.reason.startswith("interrupted by rule LS071")
    before = (out / f"{cell.name}.h5").stat().st_mtime_ns
    subprocess.run(command(grid, out, *words), capture_output=True, text=True, check=True)
    assert (out / f"{cell.name}.h5").stat().st_mtime_ns == before
