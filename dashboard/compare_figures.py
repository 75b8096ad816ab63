"""The figures of Compare: one number of several runs, in one plot or, of many runs, in one small plot each.

Not covered: where the numbers come from (`compare`).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go

from . import colours
from .compare import Line
from .frame import FONT, empty, figure
from .text import middle_cut, plain

MANY: Final = 8
"""From so many runs on, each has a plot of its own."""
PALETTE: Final = ("#7a6fdc", "#2b9a8a", "#c0579e", "#7d8b2f", "#9a6b55")
"""No colour of a regime: with four dashes, twenty runs differ."""
DASHES: Final = ("solid", "dash", "dot", "dashdot")
COLUMNS: Final = 3
ROW_HEIGHT: Final = 150
DECADES: Final = 100.0


def overlaid(lines: Sequence[Line], x: str, y: str) -> go.Figure:
    """Return one number of some runs over each other; runs are told apart by colour and dash together.

    Args:
        lines: One of each run.
        x: Words of the horizontal axis.
        y: Words of the vertical axis.
    """
    if not lines:
        return empty(f"None of these runs has {plain(y, 60)} by {x}.")
    chart = figure(x=x, y=plain(y, 40), revision=f"{x} {y}")
    for i, one in enumerate(lines):
        colour = PALETTE[i % len(PALETTE)]
        chart.add_trace(_curve(one, colour, DASHES[i % len(DASHES)]))
        if len(one.lost):
            chart.add_trace(_lost(one, colour))
    if _wide(lines):
        chart.update_yaxes(type="log")
    if x.startswith("steps since"):
        chart.add_vline(x=0, line={"color": colours.INK, "width": 1, "dash": "dot"})
    return chart


def small_multiples(lines: Sequence[Line], x: str, y: str) -> go.Figure:
    """Return one small plot of each run, all with the same axes; their colour is that of the run's verdict.

    Args:
        lines: One of each run.
        x: Words of the horizontal axes.
        y: What is drawn.
    """
    if not lines:
        return empty(f"None of these runs has {plain(y, 60)} by {x}.")
    from plotly.subplots import make_subplots

    count = -(-len(lines) // COLUMNS)
    titles = [f"{colours.REGIME_GLYPHS.get(one.regime, '○')} {plain(middle_cut(one.name, 30))}" for one in lines]
    chart = make_subplots(
        count, COLUMNS, shared_xaxes="all", shared_yaxes="all", subplot_titles=titles,
        vertical_spacing=0.35 / (count + 1), horizontal_spacing=0.03,
    )  # fmt: skip
    for i, one in enumerate(lines):
        trace = _curve(one, colours.REGIME_COLOURS.get(one.regime, colours.INK), "solid")
        chart.add_trace(trace, row=1 + i // COLUMNS, col=1 + i % COLUMNS)
    like = figure(x=x, y="", legend=False).layout
    font = {"family": FONT, "size": 11, "color": colours.INK}
    chart.update_layout(
        template=like.template, font=font, paper_bgcolor=like.paper_bgcolor, plot_bgcolor=like.plot_bgcolor,
        margin={"l": 52, "r": 12, "t": 28, "b": 40}, showlegend=False,
        uirevision=f"{x} {y}", height=count * ROW_HEIGHT + 70, hovermode="closest",
    )  # fmt: skip
    chart.update_annotations(font={"size": 11})
    chart.update_xaxes(gridcolor=colours.GRID, zeroline=False, nticks=4)
    chart.update_yaxes(gridcolor=colours.GRID, zeroline=False, nticks=4, type="log" if _wide(lines) else None)
    return chart.update_xaxes(title={"text": x, "standoff": 4}, row=count)


def compared(lines: Sequence[Line], x: str, y: str) -> go.Figure:
    """Return the figure for so many runs."""
    return (small_multiples if len(lines) >= MANY else overlaid)(lines, x, y)


def _curve(one: Line, colour: str, dash: str) -> go.Scatter:
    """Draw one run."""
    return go.Scatter(
        x=one.x,
        y=one.y,
        name=plain(middle_cut(one.name, 40)),
        mode="lines" if len(one.x) > 2 else "lines+markers",
        line={"color": colour, "width": 1.7, "dash": dash},
        hovertemplate="%{y:.4g} at %{x:,.6~g}",
    )


def _lost(one: Line, colour: str) -> go.Scatter:
    """Mark where the number of a run was not finite: crosses at the largest finite value, for they have no height."""
    top = float(one.y.max()) if len(one.y) else 1.0
    return go.Scatter(
        x=one.lost,
        y=np.full(len(one.lost), top),
        mode="markers",
        marker={"symbol": "x", "size": 7, "color": colour},
        name=f"{plain(middle_cut(one.name, 40))}: not finite",
        showlegend=False,
        hovertemplate="not finite at %{x:,.6~g}",
    )


def _wide(lines: Sequence[Line]) -> bool:
    """Say whether the values need a logarithmic axis."""
    values = np.concatenate([one.y for one in lines])
    return bool(len(values) and values.min() > 0 and values.max() >= DECADES * values.min())
