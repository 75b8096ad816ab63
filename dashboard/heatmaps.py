"""Figures whose colour is a norm on a logarithmic scale: loops, blocks or tokens over training steps.

Arrays in, `plotly.graph_objects.Figure` out, as in `figures`. Norms have the unit 1 unless stated. Shapes:
N recorded steps, T loops, K blocks, n sequences of P tokens, C columns of a figure. NaN is "not recorded", drawn as a
bare pane; infinite is "recorded and not finite", drawn in red.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from einops import rearrange
from numpy.typing import NDArray
from plotly.colors import sample_colorscale

from . import colours
from .downsample import COLUMNS, Columns, View, columns
from .frame import LINE, empty, figure, headroom, mark_broken, over_steps

Array = NDArray[np.float64]

# Viridis without its ends: the first is lost on the dark page, the last on the light one. Holds no red.
HEAT: Final = sample_colorscale("Viridis", np.linspace(0.1, 0.95, 12).tolist())
# For cosines: from turning back, over a right angle, to going on. No colour of a regime.
TURN: Final = [[0, colours.NORM], [0.5, "#d9d9e3"], [1, colours.LOSS]]
NAMES_SHOWN: Final = 14  # names of rows that fit above each other
NAME_LENGTH: Final = 14  # letters of a name that a phone has room for
TICKS: Final = 3  # of a colour bar, which is short on a phone
PANE_GAP: Final = 0.04  # between sequences, as a share of the width
STEP_NORM: Final = "‖h<sub>t+1</sub> − h<sub>t</sub>‖"
LOST: Final = "lost"  # crosses above the cells that are not finite
GAP: Final = '<span style="opacity:0">–</span>'  # between the symbol and its bar: plotly leaves none
STUDY: Final = 'The preset "study" measures it: attach(…, preset="study").'


def loop_heatmap(
    shown: Columns, *, symbol: str, what: str, nothing: str, remedy: str = "", log: bool = True, view: View = None,
    selected: float | None = None, span: View = None, revision: str = "",
) -> go.Figure:  # fmt: skip
    """Draw one number of every loop of every step as a heatmap.

    Args:
        shown: Columns of the picture: NaN where a loop did not run, infinite where it ran and was not finite.
        symbol: What the colour is.
        what: Which part of it the picture shows.
        nothing: What to say when nothing was recorded.
        remedy: What makes it appear.
        log: Whether the colour is logarithmic; else it runs from -1 to 1, as cosines do.
        view: Visible range of steps, or None for everything.
        selected: Step of the cursor, or None.
        span: First and last step of the run.
        revision: See `frame.figure`.
    """
    if not np.any(~np.isnan(shown.values)):
        return empty(nothing, remedy=remedy)
    chart = _frame_of(shown, what, "steps", x="step", revision=revision)
    where = "step %{x:,} · loop %{y}"
    if log:
        _log_colours(chart, shown.values, symbol)
        _add_cells(chart, shown.steps, shown.values.T, None, where, symbol)
    else:
        bar = _bar(symbol) | {"tickvals": [-1, 0, 1]}
        chart.update_layout(coloraxis={"colorscale": TURN, "cmin": -1, "cmax": 1, "colorbar": bar})
        cells = go.Heatmap(
            x=shown.steps,
            z=shown.values.T.astype(np.float32),
            coloraxis="coloraxis",
            name="",
            hovertemplate=f"{where}<br>{symbol} = %{{z:.3f}}",
        )
        chart.add_trace(cells)
    mark_broken(chart, _broken_steps(shown), LOST)
    return over_steps(chart, view, selected, span)


def _broken_steps(shown: Columns) -> Array:
    """Return the columns in which something was not finite: one red cell among ten thousand is easily overlooked."""
    steps: Array = shown.steps[np.isinf(shown.values).any(axis=1)]
    return steps


def gradient_heatmap(
    steps: Array, gradient: Array, *, view: View = None, selected: float | None = None, span: View = None,
    revision: str = "",
) -> go.Figure:  # fmt: skip
    """Draw the loss gradient's norm in the state of every loop, over steps: does it grow or die on its way back?

    Args:
        steps: Steps at which it was measured, shape ``(N,)``.
        gradient: ‖∂L/∂h_t‖ over all tokens of the step, nats, shape ``(N, T + 1)``: NaN where none arrived, as before
            the loops that training goes back through.
        view: Visible range of steps, or None for everything.
        selected: Step of the cursor, or None.
        span: First and last step of the run.
        revision: See `frame.figure`.

    Returns:
        The figure, with at most `downsample.COLUMNS` columns; each shows the largest norm of the steps it covers.
    """
    what = "in nats" + (" · grey: none arrived" if np.isnan(gradient).any() else "")
    return loop_heatmap(
        columns(steps, gradient, view),
        symbol="‖∂L/∂h‖",
        what=what,
        nothing="No gradient per loop was recorded.",
        remedy=STUDY,
        view=view,
        selected=selected,
        span=span,
        revision=revision,
    )


def block_heatmap(
    steps: Array, norms: Array, names: Sequence[str], *, view: View = None,
    selected: float | None = None, span: View = None, revision: str = "",
) -> go.Figure:  # fmt: skip
    """Draw the norm of the state after every block, over steps: where within one loop does it jump?

    Args:
        steps: Steps at which it was measured, shape ``(N,)``.
        norms: ‖h‖ after each block, mean over tokens, shape ``(N, K)``: blocks of the prelude, then, of the first loop,
            the injection and the blocks.
        names: Of the K blocks, in running order; the first is drawn lowest, as loops are.
        view: Visible range of steps, or None for everything.
        selected: Step of the cursor, or None.
        span: First and last step of the run.
        revision: See `frame.figure`.

    Returns:
        The figure, with at most `downsample.COLUMNS` columns; each shows the largest norm of the steps it covers.
    """
    if not np.any(~np.isnan(norms)):
        return empty("No norm after a block was recorded.", remedy=STUDY)
    shown = columns(steps, norms, view)
    chart = _frame_of(shown, "first loop", "steps", x="step", revision=revision)
    _log_colours(chart, shown.values, "‖h‖")
    _add_cells(chart, shown.steps, shown.values.T, names, "step %{x:,} · %{y}", "‖h‖")
    over_steps(chart, view, selected, span)
    named = names[:: -(-len(names) // NAMES_SHOWN)]
    chart.update_yaxes(title=None, type="category", tickvals=named, ticktext=[_short(name) for name in named])
    chart.update_yaxes(tickfont={"size": 9})
    mark_broken(chart, _broken_steps(shown), LOST)
    return chart


def token_map(step: float | None, residual: Array, *, revision: str = "") -> go.Figure:
    """Draw every token's step norm at every loop of one pass of the probe batch: which settle, and when?

    Args:
        step: Training step of the pass; None when there is none up to the selected step.
        residual: ‖h[t+1]−h[t]‖ of every token, shape ``(T, n, P)``; 0 where a token has settled to the last digit.
        revision: See `frame.figure`.

    Returns:
        The figure, one pane per sequence, with at most `downsample.COLUMNS` columns in all; each shows the largest norm
        of the tokens it covers.
    """
    if step is None or residual.size == 0:
        return empty("No map over tokens was recorded up to this step.", remedy="Select a later step.")
    residual = np.where(np.isfinite(residual), residual, np.inf)  # every loop of the map ran
    count = residual.shape[1]
    tokens = rearrange(residual, "T n P -> P (n T)")
    shown = columns(np.arange(float(len(tokens))), tokens, limit=max(1, COLUMNS // count))
    what = f"fixed batch, step {step:,.0f}" + (" · grey: exactly 0" if np.any(residual == 0) else "")
    chart = _frame_of(shown, what, "tokens", x="", revision=revision)
    _log_colours(chart, shown.values, "‖Δh‖")
    axis = chart.layout.xaxis.to_plotly_json()
    for i, pane in enumerate(rearrange(shown.values, "C (n T) -> n T C", n=count)):
        name = "" if i == 0 else str(i + 1)
        where = f"sequence {i + 1} · token %{{x}} · loop %{{y}}"
        _add_cells(chart, shown.steps, pane, None, where, "‖Δh‖", xaxis=f"x{name}")
        room = (1 + PANE_GAP) / count
        label = {"text": f"sequence {i + 1}", "standoff": 4, "font": {"size": 12}}
        domain = [i * room, (i + 1) * room - PANE_GAP]
        chart.update_layout({f"xaxis{name}": {**axis, "title": label, "domain": domain, "tickformat": "d"}})
    return chart


def _short(name: str) -> str:
    """Return the end of a dotted name, which tells blocks apart, short enough for a phone.

    >>> _short("core.0"), _short("transformer.core_block.3"), _short("transformer.h.3")
    ('core.0', '…core_block.3', '…h.3')
    """
    kept = name
    while len(kept) > NAME_LENGTH and "." in kept:
        kept = kept.partition(".")[2]
    return kept if kept == name else "…" + kept[-NAME_LENGTH:]


def _frame_of(shown: Columns, what: str, counted: str, *, x: str, revision: str) -> go.Figure:
    """Return a figure without cells; a phone may cut the end of its subtitle."""
    if np.isinf(shown.values).any():
        what += " · red: not finite"
    if shown.per_column > 1:
        what += f" · largest of {shown.per_column:,} {counted} each"
    chart = figure(x=x, y="loop t", subtitle=what, legend=False, revision=revision)
    headroom(chart, LINE + 8)  # for the colour bar
    return chart.update_layout(plot_bgcolor=colours.tint(colours.INK, 0.12))  # not recorded: a pane, not a colour


def _log_colours(chart: go.Figure, values: Array, symbol: str) -> None:
    """Give a figure colours for powers of ten."""
    chart.update_layout(coloraxis={"colorscale": HEAT, "colorbar": _power_bar(_power(values), symbol)})


def _add_cells(
    chart: go.Figure, x: Array, values: Array, rows: Sequence[str] | None, where: str, symbol: str, **axes: str
) -> None:
    """Draw ``values`` (rows, columns) in powers of ten, and in red what is not finite."""
    y = None if rows is None else list(rows)
    chart.add_trace(
        go.Heatmap(
            x=x,
            y=y,
            z=_power(values).astype(np.float32),
            coloraxis="coloraxis",
            name="",
            hovertemplate=f"{where}<br>{symbol} = 10<sup>%{{z:.2f}}</sup>",
            **axes,
        )
    )
    broken = np.isinf(values)
    if broken.any():
        red = colours.REGIME_COLOURS["unstable"]
        chart.add_trace(
            go.Heatmap(
                x=x,
                y=y,
                z=np.where(broken, 1.0, np.nan).astype(np.float32),
                colorscale=[[0, red], [1, red]],
                showscale=False,
                name="not finite",
                hovertemplate=f"{where}<br>not finite<extra></extra>",
                **axes,
            )
        )


def _power(values: Array) -> Array:
    """Return log10 of what has one, NaN for the rest."""
    return np.log10(np.where(np.isfinite(values) & (values > 0), values, np.nan))


def _bar(symbol: str) -> dict[str, Any]:
    """Return a flat colour bar above the plot, so that all plots have the same width."""
    return {
        "orientation": "h",
        "thickness": 8,
        "outlinewidth": 0,
        "ticklen": 2,
        "tickfont": {"size": 10},
        "tickangle": 0,
        "title": {"text": f"{symbol}{GAP}", "side": "right", "font": {"size": 11}},
        "x": 1,
        "xanchor": "right",
        "y": 1,
        "yanchor": "bottom",
        "ypad": 2,
        "len": 0.65,  # the symbol beside it is part of it
    }


def _power_bar(power: Array, symbol: str) -> dict[str, Any]:
    """Return the colour bar of log10 values."""
    seen = power[np.isfinite(power)]
    if seen.size == 0:
        return _bar(symbol)
    at, labels = _power_ticks(float(seen.min()), float(seen.max()))
    return _bar(symbol) | {"tickvals": at, "ticktext": labels}


def _power_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Return a few places between two log10 values and their labels: powers of ten where at least three fit, else less
    round ones. At most `TICKS`, for more run into one another on a phone.

    >>> _power_ticks(0.5, 3.5)
    ([1.0, 2.0, 3.0], ['10', '100', '10<sup>3</sup>'])
    >>> _power_ticks(-0.1, 0.8)[1], _power_ticks(0.30, 0.38)[1]
    (['1', '2', '5'], ['2', '2.19', '2.4'])
    >>> _power_ticks(0.0, 3.4)[1], _power_ticks(-0.1, 1.8)[1]
    (['1', '100', '10<sup>3</sup>'], ['1', '5', '20'])
    """
    at = np.arange(np.ceil(low), np.floor(high) + 1)
    if len(at) < 3:
        at = np.add.outer(np.arange(np.floor(low), np.ceil(high) + 1), np.log10([1, 2, 5])).reshape(-1)
        at = at[(low <= at) & (at <= high)]
    if len(at) < 3:
        at = np.unique(np.linspace(low, high, 3))
    even = at[:: -(-len(at) // TICKS)]
    at = even if len(even) >= 3 else at[np.linspace(0, len(at) - 1, TICKS).round().astype(int)]
    at = np.unique(at)
    return at.tolist(), [_power_label(float(power)) for power in at]


def _power_label(power: float) -> str:
    """Return ten to a power as plotly writes it on axes.

    >>> _power_label(2.0), _power_label(-6.0), _power_label(np.log10(0.25)), _power_label(np.log10(5e-9))
    ('100', '10<sup>−6</sup>', '0.25', '5·10<sup>−9</sup>')
    """
    if -3 < power < 3:
        return f"{10**power:.3g}"
    whole = np.floor(power + 1e-9)  # log10 of a power of ten may be a last digit short
    digits = f"{10 ** (power - whole):.3g}"
    return ("" if digits == "1" else f"{digits}·") + f"10<sup>{whole:.0f}</sup>".replace("-", "−")
