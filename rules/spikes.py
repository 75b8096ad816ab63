"""Loss spikes: a robust z-score of the log loss that a spike itself cannot blunt.

The score compares each log loss with the median of a window of earlier ones, in units of their median absolute
deviation. Points that score as spikes stay out of the window, so that a long spike does not become the new normal, and
the deviation has a floor, so that a very smooth run does not turn rounding into alarms.

Not covered: slow divergence. A loss that climbs a little every step moves the baseline with it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

import numpy as np
from numpy.typing import ArrayLike, NDArray

WINDOW = 64  # earlier log losses compared with
WARM_UP = 16  # losses needed before a score is given
FLOOR = 0.02  # smallest spread of the log loss that counts: 2 % of the loss
SPIKE = 6.0  # scores from here on are spikes and stay out of the window
MAX_EXCLUDED = WINDOW  # a new level held this long is the new baseline, not a spike any more

_MAD_TO_SIGMA = 1.4826  # of a normal distribution


class SpikeScore:
    """Scores losses one at a time.

    >>> score = SpikeScore()
    >>> quiet = [score.update(3.0 + 0.01 * (i % 3)) for i in range(40)]
    >>> abs(quiet[-1]) < 2, score.update(9.0) > SPIKE
    (True, True)
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._excluded = 0

    def update(self, loss: float) -> float:
        """The robust z-score of this loss against the ones before it; NaN while warming up or when it is not positive.

        An infinite loss scores ``inf``.
        """
        if not loss > 0:
            return math.nan
        value = math.log(loss)
        if len(self._sorted) < WARM_UP:
            if math.isfinite(value):
                self._accept(value)
            return math.nan
        score = (value - _median(self._sorted)) / self._spread()
        if score < SPIKE or self._excluded >= MAX_EXCLUDED:
            if self._excluded >= MAX_EXCLUDED:
                self._restart()
            if math.isfinite(value):
                self._accept(value)
        else:
            self._excluded += 1
        return score

    def _accept(self, value: float) -> None:
        """Takes a value into the window and lets the oldest one go."""
        self._excluded = 0
        self._recent.append(value)
        insort(self._sorted, value)
        if len(self._recent) > WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def _restart(self) -> None:
        """Begins a new baseline after a level that stayed."""
        self._recent.clear()
        self._sorted.clear()

    def _spread(self) -> float:
        """Standard deviation equivalent of the window's median absolute deviation, not below the floor."""
        centre = _median(self._sorted)
        mad = _median(sorted(abs(v - centre) for v in self._sorted))
        return max(_MAD_TO_SIGMA * mad, FLOOR)


def _median(ordered: list[float]) -> float:
    """Median of a sorted list."""
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def loss_zscores(loss: ArrayLike) -> NDArray[np.float64]:
    """Scores of a whole series; entry ``i`` is what `SpikeScore` would have said live at step ``i``.

    Args:
        loss: ``(steps,)`` in nats.

    Returns:
        ``(steps,)``, NaN where no score can be given.

    >>> int(np.nanargmax(loss_zscores([2.0] * 20 + [8.0])))
    20
    """
    score = SpikeScore()
    return np.array([score.update(float(value)) for value in np.asarray(loss, dtype=np.float64)])
