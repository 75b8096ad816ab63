"""The plane of runs: which numbers a run has to be placed by, and which learning rates an architecture survives.

Not covered: how it is drawn (`map_figures`), when runs are read (`summary`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..rules.lead import WINDOW, risen_steps
from ..runfile.layout import PROBE_DERIVED
from ..runfile.nested import flat
from .boundary import Boundary, boundaries
from .opened import OpenRun
from .text import number, shown

Row = Mapping[str, Any]

NUMBERS_LIMIT: Final = 200
NOT_PLACES: Final = ("step", "time", "generation", "rows_dropped")
SETTINGS: Final = {"lr": "learning rate", "width": "width", "size": "parameters", "seed": "seed", "steps": "steps run"}
FIRST: Final = ("setting.lr", ("last.a_bar_radius", "last.jacobian_radius", "last.residual_ratio", "last.loss"))
"""What a map shows first: learning rate and ρ(A̅), or what comes nearest to it."""


def numbers_of(held: OpenRun) -> dict[str, float]:
    """Return the numbers a run can be placed by: of its configuration, last and largest values of its recording.

    Names are ``config.train.lr``, ``last.loss``, ``largest.a_bar_radius``; ``converged`` is 1 or 0 where it can be
    said. Only finite numbers are there.
    """
    placed: dict[str, float] = {}
    for name, value in flat(held.run.info.get("config")):
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            placed[f"config.{shown(name, 80)}"] = float(value)
        if len(placed) >= NUMBERS_LIMIT:
            break
    for name in held.run.names:
        if name in NOT_PLACES:
            continue
        values = held.run.series(name)[1] if name in PROBE_DERIVED else held.run[name]
        placed[f"last.{shown(name, 80)}"] = _last_given(values)
        placed[f"largest.{shown(name, 80)}"] = _largest_finite(values)
        if len(placed) >= 2 * NUMBERS_LIMIT:
            break
    survived = converged(held.run["step"], held.run["loss"], finished=held.run.state != "live")
    if survived is not None:
        placed["converged"] = float(survived)
    return {name: value for name, value in placed.items() if math.isfinite(value)}


def _last_given(values: NDArray[np.floating]) -> float:
    """Return the last number that is not NaN; NaN where there is none. Of a long series the end is looked at first."""
    for part in (values[-1000:], values):
        given = np.flatnonzero(~np.isnan(part))
        if len(given):
            return float(part[given[-1]])
    return math.nan


def _largest_finite(values: NDArray[np.floating]) -> float:
    """Return the largest finite number; NaN where there is none."""
    largest = float(np.fmax.reduce(values, initial=-np.inf)) if len(values) else math.nan
    if math.isfinite(largest):
        return largest
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else math.nan


def converged(steps: Any, loss: Any, *, finished: bool) -> bool | None:
    """Say whether a training came to a good end: its last loss is finite, and not a tenth above its lowest.

    Losses are means over `rules.lead.WINDOW` steps. None where the run goes on, or is too short to say.

    >>> falling = np.linspace(5, 2, 100)
    >>> converged(np.arange(100.0), falling, finished=True), converged(np.arange(100.0), falling[::-1], finished=True)
    (True, False)
    """
    given = np.flatnonzero(~np.isnan(loss))
    if not finished or len(given) <= WINDOW:
        return None
    if not np.isfinite(loss[-WINDOW:]).all():
        return False
    finite = np.isfinite(loss)
    risen = risen_steps(steps[finite], loss[finite])
    return not (len(risen) and risen[-1] == steps[finite][-1])


SYMBOLS: Final = {
    "a_bar_radius": "ρ(A̅)", "a_bar_norm": "σ_max(A̅)", "jacobian_radius": "ρ(J)", "jacobian_norm": "σ_max(J)",
    "lyapunov_max": "λ₁", "last_state_norm": "‖h_T‖", "residual_ratio": "gain on the fixed batch",
}  # fmt: skip
RADII: Final = ("a_bar_radius", "jacobian_radius", "residual_ratio")
"""Numbers whose edge of stability is 1."""


def quantity(name: str) -> str:
    """Return the recorded number behind a place's name; empty for a setting.

    >>> quantity("last.a_bar_radius"), quantity("setting.lr")
    ('a_bar_radius', '')
    """
    group, _, rest = name.partition(".")
    return rest if group in ("last", "largest") else ""


def label(name: str) -> str:
    """Return a number's name as people read it.

    >>> label("last.a_bar_radius"), label("config.train.lr"), label("setting.lr")
    ('ρ(A̅) a_bar_radius, last', 'train.lr, configuration', 'learning rate')
    """
    group, _, rest = name.partition(".")
    if group == "setting":
        return SETTINGS.get(rest, rest)
    words = {"config": "configuration", "last": "last", "largest": "largest"}
    named = f"{SYMBOLS[rest]} {rest}" if group != "config" and rest in SYMBOLS else rest
    return f"{named}, {words[group]}" if group in words else name


@dataclass(frozen=True, slots=True)
class Place:
    """One run in the plane: id, name, address, regime, architecture, where it is, and which of its variables fail."""

    id: str
    name: str
    href: str
    regime: str
    by_design: bool
    x: float
    y: float
    architecture: str = ""
    failing: str = ""


def architecture(row: Row) -> str:
    """Return what kind of loop a run has; empty where it does not say.

    >>> architecture({"injection": "parcae", "norm": "pre"}), architecture({"injection": None})
    ('parcae, pre norm', '')
    """
    injection, norm = row.get("injection"), row.get("norm")
    return "" if not injection else f"{injection}, {norm} norm" if norm else str(injection)


def edges(placed: Sequence[Place]) -> list[Boundary]:
    """Return where along the horizontal axis each architecture becomes unstable; runs of no verdict are left out."""
    told = [one for one in placed if one.architecture and one.regime != "unknown"]
    return boundaries(
        [one.architecture for one in told], [one.x for one in told], [one.regime == "unstable" for one in told]
    )


def in_words(one: Boundary, x: str) -> str:
    """Say between which values tried an architecture begins to fail, and how sure that is."""
    if one.stable < one.unstable:
        seen = f"becomes unstable between {number(one.stable)} (stable) and {number(one.unstable)} (unstable)"
    elif math.isnan(one.stable):
        seen = f"has unstable runs at every value, from {number(one.unstable)} on"
    else:
        seen = f"is unstable at {number(one.unstable)} and stable at {number(one.stable)}: no sharp boundary"
    beyond = "below all that was tried" if one.at == -math.inf else "beyond all that was tried"
    at = number(one.at, 2) if math.isfinite(one.at) else beyond
    runs = f"{label(x)}; {one.runs} runs at {one.values} values"
    return f"{one.architecture} {seen}; estimate {at}, {_interval(one)} ({runs})."


def _interval(one: Boundary) -> str:
    """Say where nine tenths of the estimates lie, as far as the values tried tell: the band of the map."""
    low, high = (number(value, 2) for value in one.band)
    if math.isfinite(one.low) and math.isfinite(one.high):
        return f"nine tenths of the estimates lie between {low} and {high}, the grey band"
    if math.isfinite(one.high):
        return f"95 % of the estimates lie below {high}, some below {low}, the least that was tried: the grey band"
    if math.isfinite(one.low):
        return f"95 % of the estimates lie above {low}, some above {high}, the most that was tried: the grey band"
    return "and these runs do not say how far from it the boundary may lie: the grey band is all that was tried"


def quantities(rows: Iterable[Row], numbers: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the names of the numbers that at least one run has: settings first, then by name."""
    rows = list(rows)
    named = [f"setting.{name}" for name in SETTINGS if any(_setting(row, name) is not None for row in rows)]
    others = {name for placed in numbers.values() for name in placed if name != "converged"}
    return named + sorted(others)


