"""The example project: the steps of its workflow run as written, and its gate passes and fails as it should."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "examples" / "ci"


def commands(change: str = "") -> list[str]:
    """The commands of the workflow after its installation, the training changed if asked for."""
    workflow = yaml.safe_load((PROJECT / ".github/workflows/loop.yml").read_text(encoding="utf-8"))
    steps: list[dict[str, Any]] = workflow["jobs"]["stability"]["steps"]
    lines = [step["run"] for step in steps if "run" in step and "pip install" not in step["run"]]
    assert len(lines) == 2 and lines[0].startswith("python train.py") and lines[1].startswith("loopscope check")
    return [lines[0].replace("--out", f"{change} --out"), lines[1]]


def environment(folder: Path) -> dict[str, str]:
    """What a job of GitHub Actions has, with the commands of this environment first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "GITHUB_OUTPUT": str(folder / "output"),
    }


@pytest.mark.parametrize(
    ("change", "code"), [("--injection parcae --lr 0.01", 0), ("--injection concatenation --lr 0.05", 1)]
)
def test_the_workflow_passes_parcae_and_fails_concatenation(change: str, code: int, tmp_path: Path) -> None:
    project = shutil.copytree(PROJECT, tmp_path / "project")
    train, check = commands(change)
    job = environment(tmp_path) | {"GITHUB_WORKSPACE": str(project)}
    where = {"cwd": project, "env": job, "shell": True, "capture_output": True, "text": True}
    assert subprocess.run(train, **where).returncode == 0  # type: ignore[call-overload]
    done = subprocess.run(check, **where)  # type: ignore[call-overload]
    assert done.returncode == code, done.stdout
    attach = (project / "train.py").read_text().split("loopscope.attach")[0].count("\n") + 1  # the loop is not its own
    assert (f"::error file=train.py,line={attach},title=loopscope LS020" in done.stdout) == bool(code)
    summary, output = (tmp_path / "summary.md").read_text(), (tmp_path / "output").read_text()
    assert f"loopscope: {'fail' if code else 'pass'}" in summary and "runs/ci.h5" in summary
    assert f"verdict={'fail' if code else 'pass'}" in output and "report=report.md" in output
    assert (project / "report.md").stat().st_size > 200 and (project / "verdict.json").stat().st_size > 200


def test_the_action_runs_its_own_script(tmp_path: Path) -> None:
    """The composite action's check, with a run that is not there: what cannot be read never passes."""
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    step = next(step for step in action["runs"]["steps"] if step.get("id") == "check")
    assert "${{" not in step["run"]  # inputs come by environment
    inputs = {"LOOPSCOPE_RUNS": "runs/*.h5", "LOOPSCOPE_RULES": "", "LOOPSCOPE_FAIL_ON": "error",
              "LOOPSCOPE_MIN_STEPS": "", "LOOPSCOPE_BASELINE": "", "LOOPSCOPE_REPORT": "r.md"}  # fmt: skip
    assert set(inputs) == set(step["env"])
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step["run"]],
        cwd=tmp_path, env=environment(tmp_path) | inputs, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 4 and "unreadable run" in done.stdout
    assert "verdict=error" in (tmp_path / "output").read_text()


def test_the_gitlab_template_asks_for_reports_that_it_publishes() -> None:
    job = yaml.safe_load((PROJECT / "gitlab-ci.yml").read_text(encoding="utf-8"))["loop"]
    check = next(line for line in job["script"] if line.startswith("loopscope check"))
    reports = job["artifacts"]["reports"]
    assert f"gitlab:{reports['codequality']}" in check and f"junit:{reports['junit']}" in check
