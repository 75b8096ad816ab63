"""After how many loops tokens leave: the histogram of exit depths that the recorded token counts give.

A loop counts the tokens whose state moved in it. Where a token that has stopped does not start again, what is counted
less from one loop to the next has left there. In a step of several forwards a loop also counts the tokens whose forward
ended just before it, because their last state is in its mean too: there the row behind it counts those that moved in
it.
Which of the two a step is, its mean depth tells, which is exact.

Not covered: tokens that wait at first, as where each sequence's loops stand at the end; their exits cannot be told.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..runfile.reader import Run

MOST_SHOWN: Final = 6


def exit_shares(run: Run, rows: slice = slice(None)) -> NDArray[np.float64]:
    """Return the share of tokens that leave after each number of loops, over all of some steps.

    Args:
        run: An opened run.
        rows: Which steps.

    Returns:
        ``(T + 1,)``: entry t is the share of tokens that run t loops; they add up to 1. Empty where no loop was
        recorded, where more tokens take part in a later loop than in the one before, or their number is infinite.
    """
    tokens = run.loops("tokens", rows)
    if np.isinf(tokens).any():
        return np.empty(0)
    mean = run["depth"][rows]
    depth = np.count_nonzero(~np.isnan(tokens), axis=1) - 1  # of each step
    counts = np.zeros(int(max(depth.max(initial=0), 0)) + 1)
    for loops in np.unique(depth[depth > 0]):
        of_depth = tokens[depth == loops, : loops + 1]
        whole = np.fmax(of_depth[:, -1], of_depth[:, 0])[:, None]
        several = _of_several_forwards(of_depth, mean[depth == loops])[:, None]
        active = np.where(several, of_depth[:, 1:], of_depth[:, :-1])
        through = np.concatenate([whole, active, np.zeros_like(whole)], axis=1)
        left = -np.diff(through, axis=1)
        if (left < 0).any():
            return np.empty(0)
        counts[: loops + 1] += left.sum(axis=0)
    shares: NDArray[Any] = counts / counts.sum() if counts.sum() else np.empty(0)
    return shares


def _of_several_forwards(tokens: NDArray[np.float64], depth: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which steps ran several forwards to different depths: only then the last row has fewer tokens.

    Args:
        tokens: ``(steps, T + 1)``, all of one depth T of the deepest forward.
        depth: The mean depth of each step.

    >>> both = np.array([[8.0, 8, 8, 4], [8.0, 8, 4, 8]])  # forwards of 2 and 3 loops; and one that halts after 2 or 3
    >>> _of_several_forwards(both, np.array([2.5, 2.5])).tolist()
    [True, False]
    """
    shifted = tokens[:, 1:].sum(axis=1) / np.maximum(tokens[:, 0], 1.0)
    return np.asarray((tokens[:, -1] < tokens[:, 0]) & np.isclose(shifted, depth, rtol=1e-5))


def exits_said(run: Run, rows: slice) -> str:
    """Return after how many loops tokens leave, where they leave after different numbers; else an empty text."""
    shares = exit_shares(run, rows)
    leaving = np.flatnonzero(shares >= 0.005)
    if len(leaving) < 2:
        return ""
    largest = sorted(leaving[np.argsort(-shares[leaving], kind="stable")][:MOST_SHOWN].tolist())
    mean = float(shares @ np.arange(len(shares)))
    parts = ", ".join(f"{n} {'loop' if n == 1 else 'loops'} {100 * shares[n]:.0f} %" for n in largest)
    return f"Tokens run {mean:.1f} loops in the mean: {parts}"
