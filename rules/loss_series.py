"""What a loss says over time: spikes, worse than it was, exactly constant, a rate of zero, a scale that settles.

Each number is known in every row from what came before it and with it, so that live and afterwards it is the same.

``loss_rise``: how much the median of the last `WINDOW` losses lies above the lowest such median so far, in parts of
that lowest one. It is drawn every `STRIDE` losses. Near zero a part of the loss says nothing; there it is a part of
what the run has gained, or of the noise. ``loss_unchanged``: how many losses in a row equal the one before them bit for
bit. ``lr_zero``: for how many recorded rates in a row the learning rate has been exactly 0. ``scaler_settling``: 1 in
the first steps of a run while nothing but the gradient norm is infinite, which is what the loss scale of float16
training does until it fits. ``depth_change``: 1 in the step at which other depths than before have become usual
(`depth_law`). The loss at odd depths is not compared with what was before, and after such a change spikes and levels
begin anew, because a loop that runs deeper has another loss.

Not covered: losses that are not recorded in every step count by record, not by step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .depth_law import CHANGED, USUAL, DepthLaw
from .spikes import Floats, SpikeScore, median_of_rows

WINDOW: Final = 32  # losses of which a level is the median
STRIDE: Final = 8  # losses between two levels
SETTLING: Final = 32  # skipped steps after which a loss scale ought to fit: it halves in each, from 2^16

SOURCES: Final = ("loss", "lr", "grad_norm", "nonfinite", "depth")
"""The columns that these series are made of."""
DERIVED: Final = ("loss_zscore", "loss_rise", "loss_unchanged", "lr_zero", "scaler_settling", "depth_change")

_GAINED: Final = 1 / 3  # of what the loss has gained counts as the least unit of a rise
_NOISE: Final = 2.0  # spreads of the losses in a window count as the least unit, too


class LossSeries:
    """Follows a run row by row, or goes through all rows at once with the same result.

    Args:
        ranks: Ranks behind the numbers: each adds its own to ``nonfinite``.

    >>> series = LossSeries()
    >>> series.update({"loss": 2.0, "lr": 0.0})["lr_zero"], series.update({"loss": 2.0, "lr": 0.0})["loss_unchanged"]
    (1.0, 1.0)
    """

    def __init__(self, ranks: int = 1) -> None:
        self._ranks = ranks
        self._score = SpikeScore()
        self._level = _Level()
        self._depths = DepthLaw()
        self._loss = self._unchanged = self._zero = math.nan
        self._settling = 0  # rows so far that were all of a scale that settles; -1: one was not

    def update(self, row: Mapping[str, float]) -> dict[str, float]:
        """Return the series at a row.

        Args:
            row: ``loss``, ``lr``, ``grad_norm`` and ``depth`` as recorded, NaN or missing where not, and ``nonfinite``.
        """
        loss, rate = row.get("loss", math.nan), row.get("lr", math.nan)
        depth = self._depths.update(row.get("depth", math.nan))
        if depth == CHANGED:
            self._score, self._level = SpikeScore(), _Level()
        compared = loss if depth == USUAL or not math.isfinite(loss) else math.nan
        if not math.isnan(loss):
            self._unchanged = self._unchanged + 1 if loss == self._loss else 0.0
            self._loss = loss
        if not math.isnan(rate):
            self._zero = (0.0 if math.isnan(self._zero) else self._zero) + 1 if rate == 0 else 0.0
        if math.isfinite(compared):
            self._level.update(compared)
        scale = 0 < row.get("nonfinite", 0.0) <= self._ranks and math.isfinite(loss)
        skipped = scale and math.isinf(row.get("grad_norm", math.nan)) and 0 <= self._settling < SETTLING
        self._settling = self._settling + 1 if skipped else -1
        score, changed = self._score.update(compared), float(depth == CHANGED)
        values = (score, self._level.rise, self._unchanged, self._zero, float(skipped), changed)
        return dict(zip(DERIVED, values, strict=True))

    def replay(self, columns: Mapping[str, ArrayLike]) -> dict[str, Floats]:
        """Return the series of all rows so far, and be where `update` would be after them; for a new one only.

        Args:
            columns: `SOURCES` by name, each ``(rows,)``.
        """
        loss, rate, norm, odd, depth = (np.asarray(columns[name], dtype=np.float64) for name in SOURCES)
        depths = self._depths.update_many(depth)
        known = np.flatnonzero(~np.isnan(loss))
        unchanged = _carried(
            len(loss), known, _in_a_row(loss[known] == np.append(math.nan, loss[known][:-1])[: len(known)])
        )
        rates = np.flatnonzero(~np.isnan(rate))
        zero = _carried(len(loss), rates, _in_a_row(rate[rates] == 0))
        compared = np.where((depths == USUAL) | ~np.isfinite(loss), loss, np.nan)
        scores, rise = self._compare(compared, np.flatnonzero(depths == CHANGED))
        skipped = (odd > 0) & (odd <= self._ranks) & np.isfinite(loss) & np.isinf(norm)
        settling = np.logical_and.accumulate(skipped) & (np.arange(len(loss)) < SETTLING)
        changed = (depths == CHANGED).astype(np.float64)
        values = (scores, rise, unchanged, zero, settling.astype(np.float64), changed)
        if len(loss):
            self._loss = float(loss[known[-1]]) if len(known) else math.nan
            self._unchanged, self._zero = float(unchanged[-1]), float(zero[-1])
            self._settling = len(loss) if settling.all() else -1
        return dict(zip(DERIVED, values, strict=True))

    def _compare(self, losses: Floats, changes: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Return the scores and the rises of losses, which begin anew at some rows."""
        scores, rises = [], []
        for number, part in enumerate(np.split(losses, changes)):
            if number:
                self._score, self._level = SpikeScore(), _Level()
            finite = np.flatnonzero(np.isfinite(part))
            scores.append(self._score.update_many(part))
            rises.append(_carried(len(part), finite, self._level.replay(part[finite])))
        return np.concatenate(scores), np.concatenate(rises)


