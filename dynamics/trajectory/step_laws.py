"""Which laws the sizes of a loop's steps can follow, given that only so many loops were seen.

A *law* is what the steps do in the long run: ``log ‖Δ[t]‖ = a + b t`` (geometric) or ``a + p log(t + 1)`` (a power). In
front of it there may be a *transient*: the law times or over ``1 + α ρ^t`` with ρ < 1. The laws fall into three
classes, by what becomes of the state: steps that add up to something finite (*settling*), steps that last (*lasting*:
constant, or a power that does not add up), and steps that grow geometrically (*exploding*). `fit_laws` says how badly
the best law of each class misses the steps. A class that misses by little more than the best one is not ruled out.

The fit is closed form for every transient of a grid, and so vectorised: with the transient divided out, each law is a
straight line, and the best line with its slope held in an interval costs ``(distance of the slope)² · spread`` more.

Legend: N series, n late loops of each, J transients, K = 3 classes.

Not covered: which class it is (`trajectory`), directions, steps at round-off level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..shown import Shown

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CLASSES: Final = ("settling", "lasting", "exploding")
BAND: Final = float(np.log(1.01))
"""Steps that change by less than 1 % per loop keep their size: the marginal band of the spectral radius."""
SUMMABLE: Final = 1.25
"""Steps ~ t^-p add up for p > 1; slow approaches to a fixed point have p >= 1.5, so the border is set midway."""
STEEPEST: Final = (-6.0, 1.5)
"""Powers outside of this are no law of a loop, but a geometric one seen through too narrow a window."""
FEWEST: Final = 5
"""Loops below which no transient is fitted."""
FLOOR: Final = 0.005
"""Scatter of log step size below which no real loop follows a law."""
PRIOR_SCATTER: Final = 0.02
"""Scatter that is expected before anything was seen."""
PRIOR_LOOPS: Final = 2.0
"""How many loops that expectation counts for."""
TRANSIENT_COST: Final = 4.0
"""What a transient must gain (in units of twice the log-likelihood) to be believed: two coefficients, 2 each."""
SLOPE_COST: Final = 1.0
"""The same of a slope other than zero."""
HIDDEN: Final = 0.5
"""A law that is seen makes up two thirds of the last step: what a transient hides yet cannot be judged."""
MOST_SATURATED: Final = 50.0
"""Steps that saturate have grown by no more than this within the window."""
PARTED: Final = 36.0
"""Sum of squared differences, in units of the scatter, at which two laws have parted: twice what the decision asks, and
as much again because the fit follows the data."""
BLOCK: Final = 4096
"""Series fitted at a time, so that many tokens need little memory."""


@dataclass(frozen=True, slots=True, repr=False)
class LawFits(Shown):
    """The best law of each class, for N series.

    Attributes:
        miss: ``(N, 3)``, how much worse than the best class each one is, in units of twice the log-likelihood.
        slope: ``(N, 3)``, b or p of that law.
        power: ``(N, 3)``, whether it is a power law.
        offset: ``(N, 3)``, a of that law.
        transient: ``(N, 3)``, index of its transient, 0 for none.
        change: ``(N, 3)``, by how much it changes the logarithm of the steps over the window, transient left out.
        scatter: ``(N,)``, of log step size about the best law.
        plain_slope: ``(N,)``, b of the plain geometric fit.
        plain_power: ``(N,)``, p of the plain power fit.
    """

    miss: Floats
    slope: Floats
    power: NDArray[np.bool_]
    offset: Floats
    transient: Integers
    change: Floats
    scatter: Floats
    plain_slope: Floats
    plain_power: Floats

    def loops_to_part(self, one: Integers, other: Integers, loops: int, ahead: int) -> Integers:
        """Return how many more loops would tell two laws of each series apart; ``ahead * loops`` where more would not.

        Args:
            one: ``(N,)``, class of the first law.
            other: ``(N,)``, class of the second.
            loops: Loops that were run.
            ahead: How many times these are looked ahead.
        """
        t = np.arange(loops, loops + ahead * loops, dtype=np.float64)
        apart = (self._predicted(one, t) - self._predicted(other, t)) ** 2 / self.scatter[:, None] ** 2
        told = np.cumsum(apart, axis=1) > PARTED
        return np.where(told.any(axis=1), np.argmax(told, axis=1) + 1, ahead * loops)

    def _predicted(self, law: Integers, t: Floats) -> Floats:
        """Return the log step size for the loops t, long after the transients."""
        each = np.arange(len(law))
        x = np.where(self.power[each, law][:, None], np.log(t + 1)[None], t[None])
        return self.offset[each, law][:, None] + self.slope[each, law][:, None] * x


def fit_laws(steps: Floats, first: int) -> LawFits:
    """How badly does each class of laws miss these steps?

    Args:
        steps: ``(N, n)``, positive and finite, of the loops ``first``, ``first + 1``, …; n at least 3.
        first: Number of the first of these loops.

    Returns:
        The best law of each class.

    Source: least squares with a bounded slope; likelihood ratios, e.g. Cox and Hinkley, Theoretical Statistics (1974).

    >>> fits = fit_laws(0.8 ** np.arange(4, 16)[None], first=4)
    >>> CLASSES[int(fits.miss.argmin())], round(float(np.exp(fits.slope[0, 0])), 3), bool(fits.miss[0, 1] > 9)
    ('settling', 0.8, True)
    """
    parts = [_fit(steps[at : at + BLOCK], first) for at in range(0, len(steps), BLOCK)]
    return LawFits(*(np.concatenate([getattr(part, name) for part in parts]) for name in LawFits.__dataclass_fields__))


def _transients(since: Floats) -> tuple[Floats, int, int]:
    """Return the logarithms of the transients, ``(J, n)``, t counted from the first fitted loop.

    First none at all, then ``1 + α ρ^t`` (how many these are is the second result), then ``1 / (1 + α ρ^t)``, for
    growth that saturates (the third result counts up to here), then ``(1 + β t)^k`` for k up to
    3, those of Jordan blocks.
    """
    size, factor = np.geomspace(0.3, 3e3, 17), np.array([0.2, 0.35, 0.5, 0.65])
    alpha, rho = (grid.ravel() for grid in np.meshgrid(size, factor))
    shown = alpha * rho ** (len(since) - 1) < HIDDEN
    fading = np.log1p(alpha[shown, None] * rho[shown, None] ** since)
    saturating = -fading[alpha[shown] < MOST_SATURATED]
    double = np.log1p(np.geomspace(0.1, 3, 6)[:, None] * since)
    rising = np.concatenate([double, 2 * double[1:], 3 * double[1:]])
    first = 1 + len(fading)
    return np.concatenate([np.zeros((1, len(since))), fading, saturating, rising]), first, first + len(saturating)


def _fit(steps: Floats, first: int) -> LawFits:
    """Run `fit_laws` on one block."""
    n = steps.shape[1]
    t = first + np.arange(n, dtype=np.float64)
    logs = np.log(steps)
    shapes, fading, rising = _transients(t - first)
    if n < FEWEST:
        shapes, fading, rising = shapes[:1], 1, 1
    squares, slope, offset, plain = [], [], [], []
    for x, ranges in ((t, _GEOMETRIC), (np.log(t + 1), _POWER)):
        line = _Line.through(x, logs, shapes)
        plain.append(line.slope[:, 0])
        for low, high in ranges:
            held = np.clip(line.slope, low, high)
            missed = line.squares + (line.slope - held) ** 2 * line.spread
            # Steps that rise first and settle later must be seen to shrink.
            late = shapes[rising:, -1] - shapes[rising:, -2]
            hidden = (low == -np.inf) & (held[:, rising:] + late > -BAND)
            missed[:, rising:] = np.where(hidden, np.inf, missed[:, rising:])
            if ranges is _POWER:
                missed[:, fading:] = np.inf
                missed[:, 1:][held[:, 1:] > 0.3] = np.inf  # growth behind a transient is not polynomial
            squares.append(missed)
            slope.append(held)
            offset.append(line.middle - held * x.mean())
    table, slopes, offsets = np.stack(squares), np.stack(slope), np.stack(offset)
    noise = _noise(table, slopes, offsets, logs, shapes, t)
    return _best_of_each_class(table, slopes, offsets, noise, np.array(plain), t)


def _noise(squares: Floats, slope: Floats, offset: Floats, logs: Floats, shapes: Floats, t: Floats) -> Floats:
    """Variance of log step size about the best law of each series, times what its loops lack in independence."""
    count, n = logs.shape
    rows = np.arange(count)
    best = squares.transpose(1, 0, 2).reshape(count, -1).argmin(axis=1)
    law, shape = np.unravel_index(best, (len(squares), len(shapes)))
    x = np.where((law >= len(_GEOMETRIC))[:, None], np.log(t + 1), t)
    rest = logs - shapes[shape] - offset[law, rows, shape][:, None] - slope[law, rows, shape][:, None] * x
    power = (rest**2).sum(axis=1)
    noise = (power + PRIOR_LOOPS * PRIOR_SCATTER**2) / (max(n - 2, 1) + PRIOR_LOOPS) + FLOOR**2
    # Scatter that comes in waves, as that of a spiral does, says less than independent scatter.
    echo = np.clip((rest[:, 1:] * rest[:, :-1]).sum(axis=1) / (power + PRIOR_LOOPS * PRIOR_SCATTER**2), 0.0, 0.7)
    return np.asarray(noise * (1 + echo) / (1 - echo), np.float64)


def _best_of_each_class(
    squares: Floats, slope: Floats, offset: Floats, noise: Floats, plain: Floats, t: Floats
) -> LawFits:
    """Return the law and transient of each class that fit best; first axis: the six ranges of slopes."""
    cost = np.full(squares.shape[2], TRANSIENT_COST)
    cost[0] = 0.0
    score = squares / noise[None, :, None] + cost
    score += np.where(np.arange(len(score)) == _CONSTANT, 0.0, SLOPE_COST)[:, None, None]
    shape = score.argmin(axis=2)
    rows = np.arange(score.shape[1])
    names = ("miss", "slope", "power", "offset", "transient", "change")
    columns: dict[str, list[Floats]] = {name: [] for name in names}
    for of_class in _RANGES_OF_CLASS:
        among = np.array(of_class)
        value = score[among[:, None], rows, shape[among]]
        pick = among[value.argmin(axis=0)]
        at = (pick, rows, shape[pick, rows])
        power = pick >= len(_GEOMETRIC)
        length = np.where(power, np.log((t[-1] + 1) / (t[0] + 1)), t[-1] - t[0])
        values = (value.min(axis=0), slope[at], power, offset[at], at[2], slope[at] * length)
        for name, column in zip(names, values, strict=True):
            columns[name].append(column)
    table: dict[str, Any] = {name: np.stack(column, axis=1) for name, column in columns.items()}
    table["miss"] = table["miss"] - table["miss"].min(axis=1, keepdims=True)
    return LawFits(**table, scatter=np.sqrt(noise), plain_slope=plain[0], plain_power=plain[1])


@dataclass(frozen=True, slots=True)
class _Line:
    """Least-squares lines through the log steps with every transient taken off: all ``(N, J)`` but the spread."""

    slope: Floats
    middle: Floats
    squares: Floats
    spread: float

    @staticmethod
    def through(x: Floats, logs: Floats, shapes: Floats) -> _Line:
        """Fit ``logs[i] - shapes[j] = middle + slope (x - mean x)`` for all i and j."""
        centred = x - x.mean()
        spread = float(centred @ centred)
        middle = logs.mean(axis=1)[:, None] - shapes.mean(axis=1)
        slope = ((logs @ centred)[:, None] - shapes @ centred) / spread

        def rest(rows: Floats) -> Floats:
            """Return what is left of rows after their mean and their slope are gone."""
            level = rows - rows.mean(axis=1, keepdims=True)
            return np.asarray(level - (level @ centred / spread)[:, None] * centred, np.float64)

        of_logs, of_shapes = rest(logs), rest(shapes)
        squares = (of_logs**2).sum(axis=1)[:, None] - 2 * of_logs @ of_shapes.T + (of_shapes**2).sum(axis=1)
        return _Line(slope, middle, np.maximum(squares, 0.0), spread)


_GEOMETRIC: Final = ((-np.inf, -BAND), (-BAND, BAND), (BAND, np.inf))
_POWER: Final = ((STEEPEST[0], -SUMMABLE), (-SUMMABLE, STEEPEST[1]))
_CONSTANT: Final = 1
_RANGES_OF_CLASS: Final = ((0, 3), (1, 4), (2,))
