"""What an expression can read of a run: its recorded series, series derived from them, and what is true throughout.

Series that are recorded more rarely than every step keep their last value until the next one, so that a rule may
combine them. Where a series is missing, the reason is given: the run has nothing of the kind, or it
should have been there.

Not covered: the conditions themselves (``expression``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runfile.layout import LOOP_COLUMNS, PROBE_DERIVED, STEP_COLUMNS, STEP_DERIVED
from ..runfile.reader import Run
from .expression import Series
from .findings import JudgementState
from .grammar import PER_LOOP, loop_entry
from .loss_series import DERIVED, SOURCES, LossSeries
from .risk import RunRisk, columns_of

CONSTANTS: Final = frozenset({"a_bar_learned"})
LOSS_DERIVED: Final = frozenset(DERIVED)
RISK: Final = "run_risk"
SECONDS: Final = "seconds"
"""Seconds since the row before, by the clock of the machine; unknown in the first row of each process."""
_MADE_OF: Final = dict.fromkeys((*DERIVED, RISK), "loss") | {
    "lr_zero": "lr", "scaler_settling": "nonfinite", SECONDS: "time", "depth_change": "depth"
}  # fmt: skip
KNOWN_NAMES: Final = frozenset({*STEP_COLUMNS, *STEP_DERIVED, *PROBE_DERIVED, *CONSTANTS, *LOSS_DERIVED, SECONDS, RISK})
"""What a rule can read of every run, besides the user's own numbers and the loops of `PER_LOOP`."""
_ROWS_AT_ONCE: Final = 1 << 16

_LINEAR_PART: Final = frozenset({"a_bar_radius", "a_bar_norm", "a_bar_radius_error", "b_bar_norm", "injection_norm"})
_FULL_LOOP: Final = frozenset(
    {"jacobian_radius", "jacobian_norm", "lyapunov_max", "lyapunov_error", "c_out_gain", "full_loop_seconds"}
)
OF_THE_LOOP: Final = _LINEAR_PART | _FULL_LOOP | {*STEP_DERIVED, *PROBE_DERIVED, "input_norm", "c_out_norm"}
"""Series that say something about the stability of the loop; that it ran so many times is none."""
_OPTIONAL: Final = frozenset({"grad_norm", "lr", "tokens", "c_out_norm", "input_norm"})
"""Numbers that a trainer may give and a loop may have."""
NO_LOOP: Final = "no loop in this log"
"""Why a rule about the loop is not applicable to a log of another tool."""
LONGEST_PAUSE: Final = 3.0
"""A series has stopped when the run goes on for so many times its longest pause ..."""
SHORTEST_PAUSE: Final = 20
"""... and for at least so many steps."""
FIRST_PAUSE: Final = 500
"""... or this many, where it was recorded only once and its pauses are not known."""


Read = Callable[[str], tuple[NDArray[np.int64], Series]]
"""Gives the steps at which a series was recorded and its values there, as `recorded` does for one run."""


class Missing(NamedTuple):
    """Why a series cannot be read, or not to the end of the run."""

    state: JudgementState
    reason: str


def series_of(run: Run, name: str, steps: Series, read: Read | None = None) -> Series | None:
    """Return a recorded or derived series at every step; ``None`` when the run does not know the name.

    Args:
        run: The run.
        name: A name of `names_of`.
        steps: The steps.
        read: `recorded` of this run, as something that remembers its answers.
    """
    if name in LOSS_DERIVED:
        return derived(run)[name]
    if name == RISK:
        return RunRisk().replay(columns_of(run))
    try:
        recorded_at, values = read(name) if read else recorded(run, name)
    except KeyError:
        return None
    return _last_known(steps, np.asarray(recorded_at, dtype=np.float64), np.asarray(values, dtype=np.float64))


def entries_of(names: Iterable[str], loops: NDArray[np.float32]) -> dict[str, float]:
    """Return what names of loops (`loop_entry`) are in the loops of one step.

    Args:
        names: Any names; those of no loop are left out.
        loops: ``(T + 1, 4)`` as ``LOOP_COLUMNS``.
    """
    entries = {}
    for name in names:
        entry = loop_entry(name)
        if entry is not None:
            series, index = entry
            row = index if index >= 0 else len(loops) + index - PER_LOOP[series]
            inside = 0 <= row < len(loops)
            entries[name] = float(loops[row, LOOP_COLUMNS.index(series)]) if inside else math.nan
    return entries


def recorded(run: Run, name: str) -> tuple[NDArray[np.int64], Series]:
    """Return at which steps a series has a value, and which.

    Raises:
        KeyError: The run does not know the name.
    """
    entry = loop_entry(name)
    if entry is None and name != SECONDS:
        return run.series(name)
    values = _seconds(run) if entry is None else _of_loop(run, *entry)
    known = ~np.isnan(values)
    return run["step"].astype(np.int64)[known], values[known]


