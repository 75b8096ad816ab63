"""One run: the verdict strip, and tabs below it that follow the run while it trains.

The address holds the tab, the selected step, whose loops are shown, and the run compared with; going back restores
them. The selected step lives in a store: clicks, arrow keys and findings write it. No step selected means the newest.
Plots over steps share their zoom and one cursor; every redraw thins the visible range anew.

Not covered: what a tab holds (`tabs`), what a plot shows (`panels`).
"""

import hashlib
import logging
import time
from typing import Any, Final

import numpy as np
from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update

from ...runfile.layout import RunFileError
from .. import components
from ..downloads import report_address
from ..downsample import View
from ..index import Entry, current_index
from ..opened import OpenRun
from ..panel import Ask, batch_of, drawn
from ..panels import PANELS
from ..polling import Clock
from ..settings import command
from ..steps import bounds
from ..tabs import Tab, all_tabs
from ..tails import tails
from ..text import ago, shown
from . import Page

POLL_MS: Final = {"live": 1000, "interrupted": 5000, "finished": 5000}
PENDING_MS: Final = 400  # between two looks for a verdict that is being made

# A page that follows a run is drawn again only after the time this took, this many times over, up to the slowest poll:
# the training that it follows may run on the same machine.
DRAWING_REST: Final = 10
SPEED_STEPS: Final = 100
REASON: Final = 120  # letters of why a run ended that the strip has room for; the rest is one click away

_CLOCK = Clock("run-poll", ("plots", "details", "words"))
_PANEL = {"type": "panel", "name": ALL}
_PANEL_AT = {"type": "panel-at", "name": ALL}
_WORDS = {"type": "words", "tab": ALL}  # by tab: the words of one do not come into the next
_KEPT = ("run-id", "view", "selected", "batch", "against")


def layout(
    run_id: str = "", step: str | None = None, tab: str = "", batch: str = "", against: str = "", **_: Any
) -> html.Div:
    """Return the page of one run; a problem card when there is no such run or it is broken."""
    entry = current_index().find(run_id)
    if entry is None:
        return html.Div(components.problem("No such run", "It is not among the runs served here."))
    try:
        held = current_index().open(entry)
        ask = Ask(held, None, _parse_step(step), batch_of(batch), entry.id, shown(against, 200))
        return _page(entry, ask, all_tabs().get(tab) or next(iter(all_tabs().values())))
    except RunFileError as error:
        return html.Div([_title(entry.name, "unreadable"), components.problem("This run cannot be read", str(error))])
    except Exception as error:  # whatever a hostile file brings about shows as words, never as a blank page
        logging.getLogger(__name__).warning("%s cannot be shown", shown(entry.path), exc_info=True)
        words = f"{type(error).__name__}: {shown(error, 200)}"
        return html.Div([_title(entry.name, "unreadable"), components.problem("This run cannot be shown", words)])


def title(run_id: str = "", **_: Any) -> str:
    """Return the title of the browser's tab."""
    entry = current_index().find(run_id)
    return f"{entry.name if entry else 'no such run'} · loopscope"


def _parse_step(text: str | None) -> int | None:
    """Read the step out of the address; anything else than a number means the newest."""
    try:
        return int(text) if text is not None and len(text) < 20 else None
    except ValueError:
        return None


def _title(name: str, state: str, report: str = "") -> html.Div:
    """Return the head line of the page, with the address of the run's report."""
    parts: list[Any] = [html.H1(name, title=name), html.Span(components.state_badge(state), id="state")]
    return html.Div([*parts, *components.report_link(report)], className="ls-title")


