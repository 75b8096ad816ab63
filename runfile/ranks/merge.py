"""How numbers of several ranks become one: a rule for every column, and means that are exact.

Mathematics on arrays, with one row per rank: no file is read here. NaN in a step column means "not recorded", unless
``nonfinite`` is positive in that row: then it may be a NaN that training gave, and it stays visible in the result.
Where a rank's row counts one and lacks another number as well, both show as NaN: too careful rather than hidden.

Not covered: tensor and pipeline parallelism, where a rank sees a part of the model and not a part of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]
Index = NDArray[np.int64]
Rows = slice | Index
Reduction = Literal["mean", "token mean", "sum", "min", "max"]

REDUCTIONS: Final[dict[str, Reduction]] = {
    "time": "max",  # a step is over when the last rank has ended it
    "generation": "max",
    "loss": "mean",
    "grad_norm": "max",  # one number where gradients are reduced before; where they are not, the worst rank decides
    "lr": "mean",
    "tokens": "max",  # trainers count over all ranks, so that all say the same
    "depth": "mean",
    "depth_min": "min",
    "depth_max": "max",
    "input_norm": "token mean",
    "injection_norm": "token mean",
    "a_bar_radius": "max",  # a loop that is unstable on one rank is unstable
    "a_bar_norm": "max",
    "b_bar_norm": "max",
    "c_out_norm": "max",
    "nonfinite": "sum",
    "probe_seconds": "max",  # ranks wait for the slowest
    "rows_dropped": "sum",
    "a_bar_radius_error": "max",
    "jacobian_radius": "max",
    "jacobian_norm": "max",
    "lyapunov_max": "max",
    "lyapunov_error": "max",
    "c_out_gain": "mean",  # a mean over tokens, as many on every rank
    "full_loop_seconds": "max",
    "a_bar_radius_lower": "max",  # with the largest radius goes the largest interval
    "a_bar_radius_upper": "max",
    "a_bar_radius_exact": "max",
    "a_bar_radius_exact_step": "max",
    "eval_depth": "mean",
    "eval_depth_max": "max",
    "eval_forwards": "sum",
    "backward_depth": "mean",
}
"""What becomes of every step column but ``step``; a user's own scalars are averaged."""

# Where a NaN is never a number that training gave: counted by the probe itself, or left out on purpose.
NEVER_GIVEN: Final = {
    "time", "generation", "tokens", "depth", "depth_min", "depth_max", "nonfinite", "probe_seconds", "rows_dropped",
    "a_bar_radius_error", "lyapunov_error", "full_loop_seconds",
    "a_bar_radius_lower", "a_bar_radius_upper", "a_bar_radius_exact", "a_bar_radius_exact_step",
    "eval_depth", "eval_depth_max", "eval_forwards", "backward_depth",
}  # fmt: skip


