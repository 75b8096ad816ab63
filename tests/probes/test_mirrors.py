"""Mirrors: TensorBoard's own reader gets back what the run file has; Weights & Biases and Trackio are stand-ins.

The stand-ins have the documented signatures of ``wandb.Run`` 0.31 and ``trackio.Run`` 0.43 and keep what they get.
"""

import logging
import math
import threading

import loopscope
import numpy as np
import pytest
import torch
from loopscope.probes import mirrors as mirrors_module
from loopscope.probes import open_run
from loopscope.probes.mirrors import Mirrors, TensorBoardMirror, TrackioMirror, WandbMirror


class WandbStandIn:
    def __init__(self):
        self.axes, self.rows = {}, []

    def define_metric(
        self, name, step_metric=None, step_sync=None, hidden=None, summary=None, goal=None, overwrite=None
    ):
        self.axes[name] = step_metric

    def log(self, data, step=None, commit=None):
        assert step is None  # the step counter belongs to the run's owner
        self.rows.append(dict(data))


class TrackioStandIn:
    def __init__(self):
        self.rows = []

    def log(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


class Keeping:
    """Keeps rows and the threads they came on; can wait first or fail."""

    def __init__(self, before=lambda: None):
        self.rows, self.threads, self.closed, self._before = [], set(), 0, before

    def write(self, step, values):
        self._before()
        self.threads.add(threading.current_thread())
        self.rows.append((step, dict(values)))

    def close(self):
        self.closed += 1


def run_steps(model, path, mirrors, steps=4, **options):
    with loopscope.attach(model, path, mirrors=mirrors, **options) as probe:
        for step in range(steps):
            model(torch.zeros(2, 16, dtype=torch.int64), num_loops=step + 2).sum().backward()
            probe.step(loss=math.nan if step == 2 else 3.0 - step, lr=0.01, accuracy=0.5)
    return open_run(path)


def same_numbers(run, rows, prefix=""):
    """Every number of the file is in the rows under its name and the other way round; NaN in the file may be absent."""
    names = [name for name in run.names if name not in ("step", "time", "residual_ratio", "growth_ratio")]
    for index, (_, row) in enumerate(rows):
        file = {prefix + name: run[name][index] for name in names if name != "generation"}
        assert {name for name, value in file.items() if not np.isnan(value)} <= set(row)
        assert set(row) <= set(file), set(row) - set(file)
        for name, value in row.items():
            np.testing.assert_equal(value, file[name], err_msg=name)


def test_tensorboard_reads_back_what_the_run_file_has(demo_model, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_steps(demo_model(), tmp_path / "run.h5", [TensorBoardMirror(tmp_path / "tb")], scalars=("accuracy",))
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    tags = events.Tags()["scalars"]
    assert {"loopscope/loss", "loopscope/a_bar_radius", "loopscope/last_residual_norm", "loopscope/accuracy"} <= set(
        tags
    )
    for tag in tags:
        scalars = events.Scalars(tag)
        column = run[tag.removeprefix("loopscope/")]
        # TensorBoard stores scalars as float32.
        np.testing.assert_array_equal(
            [event.value for event in scalars], np.float32(column[[event.step for event in scalars]]), err_msg=tag
        )
    assert [event.step for event in events.Scalars("loopscope/last_state_norm")] == [0, 1, 2, 3]
    assert math.isnan(events.Scalars("loopscope/loss")[2].value)


def test_weights_and_biases_gets_its_own_axis(demo_model, tmp_path):
    tracker = WandbStandIn()
    run = run_steps(demo_model(), tmp_path / "run.h5", [WandbMirror(tracker)])
    assert tracker.axes == {"loopscope/*": "loopscope/step"}
    same_numbers(run, [(row.pop("loopscope/step"), row) for row in tracker.rows], "loopscope/")
    assert len(tracker.rows) == 4


def test_trackio_gets_the_step(demo_model, tmp_path):
    tracker = TrackioStandIn()
    run = run_steps(demo_model(), tmp_path / "run.h5", [TrackioMirror(tracker)])
    assert [step for step, _ in tracker.rows] == [0, 1, 2, 3]
    same_numbers(run, tracker.rows, "loopscope/")


def test_rows_come_on_one_thread_that_is_not_the_training_thread(demo_model, tmp_path):
    mirror = Keeping()
    run = run_steps(demo_model(), tmp_path / "run.h5", [mirror])
    same_numbers(run, mirror.rows)
    assert len(mirror.threads) == 1
    assert threading.current_thread() not in mirror.threads
    assert mirror.closed == 1


def test_a_mirror_that_fails_is_said_once_and_left_alone(demo_model, tmp_path, caplog):
    failing, well = Keeping(before=lambda: 1 / 0), Keeping()
    run = run_steps(demo_model(), tmp_path / "run.h5", [failing, well], steps=6)
    assert len(run) == len(well.rows) == 6
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    said = [record for record in said if "non_finite" not in record.message]  # one of the six losses, an alert
    assert [record.message for record in said] == [
        "loopscope: Keeping failed and is dropped; the run file goes on without it"
    ]
    assert failing.closed == 1


def test_a_mirror_that_hangs_holds_up_neither_training_nor_the_file(demo_model, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(mirrors_module, "CLOSE_PATIENCE", 0.2)
    released = threading.Event()
    hanging, well = Keeping(before=released.wait), Keeping()
    run = run_steps(demo_model(), tmp_path / "run.h5", [hanging, well], steps=6)
    released.set()  # without the patience, closing would still be waiting for this
    assert run.state == "finished"
    assert len(run) == len(well.rows) == 6
    assert "Keeping does not come to an end and is left behind" in caplog.text


def test_a_slow_mirror_misses_rows_and_says_how_many(caplog, monkeypatch):
    monkeypatch.setattr(mirrors_module, "ROWS_WAITING", 2)
    entered, released = threading.Event(), threading.Event()

    def wait():
        entered.set()
        released.wait()

    slow = Keeping(before=wait)
    mirrors = Mirrors([slow])
    mirrors.write(0, {"loss": 1.0}, None)
    entered.wait()  # row 0 is with the mirror, so the queue holds rows 1 and 2
    for step in range(1, 8):
        mirrors.write(step, {"loss": 1.0}, None)
    released.set()
    mirrors.close()
    assert [step for step, _ in slow.rows] == [0, 1, 2]
    assert slow.closed == 1
    assert [record.message for record in caplog.records] == [
        "loopscope: Keeping is slower than training; from step 3 on it misses rows",
        "loopscope: Keeping was too slow and missed 5 rows",
    ]


def test_a_run_that_cannot_be_opened_leaves_no_thread_behind(demo_model, tmp_path):
    mirror, path = Keeping(), tmp_path / "run.h5"
    path.write_bytes(b"precious")
    before = threading.active_count()
    with pytest.raises(FileExistsError):
        loopscope.attach(demo_model(), path, mirrors=[mirror])
    with pytest.raises(Exception, match="run"):
        loopscope.attach(demo_model(), path, mirrors=[mirror], resume=True)
    assert threading.active_count() <= before  # one of an earlier test may end meanwhile
    assert mirror.closed == 0


def test_without_tensorboard_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.compat.proto.summary_pb2", None)
    with pytest.raises(ImportError, match=r"needs TensorBoard: pip install 'loopscope\[tensorboard\]'"):
        TensorBoardMirror(tmp_path)
