"""When: the timeline, and what happened, in the order in which it began."""

from typing import Any

from dash import html

from .. import components
from ..panel import Ask
from . import Tab


def words(ask: Ask) -> list[Any]:
    """Return the findings with their lead over the loss, the one that began first on top."""
    story = ask.held.story(wait=False)
    if story is None:
        return [html.P("The rules are being applied…", className="ls-dim")]
    shows: list[Any] = []
    if story.since is not None:
        why = ", where its number crossed the edge; a rule speaks later, when it is sure. "
        shows += ["The verdict holds since ", components.goto(story.since, "verdict"), why]
        shows += ["The loss has not shown it."] if story.loss_step is None else []
    if story.loss_step is not None:
        shows += ["The loss showed it at ", components.goto(story.loss_step, "loss"), "."]
    cards = [components.finding_card(finding, story.lead(finding)) for finding in story.findings]
    head = html.H2("What happened, in the order in which it began")
    if not cards:
        return [html.Section([head, html.P("No rule fired.")], className="ls-card"), *components.risk_card(story.risk)]
    body = html.Div(cards, className="ls-findings")
    section = html.Section([head, html.P(shows, className="ls-dim"), body], className="ls-card")
    return [section, *components.risk_card(story.risk)]


TAB = Tab("when", "When", 10, ("loss", "gain", "events"), words)
