"""How the figures of the documentation look, and how they become SVG files.

Ink and grid read on light and dark pages; regimes have the dashboard's colours. Chromium draws, through playwright.

Not covered: interactive figures (the dashboard), and pages narrower than a figure.
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

import numpy as np
import plotly.graph_objects as go
from loopscope.dashboard.colours import GRID, INK
from loopscope.dashboard.frame import FONT
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

Floats = NDArray[np.float64]
WIDTH, PLOT = 820, 280  # pixels: a figure, and the height of its panels
ROW, BELOW = 19, 54  # pixels: a line of a legend, and the room for the horizontal axis
LOG_TICKS = 10  # plotly enlarges powers of ten by a quarter
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def panels(titles: list[str], axes: list[str], *, legend: int) -> go.Figure:
    """Return an empty figure of panels side by side, each with a title, room for some legend lines, and its x axis."""
    chart = make_subplots(1, len(titles), subplot_titles=titles, horizontal_spacing=0.42 / (len(titles) + 1))
    top = 46 + ROW * legend
    style(chart, height=PLOT + top, top=top)
    for column, axis in enumerate(axes, start=1):
        chart.update_xaxes(title_text=axis, title_standoff=6, col=column)
        left = chart.layout[f"xaxis{column if column > 1 else ''}"].domain[0]
        place = {"x": left, "xanchor": "left", "y": 1 + (ROW * legend + 12) / (PLOT - BELOW), "yanchor": "top"}
        chart.layout[legend_of(column)] = {**place, "bgcolor": "rgba(0,0,0,0)", "font": {"size": 12}}
        chart.layout.annotations[column - 1].update(x=left, xanchor="left", y=1 + (ROW * legend + 18) / (PLOT - BELOW))
    return chart


def legend_of(column: int) -> str:
    """Return plotly's name of a panel's legend."""
    return "legend" if column == 1 else f"legend{column}"


def style(chart: go.Figure, *, height: int, top: int) -> None:
    """Use ink that reads on light and dark pages, and a transparent ground."""
    chart.update_layout(
        width=WIDTH,
        height=height,
        margin={"l": 66, "r": 16, "t": top, "b": BELOW},
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    chart.update_annotations(font_size=14, yanchor="bottom")
    lines = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": INK, "tickcolor": INK}
    for update in (chart.update_xaxes, chart.update_yaxes):
        update(**lines, showline=True, ticks="outside", ticklen=4, zeroline=False, tickfont_size=12, title_font_size=13)


def note(anchor: str) -> dict[str, object]:
    """Return the options of a small text inside a panel."""
    return {"showarrow": False, "xanchor": anchor, "yanchor": "middle", "font": {"size": 12, "color": INK}}


def columns(points: Iterable[tuple[float, float]]) -> tuple[Floats, Floats]:
    """Return the pairs as two arrays."""
    first, second = np.array(list(points), np.float64).T
    return first, second


def add_line(
    chart: go.Figure, column: int, x: object, y: object, name: str, colour: str, *, dash: str = "solid",
    width: float = 2, legend: bool = True, row: int = 1,
) -> None:  # fmt: skip
    """Add one line to a panel."""
    line = {"color": colour, "width": width, "dash": dash}
    chart.add_scatter(x=x, y=y, mode="lines", name=name, line=line, showlegend=legend, legend=legend_of(column),
                      row=row, col=column)  # fmt: skip


def add_dots(chart: go.Figure, column: int, x: object, y: object, name: str, colour: str, *, size: float) -> None:
    """Add dots to a panel."""
    marker = {"color": colour, "size": size}
    chart.add_scatter(x=x, y=y, mode="markers", name=name, marker=marker, legend=legend_of(column), row=1, col=column)


def as_svg(figures: Mapping[str, go.Figure]) -> dict[str, str]:
    """Return the SVG texts, drawn by plotly in a browser that talks to nobody."""
    from playwright.sync_api import sync_playwright

    browser_path = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if browser_path is None:
        raise SystemExit("make_figures: needs chromium (apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page()
        page.set_content("<html><body></body></html>")
        page.add_script_tag(content=get_plotlyjs())
        draw = "figure => Plotly.toImage(JSON.parse(figure), {format: 'svg'})"
        addresses = {name: str(page.evaluate(draw, chart.to_json())) for name, chart in figures.items()}
        browser.close()
    return {name: _settled(_decoded(address), name) for name, address in addresses.items()}


def _settled(text: str, name: str) -> str:
    """Return the text without plotly's random identifiers, so that the same figure is the same file."""
    (figure,) = re.findall(r'id="defs-(\w+)"', text)
    text = re.sub(r"\btrace[0-9a-f]{6}\b", "", text.replace(figure, name))
    for number, clip in enumerate(re.findall(r'id="clip([0-9a-f]{6})"', text)):
        text = text.replace(clip, f"{name}{number}")
    return re.sub(r"(?<![-\w])(?:fill-|stroke-)?opacity: 1;\s?", "", text)  # what every SVG has without a word


def _decoded(address: str) -> str:
    """Return the text inside a data address."""
    head, _, body = address.partition(",")
    return base64.b64decode(body).decode() if head.endswith("base64") else unquote(body)