def _page(entry: Entry, ask: Ask, tab: Tab) -> html.Div:
    """Lay the page out; figures are drawn here, so that nothing is blank before the first callback."""
    held = ask.held
    held.story(wait=False)  # where it is quick, so that the page comes whole
    return html.Div(
        [
            dcc.Store(id="run-id", data=entry.id),
            _store("selected", ask.selected),
            _store("view", None),
            dcc.Store(id="tab", data=tab.name),
            dcc.Store(id="batch", data=ask.batch),
            dcc.Store(id="against", data=ask.against),
            dcc.Store(id="version", data=""),
            dcc.Store(id="bounds", data=_bounds(held)),
            *[dcc.Store(id=name) for name in ("have", "tails", "redraw", "tab-made")],
            dcc.Store(id="words-said", data=""),
            dcc.Store(id="mirrored"),
            *_CLOCK.parts(_pace(held), disabled=held.run.state == "finished" and held.judged),
            _title(entry.name, held.run.state, report_address([entry.id])),
            html.Section(strip(held, entry.id), id="verdict", className=_strip_class(held)),
            _tab_bar(tab),
            html.Div(body(ask, tab), id="tab-body", role="tabpanel"),
        ],
        className="ls-run-page",
    )


def _store(name: str, value: Any) -> dcc.Store:
    """Return a store that sets nothing off when the page comes: Dash takes a null in one for news."""
    return dcc.Store(id=name) if value is None else dcc.Store(id=name, data=value)


def _bounds(held: OpenRun) -> list[int]:
    """Return first step, newest step, and generation: after a resume, steps may have gone."""
    return [*bounds(held.run), held.run.generation]


def _strip_class(held: OpenRun) -> str:
    """Return the class that gives the strip the colour of its verdict."""
    story = held.story(wait=False)
    return f"ls-strip ls-{story.verdict if story else 'unknown'}"


def strip(held: OpenRun, run_id: str) -> list[Any]:
    """Return the verdict strip: the sentence, the configuration, speed, age, how it ended, how to go on."""
    run, end = held.run, held.ending()
    chips = [html.Span(chip, className="ls-chip") for chip in held.settings().chips()]
    facts = [f"{len(run):,} steps", *_pace_words(held)]
    if end.lost_from is not None:
        facts.append(f"loop not recorded from step {end.lost_from:,} on: {shown(end.lost_reason, 80)}")
    if end.state == "interrupted":
        facts.append(f"interrupted: {shown(end.reason, REASON)}")
    again = command(run.info, resume=True) if end.state == "interrupted" else ""
    cut = end.state == "interrupted" and len(shown(end.reason)) > REASON
    resume: list[Any] = []
    if again or cut:
        words = [word for word, there in (("why it ended", cut), ("how to resume", again)) if there]
        whole = [html.P(shown(end.reason))] if cut else []
        code = [html.Code(again)] if again else []
        resume = [html.Details([html.Summary(", ".join(words)), *whole, *code], className="ls-resume")]
    facts_line = html.Span(" · ".join(facts), className="ls-dim")
    return [
        *components.verdict(held.story(wait=False), run_id),
        html.Div([*chips, facts_line, *resume], className="ls-chips"),
    ]


def _pace_words(held: OpenRun) -> list[str]:
    """Return steps a second and the time of the last row."""
    run = held.run
    times = run["time"][-SPEED_STEPS:]
    times = times[np.isfinite(times)]
    words = []
    if len(times) > 1 and times[-1] > times[0]:
        words.append(f"{(len(times) - 1) / (times[-1] - times[0]):.3g} steps/s")
    if len(times):
        moment = time.localtime(float(np.clip(times[-1], 0, 4e9)))
        old = time.time() - float(times[-1])
        if run.state == "live":
            words.append(f"last row {ago(old)} ago")
        else:
            words.append(f"last row {time.strftime('%Y-%m-%d %H:%M', moment)}")
    return words


def _tab_bar(tab: Tab) -> html.Div:
    """Return the tabs, and the bar of the selected step."""
    tabs = []
    for one in all_tabs().values():
        chosen: Any = {"aria-selected": "true" if one is tab else "false"}
        identifier = {"type": "tab", "name": one.name}
        tabs.append(html.Button(one.label, id=identifier, role="tab", className="ls-tab", **chosen))
    steps: list[Any] = [
        html.Button("◀", id="step-back", className="ls-icon", title="previous recorded step (←)"),
        dcc.Input(id="step-input", inputMode="numeric", debounce=True, placeholder="newest", className="ls-step"),
        html.Button("▶", id="step-on", className="ls-icon", title="next recorded step (→)"),
        html.Button("newest", id="latest", className="ls-link"),
        html.Button("all steps", id="reset-zoom", className="ls-link"),
    ]
    bar = html.Div([html.Label("step", htmlFor="step-input"), *steps], className="ls-stepbar")
    return html.Div([html.Div(tabs, role="tablist", className="ls-tabs"), bar], className="ls-tab-bar")


