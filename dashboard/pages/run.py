"""One run: the verdict and its reasons at the top, the plots below, following the run while it trains.

The selected step lives in a store: clicks, the slider and the findings write it, the address mirrors it. No step
selected means the newest one. Plots over steps share their zoom; every redraw thins the visible range anew.
"""

import json
from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
from dash import ALL, ClientsideFunction, Dash, Input, Output, Patch, State, dcc, html, no_update

from ...runfile.layout import RunFileError
from .. import components, panels
from ..downsample import View
from ..index import Entry, current_index
from ..opened import OpenRun
from ..polling import Clock
from . import Page

POLL_MS = {"live": 1000, "interrupted": 5000, "finished": 5000}

# A page that follows a run is drawn again only after the time this took, this many times over, up to the slowest poll:
# the training that it follows may run on the same machine.
DRAWING_REST = 10

_CLOCK = Clock("run-poll", ("plots", "details"))

_STEP_GRAPHS = [f"plot-{name}" for name in panels.STEP_PLOTS]
_DETAIL_GRAPHS = [f"plot-{name}" for name in panels.DETAIL_PLOTS]
_ORDER = ("loss", "radius", "heatmap", "profile", "state", "spectrum", "blocks", "gradients", "tokens")
_WIDE = ("tokens",)
_STUDY_HINT = "Norms after every block, gradients per loop and maps over tokens are recorded by "


def layout(run_id: str = "", step: str | None = None, **_: Any) -> html.Div:
    """Return the page of one run with everything drawn; a problem card when there is no such run or it is broken."""
    entry = current_index().find(run_id)
    if entry is None:
        return html.Div(components.problem("No such run", "It is not among the runs served here."))
    try:
        held = current_index().open(entry)
        return _page(entry, held, _parse_step(step))
    except RunFileError as error:
        return html.Div([_title(entry.name, "unreadable"), components.problem("This run cannot be read", str(error))])


def title(run_id: str = "", **_: Any) -> str:
    """Return the title of the browser's tab."""
    entry = current_index().find(run_id)
    return f"{entry.name if entry else 'no such run'} · loopscope"


def _parse_step(text: str | None) -> int | None:
    """Read the step out of the address; anything else than a number means the newest."""
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def _title(name: str, state: str) -> html.Div:
    """Return the head line of the page."""
    back = dcc.Link("← Runs", href="/")
    return html.Div([back, html.H1(name), html.Span(components.state_badge(state), id="state")], className="ls-title")


def _page(entry: Entry, held: OpenRun, selected: int | None) -> html.Div:
    """Lay the page out; figures are drawn here, so that nothing is blank before the first callback."""
    drawn = dict(zip(panels.STEP_PLOTS, panels.step_figures(held, None, selected, entry.id), strict=True))
    drawn |= dict(zip(panels.DETAIL_PLOTS, panels.detail_figures(held, selected, entry.id), strict=True))
    shown = panels.recorded(held)
    plots = [
        components.plot(name, drawn[name], hidden=not shown.get(name, True), wide=name in _WIDE) for name in _ORDER
    ]
    return html.Div(
        [
            dcc.Store(id="run-id", data=entry.id),
            dcc.Store(id="selected", data=selected),
            dcc.Store(id="view", data=None),
            dcc.Store(id="version", data=held.version),
            *_CLOCK.parts(POLL_MS[held.run.state], disabled=held.run.state == "finished"),
            _title(entry.name, held.run.state),
            html.Div(components.verdict(held.diagnosis()), id="verdict"),
            _flights(held),
            _step_bar(held, selected),
            html.Div(plots, className="ls-plots"),
            _study_hint(shown),
            _settings(entry, held),
        ]
    )


def _flights(held: OpenRun) -> html.Details:
    """Return where the flight recordings are, folded; hidden as long as there is none."""
    found = components.flights(held.flights())
    return html.Details(found, id="flights", hidden=not found, className="ls-card ls-flights")


