"""What is read of one run for its row in the table of runs, and for the pages about all runs.

Not covered: when it is read, and what is kept (`summary`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from .alerts import alerts_of
from .downsample import thin
from .opened import OpenRun
from .run_map import numbers_of
from .story import Story, as_json

Row = dict[str, Any]

SPARK_POINTS: Final = 40
SPARK_ROWS: Final = 20_000  # losses beyond so many are sampled before they are thinned: a spark is 80 pixels wide


def read_once(path: Path, make: Callable[[OpenRun], Row]) -> Row:
    """Open a run for one question only.

    Raises:
        RunFileError: The file is no run, is damaged, or has gone.
    """
    held = OpenRun(path)
    try:
        return make(held)
    finally:
        held.close()


def cells_of(held: OpenRun, story: Story | None = None) -> Row:
    """Return the cells that are read off a run, JSON-ready; its verdict is made now where it is not given."""
    run, settings = held.run, held.settings()
    story = story or held.story()
    assert story is not None
    cells: Row = {
        "state": run.state,
        "fault": None if len(run) else _no_rows(run.state),
        "steps": len(run),
        "loss": cell(held.last("loss")),
        "spark": spark(held),
        "radius": cell(held.last("a_bar_radius")),
        "state_norm": cell(held.last("last_state_norm")),
        "injection": settings.injection,
        "norm": settings.norm,
        "width": settings.width,
        "lr": settings.lr if settings.lr is not None else _peak_lr(held),
        "size": settings.parameters,
        "seed": settings.seed,
        "started": settings.started,
    }
    details = {"numbers": numbers_of(held), "alerts": alerts_of(held, story)}
    return cells | as_json(story) | {"alerted": _time_of(held, story)} | details


def _time_of(held: OpenRun, story: Story) -> float | None:
    """Return when the first alert was, seconds since 1970."""
    first = story.first_alert
    steps = held.run["step"]
    if first is None or not len(steps):
        return None
    row = min(int(np.searchsorted(steps, first.step)), len(steps) - 1)
    moment = float(held.run["time"][row])
    return moment if math.isfinite(moment) else None


def _peak_lr(held: OpenRun) -> float | None:
    """Return the largest recorded learning rate of a run whose configuration does not say it."""
    recorded = held.run["lr"]
    finite = recorded[np.isfinite(recorded)]
    return float(finite.max()) if finite.size else None


def spark(held: OpenRun) -> list[float | None]:
    """Return some tens of losses that look like all of them; None where one is not finite."""
    loss = held.run["loss"]
    if len(loss) > SPARK_ROWS:
        loss = loss[:: -(-len(loss) // SPARK_ROWS)]
    _, values = thin(np.arange(float(len(loss))), loss, points=SPARK_POINTS)
    return [None if math.isnan(value) else float(f"{value:.4g}") for value in values.tolist()]


def _no_rows(state: str) -> str:
    """Say that a run is empty, and whether that may change."""
    return "no step was recorded yet" if state == "live" else "no step was recorded, so nothing can be said"


def cell(value: float) -> float | str | None:
    """Return a number as JSON can carry it.

    >>> cell(1.5), cell(math.inf), cell(math.nan)
    (1.5, 'inf', None)
    """
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)
