"""The figure of the map: runs in the plane of two numbers, a function of what is placed there.

Not covered: which runs have which numbers (`run_map`).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import plotly.graph_objects as go

from . import colours
from .frame import empty, figure
from .run_map import Place
from .text import number, plain

SYMBOLS: Final = {"stable": "circle", "marginal": "diamond", "unstable": "triangle-up", "unknown": "circle-open"}
WIDE: Final = 10.0
"""An axis whose largest value is so many times its smallest is logarithmic."""


def plane(placed: Sequence[Place], x: str, y: str) -> go.Figure:
    """Return the runs in the plane of two numbers, glyph and colour by regime.

    Runs that are marginal by design (addition keeps ρ = 1 whatever it learns) have a trace of their own.

    Args:
        placed: The runs.
        x: Words of the horizontal axis.
        y: Words of the vertical axis.
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
            decades = np.log10(high / low)
            axis(type="log", exponentformat="none", dtick="D2" if decades < 3 else 1 if decades < 7 else None)
    return chart.update_layout(clickmode="event")


def _marks(group: list[Place], regime: str, by_design: bool) -> go.Scatter:
    """Draw the runs of one regime; a click on one finds its address in ``customdata``."""
    colour = colours.REGIME_COLOURS[regime]
    words = [f"{plain(one.name, 80)}<br>{number(one.x)} · {number(one.y)}" for one in group]
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
