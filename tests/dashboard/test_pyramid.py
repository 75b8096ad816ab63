"""No single step is lost at full zoom-out; rows taken in piece by piece are those taken in at once."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.dashboard.downsample import COLUMNS, POINTS
from loopscope.dashboard.opened import OpenRun
from loopscope.dashboard.panel import Ask, drawn
from loopscope.dashboard.panels import PANELS
from loopscope.dashboard.pyramid import Line, Sheet
from loopscope.dashboard.tracks import EXACT_ROWS, Tracks
from loopscope.runfile.open import open_run
from loopscope.runfile.writer import RunWriter

MILLION = 1_000_000


@pytest.mark.parametrize("at", [0, 63, 64, 333_333, MILLION - 1])
def test_one_odd_step_in_a_million_is_drawn(at):
    values = np.random.default_rng(0).normal(0, 0.01, MILLION)
    for odd in (9.0, -9.0, np.nan, np.inf):
        changed = values.copy()
        changed[at] = odd
        line = Line()
        line.take_in(changed, ~np.isfinite(changed))
        rows = line.rows(changed, slice(0, MILLION), POINTS)
        assert at in rows and len(rows) < 1.5 * POINTS and np.all(np.diff(rows) > 0)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(4, 200), st.data())
@settings(deadline=None, max_examples=60)
def test_rows_taken_in_piece_by_piece_are_those_taken_in_at_once(pieces, points, data):
    count = sum(pieces)
    values = np.random.default_rng(count).normal(size=count)
    values[:: data.draw(st.integers(2, 50))] = np.nan
    broken = np.zeros(count, bool)
    broken[data.draw(st.integers(0, count - 1))] = True
    whole, grown = Line(), Line()
    whole.take_in(values, broken)
    for end in np.cumsum(pieces):
        grown.take_in(values[:end], broken[:end])
    where = slice(data.draw(st.integers(0, count - 1)), count)
    rows = whole.rows(values, where, points)
    assert np.array_equal(rows, grown.rows(values, where, points))
    finite = where.start + np.flatnonzero(np.isfinite(values[where]))
    if len(finite):  # the extremes of what is in view are never lost
        assert {values[finite].min(), values[finite].max()} <= set(values[rows][np.isfinite(values[rows])])


@pytest.mark.parametrize("cuts", [(640, 1000), (64, 65, 1000), (1, 700, 701, 1000)])
def test_sheets_taken_in_piece_by_piece_are_those_taken_in_at_once(cuts):
    loops = np.random.default_rng(1).normal(size=(1000, 6))
    loops[500, 3] = np.inf
    whole, grown = Sheet(), Sheet()
    whole.take_in(0, loops)
    for end in cuts:
        start = grown.seen // 64 * 64
        grown.take_in(start, loops[start:end])
    for one, other in zip(whole.columns(slice(0, 1000), 7), grown.columns(slice(0, 1000), 7), strict=True):
        assert np.array_equal(one, other)
    assert np.isinf(whole.columns(slice(0, 1000), 7)[1]).sum() == 1


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """A run that is longer than what is drawn exactly, with one spike, one NaN and one infinite state in it."""
    path, count = tmp_path_factory.mktemp("long") / "long.h5", 40_000
    rng = np.random.default_rng(0)
    with RunWriter.create(path, info={}) as writer:
        for step in range(count):
            depth = int(rng.integers(2, 9))
            loops = np.tile(np.array([5.0, 1.0, 0.5, 8.0], np.float32), (depth + 1, 1))
            loops[-1, 1] = loops[0, 2] = loops[-1, 2] = np.nan
            loss = 3.0 + 0.01 * (step % 7)
            if step == 12_345:
                loss = 50.0
            if step == 23_456:
                loops[-1, 0] = np.nan
            row = {"step": step, "loss": np.nan if step == 34_567 else loss, "nonfinite": float(step == 34_567)}
            writer.append_step(row, loops)
            if step % 4000 == 0:
                writer.flush()
        writer.flush()
        writer.seal()
    return path


def test_a_spike_a_nan_and_a_lost_state_are_in_the_figures_at_full_zoom_out(long_run):
    held = OpenRun(long_run)
    ask = Ask(held, batch="training")
    loss = {trace.name: trace for trace in drawn(PANELS["loss"], ask).data}
    assert 12_345 in loss["loss"].x and loss["loss"].y.max() == 50
    assert list(loss["loss not finite"].x) == [34_567]
    state = {trace.name: trace for trace in drawn(PANELS["state"], ask).data}
    assert list(state["‖h<sub>T</sub>‖ not finite"].x) == [23_456]
    heat = drawn(PANELS["heat-state"], ask)
    lost = np.argwhere(heat.data[1].z == 1)
    assert len(lost) == 1 and abs(heat.data[1].x[lost[0][1]] - 23_456) <= 128
    assert heat.data[0].z.shape[1] <= COLUMNS
    held.close()


def test_a_stretch_is_drawn_from_its_rows_once_it_is_short(long_run):
    with open_run(long_run) as run:
        tracks = Tracks(run)
        track = tracks.track("loss", (20_000.0, 20_100.0))
        assert track.steps.tolist() == list(range(19_999, 20_102)) and 4 * POINTS == EXACT_ROWS
        sheet = tracks.sheet("residual_norm", (100.0, 120.0))
        assert sheet.per_column == 1 and sheet.steps.tolist() == list(range(99, 122))


def test_the_last_loop_is_that_of_the_reader(long_run):
    with open_run(long_run) as run:
        tracks = Tracks(run)
        for name in ("last_state_norm", "last_residual_norm"):
            _, values = tracks._rows_of(name)
            expected, lost = run[name], np.isinf(values)
            assert np.flatnonzero(lost).tolist() == ([23_456] if name == "last_state_norm" else [])
            assert np.array_equal(values[~lost], expected[~lost].astype(np.float32), equal_nan=True)


def test_looking_at_loops_keeps_none_of_their_columns(long_run):
    with open_run(long_run) as run:
        Tracks(run).sheet("state_norm")
        assert not [key for key in run.source._tables._columns if key[0] == "loops"]


def test_a_run_that_went_back_is_taken_in_anew(tmp_path):
    path = tmp_path / "back.h5"
    with RunWriter.create(path, info={}) as writer:
        for step in range(300):
            writer.append_step({"step": step, "loss": 3.0})
        writer.flush()
        held = OpenRun(path)
        assert held.tracks.track("loss").steps[-1] == 299
        for step in range(100, 200):
            writer.append_step({"step": step, "loss": 7.0})
        writer.flush()
        held.refresh()
        track = held.tracks.track("loss")
        assert track.steps.tolist() == list(range(200)) and set(track.values[100:]) == {7.0}
        held.close()


class Million:
    """What a reader says of 10⁶ steps of nine loops: nothing but one spike, one NaN, and one lost state."""

    names = ("step", "loss", "nonfinite", "last_state_norm", "last_residual_norm")
    generation, ranks, variables, probe_steps, events = 0, {}, (), np.empty(0, np.int64), ()

    def __init__(self, spike: int, nan: int, lost: int) -> None:
        self.columns = {"step": np.arange(1e6), "loss": np.full(10**6, 3.0), "nonfinite": np.zeros(10**6)}
        self.columns["loss"][[spike, nan]] = 50.0, np.nan
        self.columns["nonfinite"][nan] = 1
        self.lost = lost

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def loops(self, name: str, rows: slice) -> np.ndarray:
        loops = np.full((rows.stop - rows.start, 9), {"tokens": 8.0}.get(name, 1.0), np.float32)
        if name == "state_norm" and rows.start <= self.lost < rows.stop:
            loops[self.lost - rows.start, 8] = np.inf
        return loops


@pytest.mark.parametrize(
    ("spike", "nan", "lost"), [(333_333, 500_001, 666_667), (0, 999_999, 64), (999_999, 0, 999_999)]
)
def test_one_step_of_a_million_is_seen_at_full_zoom_out(spike, nan, lost):
    run = Million(spike, nan, lost)
    held = SimpleNamespace(run=run, tracks=Tracks(run), drawing=lambda name: nullcontext())
    ask = Ask(held, batch="training")
    loss = {trace.name: trace for trace in drawn(PANELS["loss"], ask).data}
    line, crosses = loss["loss"], loss["loss not finite"]
    assert line.x[np.argmax(line.y)] == spike and line.y.max() == 50 and len(line.x) <= 2 * POINTS
    assert list(crosses.x) == [nan] and crosses.mode == "markers"
    chart = drawn(PANELS["state"], ask)
    state = {trace.name: trace for trace in chart.data}
    assert list(state["‖h<sub>T</sub>‖ not finite"].x) == [lost]
    top = chart.layout.yaxis2  # of the crosses: at the top, though the lines have a logarithmic axis
    assert chart.layout.yaxis.type == "log" and (top.type, top.range) == ("linear", (0, 1))
    heat, red, above = drawn(PANELS["heat-state"], ask).data
    assert len(above.x) == 1 and abs(above.x[0] - lost) <= 1e6 / COLUMNS and list(above.y) == [0.97]
    ((loop, column),) = np.argwhere(red.z == 1)  # one cell, of the last loop
    assert loop == 8 and abs(red.x[column] - lost) <= 1e6 / COLUMNS and heat.z.shape[1] <= COLUMNS
