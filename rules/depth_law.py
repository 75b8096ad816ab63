"""When a training begins to run its loop to other depths than before: a change of the law that depths are drawn from.

A depth is *odd* where it lies outside of the last `REFERENCE` usual ones by more than a quarter of their range; of a
run at one fixed depth, any other depth is. The law has *changed* where `ODD` of the last `RECENT` depths were odd, and
where a loop begins to run after `WARM_UP` steps without one. The losses of odd steps say little of the training: a
deeper or shallower loop has another loss.

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

_FEWEST_AT_ONCE: Final = 512  # depths judged together, at first and where the law is restless
_MOST_AT_ONCE: Final = 1 << 13
_GUESSES: Final = 8  # after which what is certain so far is taken

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
        self._without = 0  # rows before the first with a loop

    def update(self, depth: float) -> int:
        """Return whether the depth of a step is `USUAL`, `IS_ODD`, or the one at which the law has `CHANGED`."""
        if math.isnan(depth):
            self._without += not self._usual
            return USUAL
        if self._without >= WARM_UP:
            self._without = 0
            self._usual.append(depth)
            self._recent.append((depth, False))
            return CHANGED
        odd = False
        if len(self._usual) >= WARM_UP:
            low, high = min(self._usual), max(self._usual)
            margin = MARGIN * (high - low)
            odd = not low - margin <= depth <= high + margin
        if len(self._recent) == RECENT:
            self._odd -= self._recent[0][1]
        self._recent.append((depth, odd))
        self._odd += odd
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
        """Return what `update` would for each depth in turn, ``(n,)``, most of them many at a time."""
        values = np.asarray(depths, dtype=np.float64)
        known = np.flatnonzero(~np.isnan(values))
        given = values[known]
        said = np.zeros(len(given), dtype=np.int8)
        at, count = 0, _FEWEST_AT_ONCE
        if not self._usual:
            self._without += int(known[0]) if len(known) else len(values)
            if len(known) and self._without >= WARM_UP:
                said[0], at = self.update(float(given[0])), 1
        while at < len(given):
            ahead = given[at : at + count]
            odd = self._odd_ahead(ahead)
            if len(odd):
                self._take(ahead[: len(odd)], odd)
                said[at : at + len(odd)] = np.where(odd, IS_ODD, USUAL)
                count = min(2 * count, _MOST_AT_ONCE) if len(odd) == len(ahead) else _FEWEST_AT_ONCE
                at += len(odd)
            else:
                said[at] = self.update(float(given[at]))
                at += 1
        every = np.zeros(len(values), dtype=np.int8)
        every[known] = said
        return every

    def _odd_ahead(self, ahead: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which of the first depths ahead are odd, up to where that is certain or before the law changes.

        Whether a depth is odd depends on which depths before it were. A guess of that, at first that none is, gives
        what each depth has to be compared with, and so the next guess. Up to the first depth in which two guesses
        differ they are right, and about that depth the later one is.
        """
        certain = 0
        guess = np.zeros(len(ahead), dtype=bool)
        for _ in range(_GUESSES if len(self._usual) >= WARM_UP else 0):
            better = self._odd_after(ahead, guess)
            differ = better != guess
            certain = int(np.argmax(differ)) + 1 if differ.any() else len(ahead)
            guess = better
            if certain == len(ahead):
                break
        odd = guess[:certain]
        before = [was_odd for _, was_odd in self._recent]
        so_far = np.cumsum(np.concatenate([[False], before, odd]))
        first = np.maximum(np.arange(1, len(odd) + 1) + len(before) - RECENT, 0)  # of the last `RECENT` depths
        changes = np.flatnonzero(odd & (so_far[len(before) + 1 :] - so_far[first] >= ODD))
        return odd[: changes[0]] if len(changes) else odd

    def _odd_after(self, ahead: NDArray[np.float64], odd: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which depths ahead would be odd if those before each were odd as given."""
        usual = np.concatenate([list(self._usual), ahead[~odd]])
        fewer = REFERENCE - len(self._usual)
        low = _of_windows(np.minimum, np.concatenate([np.full(fewer, math.inf), usual]))
        high = _of_windows(np.maximum, np.concatenate([np.full(fewer, -math.inf), usual]))
        margin = MARGIN * (high - low)
        low, high = low - margin, high + margin
        if odd.any():
            window: NDArray[np.int64] = np.cumsum(~odd) - ~odd
            low, high = low[window], high[window]
        return ~((low[: len(ahead)] <= ahead) & (ahead <= high[: len(ahead)]))

    def _take(self, depths: NDArray[np.float64], odd: NDArray[np.bool_]) -> None:
        """Remember depths in which the law does not change."""
        self._usual.extend(depths[~odd][-REFERENCE:].tolist())
        self._recent.extend(zip(depths[-RECENT:].tolist(), odd[-RECENT:].tolist(), strict=True))
        self._odd = sum(was_odd for _, was_odd in self._recent)


def law_began(depths: NDArray[np.float64]) -> int:
    """Return the row at which the law of the last depths began: the first odd one of its change, or 0 without one.

    Args:
        depths: Of each row, NaN where none was recorded.

    >>> law_began(np.array([2.0] * 40 + [5.0] * 12)), law_began(np.array([2.0, 3.0, 4.0] * 20))
    (40, 0)
    """
    said = DepthLaw().update_many(depths)
    changes = np.flatnonzero(said == CHANGED)
    if not len(changes):
        return 0
    at = int(changes[-1])
    known = np.flatnonzero(~np.isnan(depths[: at + 1]))[-RECENT:]
    return int(known[said[known] != USUAL][0])


def _of_windows(combine: np.ufunc, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest or the smallest of each `REFERENCE` values that follow one another."""
    size = 1
    block = values
    while 2 * size <= REFERENCE:
        block = combine(block[size:], block[:-size])
        size *= 2
    return np.asarray(combine(block[: len(values) - REFERENCE + 1], block[REFERENCE - size :]))
