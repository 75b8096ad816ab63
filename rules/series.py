"""What an expression can read of a run: its recorded series, series derived from them, and what is true throughout.

Series that are recorded more rarely than every step keep their last value until the next one, so that a rule may
combine them; one of a loop that the next one does not run has none then. Where a series is missing, the reason is
given: the run has nothing of the kind, or it should have been there.

A run is gone through some rows at a time (`RunSeries`): what is derived of a row is made, read and forgotten while the
processor's caches hold it, and a long run takes hardly more memory than a short one.

Not covered: the conditions themselves (``expression``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runfile.layout import LOOP_COLUMNS, PROBE_DERIVED, STEP_COLUMNS, STEP_DERIVED
from ..runfile.ratios import STOPPED, halts
from ..runfile.reader import Run
from .expression import Series
from .findings import JudgementState
from .grammar import PER_LOOP, loop_entry
from .loss_series import DERIVED, SOURCES, LossSeries
from .risk import SOURCES as RISK_SOURCES
from .risk import Risk, RunRisk, carry
from .variables import at_passes, late_ratios_of

CONSTANTS: Final = frozenset({"a_bar_learned"})
LOSS_DERIVED: Final = frozenset(DERIVED)
RISK: Final = "run_risk"
SECONDS: Final = "seconds"
"""Seconds since the row before, by the clock of the machine; unknown in the first row of each process."""
_MADE_OF: Final = dict.fromkeys((*DERIVED, RISK), "loss") | {
    "lr_zero": "lr", "scaler_settling": "nonfinite", SECONDS: "time", "depth_change": "depth"
}  # fmt: skip
HALTING: Final = frozenset({"halt_logit", "halt_target"})
"""Numbers that a trainer gives of a halting gate: the mean of its logit, and of what the logit is trained towards."""
KNOWN_NAMES: Final = frozenset(
    {*STEP_COLUMNS, *STEP_DERIVED, *PROBE_DERIVED, *CONSTANTS, *LOSS_DERIVED, *HALTING, SECONDS, RISK}
)
"""What a rule can read of every run, besides the user's own numbers and the loops of `PER_LOOP`."""

OF_THE_LINEAR_PART: Final = frozenset(
    {"a_bar_radius", "a_bar_norm", "a_bar_radius_error", "b_bar_norm", "injection_norm"}
)
_FULL_LOOP: Final = frozenset(
    {"jacobian_radius", "jacobian_norm", "lyapunov_max", "lyapunov_error", "c_out_gain", "full_loop_seconds"}
)
OF_THE_LOOP: Final = OF_THE_LINEAR_PART | _FULL_LOOP | {*STEP_DERIVED, *PROBE_DERIVED, "input_norm", "c_out_norm"}
"""Series that say something about the stability of the loop; that it ran so many times is none."""
_OPTIONAL: Final = (
    frozenset({"grad_norm", "lr", "tokens", "c_out_norm", "input_norm"})
    | {"eval_depth", "eval_depth_max", "eval_forwards", "backward_depth"}
    | HALTING
)
"""Numbers that a trainer may give, a loop may have, and evaluations and solvers leave."""
NO_LOOP: Final = "no loop in this log"
"""Why a rule about the loop is not applicable to a log of another tool."""
LONGEST_PAUSE: Final = 3.0
"""A series has stopped when the run goes on for so many times its longest pause ..."""
SHORTEST_PAUSE: Final = 20
"""... and for at least so many steps."""
FIRST_PAUSE: Final = 500
"""... or this many, where it was recorded only once and its pauses are not known."""


ROWS_AT_ONCE: Final = 1 << 15
"""Rows that a run is gone through at a time: what the processor's caches hold of all that is made of them."""


class Missing(NamedTuple):
    """Why a series cannot be read, or not to the end of the run."""

    state: JudgementState
    reason: str


def series_of(run: Run, name: str, steps: Series) -> Series | None:
    """Return a recorded or derived series at every step; ``None`` when the run does not know the name.

    Args:
        run: The run.
        name: A name of `names_of`.
        steps: The steps of the run.
    """
    if name not in {*run.names, *LOSS_DERIVED, RISK, SECONDS} and loop_entry(name) is None:
        return None
    return RunSeries(run, [name]).rows(slice(0, len(steps)))[name]


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


class _Extent(NamedTuple):
    """How often and up to where a series has values."""

    values: int
    last: int  # step
    pause: int  # the longest, in steps; 0 where there are fewer than two values


