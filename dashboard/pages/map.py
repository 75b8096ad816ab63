"""Every run in the plane of two numbers, and the paper's table: which architecture survives which learning rate.

Not covered: which numbers runs have (`run_map`), how they are drawn (`map_figures`).
"""

from collections.abc import Collection
from typing import Any, Final
from urllib.parse import urlencode

import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from ...rules.lead import RISE, WINDOW
from .. import components, glossary, map_figures
from ..frame import graph_config
from ..panel import summary
from ..polling import Clock
from ..run_map import (
    FIRST,
    RADII,
    Cell,
    Place,
    Survival,
    edges,
    in_words,
    label,
    places,
    quantities,
    quantity,
    survival,
)
from ..text import number, shown
from . import Page
from .runs import current_table

POLL_MS: Final = 2000
LISTED: Final = 300
HINT: Final = "Every run. Click one to open it; draw a box around some to list only them."
BY_DESIGN: Final = f"addition keeps ρ(A̅) = 1 whatever it learns. Marginal: {glossary.WORDS['marginal']}"
_CLOCK = Clock("map-poll", ("map",))


def layout(x: str = "", y: str = "", **_: Any) -> html.Div:
    """Return the page of two numbers, those of the address or the first ones."""
    table = current_table()
    rows, numbers = table.rows(), table.details("numbers")
    there = quantities(rows, numbers)
    known = None if table.reading else there  # what the address asks for may come yet
    chosen = [_chosen(asked, there, known, first) for asked, first in ((x, FIRST[0]), (y, _upwards(there)))]
    drawn = _drawn(*chosen)
    choices = [
        html.Div([html.Label(words, htmlFor=f"map-{axis}"), _choice(axis, value, there)], className="ls-map-choice")
        for axis, words, value in zip("xy", ("across", "upwards"), chosen, strict=True)
    ]
    graph = dcc.Graph(
        id="map", figure=drawn[0], config=graph_config(), responsive=True, style={"height": "min(62dvh, 560px)"}
    )
    return html.Div(
        [
            html.Div(
                [html.H1("Map"), html.Span(HINT, className="ls-dim"), components.terms(glossary.REGIMES)],
                className="ls-title",
            ),
            html.Div(choices, className="ls-choices"),
            html.Section(graph, className="ls-panel"),
            html.Div(drawn[1], id="map-survival"),
            html.Div(drawn[2], id="map-table"),
            dcc.Store(id="map-brushed", data=[]),
            dcc.Store(id="map-drawn", data=drawn[3]),
            dcc.Store(id="map-query"),
            dcc.Store(id="map-mirrored"),
            *_CLOCK.parts(POLL_MS),
        ]
    )  # fmt: skip


def _upwards(there: list[str]) -> str:
    """Return what is drawn upwards first: the first of `FIRST` that a run has."""
    return next((name for name in FIRST[1] if name in there), FIRST[1][0])


def _chosen(asked: str, there: list[str], known: list[str] | None, first: str) -> str:
    """Return the number asked for where there may be one, else the first one; ``known`` is None while runs are read."""
    if asked and (known is None or asked in known):
        return shown(asked, 120)
    return first if first in there or not there else there[0]


def _choice(axis: str, value: str, there: list[str]) -> dcc.Dropdown:
    """Return the choice of a number."""
    options: Any = [{"label": label(name), "value": name} for name in dict.fromkeys([*there, value])]
    return dcc.Dropdown(id=f"map-{axis}", options=options, value=value, clearable=False)


def _drawn(x: str, y: str) -> tuple[go.Figure, list[Any], list[Any], str]:
    """Return the figure, the two tables, and a text that changes when they do."""
    table = current_table()
    rows, numbers = table.rows(), table.details("numbers")
    placed = places(rows, numbers, x, y)
    boundaries = edges(placed)
    chart = map_figures.plane(placed, label(x), label(y), boundaries, radius=quantity(y) in RADII)
    chart.update_layout(
        meta={"summary": f"Map of runs. {summary(chart)}. {' '.join(in_words(one, x) for one in boundaries)}"}
    )
    told = survival(rows, numbers)
    words = [in_words(one, x) for one in boundaries]
    version = str(hash((x, y, tuple(placed), str(told), table.reading)))
    return chart, _survival(told, words), _listed(placed, len(rows), x, y, (), table.still), version


def _survival(told: Survival, words: list[str]) -> list[Any]:
    """Return the table of what came to a good end; nothing without a run that says."""
    if not told.rates and not words:
        return []
    parts: list[Any] = [html.H2("Learning rate × architecture: converged?")]
    parts += [html.P([html.I("▲", className="ls-glyph"), one], className="ls-unstable") for one in words]
    if told.rates:
        rows = [
            (name, *[_ended(cell) for cell in line]) for name, line in zip(told.architectures, told.cells, strict=True)
        ]
        meaning = (
            f"Each cell counts the runs that ended, as a rule one for each seed. Converged is about the loss alone: "
            f"at the end its mean over {WINDOW} steps is finite, and not more than {RISE:.0%} above its lowest. A "
            "loop can be unstable while its loss has come back: such a cell says both."
        )
        head = ("architecture", *[f"lr {rate:g}" for rate in told.rates])
        parts += [html.P(meaning, className="ls-dim"), components.rows_table(head, rows, wide=True)]
    return [html.Section(parts, className="ls-card")]


def _ended(cell: Cell) -> Any:
    """Return one cell, which makes one statement; below it which seeds did not converge, and what the gate says."""
    if not cell.count:
        return "–"
    whole, none = cell.converged == cell.count, not cell.converged
    kind, glyph = ("stable", "✓") if whole else ("unstable", "✗") if none else ("marginal", "◆")
    below = [
        f"not {'seed' if len(cell.lost_seeds) == 1 else 'seeds'} {', '.join(f'{seed:g}' for seed in cell.lost_seeds)}"
        if cell.lost_seeds and not none
        else "",
        f"{cell.failing} fail the gate" if cell.failing > 1 else "1 fails the gate" if cell.failing else "",
    ]
    words = f"{cell.converged} of {cell.count} converged"
    if cell.unstable:
        kind, glyph = "unstable", "▲"
        words = f"{cell.unstable} of {cell.count} unstable, loss of {cell.converged} converged"
    said = components.badge(kind, glyph, words)
    return [said, *[html.Div(words, className="ls-dim") for words in below if words]]


def _listed(placed: list[Place], count: int, x: str, y: str, brushed: Collection[str], still: str = "") -> list[Any]:
    """Return the table of the runs that are drawn, or of those in the box; ``still`` says which are being read."""
    chosen = [one for one in placed if not brushed or one.href in brushed]
    rows = [
        (
            dcc.Link(one.name, href=one.href),
            [components.badge("marginal", "◇", "marginal by design", tip=BY_DESIGN) if one.by_design
             else components.regime_badge(one.regime), *_failing(one)],
            number(one.x),
            number(one.y),
        )
        for one in sorted(chosen, key=lambda one: (one.x, one.y))[:LISTED]
    ]  # fmt: skip
    more = f"{len(placed)} of {count} runs have both numbers" + (
        f"; the first {LISTED}" if len(chosen) > LISTED else ""
    )
    body: list[Any] = [html.H2("Runs on the map"), html.P(f"{more}.{still}", className="ls-dim")]
    if brushed:
        every = html.Button("all runs", id="map-all", className="ls-link")
        body[1] = html.P([f"{len(chosen)} in the box of {len(placed)} on the map. ", every], role="status")
    if rows:
        named = ("run", "regime", label(x), label(y))
        body.append(components.rows_table(named, rows))
    return [html.Section(body, className="ls-card")]


def _failing(one: Place) -> list[Any]:
    """Return which variables of a run fail."""
    return [html.Span(f" {shown(one.failing, 80)}", className="ls-failing-words")] if one.failing else []


def register(app: Dash) -> None:
    """Add the callbacks of this page."""
    _CLOCK.register(app)

    @app.callback(
        Output("map", "figure"),
        Output("map-survival", "children"),
        Output("map-drawn", "data"),
        Output("map-x", "options"),
        Output("map-y", "options"),
        Output("map-y", "value"),
        Output("map-query", "data"),
        _CLOCK.answered("map"),
        _CLOCK.tick,
        Input("map-x", "value"),
        Input("map-y", "value"),
        State("map-drawn", "data"),
        prevent_initial_call=True,
    )
    def draw(asked: int, x: str, y: str, before: str) -> list[Any]:
        """Draw the map of other numbers, or of runs that were read meanwhile; the list below it follows (`listed`)."""
        table = current_table()
        there = quantities(table.rows(), table.details("numbers"))
        if there and str(y) not in there and not table.reading:  # the page was opened before any run was read
            y = _upwards(there)
        chart, survived, _, version = _drawn(str(x), str(y))
        if version == before:
            return [*[no_update] * 7, asked]
        options = [{"label": label(name), "value": name} for name in dict.fromkeys([*there, str(x), str(y)])]
        return [chart, survived, version, options, options, y, "?" + urlencode({"x": x, "y": y}), asked]

    app.clientside_callback(
        ClientsideFunction("loopscope", "address"), Output("map-mirrored", "data"), Input("map-query", "data")
    )

    _register_box(app)


def _register_box(app: Dash) -> None:
    """Add what a click on a run and a box around some do."""

    @app.callback(
        Output("map-table", "children"),
        Input("map-brushed", "data"),
        Input("map-drawn", "data"),
        State("map-x", "value"),
        State("map-y", "value"),
        prevent_initial_call=True,
    )
    def listed(brushed: list[str] | None, _: str, x: str, y: str) -> list[Any]:
        """List the runs of a new map, of those in the box only."""
        table = current_table()
        rows = table.rows()
        placed = places(rows, table.details("numbers"), str(x), str(y))
        return _listed(placed, len(rows), str(x), str(y), brushed or (), table.still)

    app.clientside_callback(
        ClientsideFunction("loopscope", "follow_mark"),
        Output("map-mirrored", "data", allow_duplicate=True),
        Input("map", "clickData"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("loopscope", "brushed"),
        Output("map-brushed", "data"),
        Input("map", "selectedData"),
        State("map-brushed", "data"),
        prevent_initial_call=True,
    )


PAGE = Page("map", "/map", "Map · loopscope", layout, register, link="Map", place=20)
