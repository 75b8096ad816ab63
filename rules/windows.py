"""Numbers made of the last steps of a series: what ``slope(loss, 50)`` and its siblings in a rule are.

A window of N steps at step s is made of the rows whose step lies in (s − N, s]; rows without a value are left out. It
says nothing before the series is known for N steps. ``ratio`` and ``delta`` compare with the value N steps ago. Two
functions remember more than a window (``recursive``): ``ewma`` is an exponential mean with the weight 2 / (N + 1) for
each step, and ``cusum`` adds up by how much the series is above a level K, and never falls below 0.

Rows come many at a time or one at a time, and the numbers are the same bit for bit: what a row gives depends on the
rows of its window alone, in an order that is counted from that row back. What a window keeps is bounded by its length,
and goes to JSON and back (`Memory.state`).

Not covered: windows in seconds. A row that was not recorded is not made up.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .grammar import Window, WindowName
from .recursive import CumulativeSum, ExponentialMean

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class Memory(Protocol):
    """What a window remembers of the rows before."""

    def update(self, steps: Floats, values: Floats) -> Floats:
        """Take rows and return the number at each, ``(rows,)``; steps grow from row to row and call to call."""

    def state(self) -> dict[str, Any]:
        """Return what is remembered, as JSON can hold it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Remember what `state` gave."""


def memory(window: Window) -> Memory:
    """Return what a window of an expression needs to remember, at the start of a run."""
    if window.function == "cusum":
        return CumulativeSum(window.parameter)
    if window.function == "ewma":
        return ExponentialMean(int(window.parameter))
    return _Last(window.function, int(window.parameter))


class _Last:
    """The rows of the last steps.

    >>> window = _Last("max", 3)
    >>> window.update(np.arange(5.0), np.array([1.0, 5.0, 2.0, 1.0, 0.0])).tolist()
    [nan, nan, 5.0, 5.0, 2.0]
    >>> window.update(np.array([5.0]), np.array([1.0])).tolist()
    [1.0]
    """

    def __init__(self, function: WindowName, length: int) -> None:
        self._function, self._length = function, length
        self._known_since = math.nan  # first step with a value
        self._steps, self._values = np.empty(0), np.empty(0)

    def update(self, steps: Floats, values: Floats) -> Floats:
        """Take rows and return the number at each."""
        if not len(steps):
            return np.empty(0)
        before = len(self._steps)
        self._steps, self._values = np.concatenate([self._steps, steps]), np.concatenate([self._values, values])
        if math.isnan(self._known_since):
            known = np.flatnonzero(~np.isnan(values))
            self._known_since = float(steps[known[0]]) if len(known) else math.nan
        numbers = self._numbers(before)
        keep = max(0, int(np.searchsorted(self._steps, steps[-1] + 1 - self._length, side="right")) - 1)
        self._steps, self._values = self._steps[keep:].copy(), self._values[keep:].copy()
        return numbers

    def state(self) -> dict[str, Any]:
        """Return what is remembered."""
        since = None if math.isnan(self._known_since) else self._known_since
        return {
            "since": since,
            "steps": self._steps.tolist(),
            "values": [repr(value) for value in self._values.tolist()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Remember what `state` gave."""
        self._known_since = math.nan if state["since"] is None else float(state["since"])
        self._steps = np.array(state["steps"], dtype=np.float64)
        self._values = np.array([float(value) for value in state["values"]], dtype=np.float64)

    def _numbers(self, before: int) -> Floats:
        """Return the numbers of the rows from ``before`` on."""
        steps, values = self._steps, self._values
        here = steps[before:]
        without_gaps = steps[-1] - steps[0] == len(steps) - 1
        if without_gaps:
            first = np.maximum(here - (self._length + steps[0] - 1), 0).astype(np.int64)  # of each window
        else:
            first = np.searchsorted(steps, here - self._length, side="right")
        if self._function in ("ratio", "delta"):
            then = np.where(first > 0, values[np.maximum(first - 1, 0)], np.nan)
            return values[before:] / then if self._function == "ratio" else values[before:] - then
        rows = np.arange(before, len(steps))
        if self._function == "median":
            numbers = _medians(values, first, rows)
        elif self._function == "slope":
            count, total, age, square, product = _moments(steps, values, rows, rows - first + 1)
            spread = count * square - age * age  # of whole numbers, so that it is exactly 0 for one value
            numbers = (count * product - age * total) / np.where(spread > 0, spread, np.nan)
        else:
            numbers = self._folded(rows, first, without_gaps)
        full = self._known_since <= here - self._length + 1
        return numbers if full.all() else np.where(full, numbers, np.nan)

    def _folded(self, rows: Rows, first: Rows, without_gaps: bool) -> Floats:
        """Return the largest, the smallest or the mean known value of each window."""
        values = self._values
        combine = {"max": np.fmax, "min": np.fmin, "mean": np.add}[self._function]

        def fold(of: Floats, nothing: float) -> Floats:
            if without_gaps:  # windows that begin before the run say nothing anyway, so that all may be as long
                return _fold_alike(combine, of, int(rows[0]), self._length, nothing)
            return _fold(combine, of, rows, rows - first + 1)

        if self._function != "mean":
            return fold(values, math.nan) + 0.0  # which zero is the larger one, 0 or -0, nobody says: 0 for both
        known = ~np.isnan(values)
        if known.all():
            return fold(values, 0.0) / (rows - first + 1)
        return fold(np.where(known, values, 0.0), 0.0) / fold(known.astype(np.float64), 0.0)