def _study_hint(shown: Mapping[str, bool]) -> html.P:
    """Return how to get the plots that the page leaves out, where it has none of them."""
    said: list[Any] = [_STUDY_HINT, html.Code('attach(model, path, preset="study")'), "."]
    return html.P(said, id="study-hint", hidden=any(shown.values()), className="ls-dim ls-hint")


def _step_bar(held: OpenRun, selected: int | None) -> html.Div:
    """Return the bar that selects a step; it stays in view while the page scrolls."""
    first, newest = _bounds(held)
    slider = dmc.Slider(
        id="slider",
        min=first,
        max=newest,
        step=1,
        value=newest if selected is None else min(max(selected, first), newest),
        size="sm",
        color="violet",
        thumbLabel="selected step",
        updatemode="mouseup",
    )
    buttons = [
        html.Button("follow newest", id="latest", className="ls-link"),
        html.Button("reset zoom", id="reset-zoom", className="ls-link"),
    ]
    return html.Div(
        [
            html.Div(now(held, selected), id="now", className="ls-now"),
            html.Div(slider, className="ls-slide"),
            html.Div(buttons, className="ls-buttons"),
        ],
        className="ls-stepbar",
    )


def _bounds(held: OpenRun) -> tuple[int, int]:
    """Return the first and the newest step; a run without rows has step 0 only."""
    steps = held.run["step"]
    return (int(steps[0]), int(steps[-1])) if len(steps) else (0, 0)


def now(held: OpenRun, selected: float | None) -> str:
    """Return the words for the step that is shown."""
    at = panels.resolve(held.run, selected)
    if at is None:
        return "no step yet"
    return f"step {at:,.0f}" + (" (newest)" if selected is None else f" of {_bounds(held)[1]:,}")


def _settings(entry: Entry, held: OpenRun) -> html.Details:
    """Return what the run was started with, folded away."""
    text = json.dumps(held.run.info, indent=2, ensure_ascii=False, default=str)
    summary = html.Summary("How this run was made")
    return html.Details([summary, html.Pre(f"{entry.path}\n\n{text}")], className="ls-card ls-settings")


def _held(run_id: str) -> OpenRun:
    """Return the open run of an id that a page holds.

    Raises:
        RunFileError: The run has gone or cannot be read any more.
    """
    entry = current_index().find(run_id)
    if entry is None:
        raise RunFileError(f"{run_id}: the run is not there any more")
    return current_index().open(entry)


def _pace(held: OpenRun) -> int:
    """Return milliseconds between two looks for new rows."""
    return min(max(POLL_MS[held.run.state], round(1e3 * DRAWING_REST * held.took)), max(POLL_MS.values()))


def _view(data: list[float] | None) -> View:
    """Read the visible range out of its store."""
    return None if data is None else (float(data[0]), float(data[1]))


def register(app: Dash) -> None:
    """Add the callbacks of this page."""
    _register_live(app)
    _register_selection(app)


