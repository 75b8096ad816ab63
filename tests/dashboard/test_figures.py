"""Figures are values: every assertion here reads what a browser would draw."""

import numpy as np
import plotly.graph_objects as go
import pytest
from loopscope.dashboard import colours, figures, heatmaps, loop_figures
from loopscope.dashboard.downsample import columns
from loopscope.dashboard.figures import Mark, Stretch, of
from loopscope.dashboard.loop_figures import Law, Profile, drawn_radius
from loopscope.dashboard.tracks import Picture

STEPS = np.arange(100.0)
NONE = np.empty(0)


def line(values, name="x", broken=NONE):
    return of(Picture(STEPS, np.broadcast_to(np.asarray(values, float), 100), broken), name)


def traces(chart: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in chart.data}


def text(chart: go.Figure) -> str:
    return " ".join(annotation.text for annotation in chart.layout.annotations).replace("<br>", " ")


def heat(values, **more):
    cells = columns(STEPS, np.asarray(values, float))
    return heatmaps.loop_heatmap(cells, symbol="‖h‖", what="training", nothing="No loops were recorded.", **more)


ALL_EMPTY = {
    "lines": lambda: figures.lines([of()], y="nats", nothing="No loss was recorded."),
    "gain": lambda: figures.gain([], tolerance=0.01),
    "heatmap": lambda: heat(np.full((100, 4), np.nan)),
    "profile": lambda: loop_figures.loop_profile(None),
    "blocks": lambda: heatmaps.block_heatmap(np.empty(0), np.empty((0, 0)), []),
    "gradients": lambda: heatmaps.gradient_heatmap(STEPS, np.full((100, 4), np.nan)),
    "tokens": lambda: heatmaps.token_map(None, np.empty((0, 0, 0))),
    "spectrum": lambda: loop_figures.spectrum(None, np.empty(0, dtype=complex), tolerance=0.01),
    "curves": lambda: figures.curves([], [], x_name="loops", y="loss", nothing="No loss at other depths was recorded."),
}


@pytest.mark.parametrize("name", ALL_EMPTY)
def test_nothing_recorded_is_said_in_words(name):
    chart = ALL_EMPTY[name]()
    assert len(chart.data) == 0 and "recorded" in text(chart)
    assert chart.layout.shapes[0].visible is False  # moving the cursor must not fail on an empty plot


OVER_STEPS = {
    "lines": lambda **at: figures.lines([line(np.linspace(3, 2, 100))], y="nats", nothing="", **at),
    "gain": lambda **at: figures.gain([line(0.9), line(1.1)], tolerance=0.01, **at),
    "events": lambda **at: figures.events([Mark(50, "spike", "warning")], [], **({"span": (0, 99)} | at)),
    "heatmap": lambda **at: heat(np.ones((100, 4)), **at),
    "blocks": lambda **at: heatmaps.block_heatmap(STEPS, np.ones((100, 2)), ["prelude.0", "core.0"], **at),
    "gradients": lambda **at: heatmaps.gradient_heatmap(STEPS, np.ones((100, 4)), **at),
}


@pytest.mark.parametrize("name", OVER_STEPS)
def test_plots_over_steps_have_one_cursor_one_range_and_one_left_edge(name):
    chart = OVER_STEPS[name](selected=42, span=(0, 99))
    cursor = chart.layout.shapes[0]
    assert (cursor.x0, cursor.x1, cursor.visible, cursor.yref) == (42, 42, True, "y domain")
    assert OVER_STEPS[name](span=(0, 99)).layout.shapes[0].visible is False
    other = OVER_STEPS["lines"](span=(0, 99))
    assert chart.layout.xaxis.range == other.layout.xaxis.range
    assert (chart.layout.margin.l, chart.layout.margin.r) == (other.layout.margin.l, other.layout.margin.r)
    assert chart.layout.yaxis.automargin is False and chart.layout.meta["over_steps"]
    assert list(OVER_STEPS[name](view=(10.0, 20.0), span=(0, 99)).layout.xaxis.range) == [10, 20]


