"""A last loop that jumps is told of where its step says something, and not where the loop has come to rest."""

from __future__ import annotations

from pathlib import Path

import loopscope
import numpy as np
import pytest
from loopscope.rules.live_rules import LiveRules
from loopscope.rules.regimes import recent_rows
from loopscope.rules.rule_files import load_rules
from loopscope.rules.series import RunSeries
from loopscope.runfile.writer import RunWriter

FALLING = [1.0, 0.3, 0.1, 0.03]


@pytest.mark.parametrize(
    ("last", "fires"),
    [
        ([0.05], True),  # 1.7 times the step before it
        ([0.03 * 1.19], False),
        ([0.01, 3e-3, 1e-3, 3e-4, 2e-4, 2.9e-4], False),  # a solver at its tolerance
        ([0.01, 3e-3, 1e-3, 3e-4, 3.9e-4], True),  # more than a thousandth of the second step
        ([0.0, 0.0], False),  # at rest to the last bit
    ],
)
def test_the_size_of_the_last_step_decides(tmp_path: Path, last: list[float], fires: bool) -> None:
    steps = np.array([*FALLING, *last, np.nan])
    loops = np.stack([np.full(len(steps), 5.0), steps, np.ones(len(steps)), np.full(len(steps), 64.0)], axis=1)
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        for step in range(30):
            writer.append_step(
                {"step": step, "loss": 2 - 0.01 * step, "depth": len(steps) - 1}, loops.astype(np.float32)
            )
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert any(each.rule == "LS033" for each in loopscope.diagnose(run).findings) == fires


def _loops(steps: list[float]) -> np.ndarray:
    """Return the loops of a step from the sizes of its updates."""
    sizes = np.array([*steps, np.nan])
    count = len(sizes)
    return np.stack([np.full(count, 5.0), sizes, np.ones(count), np.full(count, 64.0)], axis=1).astype(np.float32)


def test_what_a_deeper_step_had_is_not_taken_for_that_of_a_shallow_one(tmp_path: Path) -> None:
    """A loop that goes from five passes to one has no step before its last: its first one is no jump."""
    rules = [rule for rule in load_rules() if rule.id == "LS033"]
    live = LiveRules(rules, {}, [])
    alerts = []
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        for step in range(80):
            loops = _loops([1.0, 0.5, 0.3, 0.2, 0.1] if step < 40 else [1.0])
            row = {"step": float(step), "loss": 2 - 0.01 * step, "depth": len(loops) - 1.0}
            writer.append_step(row, loops)
            alerts += live.add(step, row, loops=loops)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        said = loopscope.diagnose(run)
        series = RunSeries(run, ["residual_norm[-2]"]).rows(slice(0, 80))["residual_norm[-2]"]
    assert not alerts + live.judge(ended=True) and not [each for each in said.findings if each.rule == "LS033"]
    assert np.allclose(series[:40], 0.2) and np.isnan(series[40:]).all()
    assert not [each.message for each in said.findings if "residual_norm" in each.message]


def test_between_recorded_loops_a_number_keeps_its_value(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        for step in range(6):
            row = {"step": float(step), "loss": 2.0}
            if step % 2:
                writer.append_step(row)
            else:
                writer.append_step(row | {"depth": 3.0}, _loops([1.0, 0.5, 0.1 * (step + 1)]))
    with loopscope.open_run(tmp_path / "a.h5") as run:
        series = RunSeries(run, ["residual_norm[-1]"]).rows(slice(0, 6))["residual_norm[-1]"]
    assert np.allclose(series, [0.1, 0.1, 0.3, 0.3, 0.5, 0.5])


@pytest.mark.parametrize("depths", [[5, 1], [1, 5], [6, 3]])
def test_the_end_of_a_run_is_told_from_the_steps_since_its_depth_changed(tmp_path: Path, depths: list[int]) -> None:
    """Before the change the loop ran to other depths: its steps are no part of how the run ends."""
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        for step in range(80):
            depth = depths[step >= 55]
            row = {"step": float(step), "loss": 2 - 0.01 * step, "depth": float(depth), "depth_max": float(depth)}
            writer.append_step(row, _loops([0.5**t for t in range(depth)]))
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert recent_rows(run) == slice(55, 80)
        sentence = loopscope.diagnose(run).summary
    assert "in the mean" not in sentence and "1 loops" not in sentence
    last = depths[1]
    assert ("1 loop is too few" if last == 1 else f"the last of {last} " if last > 3 else f"{last} loops") in sentence
