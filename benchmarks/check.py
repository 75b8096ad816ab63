"""What a verdict costs: `check` of one long run and of many short ones, with no verdict kept from before.

Times are of the processor, user and system, of a process of its own from its start to its end, so that it does not
matter what else the machine does. Importing Python's and NumPy's modules is in them, and is shown beside them.

    python benchmarks/check.py --steps 1000000 --runs 300
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from loopscope.runfile.writer import RunWriter

SHORT = 1000  # steps of each of many runs


def write_run(path: Path, steps: int) -> None:
    """Record a pretended training of about eight loops a step, with a spike, and a fixed batch every 500 steps."""
    rng = np.random.default_rng(0)
    depths = np.clip(rng.poisson(8, steps), 1, 24)
    loss = 2.4 + 3 * np.exp(-np.arange(steps) / (0.1 * steps)) + rng.normal(0, 0.03, steps)
    loss[steps // 3] = 9.0
    t = np.arange(25.0)
    loops = np.stack([10 + t, 5 * 0.8**t, np.full(25, 0.9), np.full(25, 256.0)], axis=1).astype(np.float32)
    writer = RunWriter.create(path, info={"a_bar_learned": True}, eigenvalues=16)
    for step, depth in enumerate(depths.tolist()):
        row = {"step": step, "time": 1.7e9 + step, "loss": loss[step], "grad_norm": 0.8, "lr": 0.01, "nonfinite": 0.0}
        row |= {"depth": depth, "depth_min": depth, "depth_max": depth, "a_bar_radius": 0.8, "a_bar_norm": 1.1}
        writer.append_step(row, _ended(loops[: depth + 1]))
        if step % 500 == 0:
            writer.append_probe(step, _ended(loops[:17]))
            writer.append_spectrum(step, np.full(16, 0.8 + 0.1j))
    writer.flush()
    writer.seal()
    writer.close()


def _ended(loops: np.ndarray) -> np.ndarray:
    """Rows of loops as a tap gives them: the last state takes no step, the first has no step before it."""
    rows = loops.copy()
    rows[-1, 1] = rows[0, 2] = rows[-1, 2] = np.nan
    return rows


def cpu_seconds(code: str, *paths: Path) -> tuple[float, float]:
    """User and system time of a Python process that runs some code on paths, with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"XDG_CACHE_HOME": cache, "OMP_NUM_THREADS": "1"}
        before = os.times()
        subprocess.run([sys.executable, "-c", code, *map(str, paths)], env=environment, stdout=subprocess.DEVNULL)
        after = os.times()
    for path in paths:  # the next one finds no verdict that was kept
        path.with_name(f".{path.name}.verdict.json").unlink(missing_ok=True)
    return after.children_user - before.children_user, after.children_system - before.children_system


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        long, first = Path(folder) / "long.h5", Path(folder) / "run-0.h5"
        write_run(first, SHORT)
        many = [first, *(first.with_name(f"run-{i}.h5") for i in range(1, options.runs))]
        for path in many[1:]:
            shutil.copyfile(first, path)
        command = "from loopscope.cli import main; main()"
        cases: dict[str, tuple[str, list[Path]]] = {
            "loopscope --help": (command, [Path("--help")]),
            "imports alone": ("import h5py, numpy, loopscope.cli, loopscope.gate.check", []),
        }
        if options.runs:
            cases[f"check of {options.runs} runs of {SHORT} steps"] = (command, [Path("check"), *many])
        if options.steps:
            write_run(long, options.steps)
            cases[f"check of a run of {options.steps} steps"] = (command, [Path("check"), long])
        for name, (code, paths) in cases.items():
            times = [cpu_seconds(code, *paths) for _ in range(options.repeats)]
            user, system = min(times, key=sum)
            print(f"{name}: {user:.2f} s user, {system:.2f} s system, the least of {options.repeats}", flush=True)


if __name__ == "__main__":
    main()
