"""How likely a run is to be lost: one calibrated probability, and which signals it is made of.

Every `STRIDE` rows the recorded numbers are made into a few signals, each of them a logarithm of a growth. A signal
counts from a lower limit on and up to an upper one, times a weight that is never negative; the sum of these parts and a
constant is the logit of the risk. More growth therefore never lowers it, and the parts explain it. Limits, weights and
constants are calibrated (``risk.toml`` beside this file, docs/risk.md), once for runs with a recorded loop and once for
runs of which only the loss is known.

A run is followed row by row in bounded memory, or its rows are gone through at once with the same result.

Not covered: learning rates, sizes and texts far from those of the calibration; docs/risk.md says what was tried.
"""

from __future__ import annotations

import math
import tomllib
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runfile.reader import Run
from .spikes import Floats, middle_of_rows

WINDOW: Final = 16  # rows of which a level is the median, and rows before the first risk
STRIDE: Final = 4  # rows between two risks
SOURCES: Final = (
    "loss", "grad_norm", "nonfinite", "a_bar_radius", "a_bar_norm", "b_bar_norm", "c_out_norm",
    "residual_ratio", "growth_ratio", "jacobian_radius",
)  # fmt: skip
"""The series that a risk is made of; any may be missing."""
GROWN: Final = ("a_bar_norm", "b_bar_norm", "c_out_norm")  # compared with their first values
COMPARED: Final = ("loss", "grad_norm")  # compared with their levels half of the way back
START: Final = 4  # first losses, of which the median is what a run began with
FALLEN: Final = 0.85
"""Where the loss has been this part of its start, the run began untrained. Before, or where a trained model goes on
under a new file, how deep the loss has been says nothing."""
SIGNALS: Final = {
    "growth": "each late loop multiplies what goes through it by {x:.3g}",
    "radius": "ρ(A̅) is {x:.2f}",
    "readout": "the read-out matrix has grown {x:.1f}-fold since the start",
    "injection": "the matrices of the injection have grown {x:.1f}-fold since the start",
    "descent": "the loss has never been below {x:.2f} of its start",
    "stall": "the loss stands at {x:.2f} times what it was after half of the steps",
    "rise": "the loss stands at {x:.2f} times its best level",
    "gradient": "the gradient norm is {x:.1f} times what it was after half of the steps",
}
"""The signals, and what each says; ``x`` is the growth of which the signal is the natural logarithm."""
BROKEN: Final = "broken"
_BROKEN_WEIGHT: Final = 24.0  # logits when every loss of a window was not finite; set by hand: no run of ours had one


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a risk.

    Attributes:
        name: Of the part.
        logits: What it adds to the logit; never negative.
        share: Of all that the parts add, 0 to 1.
        said: The growth it is made of, in words.
    """

    name: str
    logits: float
    share: float
    said: str


@dataclass(frozen=True, slots=True)
class Risk:
    """How likely a run is to be lost.

    Attributes:
        value: The probability; NaN where fewer than `WINDOW` rows or no loss is known.
        basis: ``loop``, or ``loss`` where only loss and gradient norm are recorded: which calibration it is.
        step: The step up to which rows were used; -1 for none.
        parts: What it is made of, the largest first.
        sentence: The same in one sentence.
    """

    value: float
    basis: str
    step: int
    parts: tuple[Part, ...]
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """Return the risk for JSON; a value that is not known is None."""
        value = None if math.isnan(self.value) else self.value
        return {**asdict(self), "value": value, "parts": [asdict(part) for part in self.parts]}


@dataclass(frozen=True, slots=True)
class Term:
    """One part of a calibration: the product of how far each of its signals has gone from its lower to its upper limit.

    Attributes:
        name: Of the part.
        signals: Names of `SIGNALS`.
        lower: Of each signal, where it begins to count.
        upper: Of each signal, where it counts in full.
        weight: Logits where all count in full, at least 0.
    """

    name: str
    signals: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    weight: float

    def __post_init__(self) -> None:
        """Refuses what would not be monotone."""
        if self.weight < 0 or any(low >= high for low, high in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f"{self.name}: expected a weight of at least 0 and limits that rise")

    def extent(self, signals: Mapping[str, Floats]) -> Floats:
        """Return how far it has gone, from 0 to 1, at each row; 0 where a signal is not known."""
        extent: Floats = np.array(1.0)
        for name, low, high in zip(self.signals, self.lower, self.upper, strict=True):
            with np.errstate(invalid="ignore"):
                gone = np.clip((signals[name] - low) / (high - low), 0.0, 1.0)
            extent = extent * np.where(np.isnan(gone), 0.0, gone)
        return extent


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns signals into a probability.

    Attributes:
        constant: Logit where nothing counts.
        terms: Its parts.
    """

    constant: float
    terms: tuple[Term, ...]

    def logits(self, signals: Mapping[str, Floats]) -> Floats:
        """Return the logit of the risk at each row."""
        total = self.constant + _BROKEN_WEIGHT * signals[BROKEN]
        for term in self.terms:
            total = total + term.weight * term.extent(signals)
        return np.asarray(total)


