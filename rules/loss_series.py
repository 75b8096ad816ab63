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
        """Return the series of the rows that follow, many at once: what `update` would for each in turn.

        Args:
            columns: `SOURCES` by name, each ``(rows,)``.
        """
        loss, rate, norm, odd, depth = (np.asarray(columns[name], dtype=np.float64) for name in SOURCES)
        depths = self._depths.update_many(depth)
        known = np.flatnonzero(~np.isnan(loss))
        given = np.append(self._loss, loss[known])
        unchanged = _carried(len(loss), known, _in_a_row(given[1:] == given[:-1], self._unchanged), self._unchanged)
        rates = np.flatnonzero(~np.isnan(rate))
        zero = _carried(len(loss), rates, _in_a_row(rate[rates] == 0, self._zero), self._zero)
        usual = depths == USUAL
        compared = loss if usual.all() else np.where(usual | ~np.isfinite(loss), loss, np.nan)
        scores, rise = self._compare(compared, np.flatnonzero(depths == CHANGED))
        settling = self._settle(loss, odd, norm)
        changed = (depths == CHANGED).astype(np.float64)
        values = (scores, rise, unchanged, zero, settling, changed)
        if len(loss):
            self._loss, self._unchanged, self._zero = float(given[-1]), float(unchanged[-1]), float(zero[-1])
        return dict(zip(DERIVED, values, strict=True))

    def _settle(self, loss: Floats, odd: Floats, norm: Floats) -> Floats:
        """Return in which rows a loss scale settles, as 1."""
        settling = np.zeros(len(loss))
        first = slice(0, max(0, SETTLING - self._settling) if self._settling >= 0 else 0)
        scale = (odd[first] > 0) & (odd[first] <= self._ranks) & np.isfinite(loss[first])
        settling[first] = np.logical_and.accumulate(scale & np.isinf(norm[first]))
        if len(loss):
            self._settling = self._settling + len(loss) if settling.all() else -1
        return settling

    def _compare(self, losses: Floats, changes: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Return the scores and the rises of losses, which begin anew at some rows."""
        scores, rises = [], []
        for number, part in enumerate(np.split(losses, changes)):
            if number:
                self._score, self._level = SpikeScore(), _Level()
            finite, rise = np.flatnonzero(np.isfinite(part)), self._level.rise
            scores.append(self._score.update_many(part))
            rises.append(_carried(len(part), finite, self._level.replay(part[finite]), rise))
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
        """Return the rise at each of the finite losses that follow: what `update` would leave after each in turn."""
        due = WINDOW - 1 - self._count  # the first loss after which a level is drawn
        due = due if due >= 0 else due % STRIDE
        rises = np.full(len(losses), self.rise)
        known = np.concatenate([list(self._recent), losses])
        self._count += len(losses)
        self._recent.extend(losses[-WINDOW:].tolist())
        if due >= len(losses):
            return rises
        ends = slice(len(known) - len(losses) + due - WINDOW + 1, None, STRIDE)
        level, noise = _levels(np.lib.stride_tricks.sliding_window_view(known, WINDOW)[ends])
        best = np.fmin.accumulate(np.append(self._best, level))[1:]
        self._first = float(level[0]) if math.isnan(self._first) else self._first
        drawn = _rise(level, best, self._first, noise)
        rises[due:] = np.repeat(drawn, STRIDE)[: len(losses) - due]
        self._best, self.rise = float(best[-1]), float(drawn[-1])
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


def _in_a_row(holds: NDArray[np.bool_], before: float) -> Floats:
    """Return how many entries in a row, up to each, the condition has held, with those that it had held before."""
    at = np.arange(1.0, len(holds) + 1)
    since = np.maximum.accumulate(np.where(holds, -before if before > 0 else 0.0, at))
    return np.asarray(at - since)


def _carried(rows: int, known: NDArray[np.int64], values: Floats, before: float) -> Floats:
    """Return values at all rows, from those at some: each holds until the next one, and ``before`` until the first."""
    if len(known) == rows:
        return values
    return np.repeat(np.append(before, values), np.diff(known, prepend=0, append=rows))
