"""Two numbers that remember more than a window: ``ewma``, an exponential mean, and ``cusum``, a sum that stays above 0.

Each of their values is made from the one before, which in Python is one call a row. Therefore values are counted off
in stretches of `STRETCH`. A value depends on what was before its stretch only through the number with which that
began, so that many stretches are worked out side by side, and joined afterwards. Rows that come one at a time go
through the same operations in the same order, so that the numbers are the same bit for bit.

``ewma``, from the mean m at the start of a stretch: m_i = p_i m + s_i with p_i = k_i p_(i-1) and s_i = k_i s_(i-1) +
(1 - k_i) x_i, where k_i is the weight of what was before. ``cusum``, from the sum m: m_i = max(m + b_i, a_i) with b_i =
b_(i-1) + d_i and a_i = max(0, a_(i-1) + d_i), where d_i is how far a value is above the level.

Not covered: windows of a certain number of steps (``windows``).

Sources: Roberts, Technometrics 1 (1959) 239 (EWMA); Page, Biometrika 41 (1954) 100 (CUSUM).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STRETCH: Final = 32
_FEWEST: Final = 4  # stretches that are worked out side by side; of fewer, one value after the other is as fast


class ExponentialMean:
    """An exponential mean; a value that is not finite is left out.

    >>> ExponentialMean(3).update(np.arange(4.0), np.array([0.0, 0.0, 1.0, 1.0])).tolist()
    [nan, nan, 0.5, 0.75]
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._keep = 1.0 - 2.0 / (length + 1.0)  # weight of what was before, for each step
        self._since = self._last = self._mean = math.nan
        self._begun = math.nan  # the mean with which the stretch began
        self._product, self._sum, self._count = 1.0, 0.0, 0  # p, s and the values of the stretch so far

    def update(self, steps: Floats, values: Floats) -> Floats:
        """Take rows and return the mean at each."""
        given = np.flatnonzero(np.isfinite(values))
        numbers = np.full(len(given) + 1, self._mean)
        first = 0
        if len(given) and math.isnan(self._since):
            self._since = self._last = float(steps[given[0]])
            self._mean = self._begun = numbers[1] = float(values[given[0]])
            first = 1
        ages = np.diff(steps[given[first:]], prepend=self._last)
        numbers[1 + first :] = self._follow(values[given[first:]], ages)
        if len(given):
            self._mean, self._last = float(numbers[-1]), float(steps[given[-1]])
        return np.where(steps - self._since >= self._length - 1, at_rows(numbers, given, len(values)), np.nan)

    def _follow(self, values: Floats, ages: Floats) -> Floats:
        """Return the mean after each of some values, given the steps since the value before."""
        keep = np.full(len(ages), self._keep)
        after_a_gap = np.flatnonzero(ages != 1.0)
        keep[after_a_gap] = [self._keep**age for age in ages[after_a_gap].tolist()]  # NumPy's power has other last bits
        means = np.empty(len(values))
        head, side_by_side = divide(len(values), self._count)
        self._one_by_one(values, keep, means, slice(0, head))
        if side_by_side:
            rows = slice(head, head + side_by_side)
            means[rows] = self._side_by_side(stretches(values[rows]), stretches(keep[rows]))
        self._one_by_one(values, keep, means, slice(head + side_by_side, len(values)))
        return means

    def _one_by_one(self, values: Floats, keep: Floats, means: Floats, rows: slice) -> None:
        """Write the means after some values."""
        given = zip(range(len(values))[rows], values[rows].tolist(), keep[rows].tolist(), strict=True)
        for row, value, kept in given:
            self._product *= kept
            self._sum = kept * self._sum + (1.0 - kept) * value
            means[row] = mean = self._product * self._begun + self._sum
            self._count += 1
            if self._count == STRETCH:
                self._begin(mean)

    def _side_by_side(self, values: Floats, keep: Floats) -> Floats:
        """Return the means of whole stretches, given ``(STRETCH, stretches)``."""
        products, sums = np.multiply.accumulate(keep, axis=0), (1.0 - keep) * values
        sums[0] += 0.0  # one by one, a sum of 0 comes before it: -0 becomes 0
        for before, kept, after in zip(sums, keep[1:], sums[1:], strict=False):
            after += kept * before
        begun = [self._begun]
        for product, total in zip(products[-1].tolist(), sums[-1].tolist(), strict=True):
            begun.append(product * begun[-1] + total)
        self._begin(begun[-1])
        return np.ravel(products * np.array(begun[:-1]) + sums, order="F")

    def _begin(self, mean: float) -> None:
        """Begin a stretch."""
        self._begun, self._product, self._sum, self._count = mean, 1.0, 0.0, 0

    def state(self) -> dict[str, Any]:
        """Return what is remembered."""
        numbers = (self._since, self._last, self._mean, self._begun, self._product, self._sum)
        return {"numbers": [repr(each) for each in numbers], "count": self._count}

    def restore(self, state: dict[str, Any]) -> None:
        """Remember what `state` gave."""
        numbers = (float(each) for each in state["numbers"])
        self._since, self._last, self._mean, self._begun, self._product, self._sum = numbers
        self._count = int(state["count"])