class _EveryRow:
    """A series with a place in every row, NaN where it has no value.

    >>> track = _EveryRow(np.array([np.nan, 1.0, np.nan, 2.0]))
    >>> track.known(slice(0, 3)).tolist(), track.known(slice(3, 4)).tolist()
    ([nan, 1.0, 1.0], [2.0])
    """

    def __init__(self, values: Series) -> None:
        self._values, self._last = values, math.nan

    def extent(self, steps: Series, whole: _Extent) -> _Extent:
        """Return where it has values, given the steps of all rows and what is true of a series with one in each."""
        given = ~np.isnan(self._values)
        return whole if given.all() else _extent(steps[given])

    def known(self, rows: slice) -> Series:
        """Return the value known last at each of some rows, which follow those of the call before; NaN at first."""
        here = self._values[rows]
        if np.isnan(here).any():
            here = carry(here, self._last)
        self._last = float(here[-1]) if len(here) else self._last
        return here


class _OfLoop(_EveryRow):
    """A number of one loop, as it was in the last step whose loops were recorded; NaN where that ran too few of them.

    What a deeper step had there says nothing of one that does not get as far.

    Args:
        values: The number in every row, ``(rows,)``.
        recorded: The rows whose loops were recorded, ``(rows,)``.

    >>> at = np.array([True, True, False, True, False])
    >>> _OfLoop(np.array([np.nan, 1.0, np.nan, np.nan, np.nan]), at).known(slice(0, 5)).tolist()
    [nan, 1.0, 1.0, nan, nan]
    """

    def __init__(self, values: Series, recorded: NDArray[np.bool_]) -> None:
        super().__init__(values)
        last = np.maximum.accumulate(np.where(recorded, np.arange(len(values)), 0))
        self._shown = values if recorded.all() else values[last]

    def known(self, rows: slice) -> Series:
        """Return the value at each of some rows."""
        return self._shown[rows]


class _NowAndThen:
    """A series with values at some steps, which need not be those of rows.

    >>> track = _NowAndThen(np.array([1, 2]), np.array([0.5, 0.6]), np.arange(4.0))
    >>> track.known(slice(0, 4)).tolist(), track.given(slice(0, 4)).tolist()
    ([nan, 0.5, 0.6, 0.6], [nan, 0.5, 0.6, nan])
    """

    def __init__(self, at: NDArray[np.int64], values: Series, steps: Series) -> None:
        self._at, self._values, self._steps = at, values, steps
        self._begins = np.searchsorted(steps, at)  # the first row at which each is known

    def extent(self, steps: Series, whole: _Extent) -> _Extent:
        """Return where it has values."""
        return _extent(self._at)

    def known(self, rows: slice) -> Series:
        """Return the value known last at each of some rows; NaN before the first."""
        first, end = self._within(rows)
        values = np.append(self._values[first - 1] if first else math.nan, self._values[first:end])
        return np.repeat(values, np.diff(self._begins[first:end], prepend=rows.start, append=rows.stop))

    def given(self, rows: slice) -> Series:
        """Return the value at each of some rows whose step has one, else NaN."""
        first, end = self._within(rows)
        values, row = np.full(rows.stop - rows.start, np.nan), self._begins[first:end]
        exact = self._steps[row] == self._at[first:end]
        values[row[exact] - rows.start] = self._values[first:end][exact]
        return values

    def _within(self, rows: slice) -> tuple[int, int]:
        """Return which of the values begin in some rows."""
        first, end = np.searchsorted(self._begins, [rows.start, rows.stop])
        return int(first), int(end)


