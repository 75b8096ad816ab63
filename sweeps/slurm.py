"""A sweep as a job array of Slurm: one task a cell. This engine writes the script; Slurm runs it.

Each task calls ``loopscope sweep`` again for one cell, on a node that sees the same folder. Submitting the script again
trains what is left: a task whose cell is done ends at once.

Not covered: what a cluster wants besides (account, partition, modules); give it with ``options``. Nothing here was run
on a real cluster.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class JobArray:
    """What the job script asks Slurm for.

    Args:
        jobs: Tasks that run at the same time; 0 leaves that to Slurm.
        gpus: GPUs of one task.
        options: Further ``#SBATCH`` options, as ``"--time=02:00:00"``.
    """

    jobs: int = 0
    gpus: int = 0
    options: tuple[str, ...] = ()

    def script(self, grid: Path, folder: Path, cells: int, words: Sequence[str] = ()) -> str:
        """Return the job script of a sweep.

        Args:
            grid: The sweep's TOML file.
            folder: Where the run files go; must be seen by all nodes.
            cells: How many cells there are.
            words: Further options of ``loopscope sweep``.

        >>> print(JobArray(jobs=4).script(Path("grid.toml"), Path("out"), 8).splitlines()[1])
        #SBATCH --array=0-7%4
        """
        limit = f"%{self.jobs}" if self.jobs else ""
        asked = [f"--array=0-{cells - 1}{limit}", "--job-name=loopscope", "--requeue"]
        asked += [f"--output={folder / 'slurm-%a.log'}"]
        asked += [f"--gpus-per-task={self.gpus}", "--ntasks=1"] if self.gpus else ["--ntasks=1"]
        for option in (*asked, *self.options):
            if not option.startswith("--") or "\n" in option:
                raise ValueError(f"Slurm option {option!r}: expected one line as --time=02:00:00")
        command = [sys.executable, "-m", "loopscope", "sweep", str(grid), "-o", str(folder), *words, "--cell"]
        lines = [f"#SBATCH {option}" for option in (*asked, *self.options)]
        return "\n".join(["#!/bin/bash", *lines, f'exec {shlex.join(command)} "$SLURM_ARRAY_TASK_ID"', ""])


def submit(script: Path) -> str:
    """Give a job script to Slurm and return what it said.

    Raises:
        OSError: There is no ``sbatch`` here, or it refused the script (the message holds its words).
    """
    program = shutil.which("sbatch")
    if program is None:
        raise OSError(f"{script} is written, but this machine has no sbatch: submit it on the cluster's login node")
    done = subprocess.run([program, str(script)], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"sbatch refused {script}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return " ".join(done.stdout.split())
