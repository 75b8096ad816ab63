"""The pages: every module here that has a `PAGE` is one, so that adding a page is adding a file.

Not covered: what all pages share (`frame`, `components`) and the bar above them (`app`).
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from dash import Dash


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the dashboard.

    Attributes:
        name: Short name, unique: of its address and its parts.
        path: Its address, ``/map``; with ``<name>`` in it, a template whose parts are given to ``layout``.
        title: Title of the browser's tab, or a function of what stands for the parts of the address.
        layout: What the page holds; called with the parts of its address and its query as keywords.
        register: Adds the callbacks of the page to the application, once.
        link: Word in the top bar; empty for a page that is not in it.
        place: Place in the top bar, lowest first.
        counts: Id of a store whose number of entries is shown behind the word, ``Compare (3)``; empty for none.
    """

    name: str
    path: str
    title: str | Callable[..., str]
    layout: Callable[..., Any]
    register: Callable[[Dash], None] = lambda app: None
    link: str = ""
    place: int = 0
    counts: str = ""


def all_pages() -> list[Page]:
    """Return the pages there are, in the order of the top bar."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    pages = [module.PAGE for module in modules if isinstance(getattr(module, "PAGE", None), Page)]
    return sorted(pages, key=lambda page: (page.place, page.name))
