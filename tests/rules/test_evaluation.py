"""A model that is evaluated deeper than it was ever trained gets a note, with what is known of those depths."""

from __future__ import annotations

from pathlib import Path

import loopscope
import numpy as np
import pytest
from loopscope.gate.check import check_runs
from loopscope.rules.evaluation import evaluations
from loopscope.rules.findings import Finding
from loopscope.runfile.layout import STEP_COLUMNS, Event
from loopscope.runfile.writer import RunWriter

STEPS = 40


def loops_of(depth: int, factor: float) -> np.ndarray:
    """Loops whose steps are each the same factor of the one before."""
    steps = np.append(factor ** np.arange(depth), np.nan)
    state = 10 + np.append(0, np.cumsum(steps[:-1]))
    return np.stack([state, steps, np.ones(depth + 1), np.full(depth + 1, 64.0)], axis=1).astype(np.float32)


def write(
    path: Path,
    depths: list[float],
    evaluated: dict[int, float],
    *,
    passes: int = 0,
    factor: float = 0.5,
    after: float = 0.0,
) -> Path:
    """Write a run.

    Args:
        path: Where.
        depths: Loops of each training step.
        evaluated: The most loops of the evaluations, by row.
        passes: Loops of a pass of the fixed batch, after every tenth step.
        factor: Of one of its steps to the one before.
        after: The most loops of an evaluation after the last row.
    """
    with RunWriter.create(path, info={}) as writer:
        for step, depth in enumerate(depths):
            row = {"step": step, "loss": 2 - 0.01 * step, "depth": depth, "depth_max": depth, "lr": 1e-3}
            if step in evaluated:
                deepest = evaluated[step]
                row |= {"eval_depth": deepest - 0.5, "eval_depth_max": deepest, "eval_forwards": 2.0}
            writer.append_step(row, loops_of(int(depth), factor))
            if passes and step % 10 == 9:
                writer.append_probe(step, loops_of(passes, factor))
        if after:
            writer.append_event(Event(len(depths) - 1, 0.0, "evaluated", "note", after, message="evaluated"))
    return path


def told(path: Path) -> list[Finding]:
    with loopscope.open_run(path) as run:
        return [each for each in loopscope.diagnose(run).findings if each.rule == "LS007"]


@pytest.mark.parametrize(
    ("passes", "factor", "said", "remedy"),
    [
        (
            0,
            0.5,
            "no pass was recorded that runs deeper than training, so what the loop does there is not known",
            "eval",
        ),
        (4, 0.5, "no pass was recorded that runs deeper than training", "evaluate at a depth that training runs"),
        (
            12,
            0.5,
            "12 loops deep, the state settles geometrically; beyond 12 loops nothing is recorded",
            "nothing to do",
        ),
        (20, 0.7, "on the fixed batch, 20 loops deep, the state settles geometrically", "nothing to do"),
        (20, 1.3, "20 loops deep, the state explodes", "evaluate at a depth that training runs"),
    ],
)
def test_what_the_passes_say_of_the_deeper_loops_is_said(
    tmp_path: Path, passes: int, factor: float, said: str, remedy: str
) -> None:
    (found,) = told(write(tmp_path / "a.h5", [4.0] * STEPS, {10: 16.0, 30: 12.0}, passes=passes, factor=factor))
    assert (found.step, found.since, found.value, found.threshold, found.episodes) == (10, 10, 16.0, 4.0, 2)
    assert found.severity == "note" and not found.gap
    assert (
        "evaluated at 16 loops, where training ran 4 loops on average in the end and never more than 4:"
        in found.message
    )
    assert said in found.message and found.remedy.startswith(remedy)
    assert ("beyond" in found.message) == (passes == 12)


def test_no_note_where_training_runs_as_deep(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).poisson(8, STEPS).clip(1).astype(float).tolist()
    cases = {
        "the same depth": ([4.0] * STEPS, {0: 4.0, 20: 4.0}),
        "shallower": ([4.0] * STEPS, {20: 2.0}),
        "the mean of drawn depths": (draw, {0: 8.0, 20: 8.0}),
        "a depth that training grows to": ([2.0] * 20 + [6.0] * 20, {5: 6.0}),
        "never evaluated": ([4.0] * STEPS, {}),
    }
    for name, (depths, evaluated) in cases.items():
        assert not told(write(tmp_path / f"{name}.h5", depths, evaluated)), name


def test_an_evaluation_after_the_last_row_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", [4.0] * STEPS, {3: 4.0}, after=32.0)
    (found,) = told(path)
    assert (found.step, found.value, found.episodes) == (STEPS - 1, 32.0, 1)
    with loopscope.open_run(path) as run:
        assert [tuple(each) for each in evaluations(run)] == [(3, 4.0), (STEPS - 1, 32.0)]


def test_a_file_of_before_these_columns_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopscope.runfile.writer.STEP_COLUMNS", STEP_COLUMNS[: STEP_COLUMNS.index("eval_depth")])
    path = write(tmp_path / "a.h5", [4.0] * STEPS, {})
    with loopscope.open_run(path) as run:
        assert "eval_depth" not in run.names and evaluations(run) == []
    assert not told(path)


def test_the_gate_shows_the_note_and_passes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", [4.0] * STEPS, {10: 16.0}, passes=20)
    checked = check_runs([path])
    assert [each.rule for each in checked.runs[0].by_weight] == ["LS007"] and checked.exit_code == 0