@cache
def calibrations() -> dict[str, Calibration]:
    """Return the shipped calibrations, ``loop`` and ``loss``."""
    read = tomllib.loads(resources.files(__package__).joinpath("risk.toml").read_text(encoding="utf-8"))
    return {name: calibration(read[name]) for name in ("loop", "loss")}


def calibration(table: Mapping[str, Any]) -> Calibration:
    """Return a calibration from its table in TOML.

    >>> part = {"name": "loop", "signals": ["growth"], "lower": [0.0], "upper": [0.5], "weight": 4.0}
    >>> calibration({"constant": -2.0, "part": [part]}).terms[0].extent({"growth": np.array([-1.0, 0.25])}).tolist()
    [0.0, 0.5]
    """
    terms = (
        Term(p["name"], tuple(p["signals"]), tuple(p["lower"]), tuple(p["upper"]), p["weight"]) for p in table["part"]
    )
    return Calibration(table["constant"], tuple(terms))


class RunRisk:
    """Follows a run row by row, or goes through its rows at once with the same result.

    >>> risk = RunRisk()
    >>> rows = [{"loss": 5.5 if step < 4 else 3.2, "growth_ratio": 1.5, "residual_ratio": 1.5} for step in range(40)]
    >>> seen = [risk.update(row) for row in rows]
    >>> seen[-1] > 0.5, risk.explain().basis
    (True, 'loop')
    """

    def __init__(self) -> None:
        self._count = 0
        self._last = dict.fromkeys(SOURCES, math.nan)  # values recorded last
        self._first = dict.fromkeys(GROWN, math.nan)  # values recorded first
        self._start: list[float] = []  # the first few losses
        self._recent = {name: deque[float](maxlen=WINDOW) for name in (*COMPARED, BROKEN)}
        self._levels: dict[int, list[float]] = {}  # of `COMPARED` at each milestone: two for every doubling of the run
        self._best = self._value = math.nan
        self._signals: dict[str, float] = {}

    def update(self, row: Mapping[str, float]) -> float:
        """Return the risk after a row; NaN before there is one.

        Args:
            row: `SOURCES` as recorded, NaN or missing where not. A ratio of the fixed batch belongs to the row of the
                step after which it ran.
        """
        for name, value in row.items():
            if name in self._last and not math.isnan(value):
                self._last[name] = value
                if name in GROWN and math.isnan(self._first[name]):
                    self._first[name] = value
        loss = row.get("loss", math.nan)
        if not math.isnan(loss) and len(self._start) < START:
            self._start.append(loss)
        self._recent[BROKEN].append(float(is_broken(np.array(loss), np.array(row.get("nonfinite", 0.0)))))
        for name in COMPARED:
            self._recent[name].append(self._last[name])
        self._count += 1
        if self._count % STRIDE == 0:
            self._draw()
        return self._value

    def _draw(self) -> None:
        """Work out the risk of this row."""
        level = [float(levels(np.array(self._recent[name])[None])[0]) for name in COMPARED]
        if self._count == milestones(np.array([2 * self._count]))[0]:
            self._levels[self._count] = level
        if self._count < WINDOW:
            return
        self._best = float(np.fmin(self._best, level[0]))
        before = self._levels[int(milestones(np.array([self._count]))[0])]
        known = {name: np.array([value]) for name, value in self._last.items()}
        known |= {f"first {name}": np.array([value]) for name, value in self._first.items()}
        known |= {f"level {name}": np.array([value]) for name, value in zip(COMPARED, level, strict=True)}
        known |= {f"before {name}": np.array([value]) for name, value in zip(COMPARED, before, strict=True)}
        known["best"] = np.array([self._best])
        known["start"] = np.array([_start(self._start)])
        known[BROKEN] = np.array([np.mean(self._recent[BROKEN])])
        drawn = signals(known)
        self._value = float(risk_of(drawn)[0])
        self._signals = {name: float(values[0]) for name, values in drawn.items()}

    def replay(self, columns: Mapping[str, ArrayLike]) -> Floats:
        """Return the risk after each of the rows that follow, many at once: what `update` would for each in turn.

        Args:
            columns: `SOURCES` as recorded, each ``(rows,)``; a missing one was not recorded.
        """
        before = self._value
        _drawn, risks, rows, first = self._replayed(columns)
        return _held(risks, rows, first, before)

    def all_signals(self, columns: Mapping[str, ArrayLike]) -> dict[str, Floats]:
        """Return the signals after each row instead, ``(rows,)`` each, NaN where not known; for calibrating."""
        drawn, _risks, rows, first = self._replayed(columns)
        return {name: _held(each, rows, first, math.nan) for name, each in drawn.items()}

    def _replayed(self, columns: Mapping[str, ArrayLike]) -> tuple[dict[str, Floats], Floats, int, int]:
        """Go through rows; return the signals and the risks drawn, how many rows there are, the first one drawn at."""
        given = {name: np.asarray(columns[name], dtype=np.float64) for name in SOURCES if name in columns}
        rows = len(next(iter(given.values()))) if given else 0
        nothing = np.broadcast_to(math.nan, rows)
        given = {name: given.get(name, nothing) for name in SOURCES}
        carried = {name: carry(values, self._last[name]) for name, values in given.items()}
        broken = is_broken(given["loss"], np.nan_to_num(given["nonfinite"])).astype(np.float64)
        recent = {name: np.concatenate([list(self._recent[name]), carried[name]]) for name in COMPARED}
        recent[BROKEN] = np.concatenate([list(self._recent[BROKEN]), broken])
        drawn_at = np.arange(-(self._count + 1) % STRIDE, rows, STRIDE)
        counts = self._count + 1 + drawn_at
        level = np.stack([_levels_up_to(recent[name], rows - drawn_at, counts) for name in COMPARED], axis=1)
        marks = milestones(2 * counts) == counts
        self._levels |= dict(zip(counts[marks].tolist(), level[marks].tolist(), strict=True))
        enough = counts >= WINDOW
        at, level = drawn_at[enough], level[enough]
        half = milestones(counts[enough])
        changes = np.flatnonzero(np.diff(half, prepend=-1))
        before = np.array([self._levels[count] for count in half[changes].tolist()]).reshape(-1, len(COMPARED))
        before = np.repeat(before, np.diff(changes, append=len(half)), axis=0)
        known = {name: values[at] for name, values in carried.items()}
        for name in GROWN:
            if math.isnan(self._first[name]) and len(recorded := np.flatnonzero(~np.isnan(given[name]))):
                self._first[name] = float(given[name][recorded[0]])
            known[f"first {name}"] = np.where(np.isnan(known[name]), np.nan, self._first[name])
        for place, name in enumerate(COMPARED):
            known[f"level {name}"], known[f"before {name}"] = level[:, place], before[:, place]
        known["best"] = np.fmin.accumulate(np.append(self._best, known["level loss"]))[1:]
        known["start"] = self._start_at(given["loss"], at)
        so_far = np.cumsum(np.append(0.0, recent[BROKEN]))
        ends = len(so_far) - rows + at
        known[BROKEN] = (so_far[ends] - so_far[ends - WINDOW]) / WINDOW
        drawn = signals(known)
        risks = risk_of(drawn)
        self._count += rows
        self._last = {name: float(values[-1]) if rows else self._last[name] for name, values in carried.items()}
        for name, values in recent.items():
            self._recent[name] = deque(values[-WINDOW:].tolist(), maxlen=WINDOW)
        if len(at):
            self._best, self._value = float(known["best"][-1]), float(risks[-1])
            self._signals = {name: float(value[-1]) for name, value in drawn.items()}
        return drawn, risks, rows, int(at[0]) if len(at) else rows

    def _start_at(self, loss: Floats, at: NDArray[np.int64]) -> Floats:
        """Return the level that the run began with at some of the rows that follow, NaN where it was not known yet."""
        if len(self._start) == START:
            return np.full(len(at), _start(self._start))
        recorded = np.flatnonzero(~np.isnan(loss))[: START - len(self._start)]
        self._start += loss[recorded].tolist()
        if len(self._start) < START:
            return np.full(len(at), np.nan)
        return np.where(at >= recorded[-1], _start(self._start), np.nan)

    def state(self) -> dict[str, Any]:
        """Return everything that is known, as plain values that JSON can keep."""
        return {
            "count": self._count,
            "last": dict(self._last),
            "first": dict(self._first),
            "start": list(self._start),
            "recent": {name: list(values) for name, values in self._recent.items()},
            "levels": {str(count): list(level) for count, level in self._levels.items()},
            "best": self._best,
            "value": self._value,
            "signals": dict(self._signals),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RunRisk:
        """Return a risk that goes on where `state` was taken."""
        risk = cls()
        risk._count, risk._best, risk._value = state["count"], state["best"], state["value"]
        risk._last, risk._first, risk._start = dict(state["last"]), dict(state["first"]), list(state["start"])
        risk._recent = {name: deque(values, maxlen=WINDOW) for name, values in state["recent"].items()}
        risk._levels = {int(count): list(level) for count, level in state["levels"].items()}
        risk._signals = dict(state["signals"])
        return risk

    def explain(self, step: int = -1) -> Risk:
        """Return the risk with its parts.

        Args:
            step: The step of the last row, for the message.
        """
        basis = "loss" if math.isnan(self._signals.get("loop", math.nan)) else "loop"
        if math.isnan(self._value):
            return Risk(math.nan, basis, step, (), f"No risk: fewer than {WINDOW} steps, or no loss, are recorded.")
        here = {name: np.array(value) for name, value in self._signals.items()}
        added = [(t, t.weight * float(t.extent(here))) for t in calibrations()[basis].terms]
        whole = sum(logits for _, logits in added) + _BROKEN_WEIGHT * self._signals[BROKEN]
        parts = [Part(t.name, x, x / whole, self._said(t)) for t, x in added if x > 0]
        if self._signals[BROKEN]:
            x = _BROKEN_WEIGHT * self._signals[BROKEN]
            said = f"{self._signals[BROKEN]:.0%} of the last {WINDOW} losses are not finite"
            parts.append(Part(BROKEN, x, x / whole, said))
        parts.sort(key=lambda part: -part.logits)
        why = "; ".join(f"{part.said} ({part.share:.0%})" for part in parts) or "nothing speaks for it"
        known = "" if basis == "loop" else " (from the loss alone: nothing that the risk reads of the loop is recorded)"
        return Risk(self._value, basis, step, tuple(parts), f"Risk {self._value:.2f} of being lost{known}: {why}.")

    def _said(self, term: Term) -> str:
        """Return the growths of a part in words."""
        return " and ".join(SIGNALS[name].format(x=math.exp(min(self._signals[name], 700.0))) for name in term.signals)


def signals(known: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the signals at each row, natural logarithms of growths, NaN where not known.

    Args:
        known: Of each row: the `SOURCES` recorded last, and of some of them the first value, the level, the level
            half of the way back; the first losses (``start``), the lowest level (``best``) and the part of the last
            losses that is not finite.
    """
    with np.errstate(invalid="ignore"):  # a loss near zero rises by much of itself and by little of what was gained
        unit = np.fmax(known["best"], (known["start"] - known["best"]) / 3)
        unit = np.where(unit > 0, unit, np.nan)
    both = np.minimum(known["residual_ratio"], known["growth_ratio"])  # NaN where one is not known
    one = np.fmax(known["residual_ratio"], known["growth_ratio"])
    ratios = np.where(np.isnan(both), np.where(np.isnan(one), known["jacobian_radius"], one), both)
    descent = log_ratio(known["best"], known["start"])
    made = {
        "growth": log(ratios),
        "radius": log(known["a_bar_radius"]),
        "readout": log_ratio(known["c_out_norm"], known["first c_out_norm"]),
        "injection": np.fmax(
            log_ratio(known["a_bar_norm"], known["first a_bar_norm"]),
            log_ratio(known["b_bar_norm"], known["first b_bar_norm"]),
        ),
        "descent": np.where(descent > math.log(FALLEN), np.nan, descent),
        "stall": log_ratio(known["level loss"], known["before loss"]),
        "rise": log(1 + (known["level loss"] - known["best"]) / unit),
        "gradient": log_ratio(known["level grad_norm"], known["before grad_norm"]),
        BROKEN: known[BROKEN],
    }
    recorded = [~np.isnan(made[name]) for name in ("growth", "radius", "readout")]
    made["loop"] = np.where(np.any(recorded, axis=0), 1.0, np.nan)
    made["lost"] = np.where(np.isnan(known["level loss"]) & np.isnan(made["loop"]), np.nan, 1.0)
    return made


def risk_of(drawn: Mapping[str, Floats]) -> Floats:
    """Return the risk of rows with these signals; NaN where neither a loss nor a loop is known."""
    by_loop, by_loss = (calibrations()[name].logits(drawn) for name in ("loop", "loss"))
    logit = np.where(np.isnan(drawn["loop"]), by_loss, by_loop) * drawn["lost"]
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logit, -700.0, 700.0))))


def log(values: Floats) -> Floats:
    """Return natural logarithms, NaN of what has none."""
    with np.errstate(all="ignore"):
        return np.where(values > 0, np.log(values), np.nan)


def log_ratio(above: Floats, below: Floats) -> Floats:
    """Return the logarithm of a quotient of positive numbers, infinite where only the upper one is."""
    with np.errstate(invalid="ignore"):
        return log(above) - log(below)


def is_broken(loss: Floats, nonfinite: Floats) -> NDArray[np.bool_]:
    """Return which losses are infinite, or NaN although they were given."""
    return np.asarray(np.isinf(loss) | (np.isnan(loss) & (nonfinite > 0)))


def carry(values: Floats, before: float = math.nan) -> Floats:
    """Return each value or the last known one before it.

    Args:
        values: ``(n,)``.
        before: What was known before the first.

    >>> carry(np.array([np.nan, 1.0, np.nan, 2.0])).tolist()
    [nan, 1.0, 1.0, 2.0]
    """
    known = ~np.isnan(values)
    if known.all():
        return values
    at = np.flatnonzero(known)
    return np.repeat(np.append(before, values[at]), np.diff(at, prepend=0, append=len(values)))


def levels(of: Floats) -> Floats:
    """Return the median of each row; NaN where a value of it is not known."""
    ordered = np.sort(of, axis=1)  # NaN comes last
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(ordered[:, -1]), np.nan, middle_of_rows(ordered))


def _levels_up_to(values: Floats, back: NDArray[np.int64], counts: NDArray[np.int64]) -> Floats:
    """Return the median of the last `WINDOW` values up to some rows, `STRIDE` apart; of fewer at the start of a run.

    Args:
        values: ``(n,)``.
        back: Of each row, how many values come after the one before it.
        counts: Of each row, how many rows the run has up to it.
    """
    ends = len(values) + 1 - back
    early = int(np.searchsorted(counts, WINDOW))
    fewer = [float(levels(values[:end][None])[0]) for end in ends[:early].tolist()]
    if early == len(ends):
        return np.array(fewer)
    windows = np.lib.stride_tricks.sliding_window_view(values, WINDOW)[ends[early] - WINDOW :: STRIDE]
    return np.concatenate([fewer, levels(windows)])


def _held(drawn: Floats, rows: int, first: int, before: float) -> Floats:
    """Return what was drawn at every row: each until the next, and ``before`` until the first."""
    held = np.full(rows, before)
    held[first:] = np.repeat(drawn, STRIDE)[: rows - first]
    return held


def milestones(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the last milestone at most half of the way to each number of rows: 8, 12, 16, 24, 32, 48, ….

    >>> milestones(np.array([16, 24, 40, 48, 100])).tolist()
    [8, 12, 16, 24, 48]
    """
    half = np.maximum(np.asarray(counts) // 2, 1)
    power = np.exp2(np.floor(np.log2(half))).astype(np.int64)
    return np.where(half * 2 >= power * 3, power * 3 // 2, power)


def columns_of(run: Run) -> dict[str, Floats]:
    """Return the columns of a run that a risk is made of."""
    return {name: np.asarray(run[name], dtype=np.float64) for name in SOURCES if name in run.names}


def assess(run: Run) -> Risk:
    """Return the risk of a recorded run at its last row, with its parts."""
    risk = RunRisk()
    risk.replay(columns_of(run))
    return risk.explain(int(run["step"][-1]) if len(run) else -1)


def _start(losses: list[float]) -> float:
    """Return the level that a run began with."""
    return float(np.median(losses)) if len(losses) == START else math.nan
