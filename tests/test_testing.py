"""The plugin for pytest: loaded without torch, a fixture that records, an assertion that fails as check does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TEST = """
import torch
from loopscope.models import build
from loopscope.testing import assert_stable
import pytest


def train(probe, model, steps, growth):
    for step in range(steps):
        with torch.no_grad():
            model.injection.adapter.weight[:, :32] *= growth
        logits = model(torch.zeros(2, 8, dtype=torch.int64))
        probe.step(loss=3.0 - step / 100 + (step % 3) / 50, grad_norm=1.0, lr=0.01)


@pytest.mark.parametrize("growth", [1.0, 1.03])
def test_loop(loop_probe, growth):
    torch.manual_seed(0)
    model = build("demo", injection="concatenation")
    with loop_probe(model) as probe:
        train(probe, model, 60, growth)
    assert assert_stable(probe.path).radius < 1
"""


def test_a_test_of_a_users_project_passes_and_fails_with_its_loop(tmp_path: Path) -> None:
    (tmp_path / "test_loop.py").write_text(TEST)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "loopscope.testing",
        "--junitxml",
        "r.xml",
        "-o",
        "junit_family=xunit1",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "loopscope check would exit with 1" in done.stdout and "LS020" in done.stdout
    report = (tmp_path / "r.xml").read_text()
    assert 'name="loopscope.verdict"' in report and 'name="loopscope.a_bar_radius"' in report


def test_the_plugin_loads_neither_torch_nor_numpy() -> None:
    code = "import loopscope.testing, sys; print([name for name in ('torch', 'numpy', 'h5py') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_that_is_not_there_is_no_pass(tmp_path: Path) -> None:
    from loopscope.testing import assert_stable

    with pytest.raises(AssertionError, match="would exit with 4"):
        assert_stable(tmp_path / "none.h5")