def _fold_alike(combine: np.ufunc, values: Floats, first: int, length: int, nothing: float) -> Floats:
    """Return what `_fold` does where every stretch is as long, for the rows from ``first`` on, many times as fast.

    Args:
        combine: A ufunc of two.
        values: ``(n,)``.
        first: The first row asked for.
        length: How many values each stretch has.
        nothing: Stands before the first value, and changes nothing.
    """
    block = np.concatenate([np.full(max(0, length - 1 - first), nothing), values])
    count, end, size = len(values) - first, len(block), 1
    numbers: Floats | None = None
    while size <= length:
        if length & size:
            part = block[end - count : end]
            numbers = part if numbers is None else combine(numbers, part)
            end -= size
        if 2 * size <= length:
            block = np.concatenate([block[:size], combine(block[size:], block[:-size])])
        size *= 2
    return values[first:] if numbers is None else numbers


def _fold(combine: np.ufunc, values: Floats, rows: Rows, lengths: Rows) -> Floats:
    """Return for each row the combination of the last so many values, newest first, in pairs of pairs.

    Args:
        combine: A ufunc of two, as ``np.fmax``.
        values: ``(n,)``.
        rows: Where each stretch ends.
        lengths: How many values each has, at least 1.
    """
    numbers, begun = np.full(len(rows), np.nan), np.zeros(len(rows), dtype=bool)
    at, size, block = rows.copy(), 1, values
    while size <= int(lengths.max(initial=0)):
        take = (lengths & size) > 0
        part = block[at[take]]
        numbers[take] = np.where(begun[take], combine(numbers[take], part), part)
        begun |= take
        at = at - np.where(take, size, 0)
        block = np.concatenate([block[:size], combine(block[size:], block[:-size])]) if size < len(block) else block
        size *= 2
    return numbers


def _moments(steps: Floats, values: Floats, rows: Rows, lengths: Rows) -> Floats:
    """Return how many values are known in each stretch, their sum, and the sums of age, age² and age × value.

    Ages are steps, counted back from the end of the stretch; they and their sums are exact. The sums are of pairs of
    pairs, counted back from the end too, so that they do not depend on which rows came together.

    Returns:
        ``(5, rows)``.
    """
    known = ~np.isnan(values)
    size, nothing = 1, np.zeros(len(values))
    block = np.stack([known.astype(np.float64), np.where(known, values, 0.0), nothing, nothing, nothing])
    numbers, at = np.zeros((5, len(rows))), rows.copy()
    ends = steps[rows]
    while size <= int(lengths.max(initial=0)):
        take = (lengths & size) > 0
        numbers[:, take] += _aged(block[:, at[take]], steps[at[take]] - ends[take])
        at = at - np.where(take, size, 0)
        if size < len(values):
            older = _aged(block[:, :-size], steps[:-size] - steps[size:])
            block = np.concatenate([block[:, :size], block[:, size:] + older], axis=1)
        size *= 2
    return numbers


def _aged(block: Floats, by: Floats) -> Floats:
    """Return the sums of `_moments` with their ages counted from another step."""
    count, total, age, square, product = block
    return np.stack([count, total, age + by * count, square + 2 * by * age + by * by * count, product + by * total])


def _medians(values: Floats, first: Rows, rows: Rows) -> Floats:
    """Return the median of the known values from ``first`` to each row, by a window that is kept in order."""
    ordered: list[float] = []
    numbers = []
    left = int(first[0]) if len(first) else 0
    taken, given = left, values.tolist()
    for start, row in zip(first.tolist(), rows.tolist(), strict=True):
        for value in given[taken : row + 1]:
            if value == value:
                insort(ordered, value)
        for value in given[left:start]:
            if value == value:
                del ordered[bisect_left(ordered, value)]
        taken, left = row + 1, start
        count = len(ordered)
        numbers.append(0.5 * (ordered[(count - 1) // 2] + ordered[count // 2]) if count else math.nan)
    return np.array(numbers) + 0.0  # of 0 and -0, which are equal, either may be in the middle