@pytest.mark.parametrize("name", OVER_STEPS)
def test_every_figure_is_for_both_themes_and_says_what_is_under_the_pointer(name):
    chart = OVER_STEPS[name](span=(0, 99))
    assert chart.layout.paper_bgcolor == "rgba(0,0,0,0)"
    assert all(trace.hovertemplate or trace.hoverinfo == "skip" for trace in chart.data)


def test_events_are_lanes_by_severity_errors_on_top_flights_at_the_bottom():
    marks = [Mark(50, "spike", "warning"), Mark(60, "not finite", "error"), Mark(1, "hello", "note")]
    chart = figures.events(marks, [Stretch(40, 70, "flight 0")], span=(0, 99))
    assert list(chart.layout.yaxis.categoryarray) == ["flights", "note", "warning", "error"]
    drawn = traces(chart)
    assert len({drawn[severity].marker.symbol for severity in ("error", "warning", "note")}) == 3
    assert drawn["error"].marker.color == colours.REGIME_COLOURS["unstable"] and list(drawn["error"].x) == [60]
    assert list(drawn["flights"].x) == [40, 70, None]


def test_thousands_of_events_are_cut_and_the_cut_is_said():
    marks = [Mark(step, "spike", "warning") for step in range(5000)]
    chart = figures.events(marks, [], span=(0, 4999))
    shown = traces(chart)["warning"].x
    assert len(shown) == figures.MARKS_SHOWN and (shown[0], shown[-1]) == (0, 4999)
    assert "4,600 more events" in text(chart)
    assert "more events" not in text(figures.events(marks, [], view=(100, 150), span=(0, 4999)))


def test_a_number_that_was_never_finite_is_still_drawn():
    chart = figures.lines([of(Picture(NONE, NONE, STEPS), "loss")], y="nats", nothing="")
    assert len(traces(chart)["loss not finite"].x) == 100


@pytest.mark.parametrize(("top", "bottom"), [(0.5, 0.4), (6.0, 0.6), (1.0, 1.0), (1.5, 0.5)])
def test_bands_meet_at_the_tolerance_and_hold_every_value(top, bottom):
    chart = figures.gain([line(np.linspace(bottom, top, 100))], tolerance=0.02)
    stable, marginal, unstable = chart.layout.shapes[1:]
    assert (stable.y1, marginal.y0, marginal.y1, unstable.y0) == (0.98, 0.98, 1.02, 1.02)
    low, high = chart.layout.yaxis.range
    if chart.layout.yaxis.type == "log":
        low, high = 10**low, 10**high
    assert low < bottom and top < high and (stable.y0, unstable.y1) == pytest.approx((low, high))
    for shape, regime in zip((stable, marginal, unstable), ("stable", "marginal", "unstable"), strict=True):
        assert shape.fillcolor.startswith(colours.tint(colours.REGIME_COLOURS[regime], 1)[:-2])


def test_a_gain_that_leaves_the_bands_is_logarithmic():
    assert figures.gain([line(np.geomspace(0.9, 13, 100))], tolerance=0.01).layout.yaxis.type == "log"
    assert figures.gain([line(np.linspace(0.7, 1.4, 100))], tolerance=0.01).layout.yaxis.type is None


def test_a_gain_of_zero_does_not_empty_a_logarithmic_axis():
    low, high = figures.gain([line(np.append(0.0, np.full(99, 30.0)))], tolerance=0.01).layout.yaxis.range
    assert np.isfinite([low, high]).all() and low < 0 < high


def test_profile_is_logarithmic_and_names_the_loop_where_the_state_was_lost():
    chart = loop_figures.loop_profile(Profile(9, np.array([1.0, 10.0, np.nan]), np.array([9.0, np.inf])))
    assert chart.layout.yaxis.type == "log" and "step 9" in text(chart) and "loop 2" in text(chart)
    assert list(chart.data[0].x) == [0, 1] and list(chart.data[1].y) == [9.0]