def _seconds(run: Run) -> Series:
    """Return the seconds since the row before."""
    time, process = run["time"], run["generation"]
    values = np.full(len(time), np.nan)
    values[1:] = np.where(process[1:] == process[:-1], np.diff(time), np.nan)
    return values


def _of_loop(run: Run, series: str, index: int) -> Series:
    """Return the entry of one loop in every step, NaN where it did not run."""
    if index < 0:
        return run.source.last(series, PER_LOOP[series] - 1 - index)
    values = np.full(len(run), np.nan)
    for start in range(0, len(run), _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, len(run)))
        table = run.loops(series, rows=rows)
        if table.shape[1] > index:
            values[rows] = table[:, index]
    return values


def derived(run: Run) -> dict[str, Series]:
    """Return the series that are made of the loss, at every step."""
    return LossSeries(ranks=len(run.ranks)).replay({name: run[name] for name in SOURCES})


def _last_known(steps: Series, recorded_at: Series, values: Series) -> Series:
    """Return the value recorded last at or before each step; NaN before the first."""
    if not len(recorded_at):
        return np.full(len(steps), np.nan)
    at = np.searchsorted(recorded_at, steps, side="right") - 1
    return np.where(at >= 0, values[np.maximum(at, 0)], np.nan)


def constants(info: Mapping[str, Any]) -> dict[str, Series]:
    """Return what a rule can ask that is true of the whole run: ``a_bar_learned``, NaN when the run has no A̅."""
    learned = info.get("a_bar_learned")
    return {"a_bar_learned": np.array(float(learned) if isinstance(learned, bool) else math.nan)}


def names_of(run: Run) -> Iterable[str]:
    """Return every name that a rule can read of a run."""
    return (*run.names, *CONSTANTS, *LOSS_DERIVED, RISK)


def missing(run: Run, name: str, read: Read | None = None) -> Missing | None:
    """Return why a series is not there or ends before the run does; None where it is there to the end.

    Args:
        run: The run.
        name: A name of `names_of`.
        read: As in `series_of`.
    """
    if run.log and name in CONSTANTS:
        return Missing("not applicable", NO_LOOP)
    if name in CONSTANTS:
        return None if run.info.get(name) is not None else Missing("not applicable", "the loop has no known A̅")
    source = _MADE_OF.get(name, name)
    entry = loop_entry(source)
    known = source in run.names or entry is not None
    look = read or (lambda source: recorded(run, source))
    recorded_at = look(source)[0] if known else np.empty(0, dtype=np.int64)
    if len(recorded_at):
        return _stopped(source, recorded_at, int(run["step"][-1]))
    if entry is not None and (run["depth"] > 0).any():
        return Missing("not applicable", f"no step runs enough loops for {name}")
    return _never(run, source)


def _stopped(name: str, recorded_at: NDArray[np.int64], end: int) -> Missing | None:
    """Return that a series was not recorded any more long before the end."""
    last = int(recorded_at[-1])
    pause = LONGEST_PAUSE * int(np.diff(recorded_at).max()) if len(recorded_at) > 1 else FIRST_PAUSE
    if end - last <= max(pause, SHORTEST_PAUSE):
        return None
    return Missing("no data", f"{name} was recorded last at step {last} of {end}")


def _never(run: Run, name: str) -> Missing:
    """Return why a series was never recorded."""
    if run.log and name not in _OPTIONAL:
        return Missing("not applicable", NO_LOOP)
    if name in _LINEAR_PART and run.info.get("a_bar_learned") is None:
        return Missing("not applicable", "the loop has no known A̅")
    if name in _FULL_LOOP:
        if "full_loop_seconds" not in run.names or not np.isfinite(run["full_loop_seconds"]).any():
            return Missing("not applicable", "the full loop was not measured; the preset inspect measures it")
        if name == "c_out_gain":
            return Missing("not applicable", "the loop has no known read-out")
        return Missing("no data", f"the full loop was measured and never gave {name}")
    if name in PROBE_DERIVED:
        return _no_pass(run, name)
    if name in STEP_DERIVED or loop_entry(name) is not None:  # `completeness` tells of a run without loops
        return Missing("not applicable", "no loop was recorded")
    if name in _OPTIONAL:
        return Missing("not applicable", f"{name} was never recorded")
    return Missing("no data", f"{name} was never recorded")


def _no_pass(run: Run, name: str) -> Missing:
    """Return why no pass of the fixed batch gave a ratio."""
    if len(run.probe_steps):
        return Missing("not applicable", f"the fixed batch runs too few loops for {name}")
    said = next((event.message for event in run.events if event.kind == "fixed_batch"), "")
    if said:
        return Missing("no data", f"the fixed batch was never run: {said}")
    return Missing("not applicable", "there is no fixed batch")