def body(ask: Ask, tab: Tab) -> list[Any]:
    """Return the plots and words of a tab."""
    cards = [_card(ask, name) for name in tab.panels]
    steps = [card for card, name in zip(cards, tab.panels, strict=True) if not PANELS[name].at_step]
    at = [card for card, name in zip(cards, tab.panels, strict=True) if PANELS[name].at_step]
    plots = html.Div(
        [html.Div(steps, className="ls-steps", id="steps"), html.Div(at, className="ls-at", hidden=not at)],
        className="ls-plots" + (" ls-two" if at and steps else ""),
    )
    words = html.Div(html.Div(_words(ask, tab), id={**_WORDS, "tab": tab.name}), id="tab-words")
    return [*tab.head(ask), *([words, plots] if tab.words_first else [plots, words])]


def _card(ask: Ask, name: str) -> html.Section:
    """Return a panel with its figure."""
    panel = PANELS[name]
    return components.panel(panel, drawn(panel, ask), f"/csv/{ask.revision}/{name}?batch={ask.batch}")


def _words(ask: Ask, tab: Tab) -> list[Any]:
    """Return the words of a tab, or the error that kept them from being made."""
    try:
        return tab.words(ask)
    except RunFileError as error:
        return [html.P(shown(error))]


def _held(run_id: str) -> OpenRun:
    """Return the open run of an id that a page holds.

    Raises:
        RunFileError: The run has gone or cannot be read any more.
    """
    entry = current_index().find(run_id)
    if entry is None:
        raise RunFileError(f"{shown(run_id, 200)}: the run is not there any more")
    return current_index().open(entry)


def _ask(run_id: str, view: list[float] | None, selected: int | None, batch: str, against: str) -> Ask:
    """Return what a page wants to see, out of its stores.

    Raises:
        RunFileError: The run has gone or cannot be read any more.
    """
    shared: View = None if view is None else (float(view[0]), float(view[1]))
    return Ask(_held(run_id), shared, selected, batch_of(batch), run_id, against or "")


def _pace(held: OpenRun) -> int:
    """Return milliseconds between two looks for new rows."""
    if not held.judged:
        return PENDING_MS
    return min(max(POLL_MS[held.run.state], round(1e3 * DRAWING_REST * held.took)), max(POLL_MS.values()))


def register(app: Dash) -> None:
    """Add the callbacks of this page."""
    _CLOCK.register(app)
    _register_follow(app)
    _register_draw(app)
    _register_plots(app)
    _register_growth(app)
    _register_browser(app)


def _register_follow(app: Dash) -> None:
    """Add what looks for news."""

    @app.callback(
        Output("version", "data"),
        Output("run-poll", "interval"),
        Output("run-poll", "disabled"),
        Output("verdict", "children"),
        Output("verdict", "className"),
        Output("state", "children"),
        Output("bounds", "data"),
        *[_CLOCK.answered(part, allow_duplicate=True) for part in _CLOCK.answers],
        _CLOCK.tick,
        State("run-id", "data"),
        State("version", "data"),
        *_CLOCK.latest,
        prevent_initial_call=True,
    )
    def poll(asked: int, run_id: str, version: str, *answered: int) -> tuple[Any, ...]:
        """Look for new rows; everything else follows from a new version, and without one nothing is due."""
        try:
            held = _held(run_id)
            held.story(wait=False)
        except RunFileError as error:
            broken = components.problem("This run cannot be read any more", str(error))
            return no_update, no_update, True, broken, no_update, components.state_badge("unreadable"), *[no_update] * 4
        news = f"{held.version} {held.judged}"
        told_at, _, told = version.partition(" ")
        if news == told and min(one or 0 for one in answered) >= int(
            told_at
        ):  # else what followed from it was lost on its way
            return *[no_update] * 7, *[asked] * 3
        state = held.run.state
        shown = strip(held, run_id), _strip_class(held), components.state_badge(state), _bounds(held)
        return f"{asked} {news}", _pace(held), state == "finished" and held.judged, *shown, *[no_update] * 3