class _Level:
    """How far the level of the loss lies above its lowest."""

    def __init__(self) -> None:
        self.rise = math.nan
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._count = 0
        self._first = self._best = math.nan

    def update(self, loss: float) -> None:
        """Take a finite loss."""
        self._recent.append(loss)
        self._count += 1
        if self._count >= WINDOW and (self._count - WINDOW) % STRIDE == 0:
            level, noise = _levels(np.array(self._recent)[None])
            self._first = float(level[0]) if math.isnan(self._first) else self._first
            self._best = float(np.fmin(self._best, level[0]))
            self.rise = float(_rise(level, np.array([self._best]), self._first, noise)[0])

    def replay(self, losses: Floats) -> Floats:
        """Return the rise at each of the first losses of a run."""
        self._recent.extend(losses[-WINDOW:].tolist())
        self._count = len(losses)
        rises = np.full(len(losses), np.nan)
        if self._count < WINDOW:
            return rises
        level, noise = _levels(np.lib.stride_tricks.sliding_window_view(losses, WINDOW)[::STRIDE])
        best = np.minimum.accumulate(level)
        drawn = _rise(level, best, level[0], noise)
        rises[WINDOW - 1 :] = np.repeat(drawn, STRIDE)[: self._count - WINDOW + 1]
        self._first, self._best, self.rise = float(level[0]), float(best[-1]), float(drawn[-1])
        return rises


def _levels(windows: Floats) -> tuple[Floats, Floats]:
    """Return the median of each window and the median deviation from it."""
    level = median_of_rows(windows)
    return level, median_of_rows(np.abs(windows - level[:, None]))


def _rise(level: Floats, best: Floats, first: float, noise: Floats) -> Floats:
    """Return how far levels lie above the lowest so far."""
    unit = np.maximum(np.maximum(np.abs(best), _GAINED * (first - best)), _NOISE * noise)
    rise: Floats = (level - best) / np.maximum(unit, np.finfo(np.float64).tiny)
    return rise


def _in_a_row(holds: NDArray[np.bool_]) -> Floats:
    """Return how many entries in a row, up to each, the condition has held."""
    at = np.arange(1, len(holds) + 1)
    return (at - np.maximum.accumulate(np.where(holds, 0, at))).astype(np.float64)


def _carried(rows: int, known: NDArray[np.int64], values: Floats) -> Floats:
    """Return values at all rows, from those at some: each holds until the next one, NaN before the first."""
    at = np.cumsum(np.bincount(known, minlength=rows)[:rows]) - 1
    return np.where(at >= 0, values[np.maximum(at, 0)], np.nan) if len(known) else np.full(rows, np.nan)
