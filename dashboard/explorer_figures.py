"""The figures of the explorer, as functions of arrays.

Not covered: where the numbers come from (`explorer`), eigenvalues (`loop_figures.spectrum`).
"""

from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from ..dynamics.regime import LTI_TOLERANCE, lti_regime
from . import colours
from .frame import empty, figure, note

Floats = NDArray[np.float64]

TALLEST: Final = 1e12
"""Norms above are left out: a hundred loops of a hot matrix would flatten everything else."""
PLANE: Final = (-4.4, 1.4, 2.9)
"""What the plane of ΔA shows at least: left end, right end, half the height."""
SYMBOLS: Final = {"stable": "circle", "marginal": "diamond", "unstable": "triangle-up"}


def powers(norms: Floats, lower: Floats, upper: Floats) -> go.Figure:
    """Return the norms of the powers of A̅ over the loops, between what they cannot fall below and cannot exceed.

    Args:
        norms: ``(T + 1,)``, ‖A̅^t‖₂.
        lower: ``(T + 1,)``, ρ^t.
        upper: ``(T + 1,)``, the upper bound.
    """
    chart = figure(x="loops", y="norm", revision="explorer")
    for values, name, dash, width in (
        (upper, "bound", "dash", 1.2),
        (norms, "‖A̅<sup>t</sup>‖", "solid", 2.2),
        (lower, "ρ<sup>t</sup>", "dot", 1.2),
    ):
        strong = dash == "solid"
        chart.add_trace(_line(values, name, colours.NORM if strong else colours.INK, dash, width, marks=strong))
    return _logarithmic(chart, norms)


def states(alone: Floats, blocked: Floats) -> go.Figure:
    """Return the norms of the states over the loops, with the block and without it.

    Args:
        alone: ``(T + 1,)``, ‖h_t‖ of the linear part alone.
        blocked: ``(T + 1,)``, the same with the block; empty for none.
    """
    chart = figure(x="loops", y="state norm", revision="explorer")
    chart.add_trace(_line(alone, "linear part alone", colours.STATE, "solid", 2.0, marks=True))
    if blocked.size:
        chart.add_trace(
            _line(blocked, "with the block", colours.FULL_LOOP, "dash", 2.0, marks=True, symbol="x-thin-open")
        )
    return _logarithmic(chart, np.concatenate([alone, blocked]))


def _line(
    values: Floats, name: str, colour: str, dash: str, width: float, *, marks: bool, symbol: str = "circle"
) -> go.Scatter:
    """Draw numbers over loops."""
    return go.Scatter(
        x=np.arange(len(values)),
        y=np.where(values <= TALLEST, values, np.nan),
        name=name,
        mode="lines+markers" if marks else "lines",
        line={"color": colour, "dash": dash, "width": width},
        marker={"size": 4, "symbol": symbol},
        hovertemplate="%{y:.4g}",
    )


def _logarithmic(chart: go.Figure, values: Floats) -> go.Figure:
    """Take a logarithmic axis where the values span more than two decades, and say what was left out."""
    drawn = values[np.isfinite(values) & (values <= TALLEST) & (values > 0)]
    if drawn.size and drawn.max() > 100 * drawn.min():
        top = np.log10(drawn.max())
        bottom = max(np.log10(drawn.min()), top - 14, -9.0)
        room = 0.06 * (top - bottom) + 0.1
        chart.update_yaxes(type="log", range=[bottom - room, top + room], tickfont={"size": 9})  # powers are larger
    else:
        chart.update_yaxes(rangemode="tozero")
    if drawn.size < values.size and not (values[values > 0] <= TALLEST).all():
        note(chart, f"norms above {TALLEST:.0e} are left out".replace("e+", "e"), right=True)  # it grows to the right
    loops = len(chart.data[0].x) - 1  # else marks at 0 make the axis begin at -1
    return chart.update_layout(hovermode="x unified", xaxis_range=[-0.02 * loops, 1.02 * loops])


def scheme(name: str, points: Floats, radii: Floats) -> go.Figure:
    """Return the plane of ΔA with the region in which one discretisation rule is stable, and the channels in it.

    Args:
        name: The rule: ``euler`` is stable in a disc, ``zoh``, ``mixture`` and ``bilinear`` in the left half-plane.
        points: ``(d,)``, ΔA of the channels, real.
        radii: ``(d,)``, |A̅| that the rule makes of them.
    """
    if not len(points):
        return empty("There is no channel to draw.")
    chart = figure(x="real part of ΔA", y="imaginary part", legend=False, revision="explorer")
    left, right, high = min(PLANE[0], 1.1 * float(points.min())), PLANE[1], PLANE[2]
    region: dict[str, Any] = {
        "fillcolor": colours.tint(colours.REGIME_COLOURS["stable"], 0.16),
        "line": {"color": colours.REGIME_COLOURS["stable"], "width": 1.2},
        "layer": "below",
    }
    if name == "euler":
        chart.add_shape(type="circle", x0=-2, x1=0, y0=-1, y1=1, **region)
    else:
        chart.add_shape(type="rect", x0=100 * left, x1=0, y0=-100 * high, y1=100 * high, **region)
    regimes = [lti_regime(float(radius), LTI_TOLERANCE) for radius in radii]
    chart.add_trace(
        go.Scatter(
            x=points,
            y=np.zeros(len(points)),
            customdata=radii,
            mode="markers",
            name="channels",
            marker={
                "size": 9,
                "color": [colours.REGIME_COLOURS[regime] for regime in regimes],
                "symbol": [SYMBOLS[regime] for regime in regimes],
            },
            hovertemplate="ΔA = %{x:.3f}<br>|A̅| = %{customdata:.4f}<extra></extra>",
        )
    )
    chart.update_xaxes(range=[left, right], zeroline=True, zerolinecolor=colours.GRID)
    chart.update_yaxes(range=[-high, high], zeroline=True, zerolinecolor=colours.GRID, scaleanchor="x")
    return chart
