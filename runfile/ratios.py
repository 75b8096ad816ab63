"""Ratios of the late loops of a trajectory, as the run file and its rules name them.

``residual_ratio`` is the geometric mean of ``‖Δ[t+1]‖ / ‖Δ[t]‖`` over the late loops, ``growth_ratio`` the same of
``‖h[t]‖``. They are read off recorded norms by arithmetic alone; what law the steps follow is decided elsewhere, in
``dynamics.trajectory``, whose ratios are equal to these (a test compares them).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ROUND_OFF: Final = 1e-5
"""A step this small relative to the state is round-off of a float32 loop."""
MIN_LOOPS: Final = 4
"""Fewer loops have no late ones."""
MOVING: Final = 0.02
"""Part of the state that no token moves by just before it rests: one that rests behind such steps was stopped."""
STOPPED: Final = "tokens stop after different numbers of loops (halting)"


def halts(tokens: Floats, residual_norm: Floats, state_norm: Floats) -> NDArray[np.bool_]:
    """Return which trajectories are means over fewer and fewer tokens because some are stopped on their way.

    Tokens that come to rest are counted no more either; then the steps before were small.

    Args:
        tokens: ``(N, T + 1)``, how many moved in each loop.
        residual_norm: ``(N, T)``, as that of `late_ratios`.
        state_norm: ``(N, T + 1)``, likewise.

    >>> fewer = np.array([[8.0, 8, 4, 2, 8]] * 2)
    >>> halts(fewer, np.array([[1.0, 0.9, 0.8, 0.7], [1.0, 0.01, 1e-4, 1e-6]]), np.ones((2, 5))).tolist()
    [True, False]
    """
    fewer = tokens[:, 1:-1] < tokens[:, :-2]
    return np.asarray((fewer & (residual_norm[:, :-1] > MOVING * state_norm[:, :-2])).any(axis=1), np.bool_)


def late_ratios(residual_norm: Floats, state_norm: Floats, tokens: Floats | None = None) -> tuple[Floats, Floats]:
    """Return ``residual_ratio`` and ``growth_ratio`` of many trajectories of one depth.

    Args:
        residual_norm: ``(N, T)``, ‖h[t+1] − h[t]‖.
        state_norm: ``(N, T + 1)``, ‖h[t]‖; a NaN at t = 0 of every row with finite norms behind it was not recorded.
        tokens: ``(N, T + 1)``, how many moved in each loop, where not always all of them.

    Returns:
        Two arrays ``(N,)``: NaN below four loops and where tokens are stopped on the way (means over other tokens have
        no ratio), infinite where a number stopped being finite, 0 where the steps vanish at once.

    >>> steps = 0.5 ** np.arange(8)[None]
    >>> late_ratios(steps, np.ones((1, 9)))[0].tolist()
    [0.5]
    """
    if tokens is not None:
        stopped = halts(tokens, residual_norm, state_norm) & np.isfinite(state_norm[:, -1])
        if stopped.any():
            ratios = late_ratios(residual_norm, state_norm)
            return np.where(stopped, np.nan, ratios[0]), np.where(stopped, np.nan, ratios[1])
    unseen = np.isnan(state_norm[:, 0]) & np.isnan(residual_norm[:, 0])
    if residual_norm.shape[1] > 1 and unseen.all() and np.isfinite(state_norm[:, 1]).any():
        residual_norm, state_norm = residual_norm[:, 1:], state_norm[:, 1:]
    count, loops = residual_norm.shape
    known = ~np.asarray(np.isnan(state_norm).all(axis=1))
    bad = ~np.asarray(np.isfinite(residual_norm).all(axis=1))
    bad |= known & ~np.isfinite(state_norm).all(axis=1)
    if loops < MIN_LOOPS:
        unknown = np.where(bad, np.inf, np.nan)
        return unknown, np.where(known, unknown, np.nan)
    with np.errstate(all="ignore"):
        safe = np.where(bad[:, None], 1.0, residual_norm)
        scale = np.where((known & ~bad)[:, None], state_norm[:, 1:], np.maximum.accumulate(safe, axis=1))
        moving = safe > ROUND_OFF * scale
        end = np.where(moving.any(axis=1), loops - np.argmax(moving[:, ::-1], axis=1), 0)
        start = np.array([_late(length) for length in range(loops + 1)])[end]
        shrinking = np.where(end < 2, 0.0, _mean_ratio(safe, start, end - 1))
        growth = _mean_ratio(state_norm, np.full(count, _late(loops)), np.full(count, loops))
    return np.where(bad, np.inf, shrinking), np.where(bad & known, np.inf, growth)


def _late(loops: int) -> int:
    """Return the first loop that counts as late: half-way up to 24 loops, then the 12th, then a quarter of the way."""
    return max(min(loops // 2, max(loops - 3, 0), 12), loops // 4)


def _mean_ratio(values: Floats, first: NDArray[np.int64], last: NDArray[np.int64]) -> Floats:
    """Return the geometric mean of successive ratios between two loops of each row."""
    rows = np.arange(len(values))
    first, last = np.clip(first, 0, values.shape[1] - 1), np.clip(last, 0, values.shape[1] - 1)
    first = np.minimum(first, np.maximum(last - 1, 0))
    mean: Floats = (values[rows, last] / values[rows, first]) ** (1 / np.maximum(last - first, 1))
    return np.where(last > first, mean, np.nan)
