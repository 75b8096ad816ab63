import numpy as np
from loopscope.dashboard.downsample import COLUMNS, POINTS, bin_rows, columns, thin, visible


def test_short_series_is_sent_whole():
    steps, values = np.arange(50.0), np.sin(np.arange(50.0))
    x, y = thin(steps, values)
    assert np.array_equal(x, steps) and np.array_equal(y, values)


def test_long_series_keeps_its_single_spikes_and_its_ends():
    steps = np.arange(100_000.0)
    values = np.random.default_rng(0).normal(0, 0.01, 100_000)
    values[[31_415, 92_653]] = 50, -50
    x, y = thin(steps, values)
    assert len(x) <= POINTS and np.all(np.diff(x) > 0)
    assert {31_415, 92_653} <= set(x) and y.max() == 50 and y.min() == -50
    assert x[0] == 0 and x[-1] == 99_999
    assert np.array_equal(y, values[x.astype(int)])  # chosen, never averaged


def test_unrecorded_rows_go_and_infinite_ones_become_gaps():
    steps = np.arange(10_000.0)
    values = np.full(10_000, np.nan)
    values[::10] = 1.0
    values[5000] = np.inf
    x, y = thin(steps, values)
    assert len(x) == 1000
    assert np.flatnonzero(np.isnan(y)).tolist() == [500]


def test_infinite_values_survive_thinning_as_gaps():
    values = np.sin(np.arange(50_000.0) / 900)
    values[20_000:20_400] = np.inf
    x, y = thin(np.arange(50_000.0), values)
    gap = x[np.isnan(y)]
    assert gap.size and gap.min() >= 20_000 and gap.max() < 20_400


def test_zoom_returns_every_step_of_a_short_range():
    steps = np.arange(100_000.0)
    x, _ = thin(steps, np.sin(steps), view=(40_000, 40_100))
    assert x.tolist() == list(range(39_999, 40_102))


def test_a_view_beyond_the_data_keeps_its_last_point():
    assert visible(np.arange(5.0), (90, 99)) == slice(4, 5)
    assert visible(np.empty(0), (0, 1)) == slice(0, 0)


def test_columns_keep_one_exploding_step_among_many():
    residual = np.ones((100_000, 8))
    residual[54_321, 7] = 1e9
    cells = columns(np.arange(100_000.0), residual)
    assert cells.values.shape == (COLUMNS, 8) and cells.per_column == 250
    at = int(np.argmax(cells.values[:, 7]))
    assert cells.values[at, 7] == 1e9 and abs(cells.steps[at] - 54_321) <= 125
    assert np.all(np.delete(cells.values, at, axis=0) == 1)


def test_columns_ignore_loops_that_did_not_run():
    residual = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, 7.0], [np.nan, np.nan]])
    cells = columns(np.arange(4.0), residual, limit=2)
    assert np.array_equal(cells.values, [[2.0, np.nan], [3.0, 7.0]], equal_nan=True)


def test_columns_are_single_steps_once_zoomed_in():
    cells = columns(np.arange(100_000.0), np.ones((100_000, 2)), view=(500.0, 600.0))
    assert cells.per_column == 1 and cells.steps.tolist() == list(range(499, 602))


def test_bins_cover_every_row_once():
    for count in (1, 7, 399, 400, 401, 12_345):
        starts = bin_rows(count)
        assert starts[0] == 0 and len(starts) == min(count, COLUMNS) and np.all(np.diff(starts) > 0)