def united(steps: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the steps that any rank has; those of each rank increase.

    >>> united([np.array([0, 1, 2]), np.array([1, 3])]).tolist()
    [0, 1, 2, 3]
    """
    longest = max(steps, key=len)
    if all(np.array_equal(one, longest[: len(one)]) for one in steps):  # the usual case: some ranks are behind
        return longest
    return np.unique(np.concatenate(steps))


def spread(values: Sequence[Series], at: Sequence[Rows], length: int) -> Series:
    """Return one row per rank with its values at their places, NaN at the steps that it does not have."""
    table = np.full((len(values), length), np.nan)
    for row, own, where in zip(table, values, at, strict=True):
        row[where] = own
    return table


def merge_column(name: str, values: Series, nonfinite: Series, tokens: Series | None = None) -> Series:
    """Return a step column over all ranks.

    Args:
        name: Which column; decides the rule.
        values: ``(ranks, steps)``, NaN where the rank has no such number.
        nonfinite: ``(ranks, steps)``, how many numbers of the rank's step were not finite.
        tokens: ``(ranks, steps)``, what token means are weighted with; without, and at steps where a rank with a number
            has no tokens, they are plain means.

    >>> merge_column("loss", np.array([[2.0, 2.0, 2.0], [4.0, np.nan, np.nan]]), np.array([[0, 0, 0], [0, 0, 1]]))
    array([ 3.,  2., nan])
    >>> merge_column("input_norm", np.array([[2.0], [4.0]]), np.zeros((2, 1)), np.array([[1.0], [3.0]]))
    array([3.5])
    """
    rule = REDUCTIONS.get(name, "mean")
    recorded = ~np.isnan(values)
    if rule in ("min", "max"):
        merged: Series = (np.fmin if rule == "min" else np.fmax).reduce(values, axis=0)
    else:
        weights = recorded.astype(np.float64)
        if rule == "token mean" and tokens is not None:
            weighable = np.all(~recorded | (tokens > 0), axis=0)
            weights = np.where(weighable & recorded, tokens, weights)
        with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 is "no rank has it", inf - inf is a NaN to be shown
            merged = _sum(np.where(recorded, values, 0.0) * weights)
            merged = np.where(recorded.any(axis=0), merged if rule == "sum" else merged / _sum(weights), np.nan)
    if name not in NEVER_GIVEN:
        merged[np.any(~recorded & (nonfinite > 0), axis=0)] = np.nan
    return merged


def _sum(rows: NDArray[np.float64]) -> Series:
    """Return the sum over ranks, one after another: numpy's own order depends on how many steps there are."""
    total = np.zeros(rows.shape[1])
    for row in rows:
        total += row
    return total


def merge_loops(
    name: str, values: Sequence[Series], tokens: Sequence[Series], at: Sequence[Rows], length: int
) -> Series:
    """Return a per-loop number over all ranks: the mean over the tokens of all of them, which is exact.

    Ranks may have run different depths; a loop is then averaged over those that reached it, as the micro-batches of one
    process are. A NaN of a loop that ran stays a NaN, except that of a cosine, which is undefined where nothing moved.

    Args:
        name: ``state_norm``, ``residual_norm`` or ``step_cosine``.
        values: Of each rank ``(rows, loops)``, as ``Run.loops`` gives them.
        tokens: Of each rank ``(rows, loops)``.
        at: Where each rank's rows are among ``length``.
        length: Rows of the result.

    >>> one, other = np.array([[1.0, 5.0]]), np.array([[3.0]])
    >>> merge_loops("state_norm", [one, other], [np.full((1, 2), 10.0), np.full((1, 1), 30.0)], [[0], [0]], 1)
    array([[2.5, 5. ]])
    """
    width = max((one.shape[1] for one in values), default=0)
    total, weight = np.zeros((length, width)), np.zeros((length, width))
    rest, resting = np.zeros((length, width)), np.zeros((length, width))  # of ranks whose tokens have all stopped
    for own, count, where in zip(values, tokens, at, strict=True):
        weights = _weights(name, own, count)
        total[where, : own.shape[1]] += np.where(weights > 0, own * weights, 0.0)
        weight[where, : own.shape[1]] += weights
        stopped = (count == 0) & np.isfinite(own)
        rest[where, : own.shape[1]] += np.where(stopped, own, 0.0)
        resting[where, : own.shape[1]] += stopped
    total, weight = np.where(weight > 0, total, rest), np.where(weight > 0, weight, resting)
    means: Series = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
    return means


def merge_tokens(tokens: Sequence[Series], at: Sequence[Rows], length: int) -> Series:
    """Return how many tokens reached each loop on all ranks together, NaN where it ran on none.

    >>> merge_tokens([np.array([[8.0, 8.0]]), np.array([[4.0]])], [[0], [0]], 1)
    array([[12.,  8.]])
    """
    width = max((one.shape[1] for one in tokens), default=0)
    total, ran = np.zeros((length, width)), np.zeros((length, width), dtype=bool)
    for count, where in zip(tokens, at, strict=True):
        total[where, : count.shape[1]] += np.nan_to_num(count)
        ran[where, : count.shape[1]] |= ~np.isnan(count)
    return np.where(ran, total, np.nan)


def _weights(name: str, values: Series, tokens: Series) -> Series:
    """Return how many tokens each number is a mean over, 0 where there is none."""
    weights = np.where(tokens > 0, tokens, 0.0)  # NaN: the loop did not run
    if name in (
        "residual_norm",
        "step_cosine",
    ):  # a step from h_t to h_{t+1} is that of the tokens that reached h_{t+1}
        weights[:, :-1], weights[:, -1:] = weights[:, 1:], 0.0
    if name == "step_cosine":
        weights[np.isnan(values)] = 0.0
    return weights


def last_of(values: Series, tokens: Series, back: int) -> Series:
    """Return the number ``back`` rows before the last loop of every step, NaN where it did not run as deep."""
    count = np.sum(~np.isnan(tokens), axis=1)
    last = np.full(len(values), np.nan)
    deep = np.flatnonzero(count > back)
    last[deep] = values[deep, count[deep] - 1 - back]
    return last


def widest(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return tables below each other, padded with NaN to the width of the widest."""
    width = max(one.shape[1] for one in values)
    return np.concatenate([np.pad(one, ((0, 0), (0, width - one.shape[1])), constant_values=np.nan) for one in values])