class RunSeries:
    """What rules read of one run: each series is read once, and handed out some rows at a time.

    Args:
        run: An opened run.
        names: What is read, names of `names_of`; one that the run does not know is NaN.
        variable: Whose loops are read; empty for those of the joint state.

    Attributes:
        steps: The steps of the run, ``(rows,)``.
        constants: What is true of the whole run, by name.
    """

    def __init__(self, run: Run, names: Collection[str], *, variable: str = "") -> None:
        self.steps = np.asarray(run["step"], dtype=np.float64)
        self.constants = constants(run.info)
        self._run, self._names, self._known = run, frozenset(names), frozenset(run.names)
        self._variable = variable
        self._loss, self._risk = LossSeries(ranks=len(run.ranks)), RunRisk()
        self._done = 0  # rows that were handed out
        self._tracks: dict[str, _EveryRow | _NowAndThen | None] = {}
        self._extents: dict[str, _Extent] = {}
        self._whole = _extent(self.steps)

    def rows(self, rows: slice) -> dict[str, Series]:
        """Return every name at some rows, ``(rows,)`` each; of a constant, one number.

        Args:
            rows: They begin where those of the call before end, because some series are made of all rows before.
        """
        if rows.start != self._done:
            raise ValueError(f"rows from {self._done} on are due, not from {rows.start} on")
        self._done = rows.stop
        env = {name: self.constants[name] for name in self._names & self.constants.keys()}
        if self._names & LOSS_DERIVED:
            env |= self._loss.replay({name: self._run[name][rows] for name in SOURCES})
        if RISK in self._names:
            env[RISK] = self._risk.replay(self._of_risk(rows))
        for name in self._names - env.keys():
            track = self._track(name)
            env[name] = np.full(rows.stop - rows.start, np.nan) if track is None else track.known(rows)
        return env

    def never(self, name: str) -> bool:
        """Return whether a name is known to have no value in any row."""
        derived = name in LOSS_DERIVED or name == RISK or name in self.constants
        return not derived and not self._extent(name).values

    def risk(self) -> Risk:
        """Return the risk at the last row, with its parts; to be asked when all rows were handed out."""
        if RISK not in self._names:
            self._risk.replay(self._of_risk(slice(0, len(self.steps))))
        return self._risk.explain(int(self.steps[-1]) if len(self.steps) else -1)

    def missing(self, name: str) -> Missing | None:
        """Return why a series is not there or ends before the run does; None where it is there to the end."""
        if not len(self.steps):
            return Missing("no data", "no step was recorded")
        if self._run.log and name in CONSTANTS:
            return Missing("not applicable", NO_LOOP)
        if name in CONSTANTS:
            known = self._run.info.get(name) is not None
            return None if known else Missing("not applicable", "the loop has no known A̅")
        source = _MADE_OF.get(name, name)
        extent = self._extent(source)
        if extent.values:
            missing = _stopped(source, extent, int(self.steps[-1]))
            if missing is not None and self._too_shallow(source, extent.last):
                return Missing("not applicable", f"since step {extent.last} no step runs enough loops for {name}")
            if missing is not None and source in PROBE_DERIVED and (why := _given_up(self._run, extent.last)):
                return Missing("not applicable", f"since step {extent.last} {why}")
            return missing
        if loop_entry(source) is not None and (self._run["depth"] > 0).any():
            return Missing("not applicable", f"no step runs enough loops for {name}")
        return _never(self._run, source)

    def _too_shallow(self, name: str, step: int) -> bool:
        """Return whether loops go on behind a step, and none of those steps gets to the loop of a name."""
        if (entry := loop_entry(name)) is None:
            return False
        series, index = entry
        needed = PER_LOOP[series] + (index if index >= 0 else -index - 1)
        later = self.steps > step
        deepest = max(np.nanmax(self._run[depth][later], initial=0.0) for depth in ("depth", "depth_max"))
        return bool(0 < deepest < needed)

    def _track(self, name: str) -> _EveryRow | _NowAndThen | None:
        """Return a recorded series, read when it is first asked for; None where the run does not know the name."""
        if name not in self._tracks:
            if name in PROBE_DERIVED:
                own = late_ratios_of(self._run, self._variable, name) if self._variable else self._run.series(name)
                self._tracks[name] = _NowAndThen(*own, self.steps)
            elif (entry := _entry(name)) is not None:
                self._read_loops(entry[0])
            elif name == SECONDS:
                self._tracks[name] = _EveryRow(_seconds(self._run))
            else:
                self._tracks[name] = _EveryRow(self._run[name]) if name in self._known else None
        return self._tracks[name]

    def _read_loops(self, series: str) -> None:
        """Read every loop of a series that is asked for, all at once."""
        wanted = {*self._names, *map(_MADE_OF.get, self._names)}
        entries = {name: entry[1] for name in wanted if name and (entry := _entry(name)) and entry[0] == series}
        at = [*entries.values()]
        read = at_passes(self._run, self._variable, series, at) if self._variable else self._run.at_loops(series, at)
        recorded = ~np.isnan(self._run["depth"])
        for name, values in zip(entries, read, strict=True):
            self._tracks[name] = _EveryRow(values) if name in STEP_DERIVED else _OfLoop(values, recorded)

    def _extent(self, name: str) -> _Extent:
        """Return where a recorded series has values."""
        if name not in self._extents:
            track = self._track(name)
            self._extents[name] = _Extent(0, 0, 0) if track is None else track.extent(self.steps, self._whole)
        return self._extents[name]

    def _of_risk(self, rows: slice) -> dict[str, Series]:
        """Return what a risk is made of at some rows, as recorded."""
        columns: dict[str, Series] = {}
        for name in RISK_SOURCES:
            if name in PROBE_DERIVED:
                track = self._track(name)
                assert isinstance(track, _NowAndThen)
                columns[name] = track.given(rows)
            elif name in self._known:
                columns[name] = self._run[name][rows]
        return columns


def _entry(name: str) -> tuple[str, int] | None:
    """Return the series and the loop that a name stands for, as `Run.at_loops` counts them; None where for none."""
    if name in STEP_DERIVED:
        series, back = STEP_DERIVED[name]
        return series, -1 - back
    if (entry := loop_entry(name)) is None:
        return None
    series, index = entry
    return series, index if index >= 0 else index - PER_LOOP[series]


def _extent(at: NDArray[Any]) -> _Extent:
    """Return how often and up to where there are values, from the steps at which there are."""
    pause = int(np.diff(at).max()) if len(at) > 1 else 0
    return _Extent(len(at), int(at[-1]), pause) if len(at) else _Extent(0, 0, 0)


def _seconds(run: Run) -> Series:
    """Return the seconds since the row before."""
    time, process = run["time"], run["generation"]
    values = np.full(len(time), np.nan)
    values[1:] = np.where(process[1:] == process[:-1], np.diff(time), np.nan)
    return values


def constants(info: Mapping[str, Any]) -> dict[str, Series]:
    """Return what a rule can ask that is true of the whole run: ``a_bar_learned``, NaN when the run has no A̅."""
    learned = info.get("a_bar_learned")
    return {"a_bar_learned": np.array(float(learned) if isinstance(learned, bool) else math.nan)}


def is_known(name: str) -> bool:
    """Return whether a rule can read a name of every run.

    >>> [is_known(name) for name in ("loss", "residual_norm[-1]", "my_metric")]
    [True, True, False]
    """
    return name in KNOWN_NAMES or loop_entry(name) is not None


def names_of(run: Run) -> Iterable[str]:
    """Return every name that a rule can read of a run."""
    return (*run.names, *CONSTANTS, *LOSS_DERIVED, RISK)


def _stopped(name: str, extent: _Extent, end: int) -> Missing | None:
    """Return that a series was not recorded any more long before the end."""
    pause = LONGEST_PAUSE * extent.pause if extent.values > 1 else FIRST_PAUSE
    if end - extent.last <= max(pause, SHORTEST_PAUSE):
        return None
    return Missing("no data", f"{name} was recorded last at step {extent.last} of {end}")


def _never(run: Run, name: str) -> Missing:
    """Return why a series was never recorded."""
    if run.log and name not in _OPTIONAL:
        return Missing("not applicable", NO_LOOP)
    if name in OF_THE_LINEAR_PART and run.info.get("a_bar_learned") is None:
        return Missing("not applicable", "the loop has no known A̅")
    if name in _FULL_LOOP:
        if "full_loop_seconds" not in run.names or not np.isfinite(run["full_loop_seconds"]).any():
            return Missing("not applicable", _not_measured(run))
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


def _not_measured(run: Run) -> str:
    """Return why the full loop was never measured: what the probe said of it, else that nobody asked for it."""
    said = next((event.message for event in run.events if event.kind == "full_loop"), "")
    return said or "the full loop was not measured; the preset inspect measures it"


def _given_up(run: Run, step: int) -> str:
    """Return why the fixed batch is run no more behind a step, if that lies in the model; empty where it failed."""
    told = next((each for each in reversed(run.events) if each.kind == "fixed_batch" and each.step > step), None)
    return told.message if told is not None and told.severity == "note" else ""


def _no_pass(run: Run, name: str) -> Missing:
    """Return why no pass of the fixed batch gave a ratio."""
    if len(run.probe_steps):
        tokens, residual, state = (run.probe(series)[-1:] for series in ("tokens", "residual_norm", "state_norm"))
        if halts(tokens, residual[:, :-1], state)[0]:
            return Missing("not applicable", f"on the fixed batch {STOPPED}")
        return Missing("not applicable", f"the fixed batch runs too few loops for {name}")
    told = next((event for event in run.events if event.kind == "fixed_batch"), None)
    if told is None:
        return Missing("not applicable", "there is no fixed batch")
    if told.severity == "note":  # the model is such: nothing failed, and nothing that the user records would change it
        return Missing("not applicable", told.message)
    return Missing("no data", f"the fixed batch was never run: {told.message}")
