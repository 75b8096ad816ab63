"""kill -9 during training: the file opens, the gate speaks, training resumes, and no committed row is lost."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
from loopscope import diagnose, open_run
from loopscope.runfile.reader import RunFileError

from .warm import Command, run

KILLS = 5  # per seed; four seeds make twenty


def committed(path: Path) -> dict[str, np.ndarray]:
    """Everything a reader sees that the writer has committed."""
    try:
        with open_run(path) as opened:
            return opened.history()
    except RunFileError:
        return {}


def start(path: Path) -> Command:
    words = ["train", "--steps", "100000", "--lr", "0.01", "--device", "cpu", "--checkpoint-every", "10"]
    return Command([*words, "--out", path, "--resume"], path.parent)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_training_loses_nothing_and_goes_on(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path = tmp_path / "run.h5"
    before: dict[str, np.ndarray] = {}
    for generation in range(KILLS):
        process = start(path)
        target = len(before.get("step", ())) + rng.randint(5, 60)
        seen: dict[str, np.ndarray] = {}
        deadline = time.monotonic() + 60
        while len(seen.get("step", ())) < target and time.monotonic() < deadline:
            assert process.poll() is None, process.err.read_text()
            seen = committed(path)
            time.sleep(0.05)  # a core for the training that is waited for
        time.sleep(rng.random() * 0.2)
        process.kill()
        assert len(seen["step"]) >= target, "training did not record in time"
        after = committed(path)
        for name, column in seen.items():
            np.testing.assert_array_equal(after[name][: len(column)], column, err_msg=name)
        with open_run(path) as killed:
            assert killed.state == "interrupted"
            assert killed["generation"][-1] == generation
            # One trajectory without gaps or repeats: a checkpoint waits for the rows of its steps.
            assert killed["step"].tolist() == list(range(len(killed)))
            assert diagnose(killed).verdict in ("stable", "marginal")
        before = after
    assert run("check", path).returncode == 5  # it was killed: not what was asked for
    assert run("check", path, "--min-steps", "20").returncode == 0
