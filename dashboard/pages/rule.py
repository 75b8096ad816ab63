"""What a rule is: definition, source, default, calibration, false alarms, and what to do.

Not covered: where the words come from (`rule_page`, `docs/rules`).
"""

from typing import Any

from dash import Dash, dcc, html
from flask import Response, abort, send_from_directory

from .. import components
from ..rule_page import DOCS, PICTURE, known, parts, remedy_first, text_of
from ..text import shown
from . import Page


def layout(rule_id: str = "", **_: Any) -> html.Div:
    """Return the page of a rule."""
    markdown = text_of(rule_id) if known(rule_id) else ""
    if not markdown:
        said = "It is no rule of loopscope, or its page is not installed: `loopscope rules` says what each rule asks."
        return html.Div(components.problem(f"No page about {shown(rule_id, 40)}", said))
    back = html.P(
        ["Rules are listed in ", dcc.Link("Alerts", href="/alerts"), " where they fired."], className="ls-dim"
    )
    return html.Div([html.Article(parts(remedy_first(markdown)), className="ls-card ls-rule"), back])


def title(rule_id: str = "", **_: Any) -> str:
    """Return the title of the browser's tab."""
    return f"{rule_id if known(rule_id) else 'no such rule'} · loopscope"


def register(app: Dash) -> None:
    """Answer for the pictures of the pages."""
    app.server.add_url_rule("/rule-pictures/<name>", "rule_pictures", _picture)


def _picture(name: str) -> Response:
    """Answer with a picture of a rule's page."""
    if PICTURE.fullmatch(f"figures/{name}") is None:
        abort(404)
    return send_from_directory(DOCS / "rules" / "figures", name)


PAGE = Page("rule", "/rules/<rule_id>", title, layout, register)
