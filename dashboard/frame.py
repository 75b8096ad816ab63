"""What all figures share: margins, fonts, axes, the cursor of the selected step, and the text of an empty plot.

Figures have transparent backgrounds and neutral inks; the page's style sheet sets the text colour of the theme, so that
switching between dark and light needs no new figure.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from .colours import GRID, INK, REGIME_COLOURS
from .downsample import View

# `showSendToCloud`, `plotlyServerURL`: plotly.js 4 otherwise offers a "Share chart" button that leaves the machine.
# `doubleClick`: plots of steps share their range, so "back to the range drawn first" would be a surprise.
_CONFIG: Final[dict[str, Any]] = {
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "displaylogo": False,
    "showTips": False,  # its note on double-clicks covers the header; "reset zoom" is always on the page
    "doubleClick": "autosize",
    "responsive": True,
    "displayModeBar": False,  # its buttons are in the panel's own menu, in words
}

LEFT: Final = 62  # pixels left and right of every plot
RIGHT: Final = 16
MARKS_SHOWN: Final = 400  # of one kind: more are closer than a pixel or two
LINE: Final = 20  # pixels that a line of text takes above a plot

FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


def graph_config() -> Any:
    """Return the configuration of every graph: no button that talks to a server, no logo."""
    return dict(_CONFIG)


_traces_only: Final[ContextVar[bool]] = ContextVar("traces only", default=False)


@contextmanager
def traces_only() -> Iterator[None]:
    """Let figures be made without their layout, in this thread: nine tenths of their time, and a tail needs none."""
    token = _traces_only.set(True)
    try:
        yield
    finally:
        _traces_only.reset(token)


class Traces:
    """What stands for a figure of which only the traces count: it takes every change of a layout, and makes none."""

    def __init__(self) -> None:
        self.data: Sequence[Any] = ()
        self.layout: Any = _Nothing()

    def add_trace(self, trace: Any) -> "Traces":
        """Take a trace."""
        self.data = (*self.data, trace)
        return self

    def __getattr__(self, name: str) -> Any:
        """Return what takes a change of the layout."""
        if not name.startswith(("add_", "update_")):
            raise AttributeError(name)
        return lambda *_, **__: self


class _Nothing:
    """A layout that is empty whatever is set in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __bool__(self) -> bool:
        return False

    def __add__(self, other: Any) -> "_Nothing":
        return self


