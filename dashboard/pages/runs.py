"""The first page: every run in one table, broken ones included, refreshed while runs appear and grow.

The rows come at once; verdicts come as they are read. What is filtered, sorted, ticked and shown is decided in the
browser and kept in the address (`assets/runs.js`).

Not covered: what a row says (`summary`).
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import dash_ag_grid as dag
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update
from flask import current_app

from .. import components, glossary
from ..colours import REGIME_COLOURS
from ..index import RunIndex, current_index
from ..polling import Clock
from ..row_cells import Row
from ..rule_choice import BUILT_IN, choice_for
from ..summary import RunTable, default_cache
from . import Page

POLL_MS: Final = 2000
READING_MS: Final = 500  # between two looks while rows are being filled in
TABLE_KEY: Final = "LOOPSCOPE_TABLE"
_CLOCK = Clock("runs-poll", ("rows",))

_NUMBER = {"function": "lsNumber(params.value)"}
_RIGHT: dict[str, Any] = {"type": "rightAligned", "valueFormatter": _NUMBER, "width": 92}
_COUNT = {**_RIGHT, "valueFormatter": {"function": "lsCount(params.value)"}}
_SIZE = {"function": "lsSize(params.value)"}
_TIME = {"cellRenderer": "LsAgo", "width": 86}

COLUMNS: Final[tuple[dict[str, Any], ...]] = (
    {"field": "attention", "headerName": "attention", "hide": True, "sort": "asc", "sortIndex": 0},
    {"field": "verdict", "headerName": "verdict", "cellRenderer": "LsVerdict", "width": 136,
     "comparator": {"function": "lsRegimeOrder"}, "colSpan": {"function": "lsSpan(params)"}},
    {"field": "gate", "headerName": "gate", "cellRenderer": "LsGate", "width": 76,
     "comparator": {"function": "lsGateOrder"}},
    {"field": "name", "headerName": "run", "cellRenderer": "LsRun", "minWidth": 116, "flex": 5},
    {"field": "variable", "headerName": "variable that fails", "cellRenderer": "LsVariable", "minWidth": 148,
     "flex": 3},
    {"field": "injection", "headerName": "injection", "width": 106},
    {"field": "norm", "headerName": "norm", "width": 78},
    {"field": "width", "headerName": "width", **_COUNT, "width": 68, "hide": True},
    {"field": "lr", "headerName": "lr", **_RIGHT, "width": 58},
    {"field": "size", "headerName": "size", **_RIGHT, "valueFormatter": _SIZE, "width": 62, "hide": True},
    {"field": "seed", "headerName": "seed", **_COUNT, "width": 66, "hide": True},
    {"field": "spark", "headerName": "loss", "cellRenderer": "LsSpark", "width": 134, "cellDataType": False,
     "comparator": {"function": "lsLossOrder(nodeA, nodeB)"}},
    {"field": "radius", "headerName": "ρ(A̅)", **_RIGHT, "width": 66},
    {"field": "state_norm", "headerName": "state norm", **_RIGHT, "width": 100, "hide": True},
    {"field": "steps", "headerName": "steps", **_COUNT, "width": 62},
    {"field": "alert", "headerName": "first alert", "cellRenderer": "LsAlert", "width": 154},
    {"field": "started", "headerName": "started", **_TIME, "hide": True},
    {"field": "state", "headerName": "state", "cellRenderer": "LsState", "width": 112},
)  # fmt: skip
CHOICES: Final = [column for column in COLUMNS if column["field"] not in ("attention", "verdict", "name")]

_THEME = (
    "themeQuartz.withParams({backgroundColor: 'var(--ls-card)', foregroundColor: 'var(--ls-ink)', "
    "borderColor: 'var(--ls-edge)', headerTextColor: 'var(--ls-dim)', headerBackgroundColor: 'var(--ls-card)', "
    "chromeBackgroundColor: 'var(--ls-card)', accentColor: 'var(--ls-accent)', browserColorScheme: 'inherit', "
    "fontFamily: 'inherit', fontSize: 13, headerFontWeight: 500, cellHorizontalPaddingScale: 0.5, "
    "wrapperBorderRadius: 8, tooltipBackgroundColor: 'var(--ls-card)'})"
)
_OPTIONS: Final[dict[str, Any]] = {
    "theme": {"function": _THEME},
    "rowSelection": {"mode": "multiRow", "checkboxes": True, "headerCheckbox": True, "enableClickSelection": False,
                     "selectAll": "filtered"},
    "selectionColumnDef": {"width": 40, "pinned": None, "suppressHeaderMenuButton": True},
    "animateRows": False,
    "getRowHeight": {"function": "lsRowHeight(params)"},
    "headerHeight": 38,
    "isExternalFilterPresent": {"function": "true"},
    "doesExternalFilterPass": {"function": "lsPasses(params)"},
    "localeText": {"noRowsToShow": "No run file here yet: a run appears as soon as a probe writes it.",
                   "noMatchingRows": "No run matches this search."},
}  # fmt: skip
ORDER_HELP: Final = (
    "On top: what is live, then what fails the gate, then the worse verdict, then the earlier first alert. Click a "
    "head to sort by it."
)
QUERY_HELP: Final = "words, injection:concatenation, lr>0.01, verdict:unstable, gate:fail, steps<100"


def current_table() -> RunTable:
    """Return the table of the app that answers the current request."""
    index = current_index()
    table = current_app.config.get(TABLE_KEY)
    if not isinstance(table, RunTable) or table.index is not index:
        table = current_app.config[TABLE_KEY] = RunTable(index, default_cache())
    return table


def layout(**_: Any) -> html.Div:
    """Return the page with the rows of this moment."""
    table = current_table()
    serial, rows, _gone = table.since(0)
    choose = html.Details(
        [
            html.Summary("columns", className="ls-link"),
            dcc.Checklist(
                id="columns",
                options=[{"label": column["headerName"], "value": column["field"]} for column in CHOICES],
                value=[column["field"] for column in CHOICES if not column.get("hide")],
                className="ls-columns",
            ),
        ],
        className="ls-about ls-choose",
    )
    query = dcc.Input(
        id="query", type="text", placeholder="Search", className="ls-query", debounce=False, autoComplete="off"
    )
    tools = html.Div([query, html.Span(id="query-fault", role="status"), choose], className="ls-tools")
    toolbar = html.Div(
        [html.H1("Runs"), html.Div(tally(rows), id="tally", className="ls-badges"), tools],
        className="ls-toolbar ls-title",
    )
    grid = dag.AgGrid(
        id="runs",
        rowData=rows,
        columnDefs=list(COLUMNS),
        getRowId="params.data.id",
        defaultColDef={"sortable": True, "resizable": True, "suppressMovable": True},
        dashGridOptions=_OPTIONS,
        className="ls-table",
        style=_style(len(rows)),
    )
    words = components.terms((*glossary.REGIMES, "gate"))
    hint = html.P([f"{ORDER_HELP} Search understands {QUERY_HELP}. {gate_words(table.index)} ", words, "."],
                  className="ls-dim ls-hint")  # fmt: skip
    stores = [
        dcc.Store(id="runs-serial", data=serial),
        *[dcc.Store(id=f"runs-{kept}") for kept in ("change", "ready", "done")],
    ]
    return html.Div([toolbar, grid, hint, *stores, *_CLOCK.parts(READING_MS if table.reading else POLL_MS)])


def gate_words(index: RunIndex) -> str:
    """Say by whose rules the column of the gate is."""
    folders = {entry.path.parent for entry in index.entries() if not entry.fault}
    words = sorted({choice_for(folder).rules()[1] for folder in folders}) or [BUILT_IN]
    by = words[0] if len(words) == 1 else "rules of each run's project: point at it to see which"
    return f"The gate is what loopscope check says, by the {by}."


def _style(count: int) -> dict[str, str]:
    """Return a height that holds all rows, the window permitting: the grid draws only what is in view."""
    return {"height": f"min(100dvh - var(--ls-above-table), 47px + var(--ls-row) * {max(count, 3)})"}


def tally(rows: Iterable[Row]) -> list[Any]:
    """Return how many runs have each verdict and state, and fail the gate; a click on a count filters the table."""
    rows = list(rows)
    verdicts = Counter(row.get("verdict") for row in rows if row["state"] != "unreadable")
    gates = Counter(row.get("gate") for row in rows)
    states = Counter(row["state"] for row in rows)
    counts = [
        *((f"verdict:{regime}", verdicts[regime], components.regime_badge(regime)) for regime in REGIME_COLOURS),
        ("gate:fail", gates["fail"], components.gate_badge("fail", "fail the gate")),
        ("state:live", states["live"], components.state_badge("live")),
        ("state:unreadable", states["unreadable"], components.state_badge("unreadable")),
        ("state:reading", states["reading"], components.badge("unknown", "…", "reading")),
    ]
    return [_count(word, count, badge) for word, count, badge in counts if count]


def _count(word: str, count: int, badge: html.Span) -> html.Button:
    """Return a badge with a count before its word, as a button that filters."""
    badge.children[1].children.insert(0, f"{count} ")
    kind: Any = getattr(badge, "className", "")
    more: Any = {"data-filter": word, "aria-pressed": "false"}
    return html.Button(badge.children, className=f"{kind} ls-tally", **more)


def register(app: Dash) -> None:
    """Add the callbacks of this page."""
    _CLOCK.register(app)

    @app.callback(
        Output("runs-change", "data"),
        Output("tally", "children"),
        Output("runs", "style"),
        Output("runs-serial", "data"),
        Output("runs-poll", "interval"),
        _CLOCK.answered("rows"),
        _CLOCK.tick,
        State("runs-serial", "data"),
        prevent_initial_call=True,
    )
    def poll(asked: int, serial: int) -> list[Any]:
        """Send the rows that changed."""
        table = current_table()
        pace = READING_MS if table.reading else POLL_MS
        newest, changed, gone = table.since(int(serial))
        if newest == serial:
            return [*[no_update] * 4, pace, asked]
        rows = table.rows()
        return [{"rows": changed, "gone": gone}, tally(rows), _style(len(rows)), newest, pace, asked]

    for function, output, given in (
        ("runs_ready", Output("runs-ready", "data"), (Input("runs", "id"),)),
        ("runs_query", Output("query-fault", "children"), (Input("query", "value"),)),
        ("runs_columns", Output("columns", "className"), (Input("columns", "value"),)),
        ("runs_change", Output("runs-done", "data"), (Input("runs-change", "data"),)),
    ):
        app.clientside_callback(ClientsideFunction("loopscope", function), output, *given, prevent_initial_call=False)


PAGE = Page("runs", "/", "Runs · loopscope", layout, register, link="Runs", place=10)