def _register_live(app: Dash) -> None:
    """Add what follows a run while it trains, and what redraws on zoom."""
    _CLOCK.register(app)

    @app.callback(
        Output("version", "data"),
        Output("run-poll", "interval"),
        Output("run-poll", "disabled"),
        Output("verdict", "children"),
        Output("state", "children"),
        Output("slider", "max"),
        Output("slider", "value", allow_duplicate=True),
        _CLOCK.answered("plots", allow_duplicate=True),
        _CLOCK.answered("details", allow_duplicate=True),
        _CLOCK.tick,
        State("run-id", "data"),
        State("version", "data"),
        State("selected", "data"),
        prevent_initial_call=True,
    )
    def poll(asked: int, run_id: str, version: str, selected: int | None) -> tuple[Any, ...]:
        """Look for new rows; everything else follows from a new version, and without one nothing is due."""
        try:
            held = _held(run_id)
        except RunFileError as error:
            broken = components.problem("This run cannot be read any more", str(error))
            return no_update, no_update, True, broken, components.state_badge("unreadable"), *[no_update] * 4
        if held.version == version:
            return *[no_update] * 7, asked, asked
        state, newest = held.run.state, _bounds(held)[1]
        verdict, thumb = components.verdict(held.diagnosis()), newest if selected is None else no_update
        shown = verdict, components.state_badge(state), newest, thumb
        return held.version, _pace(held), state == "finished", *shown, no_update, no_update

    @app.callback(
        Output("flights", "children"),
        Output("flights", "hidden"),
        Output("study-hint", "hidden"),
        *[Output(f"card-{name}", "hidden") for name in panels.STUDY_PLOTS],
        Input("version", "data"),
        State("run-id", "data"),
        prevent_initial_call=True,
    )
    def appear(_: str, run_id: str) -> tuple[Any, ...]:
        """Show what a run has only now: the first arrays of the preset `study`, the first flight."""
        try:
            held = _held(run_id)
            shown, found = panels.recorded(held), components.flights(held.flights())
        except RunFileError:
            return (no_update,) * (3 + len(panels.STUDY_PLOTS))
        return found, not found, any(shown.values()), *[not there for there in shown.values()]

    @app.callback(
        [Output(graph, "figure") for graph in _STEP_GRAPHS],
        _CLOCK.answered("plots"),
        Input("version", "data"),
        Input("view", "data"),
        State("run-id", "data"),
        State("selected", "data"),
        _CLOCK.asked,
        prevent_initial_call=True,
    )
    def draw(_: str, view: list[float] | None, run_id: str, selected: int | None, asked: int) -> list[Any]:
        """Draw the plots over steps again: new rows, or another visible range."""
        try:
            held = _held(run_id)
            with held.timed("plots"):
                return [*panels.step_figures(held, _view(view), selected, run_id), asked]
        except RunFileError:
            return [*[no_update] * len(_STEP_GRAPHS), asked]

    app.clientside_callback(
        ClientsideFunction("loopscope", "zoom"),
        Output("view", "data"),
        *[Input(graph, "relayoutData") for graph in _STEP_GRAPHS],
        Input("reset-zoom", "n_clicks"),
        State("view", "data"),
        prevent_initial_call=True,
    )


def _register_selection(app: Dash) -> None:
    """Add what chooses a step and what shows it."""
    app.clientside_callback(
        ClientsideFunction("loopscope", "pick"),
        Output("selected", "data"),
        Output("slider", "value"),
        *[Input(graph, "clickData") for graph in _STEP_GRAPHS],
        Input("slider", "value"),
        Input("latest", "n_clicks"),
        Input({"type": "goto", "step": ALL, "rule": ALL}, "n_clicks"),
        State("slider", "max"),
        State("selected", "data"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("loopscope", "mirror"),
        Input("selected", "data"),
        prevent_initial_call=True,
    )

    @app.callback(
        [Output(graph, "figure") for graph in _DETAIL_GRAPHS],
        Output("now", "children"),
        _CLOCK.answered("details"),
        Input("selected", "data"),
        Input("version", "data"),
        State("run-id", "data"),
        _CLOCK.asked,
        prevent_initial_call=True,
    )
    def detail(selected: int | None, _: str, run_id: str, asked: int) -> list[Any]:
        """Draw the plots of the selected step."""
        try:
            held = _held(run_id)
            with held.timed("details"):
                return [*panels.detail_figures(held, selected, run_id), now(held, selected), asked]
        except RunFileError:
            return [*[no_update] * (len(_DETAIL_GRAPHS) + 1), asked]

    @app.callback(
        [Output(graph, "figure", allow_duplicate=True) for graph in _STEP_GRAPHS],
        Input("selected", "data"),
        prevent_initial_call=True,
    )
    def move_cursor(selected: int | None) -> list[Patch]:
        """Move the cursor of the plots over steps without drawing them again."""
        return [_cursor(selected) for _ in _STEP_GRAPHS]


def _cursor(selected: int | None) -> Patch:
    """Return the change of a figure whose first shape is the cursor (see `frame.over_steps`)."""
    patch = Patch()
    patch["layout"]["shapes"][0]["visible"] = selected is not None
    if selected is not None:
        patch["layout"]["shapes"][0]["x0"] = selected
        patch["layout"]["shapes"][0]["x1"] = selected
    return patch


PAGE = Page("run", "/run/<run_id>", title, layout, register)
