"""Which steps of a loop are round-off of its states.

A step can be round-off when it is small relative to the state, for the type of the states. It is not, however small,
when the steps follow a law: round-off neither keeps its direction nor grows loop after loop.

Not covered: an orbit that is smaller than the round-off level, which looks the same.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from .direction import STRAIGHT, mean_where

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

ROUND_OFF: Final = 1e-5
"""A step this small relative to the state is round-off of a float32 loop (24 bits, hundreds of operations)."""
ROUND_OFF_OF: Final = {"float64": 1e-13, "float32": ROUND_OFF, "float16": 2.5e-3, "bfloat16": 2e-2}
"""The same by the type of the states: 5 rounding units of the short types, more of the long ones, whose loops compute
in one precision throughout."""
FLOOR_GROWTH: Final = 4.0
"""Factor by which steps below the round-off level must grow, loop after loop, before they are no round-off."""


def _scale(residual: Floats, state: Floats, known: Bools) -> Floats:
    """Return what a step is compared with: the state, or without it the largest step so far.

    The largest step so far never takes the start of an explosion for round-off.
    """
    return np.where(known[:, None], state[:, 1:], np.maximum.accumulate(residual, axis=1))


def end_above(residual: Floats, state: Floats, known: Bools, level: float) -> Integers:
    """Return one past the last loop whose step is above a relative size; T when the loop still moves at its end."""
    loops = residual.shape[1]
    moving = residual > level * _scale(residual, state, known)
    return np.where(moving.any(axis=1), loops - np.argmax(moving[:, ::-1], axis=1), 0)


def follows_a_law(residual: Floats, cosine: Floats, end: Integers) -> Bools:
    """Do the steps below the round-off level keep their direction, or grow loop after loop? Round-off does neither."""
    loops = residual.shape[1]
    below = np.arange(loops)[None] >= end[:, None]
    straight = mean_where(cosine, below & (np.arange(loops) > 0)) > STRAIGHT
    largest = np.where(below, residual, 0.0).max(axis=1)
    straight &= FLOOR_GROWTH * residual[:, -1] > largest  # what goes straight to its rest has settled at this level
    still = residual[:, -1] == 0
    pairs = below[:, :-1]
    grows = (np.diff(residual, axis=1) > 0) & pairs
    steadily = grows.sum(axis=1) >= np.maximum(0.8 * pairs.sum(axis=1), 3)
    least = np.where(below & (residual > 0), residual, np.inf).min(axis=1)
    return np.asarray(~still & (straight | (steadily & (residual[:, -1] > FLOOR_GROWTH * least))), np.bool_)
