"""Several runs on one axis: by step, by tokens, by time, or from where each began to fail; and what differs.

Not covered: how they are drawn (`compare_figures`), which runs were ticked (`pages.runs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .opened import OpenRun
from .settings import table

Floats = NDArray[np.float64]

AXES: Final = {
    "step": "step",
    "tokens": "tokens",
    "time": "hours since the first row",
    "breach": "steps since the first breach",
}
QUANTITIES: Final = ("loss", "a_bar_radius")
STABILITY: Final = ("a_bar_radius", "jacobian_radius", "residual_ratio", "last_residual_norm")
"""What says how stable a loop is; of a run without A̅ the later ones."""
UNITS: Final = {"loss": "loss, nats per token", "grad_norm": "gradient norm"}
NOT_COMPARED: Final = ("step", "time", "generation")
PER_RUN: Final = ("started", "command", "host", "rank", "parameter_names")
"""What every run says differently, whatever its configuration."""


@dataclass(frozen=True, slots=True)
class Line:
    """One number of one run over the chosen axis: ``x`` and ``y`` (n,), finite; ``lost``: where it was not finite."""

    name: str
    regime: str
    x: Floats
    y: Floats
    lost: Floats


def line(name: str, held: OpenRun, quantity: str, axis: str) -> Line | None:
    """Return a number of a run over an axis; None where the run has no such number or no such axis.

    Args:
        name: What the run is called.
        held: The run.
        quantity: Name of the number.
        axis: One of `AXES`.
    """
    picture = held.tracks.track(quantity)
    steps = held.run["step"]
    story = held.story(wait=False)
    if picture.empty or not len(steps):
        return None
    origin = story.since if story is not None else None
    places = axis_of(axis, steps, held.run["tokens"], held.run["time"], origin)
    if places is None:
        return None
    x, lost = (np.interp(some, steps, places) for some in (picture.steps, picture.broken))
    return Line(name, story.verdict if story is not None else "unknown", x, picture.values, lost)


def axis_of(axis: str, steps: Floats, tokens: Floats, time: Floats, origin: int | None) -> Floats | None:
    """Return where every step lies on an axis, never backwards; None where the run has nothing of the kind.

    Args:
        axis: One of `AXES`.
        steps: ``(N,)``.
        tokens: ``(N,)``, as the trainer gave them: a running total, or those of each step.
        time: ``(N,)``, seconds since 1970.
        origin: Step of the first breach; None where there was none.

    >>> steps = np.arange(4.0)
    >>> axis_of("tokens", steps, np.full(4, 256.0), steps, None).tolist()
    [256.0, 512.0, 768.0, 1024.0]
    >>> axis_of("tokens", steps, np.array([256.0, 512, 768, 1024]), steps, None).tolist()
    [256.0, 512.0, 768.0, 1024.0]
    >>> axis_of("breach", steps, steps, steps, 3).tolist(), axis_of("breach", steps, steps, steps, None)
    ([-3.0, -2.0, -1.0, 0.0], None)
    """
    if axis == "breach":
        return None if origin is None else steps - origin
    if axis == "step":
        return steps
    given = tokens if axis == "tokens" else time
    known = np.isfinite(given)
    if not known.any():
        return None
    if axis == "time":
        filled = np.interp(steps, steps[known], given[known])
        return np.maximum.accumulate(filled - filled[0]) / 3600
    total = bool((np.diff(given[known]) >= 0).all() and given[known][-1] > given[known][0])
    if total:
        running: Floats = np.interp(steps, steps[known], given[known])
        return running
    counted: Floats = np.cumsum(np.where(known, np.maximum(given, 0.0), 0.0))
    return counted


def quantities(runs: Sequence[OpenRun]) -> list[str]:
    """Return the numbers that at least one of the runs recorded, the usual ones first."""
    names = {name for held in runs for name in held.run.names if name not in NOT_COMPARED}
    return [name for name in QUANTITIES if name in names] + sorted(names - set(QUANTITIES))


def usual(runs: Sequence[OpenRun]) -> list[str]:
    """Return what is compared where nothing was asked for: the loss, and what says most of the stability of these runs.

    Of the numbers of stability it is the first one that most of the runs measured.
    """
    measured = {name: sum(not held.tracks.track(name).empty for held in runs) for name in STABILITY}
    return ["loss", max(STABILITY, key=lambda name: measured[name])]


def differences(infos: Sequence[Mapping[str, object]]) -> list[tuple[str, list[str]]]:
    """Return the settings in which some runs differ, with the value of each run; an en dash where one says none.

    >>> differences([{"config": {"lr": 0.1, "seed": 1}}, {"config": {"lr": 0.2, "seed": 1}, "host": "a"}])
    [('config.lr', ['0.1', '0.2'])]
    """
    tables = [table(info) for info in infos]
    names = dict.fromkeys(name for one in tables for name in one if name.partition(".")[0] not in PER_RUN)
    rows = [(name, [one.get(name, "–") for one in tables]) for name in names]
    # A run of an older version may not say at all what a newer one says to be nothing.
    return [(name, values) for name, values in rows if len({value.replace("none", "–") for value in values}) > 1]
