"""A last loop that jumps is told of where its step says something, and not where the loop has come to rest."""

from __future__ import annotations

from pathlib import Path

import loopscope
import numpy as np
import pytest
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
