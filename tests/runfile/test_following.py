"""Following a run of several ranks gives, bit by bit, what opening it anew gives, whatever happened in between."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from loopscope.runfile.layout import LOOP_COLUMNS, Event
from loopscope.runfile.open import open_run
from loopscope.runfile.rank_names import rank_path
from loopscope.runfile.ranks import merged_source
from loopscope.runfile.ranks.merged_run import MergedRun
from loopscope.runfile.reader import Run
from loopscope.runfile.writer import RunWriter


class Training:
    """Ranks that record at their own pace, are killed together, and go on from an older step, some without others."""

    def __init__(self, path: Path, ranks: int, seed: int) -> None:
        self.path, self.rng, self.clock = path, np.random.default_rng(seed), time.time()
        self.info = {"world_size": ranks, "started": self.clock}
        self.writers = {rank: self.create(rank) for rank in range(ranks)}
        self.steps = dict.fromkeys(self.writers, 0)

    def create(self, rank: int) -> RunWriter:
        return RunWriter.create(rank_path(self.path, rank), info={"rank": rank, **self.info}, eigenvalues=3)

    def go_on(self) -> None:
        """Some ranks record a few steps each."""
        for rank, writer in self.writers.items():
            if self.rng.random() < 0.3:
                continue
            for _ in range(int(self.rng.integers(1, 20))):
                self.record(rank, writer)
            if self.rng.random() < 0.9:
                writer.flush()

    def record(self, rank: int, writer: RunWriter) -> None:
        """One step of one rank; now and then one is left out, or is not a number."""
        rng, step = self.rng, self.steps[rank]
        self.clock += 0.01
        values = {"loss": rng.normal(), "input_norm": rng.uniform(1, 2), "a_bar_radius": rng.random()}
        values |= {"loss": np.nan} if rng.random() < 0.02 else {"late": 1.0} if step > 40 else {}
        if rng.random() < 0.97:
            row = {"step": step, "time": self.clock + rng.normal(0, 0.05)} | values
            writer.append_step(row, self.loops() if rng.random() < 0.95 else None)
        if step % 5 == 0:
            writer.append_probe(step, self.loops())
            writer.append_spectrum(step, rng.normal(size=3))
            writer.append_event(Event(step, self.clock, "found", "warning", rng.random()))
        self.steps[rank] += 1

    def loops(self) -> np.ndarray:
        rows = self.rng.uniform(0.5, 2.0, (int(self.rng.integers(1, 6)), 4)).astype(np.float32)
        rows[-1, 1:3] = rows[0, 2] = np.nan
        rows[:, 3] = self.rng.integers(1, 50)
        return rows

    def resume(self) -> None:
        """Everything ends and goes on from an older step, perhaps without the last ranks or with new ones."""
        for writer in self.writers.values():
            writer.seal() if self.rng.random() < 0.3 else writer.close()
        self.clock += 1.0
        start = max(0, min(self.steps.values()) - int(self.rng.integers(0, 20)))
        ranks = max(1, len(self.writers) - int(self.rng.integers(-1, 3)))
        known = {rank: rank_path(self.path, rank).exists() for rank in range(ranks)}
        self.writers = {
            rank: RunWriter.resume(rank_path(self.path, rank)) if there else self.create(rank)
            for rank, there in known.items()
        }
        self.steps = dict.fromkeys(self.writers, start)

    def end(self) -> None:
        for writer in self.writers.values():
            writer.close()


def everything(run: Run) -> dict[str, np.ndarray]:
    """All numbers that a run gives."""
    arrays = {name: run[name] for name in run.names}
    arrays |= {f"{table} {name}": getattr(run, table)(name) for table in ("loops", "probe") for name in LOOP_COLUMNS}
    some = np.random.default_rng(len(run)).integers(0, len(run), 20) if len(run) else np.empty(0, dtype=np.int64)
    arrays |= {"some": run.loops("state_norm", some), "last": run.loops("residual_norm", slice(-7, None))}
    arrays |= {"spectrum steps": run.spectra()[0], "spectra": run.spectra()[1], "passes": run.probe_steps}
    return arrays


def check_same(followed: Run, opened: Run) -> None:
    """Both say the same, to the bit."""
    ours, theirs = everything(followed), everything(opened)
    assert ours.keys() == theirs.keys() and list(followed.ranks) == list(opened.ranks)
    for name, values in theirs.items():
        assert ours[name].shape == values.shape and ours[name].tobytes() == values.tobytes(), name
    assert followed.generation == opened.generation
    events = [event for event in followed.events if event.kind != "run_resumed"]  # which only a follower saw
    assert repr(events) == repr(opened.events)  # their thresholds are NaN, which equals nothing


@pytest.mark.parametrize(("ranks", "seed"), [(2, 0), (4, 1), (9, 2)])
def test_a_followed_view_is_the_one_that_opening_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, seed: int
) -> None:
    monkeypatch.setattr(merged_source, "_BLOCK", 16)
    training = Training(tmp_path / "a.h5", ranks, seed)
    with open_run(training.path) as followed:
        assert isinstance(followed, MergedRun)
        handed_out: list[tuple[np.ndarray, bytes]] = []
        for portion in range(14):
            training.resume() if portion in (4, 7, 11) else training.go_on()
            if training.rng.random() < 0.2:
                list(followed.ranks.values())[-1].refresh()  # behind the back of the merged view
            followed.refresh()
            if training.rng.random() < 0.6:
                with open_run(training.path) as opened:
                    check_same(followed, opened)
            handed_out += [(values, values.tobytes()) for values in (followed["loss"], followed["last_state_norm"])]
        assert followed.generation == 3 and len(followed) > 10
        assert all(values.tobytes() == before for values, before in handed_out)  # nobody's numbers change
        training.end()


@pytest.mark.parametrize("seed", range(3))
def test_one_file_followed_is_the_one_that_opening_gives(tmp_path: Path, seed: int) -> None:
    training = Training(tmp_path / "a.h5", 1, seed)
    with Run(training.path) as followed:
        for portion in range(20):
            training.resume() if portion in (5, 11) else training.go_on()
            followed.refresh()
            with Run(training.path) as opened:
                check_same(followed, opened)
        training.end()