@pytest.mark.parametrize(
    ("state", "loop"),
    [([np.nan, np.inf, np.inf], 1), ([np.nan, 3.0, np.inf], 2), ([np.inf] * 3, 0), ([np.nan, 1, 2], 0)],
)
def test_a_profile_says_from_which_loop_on_a_state_is_not_finite_though_its_start_was_not_recorded(state, loop):
    chart = loop_figures.loop_profile(Profile(9, np.array(state), np.full(2, np.inf)))
    said = [str(one.text) for one in chart.layout.annotations if "not finite" in str(one.text)]
    assert said == ([f"▲ the state is not finite from loop {loop} on"] if np.isinf(state).any() else [])


def test_a_fitted_law_is_drawn_over_the_late_loops_and_its_rival_thinner():
    laws = [Law("×0.5 per loop", 2, np.array([4.0, 2.0]), True), Law("t^-1", 2, np.array([4.0, 3.0]), False)]
    chart = loop_figures.loop_profile(Profile(0, np.ones(5), np.ones(4)), None, laws)
    strong, rival = traces(chart)["×0.5 per loop"], traces(chart)["t^-1"]
    assert strong.x.tolist() == [2, 3] and strong.line.width > rival.line.width


def test_flat_series_are_not_blown_up_to_noise():
    low, high = figures.lines([line(50.0)], y="", nothing="", log=True).layout.yaxis.range
    assert high - low == 1 and low < np.log10(50) < high


def test_spectrum_has_equal_axes_the_unit_circle_and_regimes_by_modulus():
    chart = loop_figures.spectrum(7, np.array([1.4, 1j, 0.3 - 0.4j, np.nan]), tolerance=0.01)
    drawn = traces(chart)
    assert np.allclose(np.hypot(drawn["unit circle"].x, drawn["unit circle"].y), 1, rtol=1e-12)
    assert chart.layout.yaxis.scaleanchor == "x"
    assert chart.layout.xaxis.constrain == chart.layout.yaxis.constrain == "domain"
    assert list(drawn["unstable"].x) == [1.4] and list(drawn["marginal"].y) == [1.0]
    assert drawn["stable"].customdata[0][2] == pytest.approx(0.5)
    assert "3 leading" in text(chart) and chart.layout.xaxis.range[1] > 1.4


@pytest.mark.parametrize("largest", [1.6, 13.0, 1e6, 1e300])
def test_the_unit_circle_stays_in_sight_however_far_an_eigenvalue_is(largest):
    chart = loop_figures.spectrum(7, np.array([largest, -0.5, 0.0]), tolerance=0.01)
    reach = chart.layout.xaxis.range[1]
    if largest <= 1e6:
        assert 1 / reach > 0.05  # the circle's share of half the plot
    assert float(drawn_radius(largest)) < reach and "log outside" in text(chart)
    assert traces(chart)["unstable"].customdata[0][2] == largest  # the text shows the number itself
    assert drawn_radius(1.0 + 1e-9) == pytest.approx(1.0)


def test_values_beyond_single_precision_are_not_lost():
    assert np.all(figures.lines([line(1e60)], y="", nothing="").data[0].y == 1e60)


@pytest.mark.parametrize("largest", [0.5, 3.0, 50.0])
def test_the_legend_of_a_spectrum_stands_below_and_leaves_the_subtitle_alone(largest):
    chart = loop_figures.spectrum(7, np.array([largest, -0.5, 1.0]), tolerance=0.01, full=np.array([0.2 + 0j]))
    legend = chart.layout.legend
    assert (legend.yref, legend.yanchor, legend.y) == ("container", "bottom", 0) and chart.layout.showlegend
    subtitle = next(one for one in chart.layout.annotations if one.name == "subtitle")
    assert 0 <= subtitle.yshift <= chart.layout.margin.t and chart.layout.margin.b >= 80  # axis and two lines of legend
