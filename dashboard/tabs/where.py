"""Where in the loop: state, update, direction and gradient of every loop, and the profile at the cursor."""

from typing import Any

import dash_mantine_components as dmc
from dash import html

from ..panel import FIXED_BATCH, VARIABLE, Ask
from ..text import shown
from . import Tab


def head(ask: Ask) -> list[Any]:
    """Return the choice of whose loops are shown."""
    there = len(ask.held.run.probe_steps) > 0
    story = ask.held.story(wait=False)
    failing = [one for one in story.variables if one.fails] if story else []
    names = {one.name for one in failing}
    data: Any = [
        {"value": FIXED_BATCH, "label": "fixed batch", "disabled": not there},
        {"value": "training", "label": "training steps"},
        *[
            {"value": f"{VARIABLE}{name}", "label": f"{'▲ ' if name in names else ''}{shown(name, 30)}"}
            for name in ask.held.run.variables
        ],
    ]
    value = ask.batch if ask.variable or (there and not ask.batch.startswith(VARIABLE)) else "training"
    choice = dmc.SegmentedControl(id="batch-choice", value=value, data=data, size="xs")
    text = "Loops of the same text at a fixed depth compare over training; those of training steps have random depths."
    told = f"▲ {', '.join(shown(one.brief, 80) for one in failing)}: its loops are one click away."
    fails = [html.Strong(told, className="ls-dim")] if failing else []
    choices = [html.Span("Loops of the", className="ls-dim"), choice, *fails, html.Span(text, className="ls-dim")]
    return [html.Div(choices, className="ls-choices")]


TAB = Tab(
    "where",
    "Where in the loop",
    20,
    ("profile", "state", "heat-state", "heat-residual", "heat-cosine", "heat-gradient", "blocks", "tokens"),
    head=head,
)
