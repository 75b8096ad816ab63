"""Heatmaps are values: every assertion here reads what a browser would draw."""

import json

import numpy as np
import pytest
from loopscope.dashboard import heatmaps
from loopscope.dashboard.downsample import COLUMNS, columns

STEPS = np.arange(100.0)


def residual_heatmap(steps, residual):
    cells = columns(steps, residual)
    return heatmaps.loop_heatmap(cells, symbol="‖Δh‖", what="training", nothing="No loops were recorded.")


def subtitle(chart) -> str:
    return next(one.text for one in chart.layout.annotations if one.name == "subtitle")


def test_heatmap_is_logarithmic_and_shows_explosions_in_their_own_colour():
    residual = np.full((100, 4), 10.0)
    residual[80:, 2] = np.inf
    residual[:, 3] = np.nan
    chart = residual_heatmap(STEPS, residual)
    power, broken, above = chart.data
    assert list(above.x) == list(STEPS[80:]) and above.yaxis == "y2"  # a cross above every column with red in it
    assert np.nanmax(power.z) == np.nanmin(power.z) == 1
    assert np.isnan(power.z[3]).all() and np.isnan(power.z[2, 80:]).all()
    assert np.flatnonzero(broken.z[2] == 1).tolist() == list(range(80, 100))
    assert "not finite" in subtitle(chart)


def test_heatmap_of_many_steps_says_what_a_column_is():
    chart = residual_heatmap(np.arange(100_000.0), np.ones((100_000, 8)))
    assert chart.data[0].z.shape == (8, 400)
    assert "250 steps" in subtitle(chart)


def test_narrow_colours_have_labels_too():
    for values in (np.full((100, 2), 7.0), np.linspace(2.0, 2.4, 200).reshape(100, 2), np.geomspace(3, 60, 200)):
        bar = residual_heatmap(STEPS, values.reshape(100, 2)).layout.coloraxis.colorbar
        low, high = np.log10(values.min()), np.log10(values.max())
        assert len(bar.tickvals) == len(bar.ticktext) >= (1 if low == high else 3)
        assert all(low <= at <= high for at in bar.tickvals)


def test_blocks_are_named_as_the_run_names_them_and_the_first_is_lowest():
    names = ["prelude.0", "injection", "transformer.core_block.3"]  # the last is too long for a phone
    chart = heatmaps.block_heatmap(STEPS, np.tile([1.0, 10.0, 100.0], (100, 1)), names)
    assert list(chart.data[0].y) == names and chart.data[0].z[:, 0] == pytest.approx([0, 1, 2])
    assert list(chart.layout.yaxis.tickvals) == names
    assert list(chart.layout.yaxis.ticktext) == ["prelude.0", "injection", "…core_block.3"]


def test_many_blocks_have_as_many_names_as_there_is_room_for():
    names = [f"core.{i}" for i in range(40)]
    chart = heatmaps.block_heatmap(STEPS, np.ones((100, 40)), names)
    assert list(chart.data[0].y) == names
    assert 10 <= len(chart.layout.yaxis.tickvals) <= heatmaps.NAMES_SHOWN
    assert set(chart.layout.yaxis.tickvals) < set(names)


def test_gradients_that_did_not_arrive_are_bare_and_said_to_be():
    gradient = np.full((100, 6), np.nan)
    gradient[:, 3:] = 0.01
    chart = heatmaps.gradient_heatmap(STEPS, gradient)
    assert np.isnan(chart.data[0].z[:3]).all() and chart.data[0].z[3:] == pytest.approx(-2)
    assert "none arrived" in subtitle(chart) and "nats" in subtitle(chart)
    assert "none arrived" not in subtitle(heatmaps.gradient_heatmap(STEPS, np.ones((100, 3))))


def test_a_token_map_has_a_pane_per_sequence_and_one_scale_of_colours():
    values = np.geomspace(1e-3, 1e3, 4 * 2 * 10).reshape(4, 2, 10)
    chart = heatmaps.token_map(110, values)
    one, other = chart.data
    assert one.z == pytest.approx(np.log10(values[:, 0])) and other.z == pytest.approx(np.log10(values[:, 1]))
    assert (one.xaxis, other.xaxis) == ("x", "x2") and one.coloraxis == other.coloraxis == "coloraxis"
    assert chart.layout.xaxis.domain[1] < chart.layout.xaxis2.domain[0] and chart.layout.xaxis2.domain[1] == 1
    assert "step 110" in subtitle(chart)


def test_tokens_that_settled_or_were_lost_are_told_apart():
    values = np.ones((4, 2, 10))
    values[2:, 0, 3] = 0
    values[1:, 1, 5] = np.nan
    chart = heatmaps.token_map(0, values)
    assert "exactly 0" in subtitle(chart) and "not finite" in subtitle(chart)
    settled, _, lost = chart.data
    assert np.isnan(settled.z[2:, 3]).all() and np.flatnonzero(lost.z[:, 5] == 1).tolist() == [1, 2, 3]


@pytest.mark.parametrize(("sequences", "tokens"), [(1, 5000), (2, 5000), (2, 256)])
def test_long_sequences_are_thinned_and_keep_the_token_that_does_not_settle(sequences, tokens):
    values = np.full((8, sequences, tokens), 1e-6)
    values[:, 0, 77] = 1.0
    chart = heatmaps.token_map(0, values)
    assert sum(trace.z.shape[1] for trace in chart.data) <= COLUMNS
    assert np.nanmax(chart.data[0].z) == 0 and len(json.dumps(chart.to_plotly_json(), default=str)) < 1e6
    assert "tokens each" in subtitle(chart)


@pytest.mark.parametrize("low", [-8.3, -1.0, 0.0, 0.4, 2.9])
@pytest.mark.parametrize("wide", [0.01, 0.3, 0.9, 1.5, 2.4, 3.4, 4.0, 7.0, 15.0])
def test_a_colour_bar_has_few_ticks_whatever_it_spans(low, wide):
    at, labels = heatmaps._power_ticks(low, low + wide)
    assert len(at) == heatmaps.TICKS == 3 and len(set(labels)) == len(labels)
    assert low - 1e-9 <= min(at) < max(at) <= low + wide + 1e-9