def figure(*, x: str, y: str, subtitle: str = "", legend: bool = True, revision: str = "") -> Any:
    """Return an empty figure with this project's margins, fonts and axes; its title stands above it, in the page.

    The margins are those of every figure, so that plots over steps below each other have their steps below each other.

    Args:
        x: Name and unit of the horizontal axis.
        y: Name and unit of the vertical axis.
        subtitle: Which part of it: the step, or what one mark stands for.
        legend: Whether a line is kept free for the legend.
        revision: Zoom and legend choices of the reader survive a redraw as long as this stays the same.
    """
    if _traces_only.get():
        return Traces()
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "ticks": "outside",
        "tickcolor": GRID,
        "ticklen": 4,
        "exponentformat": "power",
        "tickfont": {"size": 11},
        "automargin": False,  # plots over steps below each other must begin at the same pixel
    }
    layout: dict[str, Any] = {
        "template": go.layout.Template(),  # plotly's own is seven kilobytes a figure
        "font": {"family": FONT, "size": 12, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": LEFT, "r": RIGHT, "t": 8 + LINE * legend + LINE * bool(subtitle), "b": 40},
        "xaxis": {**axis, "title": {"text": x, "standoff": 4, "font": {"size": 12}}},
        "yaxis": {**axis, "title": {"text": y, "standoff": 4, "font": {"size": 12}}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.01,
            "yanchor": "bottom",
            "bgcolor": "rgba(0,0,0,0)",
        },
        "showlegend": legend,
        "hovermode": "closest",
        "uirevision": revision,
        "separators": ".,",
    }
    chart = go.Figure(layout=layout)
    if subtitle:  # a title of plotly's gives way to colour bars, upwards and out of sight
        chart.add_annotation(
            name="subtitle", text=subtitle, showarrow=False, font={"size": 12}, xref="paper", x=0, xanchor="left",
            yref="paper", y=1, yanchor="bottom", yshift=chart.layout.margin.t - LINE,
        )  # fmt: skip
    return chart


def headroom(chart: go.Figure, pixels: float) -> go.Figure:
    """Give a figure more room above its plot, or less; the subtitle stays at the top, above legend and colour bar."""
    chart.layout.margin.t += pixels
    for one in chart.layout.annotations:
        if one.name == "subtitle":
            one.yshift += pixels
    return chart


def legend_below(chart: go.Figure, lines: int = 2) -> go.Figure:
    """Put the legend of a figure made without a line for it below the axis.

    A legend that breaks into lines grows upwards, over a subtitle that stands above the plot.

    Args:
        chart: The figure.
        lines: Lines that are kept free for it.
    """
    chart.layout.margin.b += LINE * lines
    for one in chart.layout.annotations:
        if one.name == "subtitle":
            one.xshift = 12 - LEFT  # a phone has no room for it right of the axis
    place = {"xref": "container", "x": 0.02, "yref": "container", "y": 0, "yanchor": "bottom"}
    return chart.update_layout(showlegend=True, legend=place)


def over_steps(chart: go.Figure, view: View, selected: float | None, span: View = None) -> go.Figure:
    """Turn ``chart``, otherwise ready, into a plot over training steps: shared range, cursor at the selected step.

    The cursor is always ``layout.shapes[0]``, so that moving it is a patch of three numbers.

    Args:
        chart: The figure.
        view: Visible range of steps, or None for everything.
        selected: Step of the cursor, or None.
        span: First and last step of the run: what everything is, the same for all plots.
    """
    chart.update_xaxes(exponentformat="none", separatethousands=True, hoverformat=",d")
    chart.update_xaxes(spikethickness=1, spikecolor=INK, spikedash="solid")  # the line under the pointer
    meta: dict[str, Any] = {"over_steps": True}
    if view is None and span is not None:
        meta["until"] = span[1]
        view = whole_range(span)
    if view is None:
        chart.update_xaxes(autorange=True)
    else:
        chart.update_xaxes(range=list(view), autorange=False)
    chart.update_xaxes(ticklabeloverflow="allow")
    if sum(trace.showlegend is not False for trace in chart.data) <= 1 and chart.layout.showlegend:
        chart.layout.showlegend = False  # the title says it
        headroom(chart, -LINE)
    chart.layout.shapes = [_cursor(selected), *chart.layout.shapes]  # assigned: an update would merge item by item
    chart.layout.meta = meta
    return chart


def whole_range(span: tuple[float, float]) -> tuple[float, float]:
    """Return the range that shows a whole run, from its first to its last step, with some room.

    >>> whole_range((0.0, 1000.0))
    (-12.0, 1012.0)
    """
    room = max(0.012 * (span[1] - span[0]), 0.5)
    return span[0] - room, span[1] + room


def _cursor(selected: float | None) -> dict[str, Any]:
    """Return the vertical line at the selected step, hidden when none is selected."""
    return {
        "type": "line",
        "xref": "x",
        "yref": "y domain",
        "x0": selected or 0,
        "x1": selected or 0,
        "y0": 0,
        "y1": 1,
        "visible": selected is not None,
        "line": {"color": INK, "width": 1.5, "dash": "dot"},
    }


def log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Return places on a logarithmic axis that spans two positive numbers, and their labels, each a whole number.

    Plotly's own labels say 2 and 5 for 0.02 and 0.05.

    >>> log_ticks(0.003, 0.05)
    ([0.002, 0.005, 0.01, 0.02, 0.05, 0.1], ['0.002', '0.005', '0.01', '0.02', '0.05', '0.1'])
    >>> log_ticks(1e-9, 1e9)[1]
    ['1e-9', '1e-6', '0.001', '1', '1000', '1e6', '1e9']
    """
    bottom, top = np.floor(np.log10(low)), np.ceil(np.log10(high))
    powers = np.arange(bottom, top + 1)
    if top - bottom <= 3:
        at = np.ravel(np.outer(10.0**powers, [1, 2, 5]))
        at = at[(at >= 0.5 * low) & (at <= 2 * high)]
    else:
        at = 10.0 ** powers[:: int(np.ceil((top - bottom) / 7))]
    return [float(f"{one:.3g}") for one in at], [f"{one:g}".replace("e-0", "e-").replace("e+0", "e") for one in at]


def mark_broken(chart: go.Figure, steps: Any, name: str) -> None:
    """Mark steps whose number was not finite along the top of a plot, whatever its vertical axis is.

    Call it when that axis is ready: the crosses have an axis of their own, which a change of all axes would move.

    Args:
        chart: A figure over steps.
        steps: The steps ``(n,)``, increasing; of more than `MARKS_SHOWN` some are left out.
        name: What the crosses are called.
    """
    if not len(steps):
        return
    few = len(steps) <= MARKS_SHOWN
    shown = steps if few else steps[np.linspace(0, len(steps) - 1, MARKS_SHOWN).astype(int)]
    chart.add_trace(
        go.Scatter(
            x=shown,
            y=np.full(len(shown), 0.97),
            yaxis="y2",
            name=name,
            mode="markers",
            marker={"color": REGIME_COLOURS["unstable"], "symbol": "x", "size": 8},
            hovertemplate="NaN or infinite",
        )
    )
    own = {"type": "linear", "overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True}
    chart.update_layout(yaxis2=own)


def note(chart: go.Figure, text: str, *, right: bool = False) -> go.Figure:
    """Write a remark into a lower corner of the plot, where lines seldom are: the left one, or the right one."""
    place = {"x": 0.99, "xanchor": "right"} if right else {"x": 0.01}
    return _write(chart, text, y=0.01, size=11, align="left", **place)


def _write(chart: go.Figure, text: str, *, size: int, **place: Any) -> go.Figure:
    """Write text whose lower left corner is at a place of the plot, counted in its width and height."""
    where = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    return chart.add_annotation(text=text, showarrow=False, font={"size": size}, **(where | place))


def empty(reason: str, *, remedy: str = "") -> go.Figure:
    """Return a figure without axes that says why there is nothing to draw: never a blank.

    Args:
        reason: What is missing, one sentence.
        remedy: What makes it appear next time, one sentence.

    >>> empty("No spectrum was recorded.").layout.annotations[0].text
    'No spectrum was recorded.'
    """
    chart = figure(x="", y="", legend=False)
    chart.update_xaxes(visible=False)
    chart.update_yaxes(visible=False)
    chart.update_layout(shapes=[_cursor(None)], meta={"empty": True})  # the page moves the first shape of every plot
    lines = wrap(reason) + wrap(remedy)
    return chart.add_annotation(
        text="<br>".join(lines), xref="paper", yref="paper", x=0.5, y=0.5, showarrow=False, font={"size": 13}
    )


def wrap(text: str, width: int = 44) -> list[str]:
    """Break a sentence into lines that fit a phone, since plotly's annotations do not wrap."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines
