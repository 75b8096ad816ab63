"""Every run in the plane of two numbers, and the paper's table: which architecture survives which learning rate.

Not covered: which numbers runs have (`run_map`), how they are drawn (`map_figures`).
"""

from typing import Any, Final
from urllib.parse import urlencode

import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from ...rules.lead import RISE, WINDOW
from .. import components, map_figures
from ..frame import graph_config
from ..panel import summary
from ..polling import Clock
from ..run_map import FIRST, Place, Survival, label, places, quantities, survival
from ..text import number
from . import Page
from .runs import current_table

POLL_MS: Final = 2000
LISTED: Final = 300
_CLOCK = Clock("map-poll", ("map",))


def layout(x: str = "", y: str = "", **_: Any) -> html.Div:
    """Return the page of two numbers, those of the address or the first ones."""
    table = current_table()
    rows, numbers = table.rows(), table.details("numbers")
    there = quantities(rows, numbers)
    chosen = [_chosen(asked, there, first) for asked, first in ((x, FIRST[0]), (y, FIRST[1]))]
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
            html.Div([html.H1("Map"), html.Span("every run; a click on one opens it", className="ls-dim")],
                     className="ls-title"),
            html.Div(choices, className="ls-choices"),
            html.Section(graph, className="ls-panel"),
            html.Div(drawn[1], id="map-survival"),
            html.Div(drawn[2], id="map-table"),
            dcc.Store(id="map-drawn", data=drawn[3]),
            dcc.Store(id="map-query"),
            dcc.Store(id="map-mirrored"),
            *_CLOCK.parts(POLL_MS),
        ]
    )  # fmt: skip


def _chosen(asked: str, there: list[str], first: str) -> str:
    """Return the number asked for where there is one, else the first one."""
    return asked if asked in there else first if first in there or not there else there[0]


def _choice(axis: str, value: str, there: list[str]) -> dcc.Dropdown:
    """Return the choice of a number."""
    options: Any = [{"label": label(name), "value": name} for name in dict.fromkeys([*there, value])]
    return dcc.Dropdown(id=f"map-{axis}", options=options, value=value, clearable=False)


def _drawn(x: str, y: str) -> tuple[go.Figure, list[Any], list[Any], str]:
    """Return the figure, the two tables, and a text that changes when they do."""
    table = current_table()
    rows, numbers = table.rows(), table.details("numbers")
    placed = places(rows, numbers, x, y)
    chart = map_figures.plane(placed, label(x), label(y))
    chart.update_layout(meta={"summary": f"Map of runs. {summary(chart)}"})
    told = survival(rows, numbers)
    return chart, _survival(told), _listed(placed, len(rows), x, y), str(hash((x, y, tuple(placed), str(told))))


def _survival(told: Survival) -> list[Any]:
    """Return the table of what came to a good end; nothing without a run that says."""
    if not told.rates:
        return []
    rows = [
        (name, *[_ended(*cell) for cell in line]) for name, line in zip(told.architectures, told.counts, strict=True)
    ]
    table = components.rows_table(("architecture", *[f"lr {rate:g}" for rate in told.rates]), rows)
    meaning = (
        f"Runs that converged, of all runs. Converged: at the end the mean loss over {WINDOW} steps is finite, and not "
        f"more than {RISE:.0%} above its lowest; an unstable run may have come back."
    )
    body = [html.H2("Which learning rate does each architecture survive?"), html.P(meaning, className="ls-dim")]
    return [html.Section([*body, html.Div(table, className="ls-scroll")], className="ls-card")]


def _ended(good: int, count: int, unstable: int) -> Any:
    """Return one cell: how many runs converged, and how many are unstable all the same."""
    if not count:
        return "–"
    kind, glyph = ("stable", "✓") if good == count else ("unstable", "✗") if not good else ("marginal", "◆")
    ended = components.badge(kind, glyph, f"{good} of {count}")
    if not unstable:
        return ended
    return html.Span([ended, " ", components.badge("unstable", "▲", f"{unstable} unstable")], className="ls-badges")


def _listed(placed: list[Place], count: int, x: str, y: str) -> list[Any]:
    """Return the table of the runs that are drawn."""
    rows = [
        (dcc.Link(one.name, href=one.href), components.regime_badge(one.regime), number(one.x), number(one.y))
        for one in sorted(placed, key=lambda one: (one.x, one.y))[:LISTED]
    ]
    more = f"{len(placed)} of {count} runs have both numbers" + (
        f"; the first {LISTED}" if len(placed) > LISTED else ""
    )
    body: list[Any] = [html.H2("Runs on the map"), html.P(f"{more}.", className="ls-dim")]
    if rows:
        named = ("run", "regime", label(x), label(y))
        body.append(html.Div(components.rows_table(named, rows), className="ls-scroll"))
    return [html.Section(body, className="ls-card")]


def register(app: Dash) -> None:
    """Add the callbacks of this page."""
    _CLOCK.register(app)

    @app.callback(
        Output("map", "figure"),
        Output("map-survival", "children"),
        Output("map-table", "children"),
        Output("map-drawn", "data"),
        Output("map-x", "options"),
        Output("map-y", "options"),
        Output("map-query", "data"),
        _CLOCK.answered("map"),
        _CLOCK.tick,
        Input("map-x", "value"),
        Input("map-y", "value"),
        State("map-drawn", "data"),
        prevent_initial_call=True,
    )
    def draw(asked: int, x: str, y: str, before: str) -> list[Any]:
        """Draw the map of other numbers, or of runs that were read meanwhile."""
        table = current_table()
        there = quantities(table.rows(), table.details("numbers"))
        drawn = _drawn(str(x), str(y))
        if drawn[3] == before:
            return [*[no_update] * 7, asked]
        options = [{"label": label(name), "value": name} for name in dict.fromkeys([*there, str(x), str(y)])]
        return [*drawn, options, options, "?" + urlencode({"x": x, "y": y}), asked]

    app.clientside_callback(
        ClientsideFunction("loopscope", "address"), Output("map-mirrored", "data"), Input("map-query", "data")
    )
    app.clientside_callback(
        ClientsideFunction("loopscope", "follow_mark"),
        Output("map-mirrored", "data", allow_duplicate=True),
        Input("map", "clickData"),
        prevent_initial_call=True,
    )


PAGE = Page("map", "/map", "Map · loopscope", layout, register, link="Map", place=20)
