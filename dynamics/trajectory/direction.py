"""Where steps that last lead the state: away, or round and round.

A straight path leads away, and so does a random walk, whose squared norm grows by the sum of its squared steps. An
orbit gains nothing in the long run.

Not covered: an orbit whose period is longer than the loops that were run, which is straight as far as it was seen.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STRAIGHT: Final = 0.5
"""Mean cosine of successive steps above which they keep their direction."""
LEAVES: Final = 0.3
"""Gain of the squared norm per sum of squared steps above which turning steps lead away: 1 for a random walk, 0 for
what stays in bounds."""
STAYS: Final = 0.1
"""The same gain below which they do not."""
STEADY_GAIN: Final = 0.5
"""Share of the variance of the squared norm that a straight line must explain for its gain to be one."""


def direction(residual: Floats, cosine: Floats, state: Floats, first: int) -> NDArray[np.str_]:
    """Return where steps that last lead: ``drifting`` (away), ``orbiting`` (in bounds) or ``either``."""
    turn = mean_where(cosine, np.arange(residual.shape[1])[None] >= first)
    straight = np.arccos(np.clip(turn, -1, 1)) * (residual.shape[1] - first) < np.pi / 2
    squared = state[:, first:] ** 2
    t = np.arange(squared.shape[1]) - (squared.shape[1] - 1) / 2
    level = squared - squared.mean(axis=1, keepdims=True)
    slope = level @ t / (t @ t)
    gain = slope * (squared.shape[1] - 1) / (residual[:, first:] ** 2).sum(axis=1)
    steady = (slope**2 * (t @ t)) / (level**2).sum(axis=1)
    knows_turn, knows_gain = ~np.isnan(turn), np.isfinite(gain)
    steady = np.where(np.isnan(steady), 0.0, steady)
    away, stays = (gain > LEAVES) & (steady > STEADY_GAIN), (gain < STAYS) | (steady < STEADY_GAIN)
    by_gain = np.select(
        [away, stays & (gain > -LEAVES), steady < STEADY_GAIN], ["drifting", "orbiting", "orbiting"], "either"
    )
    unseen = np.where(knows_turn & ~(turn > STRAIGHT), "orbiting", "drifting")
    return np.where(straight, "drifting", np.where(knows_gain, by_gain, unseen))


def mean_where(values: Floats, mask: NDArray[np.bool_]) -> Floats:
    """Return the mean of the finite masked values of each row; NaN where there is none."""
    keep = mask & np.isfinite(values)
    n = keep.sum(axis=1)
    return np.where(n > 0, np.where(keep, values, 0).sum(axis=1) / np.maximum(n, 1), np.nan)
