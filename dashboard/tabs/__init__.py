"""The tabs of the run page: every module here that has a `TAB` is one.

Not covered: the strip above them and how they follow the run (`pages.run`).
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from ..panel import Ask


def _no_words(ask: Ask) -> list[Any]:
    """Return nothing: a tab of plots only."""
    return []


@dataclass(frozen=True, slots=True)
class Tab:
    """One tab of the run page.

    Attributes:
        name: As the address says it.
        label: As the page says it.
        place: Its place, lowest first.
        panels: Names of its plots, in order.
        words: What it says besides, made anew with every change of rows or of the selected step.
        words_first: Whether the words stand above the plots.
        head: What stands above both and is made once: choices.
    """

    name: str
    label: str
    place: int
    panels: tuple[str, ...] = ()
    words: Callable[[Ask], list[Any]] = _no_words
    words_first: bool = False
    head: Callable[[Ask], list[Any]] = _no_words


@cache
def all_tabs() -> dict[str, Tab]:
    """Return the tabs by name, in their order."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    tabs = [module.TAB for module in modules if isinstance(getattr(module, "TAB", None), Tab)]
    return {tab.name: tab for tab in sorted(tabs, key=lambda tab: tab.place)}