def _register_draw(app: Dash) -> None:
    """Add what draws a tab when it is chosen, and plots and words of the selected step."""

    @app.callback(
        Output("tab-body", "children"),
        Output("tab-made", "data"),
        Input("tab", "data"),
        *[State(name, "data") for name in _KEPT],
        prevent_initial_call=True,
    )
    def open_tab(tab: str, *kept: Any) -> tuple[Any, Any]:
        """Show another tab, and say for what it was made: the reader may have chosen another step meanwhile."""
        try:
            return body(_ask(*kept), all_tabs()[tab]), kept
        except RunFileError as error:
            return components.problem("This run cannot be read any more", str(error)), no_update

    app.clientside_callback(
        ClientsideFunction("loopscope", "made"),
        Output("mirrored", "data", allow_duplicate=True),
        Input("tab-made", "data"),
        State("tab", "data"),
        *[State(name, "data") for name in _KEPT],
        prevent_initial_call=True,
    )

    @app.callback(
        Output(_PANEL_AT, "figure"),
        _CLOCK.answered("details"),
        Input("selected", "data"),
        Input("version", "data"),
        State(_PANEL_AT, "id"),
        _CLOCK.asked,
        *[State(name, "data") for name in ("run-id", "view", "batch", "against")],
        prevent_initial_call=True,
    )
    def detail(selected: int | None, _: str, ids: list[dict[str, str]], asked: int, *kept: Any) -> tuple[Any, int]:
        """Draw the plots of the selected step; new rows change them only where the newest step is selected."""
        run_id, view, batch, against = kept
        if selected is not None and "selected" not in ctx.triggered_prop_ids.values():
            return [no_update] * len(ids), asked
        return _figures(ids, run_id, view, selected, batch, against), asked

    @app.callback(
        Output(_WORDS, "children"),
        Output("words-said", "data"),
        _CLOCK.answered("words"),
        Input("selected", "data"),
        Input("version", "data"),
        Input("against", "data"),
        State(_WORDS, "id"),
        State("words-said", "data"),
        _CLOCK.asked,
        *[State(name, "data") for name in ("run-id", "view", "batch")],
        prevent_initial_call=True,
    )
    def words(
        selected: int | None, _: str, against: str, ids: list[dict[str, str]], said: str, asked: int, *kept: Any
    ) -> tuple[Any, Any, int]:
        """Say again what depends on the selected step or on new rows, where that changes the words."""
        run_id, view, batch = kept
        same = [no_update] * len(ids), no_update, asked
        try:
            made = [_words(_ask(run_id, view, selected, batch, against), all_tabs()[one["tab"]]) for one in ids]
        except RunFileError:
            return same
        mark = f"{ids} {hashlib.sha256(str(made).encode()).hexdigest()[:16]}"
        return same if mark == said else (made, mark, asked)


