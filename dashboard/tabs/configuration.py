"""Configuration: everything the run says about itself, and how it differs from another run."""

from typing import Any

import dash_mantine_components as dmc
from dash import html

from ...runfile.layout import RunFileError
from .. import components
from ..index import current_index
from ..panel import Ask
from ..settings import command, table
from ..text import shown
from . import Tab


def head(ask: Ask) -> list[Any]:
    """Return the choice of a run to compare with."""
    others = [
        {"value": entry.id, "label": entry.name}
        for entry in current_index().entries()
        if not entry.fault and entry.path != ask.held.run.path
    ]
    choice = dmc.Select(
        id="against-choice", data=others[:500], value=ask.against or None, placeholder="another run", clearable=True,
        searchable=True, size="sm", label="Show what differs from", className="ls-against",
    )  # fmt: skip
    return [html.Div(choice, className="ls-choices")]


def words(ask: Ask) -> list[Any]:
    """Return the settings, or those that differ from the chosen run."""
    own = table(ask.held.run.info)
    again = command(ask.held.run.info, resume=False)
    start: list[Any] = [html.P(["Started with ", html.Code(again)])] if again else []
    where = html.P(["File: ", html.Code(shown(ask.held.run.path))])
    if ask.against:
        return [html.Section([where, _differences(own, ask.against)], className="ls-card")]
    rows = [(name, value) for name, value in own.items()]
    grid = html.Div(components.rows_table(("setting", "value"), rows), className="ls-wrap")
    return [html.Section([where, *start, grid], className="ls-card")]


def _differences(own: dict[str, str], against: str) -> Any:
    """Return the settings in which two runs differ."""
    entry = current_index().find(against)
    if entry is None:
        return html.P("The other run is not there any more.")
    try:
        other = table(current_index().open(entry).run.info)
    except RunFileError as error:
        return html.P(f"The other run cannot be read: {shown(error)}")
    rows = [
        (name, own.get(name, "–"), other.get(name, "–"))
        for name in dict.fromkeys([*own, *other])
        if own.get(name) != other.get(name)
    ]
    return components.rows_table(("setting", "this run", entry.name), rows) if rows else html.P("Nothing differs.")


TAB = Tab("configuration", "Configuration", 70, (), words, head=head)
