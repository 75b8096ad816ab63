"""What a plot over steps has to be sent when its run has grown: new points of its lines, new columns of its maps.

A page says how far each line of each plot goes; it gets what comes after. Where points cannot simply be added (a new
line, a value beyond an axis that has a fixed range, too many points for a screen) the page asks for the whole plot.

Not covered: how points are added (`assets/tails.js`), what a plot shows (`panels`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from .frame import traces_only, whole_range
from .panel import Ask, Panel, drawn
from .panels import PANELS
from .steps import bounds

FARTHEST: Final = 4000.0
"""So many steps behind the newest point that a page has are looked at again for lines that are recorded rarely."""

Have = Mapping[str, float]


def tails(have: Any, ask: Ask) -> dict[str, Any]:
    """Return what is new in the panels that a page has, as `tail` says it; what a page says it has is not trusted."""
    known = have if isinstance(have, dict) else {}
    return {
        name: tail(PANELS[name], ask, lines)
        for name, lines in known.items()
        if name in PANELS and isinstance(lines, dict)
    }


def tail(panel: Panel, ask: Ask, have: Have) -> dict[str, Any]:
    """Return what is new in a panel, JSON-ready.

    Args:
        panel: A panel over steps.
        ask: What the page wants to see of it; its range of steps is not looked at.
        have: By the name of each line: the last step that the page has of it; minus one for none.

    Returns:
        ``range`` of the steps, ``summary`` in words, ``generation`` of the run that it is of, and either ``traces``:
        name, ``x``, and ``y`` or ``z`` of what is new, or, of a panel that is sent whole where it changed, its
        ``version``.
    """
    first, newest = bounds(ask.held.run)
    span = list(whole_range((float(first), float(newest))))
    said: dict[str, Any] = {"range": span, "generation": ask.held.run.generation}
    if panel.whole:
        meta = drawn(panel, replace(ask, view=None)).layout.meta
        return said | {"version": meta["version"], "summary": meta["summary"]}
    steps = [step for step in have.values() if step >= 0]
    start = max(min(steps), max(steps) - FARTHEST) if steps else -math.inf
    with traces_only():
        chart = drawn(panel, replace(ask, view=(start, math.inf)))
    traces = [_new(trace, have.get(str(trace.name))) for trace in chart.data]
    return said | {"traces": [trace for trace in traces if trace is not None]}


def _new(trace: Any, last: float | None) -> dict[str, Any] | None:
    """Return the part of a line or map behind a step; its name alone where the page has no such line."""
    if last is None:
        return {"name": trace.name, "x": []}
    x = np.asarray(trace.x, np.float64)
    later = x > last
    if not later.any():
        return None
    if isinstance(trace, go.Heatmap):
        return {"name": trace.name, "x": x[later].tolist(), "z": [_listed(row[later]) for row in np.asarray(trace.z)]}
    return {"name": trace.name, "x": x[later].tolist(), "y": _listed(np.asarray(trace.y, np.float64)[later])}


def _listed(values: NDArray[np.floating]) -> list[float | None]:
    """Return numbers as JSON carries them: single precision is enough for a screen.

    >>> _listed(np.array([0.1, np.nan, np.inf]))
    [0.1, None, None]
    """
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in values.tolist()]
