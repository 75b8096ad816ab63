"""Fewer points, same picture: what goes over the wire when a run has 10^5 steps or more.

Lines are thinned with MinMaxLTTB (Van Der Donckt et al., 2023), which keeps every visible spike; heatmap columns take
the largest value of the steps they stand for. What is not covered: nothing here is fit for statistics.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tsdownsample import NaNMinMaxLTTBDownsampler

POINTS = 2000
COLUMNS = 400

View = tuple[float, float] | None
"""The visible range of steps, both ends included; None is the whole run."""


class Columns(NamedTuple):
    """Columns of a heatmap: ``steps`` (C,) the middle step of each, ``values`` (C, T), ``per_column`` steps in each."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]
    per_column: int


def visible(steps: NDArray[np.float64], view: View) -> slice:
    """Return the rows inside ``view`` and one neighbour on each side, so that lines run to the edge of the plot.

    Args:
        steps: Steps of the rows, shape ``(N,)``, increasing.
        view: Visible range, or None for everything.

    >>> visible(np.arange(10.0), (3.0, 5.0))
    slice(2, 7, None)
    """
    if view is None:
        return slice(0, len(steps))
    low = int(np.searchsorted(steps, view[0], side="left"))
    high = int(np.searchsorted(steps, view[1], side="right"))
    return slice(max(low - 1, 0), min(high + 1, len(steps)))


def thin(
    steps: NDArray[np.float64], values: NDArray[np.float64], view: View = None, points: int = POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Choose at most about ``points`` rows of a series that draw the same line.

    NaN (not recorded) rows are left out, so that a quantity recorded at an interval is still one line; infinite values
    become NaN, which draws a gap. Costs one pass over the visible rows.

    Args:
        steps: Steps of the rows, shape ``(N,)``, increasing.
        values: The series, shape ``(N,)``.
        view: Visible range of steps, or None for everything.
        points: How many points a screen is worth; more are never sent.

    Returns:
        Steps and values of the rows chosen, at most ``points`` of them, in order.

    >>> thin(np.array([0.0, 1.0, 2.0]), np.array([5.0, np.nan, np.inf]))
    (array([0., 2.]), array([ 5., nan]))
    """
    recorded = ~np.isnan(values)
    steps, values = steps[recorded], values[recorded]
    rows = visible(steps, view)
    steps, values = steps[rows], values[rows]
    values = np.where(np.isfinite(values), values, np.nan)
    if len(values) <= points:
        return steps, values
    downsampler: Any = NaNMinMaxLTTBDownsampler()
    keep = downsampler.downsample(np.ascontiguousarray(values), n_out=points)
    return steps[keep], values[keep]


def bin_rows(count: int, columns: int = COLUMNS) -> NDArray[np.int64]:
    """Return the first row of each of at most ``columns`` bins of nearly equal size.

    >>> bin_rows(10, 4)
    array([0, 2, 5, 7])
    >>> bin_rows(3, 4)
    array([0, 1, 2])
    """
    return np.unique(np.linspace(0, count, min(columns, count), endpoint=False).astype(np.int64))


def columns(
    steps: NDArray[np.float64], values: NDArray[np.float64], view: View = None, limit: int = COLUMNS
) -> Columns:
    """Reduce rows of loops to at most ``limit`` heatmap columns; each keeps the largest value of its steps.

    The largest, not the mean: one exploding step among a thousand must stay visible. NaN entries (a loop that did not
    run) are ignored unless no step of the column ran that loop. Costs one pass over the visible rows.

    Args:
        steps: Steps of the rows, shape ``(N,)``, increasing.
        values: One row of loops per step, shape ``(N, T)``, NaN where a loop did not run.
        view: Visible range of steps, or None for everything.
        limit: Columns a screen is worth.

    >>> columns(np.arange(4.0), np.array([[1.0], [3.0], [np.nan], [2.0]]), limit=2)
    Columns(steps=array([0., 2.]), values=array([[3.],
           [2.]]), per_column=2)
    """
    rows = visible(steps, view)
    steps, values = steps[rows], values[rows]
    if len(steps) == 0:
        return Columns(steps, values, 1)
    starts = bin_rows(len(steps), limit)
    ends = np.append(starts[1:], len(steps))
    largest = np.fmax.reduceat(values, starts, axis=0)
    return Columns(steps[(starts + ends - 1) // 2], largest, int(np.max(ends - starts)))