def places(rows: Iterable[Row], numbers: Mapping[str, Mapping[str, float]], x: str, y: str) -> list[Place]:
    """Return the runs that have both numbers, where they are."""
    placed = []
    for row in rows:
        at = [_value(row, numbers.get(row["id"], {}), name) for name in (x, y)]
        if at[0] is None or at[1] is None:
            continue
        regime = str(row.get("verdict") or "unknown")
        by_design = regime == "marginal" and row.get("injection") == "addition"
        failing = str(row.get("variable") or "")
        run = row["id"], row["name"], row["href"]
        placed.append(Place(*run, regime, by_design, at[0], at[1], architecture(row), failing))
    return placed


def _value(row: Row, placed: Mapping[str, float], name: str) -> float | None:
    """Return one number of a run; None where it has none."""
    group, _, rest = name.partition(".")
    return _setting(row, rest) if group == "setting" else placed.get(name)


def _setting(row: Row, name: str) -> float | None:
    """Return a setting of a run that is a finite number."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


@dataclass(frozen=True, slots=True)
class Cell:
    """What became of the runs of one architecture at one learning rate.

    An unstable run can converge all the same: its loss spiked and came back.

    Attributes:
        count: How many runs there are that say.
        converged: How many of them converged.
        unstable: How many are unstable.
        failing: How many fail the gate.
        lost_seeds: Seeds of those that did not converge, as far as the runs say.
    """

    count: int = 0
    converged: int = 0
    unstable: int = 0
    failing: int = 0
    lost_seeds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Survival:
    """What became of every architecture at every learning rate: ``cells[i][j]`` is of architecture i at rate j."""

    architectures: list[str]
    rates: list[float]
    cells: list[list[Cell]]


def survival(rows: Sequence[Row], numbers: Mapping[str, Mapping[str, float]]) -> Survival:
    """Count the runs of every architecture and learning rate that came to a good end, as in the paper's Table 2.

    Runs whose end, architecture or rate is not known are left out.
    """
    told: dict[tuple[str, float], list[tuple[Row, bool]]] = {}
    for row in rows:
        survived, lr, name = numbers.get(row["id"], {}).get("converged"), _setting(row, "lr"), architecture(row)
        if survived is None or lr is None or not name:
            continue
        told.setdefault((name, lr), []).append((row, bool(survived)))
    names = sorted({name for name, _ in told})
    rates = sorted({lr for _, lr in told})
    return Survival(names, rates, [[_cell(told.get((name, lr), [])) for lr in rates] for name in names])


def _cell(runs: Sequence[tuple[Row, bool]]) -> Cell:
    """Count the runs of one cell."""
    seeds = (_setting(row, "seed") for row, survived in runs if not survived)
    return Cell(
        count=len(runs),
        converged=sum(survived for _, survived in runs),
        unstable=sum(row.get("verdict") == "unstable" for row, _ in runs),
        failing=sum(row.get("gate") == "fail" for row, _ in runs),
        lost_seeds=tuple(sorted(seed for seed in seeds if seed is not None)),
    )
