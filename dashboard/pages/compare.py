"""The runs that were ticked, over each other, and the settings in which they differ.

The address holds the runs, so that a link shows the same comparison; without any, the ticks of the page of runs count.

Not covered: the numbers (`compare`), the plots (`compare_figures`).
"""

from typing import Any, Final
from urllib.parse import urlencode

from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from ...runfile.layout import RunFileError
from .. import compare, compare_figures, components
from ..downloads import report_address
from ..frame import graph_config
from ..index import Entry, current_index
from ..opened import OpenRun
from ..panel import summary
from ..polling import Clock
from ..run_map import SYMBOLS
from ..text import middle_cut, shown
from . import Page

POLL_MS: Final = 3000
RUNS_LIMIT: Final = 60
PLOTS_LIMIT: Final = 6
OFFERED: Final = 7  # runs that still lie over each other in one plot
HEIGHT: Final = 290
LONGEST: Final = 24  # letters of a setting
LEGEND: Final = 14  # pixels of legend for each run, where the window is narrow
BREACH: Final = (
    'First breach: the step since which a run\'s verdict holds, as its sentence says it ("Unstable since step …"). '
    "Aligned by it, each run counts its steps from there; runs without a breach are left out."
)
_CLOCK = Clock("compare-poll", ("plots",))


def layout(runs: str = "", by: str = "", what: str = "", **_: Any) -> html.Div:
    """Return the page; what is compared comes from the address, or from the ticks with the first callback."""
    asked = [one for one in runs.split(",") if one][:RUNS_LIMIT]
    chosen = [one for one in what.split(",") if one][:PLOTS_LIMIT]
    axes = {"step": "step", "tokens": "tokens", "time": "time", "breach": "first breach"}
    axis = dcc.RadioItems(
        id="compare-by",
        options=[{"label": words, "value": name} for name, words in axes.items()],
        value=by if by in compare.AXES else "step",
    )
    quantity = dcc.Dropdown(
        id="compare-what", options=[{"label": _named(name), "value": name} for name in chosen], value=chosen, multi=True
    )
    return html.Div(
        [
            html.Div(
                [html.H1("Compare"), html.Span(id="compare-count", className="ls-dim"), html.Span(id="compare-report")],
                className="ls-title",
            ),
            html.Div(
                [
                    html.Div([html.Span("aligned by", className="ls-control-name"), axis]),
                    html.Div([html.Label("numbers", htmlFor="compare-what"), quantity], className="ls-compare-what"),
                ],
                className="ls-choices ls-controls ls-compare",
            ),
            html.P(BREACH, className="ls-dim ls-hint"),
            html.Div(html.P("reading…", className="ls-dim"), id="compare-body"),
            dcc.Store(id="compare-asked", data=asked),
            dcc.Store(id="compare-version", data=""),
            dcc.Store(id="compare-query"),
            dcc.Store(id="compare-mirrored"),
            *_CLOCK.parts(POLL_MS),
        ]
    )


def _named(quantity: str) -> str:
    """Return the name of a number as people read it.

    >>> _named("loss"), _named("a_bar_radius"), _named("mine")
    ('loss, nats per token', 'ρ(A̅) a_bar_radius', 'mine')
    """
    words = f"{SYMBOLS[quantity]} {quantity}" if quantity in SYMBOLS else compare.UNITS.get(quantity, quantity)
    return shown(words, 60)


def _cut(value: str) -> Any:
    """Return a setting as a cell; all of a long one, such as a commit, shows on pointing."""
    return value if len(value) <= LONGEST else html.Span(middle_cut(value, LONGEST), title=value)


def _opened(run_ids: list[str]) -> tuple[list[tuple[Entry, OpenRun]], list[str]]:
    """Return the runs that can be read, and a line for each that cannot."""
    there, faults = [], []
    for run_id in run_ids[:RUNS_LIMIT]:
        entry = current_index().find(run_id)
        if entry is None:
            faults.append(f"{shown(run_id, 80)}: not among the runs served here.")
            continue
        try:
            held = current_index().open(entry)
            held.story(wait=False)  # a long run is drawn before it is judged
            there.append((entry, held))
        except RunFileError as error:
            faults.append(components.sentence(str(error)))
    return there, faults


def _body(there: list[tuple[Entry, OpenRun]], faults: list[str], axis: str, what: list[str]) -> list[Any]:
    """Return the plots and the table of differences."""
    parts: list[Any] = [html.P(fault, className="ls-dim") for fault in faults]
    if not there:
        advice: list[Any] = ["No run to compare: tick some on the page of ", dcc.Link("Runs", href="/"), "."]
        others = [entry.id for entry in current_index().entries() if not entry.fault][:OFFERED]
        if len(others) > 1:
            address = f"/compare?runs={','.join(others)}"
            advice += [" Or ", dcc.Link(f"compare the first {len(others)}", href=address, refresh=True), "."]
        return [*parts, html.Section(html.P(advice), className="ls-card")]
    parts += [_plot(there, axis, quantity) for quantity in what[:PLOTS_LIMIT]]
    parts += _said(there)
    changed = compare.differences([held.run.info for _, held in there])
    head: Any = ("setting", *[dcc.Link(entry.name, href=f"/run/{entry.id}") for entry, _ in there])
    grid: Any = html.P("Nothing differs.")
    if changed:
        grid = components.rows_table(
            head, [(name, *[_cut(value) for value in values]) for name, values in changed], wide=True
        )
    parts.append(html.Section([html.H2("What differs"), grid], className="ls-card"))
    return parts


