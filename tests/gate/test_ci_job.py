"""The job of ``examples/gate_in_ci.md`` as it is written there, and the small install that it is enough to have."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "examples" / "gate_in_ci.md").read_text(encoding="utf-8")
(JOB,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
(RULES,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
(SMALL,) = re.findall(r"^pip install --no-deps \. && pip install -c constraints.txt (.*)$", PAGE, re.M)


@pytest.fixture
def project(tmp_path):
    """A project with a training script and a rule file, and the two commands that the job uses."""
    shutil.copy(ROOT / "examples" / "watch_your_run.py", tmp_path / "train.py")
    (tmp_path / "loopscope.toml").write_text(RULES, encoding="utf-8")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, words in (("python", ""), ("loopscope", "-m loopscope")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (commands / name).chmod(0o755)
    return tmp_path


def steps():
    """The shell lines of the job, in order, without the installation."""
    lines = [line.split("#")[0].strip() for line in re.findall(r"run: (.*)$", JOB, re.M)]
    return [line for line in lines if not line.startswith("pip install")]


def run_job(project, *, more=""):
    """Runs the job as GitHub runs bash; the exit code of the first step that fails."""
    import os

    environment = {**os.environ, "PATH": f"{project / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    train, check = steps()
    for line in (train + more, check):
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", line],
            cwd=project,
            env=environment,
            capture_output=True,
            timeout=200,
            check=False,
        )
        if done.returncode:
            return line, done.returncode
    return "", 0


@pytest.mark.parametrize(("more", "code"), [("", 0), (" --lr 0.1", 1)])
def test_the_documented_job_runs_as_written(project, more, code):
    failed, returned = run_job(project, more=more)
    assert returned == code and ("check" in failed) == bool(code)
    verdict = json.loads((project / "verdict.json").read_text())
    assert verdict["exit_code"] == code
    for path in re.findall(r"^\s+(\S+\.(?:h5|json))$", JOB, re.M):
        assert (project / path).exists(), "a path that the job uploads"


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from loopscope.cli import main
main(sys.argv[1:])
"""


def test_the_small_install_is_enough_for_the_gate(write_run, tmp_path):
    small = set(SMALL.split())
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = {re.split(r"[\[><=;]", need)[0] for need in needed}
    assert small < names
    others = {name.replace("-", "_") for name in names - small}
    assert {"torch", "scipy", "plotly", "dash"} <= others
    path = write_run(loss=2 + 0.01 * np.sin(np.arange(60)), a_bar_radius=0.8)
    code = BLOCKED.replace("{names}", repr(others))
    for words, returned in (
        (["check", path], 0),
        (["check", path, "--format", "json"], 0),
        (["export", path, "-o", tmp_path / "a.csv"], 0),
        (["repair", path], 0),
        (["--help"], 0),
        (["train", "--out", tmp_path / "b.h5"], 2),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == returned, (words, done.stderr)
        assert len(done.stderr.splitlines()) <= 1
