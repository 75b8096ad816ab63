"""What was found in all runs: rules that fired and events, the worst first, and which of them somebody has seen.

Not covered: how alerts are found and where it is kept that one was seen (`alerts`).
"""

from typing import Any, Final

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, dcc, html, no_update

from .. import components
from ..alerts import ORDER, Alert, acknowledge, all_acknowledged, lead_words, listed
from ..index import current_index
from ..polling import Clock
from ..text import shown
from . import Page
from .runs import current_table

POLL_MS: Final = 2000
LISTED: Final = 300
SEEN: Final = "seen"
LABELS: Final = {"error": "errors", "warning": "warnings", "note": "notes", SEEN: "acknowledged too"}
_CLOCK = Clock("alerts-poll", ("rows",))
_CHOICES: Final = (*ORDER, SEEN)


def layout(show: str = "", **_: Any) -> html.Div:
    """Return the page with the kinds of alerts that the address names, or the errors and warnings not seen yet."""
    chosen = [one for one in show.split(",") if one in _CHOICES] or ["error", "warning"]
    choice = dcc.Checklist(
        id="alerts-show", options=[{"label": LABELS[one], "value": one} for one in _CHOICES], value=chosen
    )
    body, version = _body(chosen)
    return html.Div(
        [
            html.Div([html.H1("Alerts"), html.Span("of all runs", className="ls-dim")], className="ls-title"),
            html.Div(choice, className="ls-choices ls-controls"),
            html.P(id="alerts-fault", role="alert"),
            html.Section(body, id="alerts-body", className="ls-card"),
            dcc.Store(id="alerts-version", data=version),
            dcc.Store(id="alerts-changed", data=0),
            dcc.Store(id="alerts-query"),
            dcc.Store(id="alerts-mirrored"),
            *_CLOCK.parts(POLL_MS),
        ]
    )


def _body(chosen: list[str]) -> tuple[list[Any], str]:
    """Return the table of the chosen alerts, and a text that changes when it does."""
    table = current_table()
    alerts = listed(table.rows(), table.details("alerts"))
    seen = _seen({alert.run_id for alert in alerts})
    wanted = [one for one in alerts if one.severity in chosen and (SEEN in chosen or one.key not in seen[one.run_id])]
    kinds = _kinds(chosen)
    hidden = f"{len(alerts) - len(wanted):,} more are hidden by the choice above"
    if not wanted:
        none = "Nothing so far." if table.reading else "No rule fired and nothing happened."
        words = f"No {kinds}; {hidden}.{table.still}" if alerts else f"{none}{table.still}"
        return [html.P(words)], words
    rows = [_row(one, one.key in seen[one.run_id]) for one in wanted[:LISTED]]
    first = f"; the first {LISTED} are listed" if len(wanted) > LISTED else ""
    count = f"{len(wanted):,} {kinds}{first}" + (f"; {hidden}." if len(alerts) > len(wanted) else ", all there are.")
    count += table.still
    head = ("severity", "what", "message", "run", "step", "lead over the loss", "seen")
    version = str(hash((tuple(wanted), table.reading, tuple(sorted((run, *keys) for run, keys in seen.items())))))
    grid = html.Div(components.rows_table(head, rows), className="ls-alerts")
    return [html.P(count, className="ls-dim"), grid], version


def _kinds(chosen: list[str]) -> str:
    """Say what is listed.

    >>> _kinds(["error", "warning"]), _kinds(["note", "seen"])
    ('errors and warnings not acknowledged yet', 'notes, acknowledged or not')
    """
    kinds = [LABELS[one] for one in ORDER if one in chosen] or ["alerts of no kind"]
    words = " and ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds)
    return words + (", acknowledged or not" if SEEN in chosen else " not acknowledged yet")


def _seen(run_ids: set[str]) -> dict[str, set[str]]:
    """Return the keys of the alerts that were seen, by run."""
    index = current_index()
    entries = {run_id: index.find(run_id) for run_id in run_ids}
    kept = all_acknowledged(entry.path for entry in entries.values() if entry)
    return {run_id: set(kept[entry.path]) if entry else set() for run_id, entry in entries.items()}


def _row(alert: Alert, seen: bool) -> tuple[Any, ...]:
    """Return one line of the table."""
    glyph = components.SEVERITY_GLYPHS[alert.severity]
    named = alert.name if alert.rule == "event" else f"{alert.rule} {alert.name}"
    label: Any = {"aria-label": f"{'not seen' if seen else 'acknowledge'}: {named} of {alert.run} at step {alert.step}"}
    button = html.Button(
        "not seen" if seen else "acknowledge",
        id={"type": "alert-seen", "run": alert.run_id, "key": alert.key, "seen": not seen},
        className="ls-link",
        **label,
    )
    return (
        components.badge(alert.severity, glyph, alert.severity),
        named if alert.rule == "event" else html.Span(components.rule(alert.rule, alert.name)),
        html.Span(alert.message, title=alert.message),
        dcc.Link(alert.run, href=alert.href),
        dcc.Link(f"{alert.step:,}", href=alert.href, title="open the run at this step"),
        lead_words(alert.lead),
        button,
    )


def register(app: Dash) -> None:
    """Add the callbacks of this page."""
    _CLOCK.register(app)

    @app.callback(
        Output("alerts-body", "children"),
        Output("alerts-version", "data"),
        Output("alerts-query", "data"),
        _CLOCK.answered("rows"),
        _CLOCK.tick,
        Input("alerts-show", "value"),
        Input("alerts-changed", "data"),
        State("alerts-version", "data"),
        prevent_initial_call=True,
    )
    def draw(asked: int, chosen: list[str] | None, _: int, before: str) -> list[Any]:
        """Show other kinds, or what was found meanwhile."""
        body, version = _body(list(chosen or ()))
        query = f"?show={','.join(chosen or ('none',))}"
        return [*([no_update] * 2 if version == before else [body, version]), query, asked]

    @app.callback(
        Output("alerts-changed", "data"),
        Output("alerts-fault", "children"),
        Input({"type": "alert-seen", "run": ALL, "key": ALL, "seen": ALL}, "n_clicks"),
        State("alerts-changed", "data"),
        prevent_initial_call=True,
    )
    def mark(clicks: list[int | None], changed: int) -> tuple[Any, Any]:
        """Write down that an alert was seen, or was not."""
        asked: Any = ctx.triggered_id
        if not any(clicks) or not isinstance(asked, dict):
            return no_update, no_update
        entry = current_index().find(str(asked.get("run")))
        key = str(asked.get("key"))
        known = {one.key for one in listed(current_table().rows(), current_table().details("alerts"))}
        if entry is None or key not in known:
            return no_update, "This alert is not there any more."
        try:
            acknowledge(entry.path, key, seen=asked.get("seen") is True)
        except OSError as error:
            return no_update, f"Not kept: {shown(error, 300)}."
        return changed + 1, ""

    app.clientside_callback(
        ClientsideFunction("loopscope", "address"), Output("alerts-mirrored", "data"), Input("alerts-query", "data")
    )


PAGE = Page("alerts", "/alerts", "Alerts · loopscope", layout, register, link="Alerts", place=40)
