"""Which rows belong to a branch that was left: a later generation ran their steps again.

A row of ``steps`` is superseded by any later row whose step is not greater (`growing.Standing`). Passes of the probe
batch, spectra, arrays and events lie in tables of their own; besides that rule, a later *generation* that recorded a
step at or before theirs supersedes them. That takes the lowest step of every generation, which is kept here.

Not covered: reading the columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .growing import standing_rows
from .layout import LARGEST_STEP
from .ragged import Index


class Branches:
    """The lowest step that each generation of a run recorded.

    Attributes:
        changed: Whether a lowest step changed; for the caller to reset.

    >>> branches = Branches()
    >>> branches.take_in(np.array([0.0, 1.0, 2.0, 1.0, 2.0]), np.array([0.0, 0.0, 0.0, 1.0, 1.0]), 1)
    >>> branches.run_again(np.array([0, 1, 2, 2]), np.array([0, 0, 0, 1])).tolist()
    [False, True, True, False]
    """

    def __init__(self) -> None:
        self._lowest = np.empty(0)  # of each generation; infinite where it recorded none
        self._seen = 0  # rows taken in
        self._generation = 0
        self.changed = False

    def take_in(self, step: NDArray[Any], generation: NDArray[Any], newest: int) -> None:
        """Take in what was added to two columns of ``steps``, all rows of which are given.

        Args:
            step: Steps of all rows.
            generation: Their generations.
            newest: The present generation of the run, 1 or more.
        """
        before, self._generation = self._lowest, newest
        step, generation = step[self._seen :], generation[self._seen :]
        self._lowest = np.append(before, np.full(newest + 2 - len(before), np.inf))
        known = (np.abs(step) < LARGEST_STEP) & (generation >= 0) & (generation <= newest)
        np.minimum.at(self._lowest, generation[known].astype(np.int64), step[known])
        self._seen += len(step)
        self.changed |= not np.array_equal(before, self._lowest)

    def run_again(self, steps: NDArray[Any], generations: NDArray[Any]) -> NDArray[np.bool_]:
        """Return for each row whether a later generation recorded its step, or one before it."""
        if not self._generation or not len(steps):
            return np.zeros(len(steps), dtype=bool)
        from_then_on = np.minimum.accumulate(self._lowest[::-1])[::-1]
        own = np.clip(np.nan_to_num(generations), 0, self._generation).astype(np.int64)
        again: NDArray[np.bool_] = steps >= from_then_on[own + 1]
        return again

    def standing(self, steps: NDArray[Any], generations: NDArray[Any]) -> Index:
        """Return the rows of a table of its own that nothing supersedes: no later row and no later generation."""
        index = standing_rows(steps)
        return index[~self.run_again(steps[index], generations[index])]
