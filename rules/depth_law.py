"""When a training begins to run its loop to other depths than before: a change of the law that depths are drawn from.

A depth is *odd* where it lies outside of the last `REFERENCE` usual ones by more than a quarter of their range; of a
run at one fixed depth, any other depth is. The law has *changed* where `ODD` of the last `RECENT` depths were odd. The
losses of odd steps say little of the training: a deeper or shallower loop has another loss.

Not covered: a law that changes slowly. The usual depths follow it, and no event tells of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

REFERENCE: Final = 48  # usual depths that a depth is compared with
WARM_UP: Final = 16  # depths before any is odd
RECENT: Final = 16
ODD: Final = 8
MARGIN: Final = 0.25  # of the range of the usual depths

_ROWS_AT_ONCE: Final = 1 << 14

USUAL, IS_ODD, CHANGED = 0, 1, 2


class DepthLaw:
    """Follows the depths of a run.

    >>> law = DepthLaw()
    >>> found = [law.update(depth) for depth in [8.0] * 30 + [16.0] * 10]
    >>> found[30:], found.index(CHANGED)
    ([1, 1, 1, 1, 1, 1, 1, 2, 0, 0], 37)
    """

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=REFERENCE)
        self._recent: deque[tuple[float, bool]] = deque(maxlen=RECENT)  # depths, and whether each was odd
        self._odd = 0  # of the recent ones
        self._calm = 0  # usual depths in a row, counted to `REFERENCE`: from there on they are all that is remembered

    def update(self, depth: float) -> int:
        """Return whether the depth of a step is `USUAL`, `IS_ODD`, or the one at which the law has `CHANGED`."""
        if math.isnan(depth):
            return USUAL
        odd = False
        if len(self._usual) >= WARM_UP:
            low, high = min(self._usual), max(self._usual)
            margin = MARGIN * (high - low)
            odd = not low - margin <= depth <= high + margin
        if len(self._recent) == RECENT:
            self._odd -= self._recent[0][1]
        self._recent.append((depth, odd))
        self._odd += odd
        self._calm = 0 if odd else min(self._calm + 1, REFERENCE)
        if not odd:
            self._usual.append(depth)
            return USUAL
        if self._odd < ODD:
            return IS_ODD
        self._usual = deque((value for value, was_odd in self._recent if was_odd), maxlen=REFERENCE)
        self._recent.clear()
        self._odd = 0
        return CHANGED

    def update_many(self, depths: Iterable[float]) -> NDArray[np.int8]:
        """Return what `update` would for each depth in turn, most of them many at a time."""
        values = np.asarray(depths, dtype=np.float64)
        known = np.flatnonzero(~np.isnan(values))
        given = values[known]
        said = np.zeros(len(given), dtype=np.int8)
        odd = np.flatnonzero(self._odd_after_all(given))
        at = 0
        while at < len(given):
            following = int(np.searchsorted(odd, at))
            end = int(odd[following]) if following < len(odd) else len(given)
            if self._calm == REFERENCE and end > at:  # all that is remembered are the last depths
                self._usual.extend(given[max(at, end - REFERENCE) : end].tolist())
                self._recent.extend((depth, False) for depth in given[max(at, end - RECENT) : end].tolist())
                at = end
            else:
                said[at] = self.update(float(given[at]))
                at += 1
        every = np.zeros(len(values), dtype=np.int8)
        every[known] = said
        return every

    def _odd_after_all(self, given: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which depths are odd where all the `REFERENCE` before are usual ones; elsewhere it says nothing."""
        before = np.full(REFERENCE, np.nan)
        before[REFERENCE - len(self._usual) :] = list(self._usual)
        values = np.concatenate([before, given])
        odd = np.zeros(len(given), dtype=bool)
        for start in range(0, len(given), _ROWS_AT_ONCE):
            here = given[start : start + _ROWS_AT_ONCE]
            windows = np.lib.stride_tricks.sliding_window_view(
                values[start : start + len(here) + REFERENCE - 1], REFERENCE
            )
            low, high = windows.min(axis=1), windows.max(axis=1)
            margin = MARGIN * (high - low)
            odd[start : start + len(here)] = ~((low - margin <= here) & (here <= high + margin))
        return odd
