"""The first page: every run in one table, broken ones included, refreshed while runs appear and grow."""

from collections import Counter
from typing import Any

import dash_ag_grid as dag
import dash_mantine_components as dmc
from dash import ClientsideFunction, Dash, Input, Output, State, html, no_update

from .. import components, summary
from ..colours import REGIME_COLOURS
from ..index import current_index
from ..polling import Clock
from . import Page

POLL_MS = 2000
_CLOCK = Clock("runs-poll", ("rows",))

_NUMBER = {"function": "lsNumber(params.value)"}
_COUNT = {"function": "lsCount(params.value)"}
_BADGE = {"cellRenderer": "LsRegime", "comparator": {"function": "lsRegimeOrder"}, "width": 114}
_RIGHT = {"type": "rightAligned", "valueFormatter": _NUMBER}
_REGIMES = 8  # columns that the error of a broken run takes up: from the linear part to the first breach
_FAULT = {"function": f"params.data.fault ? {_REGIMES} : 1"}
_COLUMNS: list[dict[str, Any]] = [
    {"field": "name", "headerName": "run", "cellRenderer": "LsRun", "minWidth": 120, "flex": 4},
    {"field": "verdict", "headerName": "verdict", **_BADGE, "hide": True, "width": 126, "resizable": False},
    {"field": "lti", "headerName": "linear part", **_BADGE, "colSpan": _FAULT},
    {"field": "loop", "headerName": "full loop", **_BADGE},
    {"field": "trajectory", "headerName": "trajectory", **_BADGE},
    {"field": "steps", "headerName": "steps", "width": 80, **_RIGHT, "valueFormatter": _COUNT},
    {"field": "loss", "headerName": "last loss", "width": 94, **_RIGHT},
    {"field": "radius", "headerName": "ρ(A̅)", "width": 84, **_RIGHT},
    {"field": "state_norm", "headerName": "state norm", "width": 104, **_RIGHT},
    {"field": "breach", "headerName": "first breach", "minWidth": 130, "flex": 5, "tooltipField": "breach"},
    {"field": "state", "headerName": "state", "cellRenderer": "LsState", "width": 126, "resizable": False},
]

_THEME = (
    "themeQuartz.withParams({backgroundColor: 'var(--ls-card)', foregroundColor: 'var(--ls-ink)', "
    "borderColor: 'var(--ls-edge)', headerTextColor: 'var(--ls-dim)', headerBackgroundColor: 'var(--ls-card)', "
    "chromeBackgroundColor: 'var(--ls-card)', accentColor: 'var(--ls-accent)', browserColorScheme: 'inherit', "
    "fontFamily: 'inherit', headerFontWeight: 500, cellHorizontalPaddingScale: 0.75, wrapperBorderRadius: 10, "
    "tooltipBackgroundColor: 'var(--ls-card)'})"
)


def layout(**_: Any) -> html.Div:
    """Return the page with the rows of this moment."""
    rows = summary.rows(current_index())
    search = dmc.TextInput(id="search", placeholder="Search runs", size="sm", className="ls-search", debounce=False)
    badges = html.Div(tally(rows), id="tally", className="ls-badges")
    toolbar = html.Div([html.H1("Runs"), badges, search], className="ls-toolbar ls-title")
    grid = dag.AgGrid(
        id="runs",
        rowData=rows,
        columnDefs=_COLUMNS,
        getRowId="params.data.id",
        defaultColDef={"sortable": True, "resizable": True, "suppressMovable": True},
        dashGridOptions={
            "theme": {"function": _THEME},
            "rowSelection": {"mode": "singleRow", "checkboxes": False, "enableClickSelection": True},
            "animateRows": False,
            "rowHeight": 42,
            "localeText": {"noRowsToShow": "No run file here yet: a run appears as soon as a probe writes it."},
        },
        className="ls-table",
        style=_style(rows),
    )
    return html.Div([toolbar, grid, *_CLOCK.parts(POLL_MS)])


def _style(rows: list[summary.Row]) -> dict[str, str]:
    """Return a height that holds all rows, the window permitting: the grid draws only what is in view."""
    return {"height": f"min(100dvh - var(--ls-above-table), {51 + 42 * max(len(rows), 3)}px)"}


def tally(rows: list[summary.Row]) -> list[Any]:
    """Return how many runs there are of each verdict, and how many cannot be read."""
    verdicts = Counter(row["verdict"] for row in rows)
    badges = [_count(verdicts[regime], components.regime_badge(regime)) for regime in REGIME_COLOURS]
    broken = sum(row["state"] == "unreadable" for row in rows)
    badges.append(_count(broken, components.state_badge("unreadable")))
    return [badge for badge in badges if badge is not None]


def _count(count: int, badge: html.Span) -> html.Span | None:
    """Return a badge with a count before its word, None for a count of zero."""
    if count == 0:
        return None
    badge.children[1].children.insert(0, f"{count} ")
    return badge


def register(app: Dash) -> None:
    """Add the callbacks of this page."""
    _CLOCK.register(app)

    @app.callback(
        Output("runs", "rowData"),
        Output("tally", "children"),
        Output("runs", "style"),
        _CLOCK.answered("rows"),
        _CLOCK.tick,
        State("runs", "rowData"),
        prevent_initial_call=True,
    )
    def poll(asked: int, shown: list[summary.Row] | None) -> list[Any]:
        """Replace the rows when anything changed."""
        rows = summary.rows(current_index())
        changed = [no_update] * 3 if rows == shown else [rows, tally(rows), _style(rows)]
        return [*changed, asked]

    app.clientside_callback(
        ClientsideFunction("loopscope", "fit_columns"), Output("runs", "className"), Input("runs", "id")
    )
    app.clientside_callback(
        ClientsideFunction("loopscope", "open_row"),
        Output("address", "pathname"),
        Input("runs", "selectedRows"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("loopscope", "search"),
        Output("runs", "dashGridOptions"),
        Input("search", "value"),
        State("runs", "dashGridOptions"),
        prevent_initial_call=True,
    )


PAGE = Page("runs", "/", "Runs · loopscope", layout, register, link="Runs", place=10)
