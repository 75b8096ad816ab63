"""Figures of a run: arrays in, `plotly.graph_objects.Figure` out, no callback and no file inside.

Lines come as `Picture`s, thinned for the screen, so their traces are not data to compute with. Those whose colour is a
norm are in `heatmaps`, those of one pass through the loop in `loop_figures`.

Not covered: titles and explanations, which stand above the plot (`panels`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from . import colours
from .downsample import View
from .frame import MARKS_SHOWN, empty, figure, log_ticks, mark_broken, note, over_steps
from .tracks import NOTHING, Picture

Array = NDArray[np.float64]

LANES = ("error", "warning", "note")
SHAPES = {"error": "triangle-up", "warning": "diamond", "note": "circle"}
LOG_FROM, LOG_BELOW = 2.0, 0.2  # a gain outside these is drawn on a logarithmic axis


class Mark(NamedTuple):
    """Something that happened at a step: an event of the run, or the first breach of a rule."""

    step: float
    text: str
    severity: str


class Stretch(NamedTuple):
    """Some steps in a row that belong together: those of a flight recording."""

    first: float
    last: float
    text: str


class Track(NamedTuple):
    """One line of a plot: what is drawn, its name, its colour, and how its line is dashed."""

    picture: Picture
    name: str
    colour: str
    dash: str = "solid"
    markers: bool = False


def _line(track: Track, hover: str = "%{y:.4g}") -> go.Scatter:
    """Draw one series, in single precision where that is exact enough for a screen."""
    steps, values = track.picture.steps, track.picture.values
    many = len(steps) > 2 and not track.markers
    return go.Scatter(
        x=steps.astype(np.float32) if len(steps) and steps[-1] < 2**24 else steps,
        y=values.astype(np.float32) if _fits_float32(values) else values,
        name=track.name,
        mode="lines" if many else "lines+markers",
        line={"color": track.colour, "width": 1.8, "dash": track.dash},
        marker={"color": track.colour, "size": 5},
        hovertemplate=hover,
    )


def _fits_float32(values: Array) -> bool:
    """Say whether single precision, half the bytes, holds the values without overflow or underflow."""
    size = np.abs(values[np.isfinite(values) & (values != 0)])
    return bool(size.size == 0 or (size.max() < 1e38 and size.min() > 1e-37))


def _all_values(tracks: Sequence[Track]) -> Array:
    """Return every value that is drawn."""
    return np.concatenate([track.picture.values for track in tracks]) if tracks else np.empty(0)


def log_axis(chart: go.Figure, values: Array) -> go.Figure:
    """Use a logarithmic vertical axis, at least one decade high so that a flat line is not drawn as noise."""
    chart.update_yaxes(type="log")
    seen = values[np.isfinite(values) & (values > 0)]
    if seen.size == 0:
        return chart
    low, high = np.log10(seen.min()), np.log10(seen.max())
    if high - low < 1:
        middle = (low + high) / 2
        chart.update_yaxes(range=[middle - 0.5, middle + 0.5])
    elif 2 <= high - low <= 8:
        chart.update_yaxes(dtick=1)  # whole powers of ten; plotly's own choice adds 2s and 5s
    if high - low >= 2:
        chart.update_yaxes(tickfont={"size": 9})  # plotly draws powers a quarter larger
    return chart


def lines(
    tracks: Sequence[Track], *, y: str, nothing: str, remedy: str = "", log: bool = False, view: View = None,
    selected: float | None = None, span: View = None, edges: tuple[float, float] | None = None, revision: str = "",
) -> go.Figure:  # fmt: skip
    """Draw numbers over steps, each with the steps at which it was not finite marked along the top.

    Args:
        tracks: The lines; those without anything recorded are left out.
        y: Name and unit of the vertical axis.
        nothing: What to say when none was recorded.
        remedy: What makes them appear.
        log: Whether the axis is logarithmic.
        edges: Below the first a loop is stable, above the second unstable; None where the number says no such thing.
        view: Visible range of steps, or None for everything.
        selected: Step of the cursor, or None.
        span: First and last step of the run.
        revision: See `frame.figure`.
    """
    there = [track for track in tracks if not track.picture.empty]
    if not there:
        return empty(nothing, remedy=remedy)
    chart = figure(x="step", y=y, revision=revision)
    for track in there:
        chart.add_trace(_line(track))
    if log:
        log_axis(chart, _all_values(there))
    if edges is not None:
        values = _all_values(there)
        low, high = float(values.min(initial=edges[0])), float(values.max(initial=edges[1]))
        room = max(0.08 * (high - low), edges[1] - edges[0])
        _add_bands(chart, low - room, high + room, edges, log=False)
    _mark_all_broken(chart, there)
    chart.update_layout(hovermode="x unified")
    return over_steps(chart, view, selected, span)


def gain(
    tracks: Sequence[Track], *, tolerance: float, view: View = None, selected: float | None = None, span: View = None,
    revision: str = "",
) -> go.Figure:  # fmt: skip
    """Draw factors per loop over steps, on the bands in which a loop is stable, marginal or unstable.

    The axis is logarithmic where a factor leaves the neighbourhood of 1.

    Args:
        tracks: The lines: ρ(A̅), what the fixed batch did, the full loop.
        tolerance: Half-width of the marginal band around 1.
        view: Visible range of steps, or None for everything.
        selected: Step of the cursor, or None.
        span: First and last step of the run.
        revision: See `frame.figure`.
    """
    there = [track for track in tracks if not track.picture.empty]
    if not there:
        return empty(
            "Neither A̅ nor a pass of the fixed batch was recorded.", remedy="The loop of this run did not name its A̅."
        )
    chart = figure(x="step", y="factor per loop", revision=revision)
    for track in there:
        chart.add_trace(_line(track))
    values = _all_values(there)
    low, high = float(values.min(initial=1.0)), float(values.max(initial=1.0))
    log = high > LOG_FROM or low < LOG_BELOW
    if log:
        smallest = float(values[values > 0].min(initial=1.0))
        bottom, top = max(smallest, 1e-12, high * 1e-14) / 1.15, high * 1.15
        bottom = min(bottom, 0.8)
    else:
        bottom, top = min(0.8, low - 0.05), max(1.2, high * 1.05)
    _add_bands(chart, bottom, top, (1 - tolerance, 1 + tolerance), log)
    _mark_all_broken(chart, there)
    chart.update_layout(hovermode="x unified")
    return over_steps(chart, view, selected, span)


def _mark_all_broken(chart: go.Figure, tracks: Sequence[Track]) -> None:
    """Mark of every line where it was not finite; last, when its own axis is ready."""
    for track in tracks:
        mark_broken(chart, track.picture.broken, f"{track.name} not finite")


def _add_bands(chart: go.Figure, bottom: float, top: float, edges: tuple[float, float], log: bool) -> None:
    """Colour the three regimes behind the lines and name them at the right edge."""
    bands = (("stable", bottom, edges[0]), ("marginal", *edges), ("unstable", edges[1], top))
    for regime, low, high in bands:
        chart.add_shape(
            type="rect",
            xref="x domain",
            x0=0,
            x1=1,
            yref="y",
            y0=low,
            y1=high,
            layer="below",
            line={"width": 0},
            fillcolor=colours.tint(colours.REGIME_COLOURS[regime], 0.5 if regime == "marginal" else 0.13),
        )
    place = np.log10 if log else float
    span = place(top) - place(bottom)
    for regime, at, anchor in (("stable", edges[0], "top"), ("unstable", edges[1], "bottom")):
        room = abs(place(at) - place(bottom if regime == "stable" else top))
        if room < 0.12 * span:
            continue  # too thin a band for its name
        chart.add_annotation(
            text=f"{colours.REGIME_GLYPHS[regime]} {regime}",
            xref="x domain",
            x=0.995,
            xanchor="right",
            y=place(at),
            yanchor=anchor,
            showarrow=False,
            font={"size": 11},
        )
    if log:
        decades = float(np.log10(top / bottom))
        chart.update_yaxes(type="log", range=[np.log10(bottom), np.log10(top)])
        if decades < 1.6:
            marks, words = log_ticks(bottom, top)
            chart.update_yaxes(tickvals=marks, ticktext=words)
        else:
            chart.update_yaxes(dtick=max(1, round(decades / 5)))
    else:
        chart.update_yaxes(range=[bottom, top])


def events(
    marks: Sequence[Mark], flights: Sequence[Stretch], *, span: tuple[float, float], view: View = None,
    selected: float | None = None, revision: str = "",
) -> go.Figure:  # fmt: skip
    """Draw all events of training, in lanes by severity: errors on top, flights as brackets at the bottom.

    Args:
        marks: The events; of those in view, at most `MARKS_SHOWN` a lane are drawn, spread over the range.
        flights: The steps that are kept at full detail.
        span: First and last step of the run.
        view: Visible range of steps, or None for everything.
        selected: Step of the cursor, or None.
        span: First and last step of the run.
        revision: See `frame.figure`.
    """
    lanes = [*(["flights"] if flights else []), *LANES[::-1]]
    chart = figure(x="step", y="", legend=False, revision=revision)
    low, high = view or span
    hidden = 0
    for severity in LANES:
        chosen = [mark for mark in marks if mark.severity == severity and low <= mark.step <= high]
        shown = _spread(chosen)
        hidden += len(chosen) - len(shown)
        chart.add_trace(
            go.Scatter(
                x=[mark.step for mark in shown],
                y=[severity] * len(shown),
                name=severity,
                mode="markers",
                text=[mark.text for mark in shown],
                hovertemplate="step %{x:,}: %{text}<extra></extra>",
                marker={
                    "color": colours.SEVERITY_COLOURS[severity],
                    "symbol": SHAPES[severity],
                    "size": {"error": 13, "warning": 10}.get(severity, 7),  # a triangle looks smaller than it is
                },
            )
        )
    if flights:
        _add_flights(chart, flights)
    chart.update_yaxes(type="category", categoryorder="array", categoryarray=lanes, range=[-0.6, len(lanes) - 0.4])
    chart.update_yaxes(tickfont={"size": 10}, fixedrange=True)
    if hidden:
        note(chart, f"{hidden:,} more events between these; zoom in to see them")
    return over_steps(chart, view, selected, span)


def _spread(marks: Sequence[Mark]) -> Sequence[Mark]:
    """Return at most `MARKS_SHOWN` marks, the first and the last among them."""
    if len(marks) <= MARKS_SHOWN:
        return marks
    return [marks[i] for i in np.linspace(0, len(marks) - 1, MARKS_SHOWN).astype(int)]


def _add_flights(chart: go.Figure, flights: Sequence[Stretch]) -> None:
    """Draw the steps of every flight as a bracket."""
    x: list[float | None] = []
    text: list[str] = []
    for flight in flights[-MARKS_SHOWN:]:
        x += [flight.first, flight.last, None]
        text += [flight.text, flight.text, ""]
    chart.add_trace(
        go.Scatter(
            x=x,
            y=["flights" if at is not None else None for at in x],
            name="flights",
            mode="lines+markers",
            text=text,
            hovertemplate="%{text}<extra></extra>",
            line={"color": colours.INK, "width": 3},
            marker={"color": colours.INK, "symbol": "line-ns-open", "size": 9, "line": {"width": 2}},
        )
    )


def curves(
    x: Sequence[str], rows: Sequence[tuple[str, Array]], *, x_name: str, y: str, nothing: str, remedy: str = "",
    revision: str = "",
) -> go.Figure:  # fmt: skip
    """Draw curves over named places, such as the loss against test-time depth at a few steps.

    Args:
        x: Names of the places, in order.
        rows: Name and values ``(len(x),)`` of every curve; the last is drawn strongest.
        x_name: Name and unit of the horizontal axis.
        y: Name and unit of the vertical axis.
        nothing: What to say without any curve.
        remedy: What makes one appear.
        revision: See `frame.figure`.
    """
    if not rows:
        return empty(nothing, remedy=remedy)
    chart = figure(x=x_name, y=y, revision=revision)
    for i, (name, values) in enumerate(rows):
        strength = 0.25 + 0.75 * (i + 1) / len(rows)
        chart.add_trace(
            go.Scatter(
                x=list(x),
                y=values,
                name=name,
                mode="lines+markers",
                line={"color": colours.tint(colours.LOSS, strength), "width": 1.8},
                hovertemplate="%{y:.4g}",
            )
        )
    return chart.update_layout(hovermode="x unified", xaxis={"type": "category"})


def of(picture: Picture = NOTHING, name: str = "", colour: str = colours.LOSS, **style: Any) -> Track:
    """Return a line of a plot."""
    return Track(picture, name, colour, **style)
