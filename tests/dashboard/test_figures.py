"""Figures are values: every assertion here reads what a browser would draw."""

import numpy as np
import plotly.graph_objects as go
import pytest
from loopscope.dashboard import colours, figures, heatmaps
from loopscope.dashboard.figures import Mark, Profile, Series
from loopscope.dashboard.panels import STEP_PLOTS

STEPS = np.arange(100.0)


def traces(chart: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in chart.data}


def text(chart: go.Figure) -> str:
    return " ".join(annotation.text for annotation in chart.layout.annotations).replace("<br>", " ")


ALL_EMPTY = {
    "loss": lambda: figures.loss(Series()),
    "radius": lambda: figures.radius(Series(), Series(), Series(), tolerance=0.01),
    "heatmap": lambda: heatmaps.residual_heatmap(STEPS, np.full((100, 4), np.nan)),
    "no rows": lambda: heatmaps.residual_heatmap(np.empty(0), np.empty((0, 0))),
    "profile": lambda: figures.loop_profile(None),
    "blocks": lambda: heatmaps.block_heatmap(np.empty(0), np.empty((0, 0)), []),
    "gradients": lambda: heatmaps.gradient_heatmap(STEPS, np.full((100, 4), np.nan)),
    "tokens": lambda: heatmaps.token_map(None, np.empty((0, 0, 0))),
    "spectrum": lambda: figures.spectrum(None, np.empty(0, dtype=complex), tolerance=0.01),
    "state": lambda: figures.state_norm(Series(), Series()),
}


@pytest.mark.parametrize("name", ALL_EMPTY)
def test_nothing_recorded_is_said_in_words(name):
    chart = ALL_EMPTY[name]()
    assert len(chart.data) == 0 and "recorded" in text(chart) and chart.layout.title.text


def full_figures() -> dict[str, go.Figure]:
    line = Series(STEPS, np.linspace(3, 2, 100))
    return {
        "loss": figures.loss(line, marks=[Mark(50, "spike", "warning")]),
        "radius": figures.radius(line, line, line, tolerance=0.01),
        "heatmap": heatmaps.residual_heatmap(STEPS, np.ones((100, 4))),
        "profile": figures.loop_profile(Profile(3, np.ones(5), np.ones(4)), Profile(0, np.ones(9), np.ones(8))),
        "spectrum": figures.spectrum(7, np.array([0.5, 1.2j]), tolerance=0.01),
        "state": figures.state_norm(line, line),
        "blocks": heatmaps.block_heatmap(STEPS, np.ones((100, 2)), ["prelude.0", "core.0"]),
        "gradients": heatmaps.gradient_heatmap(STEPS, np.ones((100, 4))),
        "tokens": heatmaps.token_map(7, np.ones((4, 2, 10))),
    }


@pytest.mark.parametrize("name", full_figures())
def test_every_figure_has_title_axes_units_and_hover(name):
    chart = full_figures()[name]
    assert chart.layout.title.text and chart.layout.xaxis.title.text
    assert chart.layout.yaxis.title.text or chart.layout.yaxis.ticktext == ("prelude.0", "core.0")
    assert all(trace.hovertemplate or trace.hoverinfo == "skip" for trace in chart.data)
    assert chart.layout.paper_bgcolor == "rgba(0,0,0,0)"  # both themes


@pytest.mark.parametrize("name", STEP_PLOTS)
def test_first_shape_of_every_plot_over_steps_is_the_cursor(name):
    line, selected = Series(STEPS, np.ones(100)), 42
    chart = {
        "loss": lambda: figures.loss(line, selected=selected),
        "radius": lambda: figures.radius(line, line, Series(), tolerance=0.01, selected=selected),
        "heatmap": lambda: heatmaps.residual_heatmap(STEPS, np.ones((100, 3)), selected=selected),
        "state": lambda: figures.state_norm(line, line, selected=selected),
        "blocks": lambda: heatmaps.block_heatmap(STEPS, np.ones((100, 2)), ["a", "b"], selected=selected),
        "gradients": lambda: heatmaps.gradient_heatmap(STEPS, np.ones((100, 3)), selected=selected),
    }[name]()
    cursor = chart.layout.shapes[0]
    assert (cursor.x0, cursor.x1, cursor.visible, cursor.yref) == (42, 42, True, "y domain")
    assert full_figures()[name].layout.shapes[0].visible is False
    assert ALL_EMPTY[name]().layout.shapes[0].visible is False  # moving it must not fail on an empty plot


def test_loss_events_sit_on_the_curve_and_carry_their_message():
    line = Series(STEPS, 3 - STEPS / 100)
    chart = figures.loss(line, marks=[Mark(50, "loss_spike: 5.2", "warning"), Mark(60, "not finite", "error")])
    warning = traces(chart)["warning event"]
    assert warning.x[0] == 50 and warning.y[0] == pytest.approx(2.5) and "5.2" in warning.text[0]
    assert traces(chart)["error event"].marker.color == colours.REGIME_COLOURS["unstable"]


