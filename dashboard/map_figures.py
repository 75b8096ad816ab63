"""The figure of the map: runs in the plane of two numbers, a function of what is placed there.

Not covered: which runs have which numbers (`run_map`).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go

from ..dynamics.regime import LTI_TOLERANCE
from . import colours
from .boundary import Boundary
from .frame import empty, figure, log_ticks
from .run_map import Place
from .text import number, plain

SYMBOLS: Final = {"stable": "circle", "marginal": "diamond", "unstable": "triangle-up", "unknown": "circle-open"}
DASHES: Final = ("dash", "dot", "dashdot", "longdash")
BAND: Final = "where it may lie, as far as tried"
WIDE: Final = 10.0
"""An axis whose largest value is so many times its smallest is logarithmic."""


def plane(
    placed: Sequence[Place], x: str, y: str, boundaries: Sequence[Boundary] = (), *, radius: bool = False
) -> go.Figure:
    """Return the runs in the plane of two numbers, glyph and colour by regime.

    Runs that are marginal by design (addition keeps ρ = 1 whatever it learns) have a trace of their own.

    Args:
        placed: The runs.
        x: Words of the horizontal axis.
        y: Words of the vertical axis.
        boundaries: Where along the horizontal axis architectures begin to fail: a line on its interval, each.
        radius: Whether the vertical axis is a factor per loop, whose edge of stability is 1.
    """
    if not placed:
        return empty("No run here has both numbers.", remedy="Choose others above.")
    chart = figure(x=plain(x, 80), y=plain(y, 40), revision=f"{x} {y}")
    for regime in SYMBOLS:
        for by_design in (False, True):
            group = [one for one in placed if one.regime == regime and one.by_design is by_design]
            if group:
                chart.add_trace(_marks(group, regime, by_design))
    for axis, values in ((chart.update_xaxes, [p.x for p in placed]), (chart.update_yaxes, [p.y for p in placed])):
        low, high = min(values), max(values)
        if low > 0 and high >= WIDE * low:
            at, words = log_ticks(low, high)
            axis(type="log", tickvals=at, ticktext=words)
    if radius:
        chart.add_hrect(1 - LTI_TOLERANCE, 1 + LTI_TOLERANCE, layer="below", line_width=0,
                        fillcolor=colours.tint(colours.REGIME_COLOURS["marginal"], 0.5))  # fmt: skip
    for i, one in enumerate(sorted(boundaries, key=lambda one: not np.isfinite(one.at))):
        _add_boundary(chart, one, DASHES[i % len(DASHES)], i)
    return chart.update_layout(clickmode="event", dragmode="select", selectionrevision=f"{x} {y}", hoverdistance=14)


def _add_boundary(chart: go.Figure, one: Boundary, dash: str, place: int) -> None:
    """Draw where an architecture begins to fail: its line and the band of its interval, named in the legend."""
    low, high = one.band
    # The ink of no regime: on the side of the stable runs the band would look like a verdict.
    name, known = f"edge of {plain(one.architecture, 40)}", bool(np.isfinite(one.at))
    if known:
        chart.add_shape(type="line", x0=one.at, x1=one.at, xref="x", y0=0, y1=1, yref="y domain", layer="below",
                        line={"color": colours.INK, "width": 1.8, "dash": dash},
                        name=name, showlegend=True)  # fmt: skip
    chart.add_shape(type="rect", x0=low, x1=high, xref="x", y0=0, y1=1, yref="y domain", layer="below",
                    line={"width": 0}, fillcolor=colours.tint(colours.INK, 0.13), showlegend=not (known and place),
                    name=BAND if known else f"{name}: here or beyond")  # fmt: skip


def _failing(one: Place) -> str:
    """Return which variables of a run fail, as a line of its own."""
    return f"<br>▲ {plain(one.failing, 80)}" if one.failing else ""


def _marks(group: list[Place], regime: str, by_design: bool) -> go.Scatter:
    """Draw the runs of one regime; a click on one finds its address in ``customdata``."""
    colour = colours.REGIME_COLOURS[regime]
    words = [f"{plain(one.name, 80)}<br>{number(one.x)} · {number(one.y)}{_failing(one)}" for one in group]
    return go.Scatter(
        x=np.array([one.x for one in group]),
        y=np.array([one.y for one in group]),
        customdata=[one.href for one in group],
        text=words,
        name=f"{regime} by design" if by_design else regime,
        mode="markers",
        marker={
            "symbol": SYMBOLS[regime] + ("-open" if by_design else ""),
            "size": 11,
            "color": colour if by_design else colours.tint(colour, 0.8),
            "line": {"width": 1.5 if by_design else 1, "color": colour},
        },
        hovertemplate="%{text}<extra></extra>",
    )