class CumulativeSum:
    """By how much a series has been above a level, added up; a value that is not finite is left out.

    >>> CumulativeSum(1.0).update(np.arange(4.0), np.array([1.5, 3.0, 0.0, -9.0])).tolist()
    [0.5, 2.5, 1.5, 0.0]
    """

    def __init__(self, level: float) -> None:
        self._level = level
        self._total = math.nan
        self._begun = 0.0  # the sum with which the stretch began
        self._free, self._bounded, self._count = 0.0, 0.0, 0  # b, a and the values of the stretch so far

    def update(self, steps: Floats, values: Floats) -> Floats:
        """Take rows and return the sum at each."""
        given = np.flatnonzero(np.isfinite(values))
        numbers = np.full(len(given) + 1, self._total)
        numbers[1:] = self._follow(values[given] - self._level)
        self._total = float(numbers[-1])
        return at_rows(numbers, given, len(values))

    def _follow(self, above: Floats) -> Floats:
        """Return the sum after each of some values, given how far they are above the level."""
        sums = np.empty(len(above))
        head, side_by_side = divide(len(above), self._count)
        self._one_by_one(above, sums, slice(0, head))
        if side_by_side:
            rows = slice(head, head + side_by_side)
            sums[rows] = self._side_by_side(stretches(above[rows]))
        self._one_by_one(above, sums, slice(head + side_by_side, len(above)))
        return sums

    def _one_by_one(self, above: Floats, sums: Floats, rows: slice) -> None:
        """Write the sums after some values."""
        for row, value in zip(range(len(above))[rows], above[rows].tolist(), strict=True):
            self._free += value
            self._bounded += value
            self._bounded = 0.0 if self._bounded < 0.0 else self._bounded
            free = self._begun + self._free
            sums[row] = total = free if free >= self._bounded else self._bounded
            self._count += 1
            if self._count == STRETCH:
                self._begin(total)

    def _side_by_side(self, above: Floats) -> Floats:
        """Return the sums of whole stretches, given ``(STRETCH, stretches)``."""
        free, bounded = np.add.accumulate(above, axis=0), np.maximum(above, 0.0)
        for before, value, after in zip(bounded, above[1:], bounded[1:], strict=False):
            np.maximum(before + value, 0.0, out=after)
        begun = [self._begun]
        for last, least in zip(free[-1].tolist(), bounded[-1].tolist(), strict=True):
            total = begun[-1] + last
            begun.append(total if total >= least else least)
        self._begin(begun[-1])
        free += np.array(begun[:-1])
        return np.ravel(np.where(free >= bounded, free, bounded), order="F")

    def _begin(self, total: float) -> None:
        """Begin a stretch."""
        self._begun, self._free, self._bounded, self._count = total, 0.0, 0.0, 0

    def state(self) -> dict[str, Any]:
        """Return what is remembered."""
        numbers = (self._total, self._begun, self._free, self._bounded)
        return {"numbers": [repr(each) for each in numbers], "count": self._count}

    def restore(self, state: dict[str, Any]) -> None:
        """Remember what `state` gave."""
        self._total, self._begun, self._free, self._bounded = (float(each) for each in state["numbers"])
        self._count = int(state["count"])


def divide(values: int, begun: int) -> tuple[int, int]:
    """Return how many values end the stretch that has begun, and how many whole stretches of values come then.

    >>> divide(200, begun=30), divide(100, begun=30)
    ((2, 192), (2, 0))
    """
    head = min(-begun % STRETCH, values)
    whole = (values - head) // STRETCH
    return head, whole * STRETCH if whole >= _FEWEST else 0


def stretches(values: Floats) -> Floats:
    """Return values of whole stretches as ``(STRETCH, stretches)``: what is worked out together lies together."""
    return np.ascontiguousarray(values.reshape(-1, STRETCH).T)


def at_rows(numbers: Floats, given: NDArray[np.int64], rows: int) -> Floats:
    """Return a number at every row, from those before the first value and after each: it holds until the next."""
    return numbers[1:] if len(given) == rows else np.repeat(numbers, np.diff(given, prepend=0, append=rows))