def test_thousands_of_events_are_cut_and_the_cut_is_said():
    line = Series(np.arange(5000.0), np.ones(5000))
    marks = [Mark(step, "spike", "warning") for step in range(5000)]
    chart = figures.loss(line, marks=marks)
    assert len(traces(chart)["warning event"].x) == figures.EVENTS_SHOWN
    assert "of 5000 events" in text(chart)
    assert "events" not in text(figures.loss(line, marks=marks, view=(100, 150)))


def test_loss_that_was_never_finite_is_still_drawn():
    chart = figures.loss(Series(STEPS, np.full(100, np.nan)), nonfinite=STEPS)
    assert len(traces(chart)["loss not finite"].x) == 100


@pytest.mark.parametrize(("top", "bottom"), [(0.5, 0.4), (6.0, 0.6), (1.0, 1.0)])
def test_bands_meet_at_the_tolerance_and_hold_every_value(top, bottom):
    line = Series(STEPS, np.linspace(bottom, top, 100))
    chart = figures.radius(line, Series(), Series(), tolerance=0.02)
    stable, marginal, unstable = chart.layout.shapes[1:]
    assert (stable.y1, marginal.y0, marginal.y1, unstable.y0) == (0.98, 0.98, 1.02, 1.02)
    low, high = chart.layout.yaxis.range
    assert low < bottom and top < high and (stable.y0, unstable.y1) == (low, high)
    for shape, regime in zip((stable, marginal, unstable), ("stable", "marginal", "unstable"), strict=True):
        assert shape.fillcolor.startswith(colours.tint(colours.REGIME_COLOURS[regime], 1)[:-2])


def test_the_full_loop_is_drawn_where_it_was_measured():
    line, full = Series(STEPS, np.full(100, 0.9)), Series(np.array([0.0, 49.0, 99.0]), np.array([0.9, 1.4, 2.5]))
    chart = figures.radius(line, Series(), Series(), tolerance=0.01, full=full)
    drawn = traces(chart)["ρ(J), full loop"]
    assert drawn.x.tolist() == [0, 49, 99] and drawn.y == pytest.approx([0.9, 1.4, 2.5])
    assert "markers" in drawn.mode  # a few points far apart
    assert chart.layout.yaxis.range[1] > 2.5
    assert set(traces(figures.radius(line, Series(), Series(), tolerance=0.01))) == {"ρ(A̅)"}


def test_profile_is_logarithmic_and_names_the_loop_where_the_state_was_lost():
    chart = figures.loop_profile(Profile(9, np.array([1.0, 10.0, np.nan]), np.array([9.0, np.inf])))
    assert chart.layout.yaxis.type == "log" and "step 9" in chart.layout.title.text
    assert "loop 2" in text(chart)
    assert list(chart.data[0].x) == [0, 1] and list(chart.data[1].y) == [9.0]


def test_flat_series_are_not_blown_up_to_noise():
    chart = figures.state_norm(Series(STEPS, np.full(100, 50.0)), Series())
    low, high = chart.layout.yaxis.range
    assert high - low == 1 and low < np.log10(50) < high


def test_spectrum_has_equal_axes_the_unit_circle_and_regimes_by_modulus():
    values = np.array([1.5, 1j, 0.3 - 0.4j, np.nan])
    chart = figures.spectrum(7, values, tolerance=0.01)
    circle = traces(chart)["unit circle"]
    assert np.allclose(np.hypot(circle.x, circle.y), 1, rtol=1e-12)  # cos and sin of the same float64 angle
    assert chart.layout.yaxis.scaleanchor == "x"
    assert chart.layout.xaxis.constrain == chart.layout.yaxis.constrain == "domain"
    found = traces(chart)
    assert list(found["unstable"].x) == [1.5]
    assert list(found["marginal"].y) == [1.0]
    assert found["stable"].customdata[0][0] == pytest.approx(0.5)
    assert "3 leading" in chart.layout.title.text and chart.layout.xaxis.range[1] > 1.5


def test_values_beyond_single_precision_are_not_lost():
    chart = figures.state_norm(Series(STEPS, np.full(100, 1e60)), Series())
    assert np.all(chart.data[0].y == 1e60)


def test_zoom_sends_the_visible_range_in_full():
    steps = np.arange(100_000.0)
    chart = figures.loss(Series(steps, np.sin(steps)), view=(70_000.0, 70_050.0))
    assert list(chart.layout.xaxis.range) == [70_000.0, 70_050.0] and len(chart.data[0].x) == 53


def test_a_legend_that_wraps_on_a_phone_has_its_lines():
    line, few, many = Series(STEPS, np.ones(100)), figures.state_norm, figures.radius
    usual = few(line, line).layout.margin.t
    assert few(line, Series()).layout.margin.t == usual
    assert many(line, line, line, tolerance=0.01, full=line).layout.margin.t > usual