def _said(there: list[tuple[Entry, OpenRun]]) -> list[Any]:
    """Return the verdict of each run, and which of its variables fails, where a run has several."""
    stories = [held.story(wait=False) for _, held in there]
    several = any(story.variables for story in stories if story)
    rows: list[Any] = []
    for (entry, _), story in zip(there, stories, strict=True):
        cells: list[Any] = [dcc.Link(entry.name, href=f"/run/{entry.id}"), "reading…", ""]
        if story is not None:
            fails = [components.variable_link(entry.id, one) for one in story.variables if one.fails or one.failed]
            none = html.Span("none" if story.variables else "one variable only", className="ls-dim")
            cells[1:] = [[components.regime_badge(story.verdict), " ", shown(story.sentence, 200)], fails or none]
        rows.append(cells if several else cells[:2])
    head = ["run", "verdict", "variable that fails"][: 3 if several else 2]
    return [html.Section([html.H2("Verdicts"), components.rows_table(head, rows)], className="ls-card")]


def _plot(there: list[tuple[Entry, OpenRun]], axis: str, quantity: str) -> html.Section:
    """Return the card of one number, with the names of the runs that are not on it."""
    lines, left_out = [], []
    for entry, held in there:
        one = compare.line(entry.name, held, quantity, axis)
        if one is None:
            left_out.append(entry.name)
        else:
            lines.append(one)
    if not lines:
        none = "has a breach" if axis == "breach" else f"recorded it by {compare.AXES[axis]}"
        said = html.P(f"None of these runs {none}.", className="ls-nothing")
        return html.Section([html.Header(html.H2(_named(quantity))), said], className="ls-panel ls-empty")
    chart = compare_figures.compared(lines, compare.AXES[axis], _named(quantity))
    chart.update_layout(meta={"summary": f"{shown(quantity, 60)}. {summary(chart)}"})
    height = chart.layout.height or HEIGHT + LEGEND * len(lines)
    graph = dcc.Graph(figure=chart, config=graph_config(), responsive=True, style={"height": height})
    why = "without a breach" if axis == "breach" else "without it"
    words = f"{why}: {', '.join(left_out)}" if left_out else ""
    head = html.Header([html.H2(_named(quantity)), html.Span(words, className="ls-readout", title=words)])
    scrolled = html.Div(graph, className="ls-scroll ls-multiples" if len(lines) >= compare_figures.MANY else None)
    return html.Section([head, scrolled], className="ls-panel")


def register(app: Dash) -> None:
    """Add the callbacks of this page."""
    _CLOCK.register(app)

    @app.callback(
        Output("compare-body", "children"),
        Output("compare-count", "children"),
        Output("compare-report", "children"),
        Output("compare-what", "options"),
        Output("compare-what", "value"),
        Output("compare-version", "data"),
        Output("compare-query", "data"),
        _CLOCK.answered("plots"),
        _CLOCK.tick,
        Input("ticked", "data"),
        Input("compare-by", "value"),
        Input("compare-what", "value"),
        State("compare-asked", "data"),
        State("compare-version", "data"),
    )
    def draw(asked: int, ticked: Any, axis: str, what: list[str], given: list[str], before: str) -> list[Any]:
        """Draw what was chosen, and again when one of the runs has new rows."""
        run_ids = [str(one) for one in (given or ticked or ())]
        axis, what = axis if axis in compare.AXES else "step", [str(one) for one in what or ()]
        there, faults = _opened(run_ids)
        what = what or compare.usual([held for _, held in there])
        known = [(entry.id, held.version, held.judged) for entry, held in there]
        version = str(hash((axis, *what, *faults, *known)))
        if version == before:
            return [*[no_update] * 7, asked]
        options = dict.fromkeys([*compare.quantities([held for _, held in there]), *what])
        query = "?" + urlencode({"runs": ",".join(run_ids), "by": axis, "what": ",".join(what)}, safe=",")
        count = f"{len(there)} runs" + ("" if len(run_ids) <= RUNS_LIMIT else f", the first of {len(run_ids)}")
        choices = [{"label": _named(name), "value": name} for name in options]
        report = components.report_link(report_address([entry.id for entry, _ in there]) if there else "")
        return [_body(there, faults, axis, what), count, report, choices, what, version, query, asked]

    app.clientside_callback(
        ClientsideFunction("loopscope", "address"), Output("compare-mirrored", "data"), Input("compare-query", "data")
    )


PAGE = Page("compare", "/compare", "Compare · loopscope", layout, register, link="Compare", place=30, counts="ticked")
