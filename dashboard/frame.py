"""What all figures share: margins, fonts, axes, the cursor of the selected step, and the text of an empty plot.

Figures have transparent backgrounds and neutral inks; the page's style sheet sets the text colour of the theme, so that
switching between dark and light needs no new figure.
"""

import re
from typing import Any, Final

import plotly.graph_objects as go

from .colours import GRID, INK
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
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "resetScale2d"],
}

FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


_PHONE: Final = 286  # pixels that a plot has across on a phone, and what a legend takes of them
_LEGEND_MARK: Final = 42
_LETTER: Final = 6
_LEGEND_LINE: Final = 19


def graph_config() -> Any:
    """Return the configuration of every graph: no button that talks to a server, no logo."""
    return dict(_CONFIG)


def figure(title: str, *, x: str, y: str, subtitle: str = "", legend: bool = True, revision: str = "") -> go.Figure:
    """Return an empty figure with this project's margins, fonts and axes.

    Args:
        title: What is plotted, short enough for a phone; may hold plotly's tags.
        x: Name and unit of the horizontal axis.
        y: Name and unit of the vertical axis.
        subtitle: Which part of it: the step, or what one mark stands for.
        legend: Whether a line is kept free for the legend.
        revision: Zoom and legend choices of the reader survive a redraw as long as this stays the same.
    """
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "ticks": "outside",
        "tickcolor": GRID,
        "ticklen": 4,
        "exponentformat": "power",
        "tickfont": {"size": 11},
        "automargin": True,
    }
    return go.Figure(
        layout={
            "title": {
                "text": title + (f"<br><span style='font-size:12px'>{subtitle}</span>" if subtitle else ""),
                "x": 0,
                "xref": "container",
                "xanchor": "left",
                "y": 1,
                "yref": "container",
                "yanchor": "top",
                "pad": {"t": 24 if subtitle else 12, "l": 12},  # plotly lifts a title of two lines
                "font": {"size": 15},
            },
            "font": {"family": FONT, "size": 12, "color": INK},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 58, "r": 14, "t": 40 + 20 * bool(subtitle) + 26 * legend, "b": 46},
            "xaxis": {**axis, "title": {"text": x, "standoff": 6}},
            "yaxis": {**axis, "title": {"text": y, "standoff": 6}},
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
    )


def legend_room(chart: go.Figure) -> go.Figure:
    """Keep lines free for a legend that wraps on a phone, where it would grow into the title."""
    names = [re.sub("<[^>]*>", "", trace.name or "") for trace in chart.data if trace.showlegend is not False]
    if chart.layout.showlegend and names:
        widths = [_LEGEND_MARK + _LETTER * len(name) for name in names]
        if sum(widths) > _PHONE:  # then plotly sets columns of one width
            lines = -(-len(names) // max(1, int(_PHONE // max(widths))))
            chart.layout.margin.t += _LEGEND_LINE * (lines - 1)
    return chart


def over_steps(chart: go.Figure, view: View, selected: float | None) -> go.Figure:
    """Turn ``chart``, otherwise ready, into a plot over training steps: shared range, cursor at the selected step.

    The cursor is always ``layout.shapes[0]``, so that moving it is a patch of three numbers.
    """
    chart.update_xaxes(exponentformat="none", separatethousands=True, hoverformat=",d")
    chart.update_xaxes(spikethickness=1, spikecolor=INK, spikedash="solid")  # the line under the pointer
    if view is None:
        chart.update_xaxes(autorange=True)
    else:
        chart.update_xaxes(range=list(view), autorange=False)
    chart.layout.shapes = [_cursor(selected), *chart.layout.shapes]  # assigned: an update would merge item by item
    return legend_room(chart)


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


def note(chart: go.Figure, text: str) -> go.Figure:
    """Write a remark into the lower left corner of the plot, where lines seldom are."""
    return chart.add_annotation(
        text=text,
        xref="paper",
        yref="paper",
        x=0.01,
        y=0.01,
        xanchor="left",
        yanchor="bottom",
        align="left",
        showarrow=False,
        font={"size": 11},
    )


def empty(title: str, reason: str, *, remedy: str = "") -> go.Figure:
    """Return a figure without axes that says why there is nothing to draw: never a blank.

    Args:
        title: The title the figure would have had.
        reason: What is missing, one sentence.
        remedy: What makes it appear next time, one sentence.

    >>> empty("Spectrum", "No spectrum was recorded.").layout.annotations[0].text
    'No spectrum was recorded.'
    """
    chart = figure(title, x="", y="")
    chart.update_xaxes(visible=False)
    chart.update_yaxes(visible=False)
    chart.update_layout(shapes=[_cursor(None)])  # the page moves the first shape of every plot
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
