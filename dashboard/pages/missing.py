"""The page of an address that leads nowhere."""

from typing import Any

from dash import html

from .. import components
from . import Page


def layout(**_: Any) -> html.Div:
    """Return the words that say so, with the way back."""
    return html.Div(components.problem("No such page", "The address leads nowhere."))


PAGE = Page("missing", "/404", "Not found · loopscope", layout)