def _register_plots(app: Dash) -> None:
    """Add what draws plots over steps: whole ones, and what is new in those that are there."""

    @app.callback(
        Output(_PANEL, "figure"),
        _CLOCK.answered("plots"),
        Input("redraw", "data"),
        Input("view", "data"),
        Input("batch", "data"),
        State(_PANEL, "id"),
        _CLOCK.asked,
        *[State(name, "data") for name in ("run-id", "selected", "against")],
        prevent_initial_call=True,
    )
    def draw(redraw: Any, view: Any, batch: str, ids: list[dict[str, str]], asked: int, *kept: Any) -> tuple[Any, int]:
        """Draw plots over steps whole: what cannot grow, another visible range, or loops of another batch."""
        run_id, selected, against = kept
        # Another range may have been on its way when this was asked: its answer is dropped for this one.
        grown = view is None and set(ctx.triggered_prop_ids.values()) == {"redraw"}
        wanted = {str(name) for name in (redraw or {}).get("panels", ())} if grown else None
        return _figures(ids, run_id, view, selected, batch, against, wanted), asked

    @app.callback(
        Output("tails", "data"),
        _CLOCK.answered("plots", allow_duplicate=True),
        Input("have", "data"),
        _CLOCK.asked,
        *[State(name, "data") for name in ("run-id", "batch")],
        prevent_initial_call=True,
    )
    def grow(have: dict[str, Any], asked: int, run_id: str, batch: str) -> tuple[Any, Any]:
        """Send what is new in the plots; nothing where the reader looks at an earlier stretch."""
        if have.get("past") and not have.get("anew"):
            return no_update, asked
        try:
            _held(run_id).time_anew()
            if have.get("anew") or have.get("zoomed"):
                return {"whole": True}, no_update
            return {"batch": batch, "panels": tails(have.get("panels"), _ask(run_id, None, None, batch, ""))}, no_update
        except RunFileError:  # gone since the clock asked: it says so at its next tick, which this answer lets through
            return no_update, asked


def _figures(
    ids: list[dict[str, str]], run_id: str, view: Any, selected: Any, batch: str, against: str,
    wanted: set[str] | None = None,
) -> list[Any]:  # fmt: skip
    """Return the figures of the panels that are wanted, None for all; none is changed where the run has gone."""
    try:
        ask = _ask(run_id, view, selected, batch, against)
    except RunFileError:
        return [no_update] * len(ids)
    names = PANELS.keys() if wanted is None else PANELS.keys() & wanted
    return [drawn(PANELS[one["name"]], ask) if one["name"] in names else no_update for one in ids]


def _register_growth(app: Dash) -> None:
    """Add what tells the server how far plots go, and adds to them what comes back."""
    app.clientside_callback(
        ClientsideFunction("loopscope", "have"),
        Output("have", "data"),
        Input("version", "data"),
        State("bounds", "data"),
        State("view", "data"),
        State(_PANEL, "id"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("loopscope", "grow"),
        Output("redraw", "data"),
        _CLOCK.answered("plots", allow_duplicate=True),
        Input("tails", "data"),
        _CLOCK.asked,
        State(_PANEL, "id"),
        State("batch", "data"),
        prevent_initial_call=True,
    )


def _register_browser(app: Dash) -> None:
    """Add what happens in the browser alone: choosing a step and a tab, sharing a zoom, keeping the address."""
    app.clientside_callback(
        ClientsideFunction("loopscope", "zoom"),
        Output("view", "data"),
        Input(_PANEL, "relayoutData"),
        Input("reset-zoom", "n_clicks"),
        State("view", "data"),
        prevent_initial_call=True,
    )
    app.clientside_callback(
        ClientsideFunction("loopscope", "pick"),
        Output("selected", "data"),
        Output("step-input", "value"),
        Input(_PANEL, "clickData"),
        Input("step-input", "value"),
        Input("step-back", "n_clicks"),
        Input("step-on", "n_clicks"),
        Input("latest", "n_clicks"),
        Input({"type": "goto", "step": ALL, "rule": ALL}, "n_clicks"),
        State("bounds", "data"),
        State("selected", "data"),
        prevent_initial_call=False,
    )
    app.clientside_callback(
        ClientsideFunction("loopscope", "tab"),
        Output("tab", "data"),
        Input({"type": "tab", "name": ALL}, "n_clicks"),
        State("tab", "data"),
        prevent_initial_call=True,
    )
    for choice, store in (("batch-choice", "batch"), ("against-choice", "against")):
        app.clientside_callback(
            ClientsideFunction("loopscope", "choose"),
            Output(store, "data"),
            Input(choice, "value"),
            State(store, "data"),
            prevent_initial_call=True,
        )
    app.clientside_callback(
        ClientsideFunction("loopscope", "mirror"),
        Output("mirrored", "data"),
        Input("selected", "data"),
        Input("tab", "data"),
        Input("batch", "data"),
        Input("against", "data"),
        State("run-id", "data"),
        prevent_initial_call=True,
    )


PAGE = Page("run", "/run/<run_id>", title, layout, register)
