"""Loss spikes: a robust z-score of the loss that neither a trend nor a spike itself can blunt.

The score compares each loss with what the losses before it lead one to expect, in units of how far those lie from
their own trend. The expectation is Tukey's resistant line through a window of earlier losses, drawn anew every `BLOCK`
losses and prolonged between: a falling trend is taken out, because a spread that held the trend would hide a jump in
exactly the first few hundred steps, when the loss falls fastest. A rising one is not, since that is what is looked for.
Points that score as spikes stay out of the window, so that a long spike does not become the new normal, and the spread
has a floor, so that a very smooth run does not turn rounding into alarms.

Not covered: slow divergence. A loss that climbs a little every step moves the baseline with it; see ``loss_series``.

Source: Tukey, Exploratory Data Analysis (1977), chapter 5; median absolute deviation: Hampel, JASA 69 (1974) 383.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

WINDOW: Final = 64  # earlier losses compared with
BLOCK: Final = 8  # losses between two drawings of the line
RECENT: Final = 12  # last losses, below whose level nothing is expected
WARM_UP: Final = 16  # losses needed before a score is given
FLOOR: Final = 0.02  # smallest spread that counts: 2 % of the loss
SPIKE: Final = 6.0
"""Scores from here on are spikes: they stay out of the window, and live they are the event ``loss_spike``.

It is the limit of LS010 too (a test compares them). A user's own limit for LS010 does not reach this one."""
MAX_EXCLUDED: Final = WINDOW  # a new level held this long is the new baseline, not a spike any more

_MAD_TO_SIGMA: Final = 1.4826  # of a normal distribution
_SMALLEST: Final = float(np.finfo(np.float64).tiny)
_FEWEST_BLOCKS: Final = 32  # scored at once, at first and behind a spike
_MOST_BLOCKS: Final = 2048  # scored at once

Floats = NDArray[np.float64]


class SpikeScore:
    """Scores losses one at a time, or many at once with the same result.

    >>> score = SpikeScore()
    >>> quiet = [score.update(3.0 + 0.01 * (i % 3)) for i in range(40)]
    >>> abs(quiet[-1]) < 2, score.update(9.0) > SPIKE
    (True, True)
    """

    def __init__(self) -> None:
        self._window: deque[tuple[float, int]] = deque(maxlen=WINDOW)  # accepted losses and their numbers
        self._seen = 0
        self._excluded = 0
        self._line: tuple[float, float, float, float] | None = None  # what `_resistant_line` returned

    def update(self, loss: float) -> float:
        """Return the robust z-score of this loss against the ones before it; NaN while warming up.

        An infinite loss scores ``inf``; NaN scores NaN and counts for nothing.
        """
        if not math.isfinite(loss):
            return math.inf if loss > 0 and len(self._window) >= WARM_UP else math.nan
        if self._seen % BLOCK == 0:
            self._draw()
        score = math.nan
        if self._line is not None:
            expected, slope, recent, spread = self._line
            score = (loss - max(expected + slope * (self._seen % BLOCK), recent)) / spread
        self._take(loss, spiking=score >= SPIKE)
        return score

    def update_many(self, losses: ArrayLike) -> Floats:
        """Return the scores of many losses, ``(n,)``: what `update` would return for each in turn, bit for bit."""
        values = np.asarray(losses, dtype=np.float64)
        scores = np.full(len(values), np.nan)
        known, infinite = np.flatnonzero(np.isfinite(values)), np.flatnonzero(values == math.inf)
        turns, first = np.unique(np.searchsorted(known, infinite), return_index=True)
        groups = np.split(infinite, first[1:])
        at = 0
        for turn, group in zip(turns.tolist(), groups, strict=False):
            scores[known[at:turn]] = self._score_finite(values[known[at:turn]])
            scores[group] = self.update(math.inf)
            at = turn
        scores[known[at:]] = self._score_finite(values[known[at:]])
        return scores

    def _score_finite(self, given: Floats) -> Floats:
        """Return the scores of finite losses, many at a time where nothing but the window before them counts."""
        scores = np.empty(len(given))
        at, blocks = 0, _FEWEST_BLOCKS
        while at < len(given):
            if len(self._window) < WINDOW:  # it fills one by one
                scores[at] = self.update(given[at])
                at += 1
                continue
            done = self._whole_blocks(given[at : at + blocks * BLOCK])
            if len(done):
                self._take_blocks(given[at : at + len(done)], done)
                blocks = min(2 * blocks, _MOST_BLOCKS) if len(done) == blocks * BLOCK else _FEWEST_BLOCKS
            else:
                done = np.array([self.update(given[at])])
            scores[at : at + len(done)] = done
            at += len(done)
        return scores

    def _whole_blocks(self, ahead: Floats) -> Floats:
        """Return the scores of the whole blocks ahead, up to and with the first in which there is a spike.

        None when the window is not full, in the middle of a block, or where a level may have stayed for long enough.
        """
        count = len(ahead) // BLOCK
        ready = len(self._window) == WINDOW and self._seen % BLOCK == 0 and self._excluded + BLOCK <= MAX_EXCLUDED
        if not count or not ready:
            return np.empty(0)
        values, numbers = (np.array(column) for column in zip(*self._window, strict=True))
        known = np.concatenate([values, ahead[: count * BLOCK]])
        ages = np.concatenate([numbers - self._seen, np.arange(count * BLOCK)]).astype(np.float64)
        whole = ages[0] == -WINDOW
        starts = slice(0, count * BLOCK, BLOCK)
        windows = np.lib.stride_tricks.sliding_window_view(known, WINDOW)[starts]
        since = ages[None, :WINDOW] if whole else np.lib.stride_tricks.sliding_window_view(ages, WINDOW)[starts]
        since = since if whole else since - np.arange(0.0, count * BLOCK, BLOCK)[:, None]
        expected, slope, recent, spread = _resistant_line(windows, since)
        lines = np.maximum(expected[:, None] + slope[:, None] * np.arange(BLOCK), recent[:, None])
        scores: Floats = (known[WINDOW:].reshape(count, BLOCK) - lines) / spread[:, None]
        spiking = np.flatnonzero(scores >= SPIKE)
        return scores[: int(spiking[0]) // BLOCK + 1 if len(spiking) else count].reshape(-1)

    def _take_blocks(self, values: Floats, scores: Floats) -> None:
        """Count the losses of whole blocks, of which only the last may hold spikes."""
        clean = values[:-BLOCK]
        if len(clean):
            kept = clean[-WINDOW:]
            self._window.extend(zip(kept.tolist(), range(self._seen + len(clean) - len(kept), self._seen + len(clean)),
                                    strict=True))  # fmt: skip
            self._seen += len(clean)
            self._excluded = 0
        for value, score in zip(values[-BLOCK:].tolist(), scores[-BLOCK:].tolist(), strict=True):
            self._take(value, spiking=score >= SPIKE)

    def _take(self, loss: float, *, spiking: bool) -> None:
        """Count a loss, and take it into the window where it is no spike."""
        if spiking and self._excluded < MAX_EXCLUDED:
            self._excluded += 1
        else:
            if spiking:  # a level that stayed: begin a new baseline
                self._window.clear()
                self._line = None
            self._excluded = 0
            self._window.append((loss, self._seen))
        self._seen += 1

    def _draw(self) -> None:
        """Draw the line that the next block is compared with."""
        self._line = None
        if len(self._window) >= WARM_UP:
            values, numbers = (np.array(column, dtype=np.float64) for column in zip(*self._window, strict=True))
            expected, slope, recent, spread = _resistant_line(values[None], numbers[None] - self._seen)
            self._line = float(expected[0]), float(slope[0]), float(recent[0]), float(spread[0])


def _resistant_line(values: Floats, ages: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return where the trend of each window leads.

    Only medians and elementwise arithmetic, so that a window alone gives the same bits as among thousands.

    Args:
        values: ``(n, w)``, w >= 16.
        ages: ``(n, w)`` or ``(1, w)``, at which of the following losses they were, negative.

    Returns:
        The value expected at age 0, the slope (never above 0), the level of the last few, below which nothing is
        expected because a falling loss flattens, and the spread around the line, each ``(n,)``.
    """
    third = values.shape[1] // 3
    left, right = median_of_rows(values[:, :third]), median_of_rows(values[:, -third:])
    run = median_of_rows(ages[:, -third:]) - median_of_rows(ages[:, :third])
    slope = np.minimum((right - left) / run, 0.0)
    rest = values - slope[:, None] * ages
    expected = median_of_rows(rest)
    deviation = _MAD_TO_SIGMA * median_of_rows(np.abs(rest - expected[:, None]))
    floor = np.maximum(FLOOR * np.abs(right), _SMALLEST)
    return expected, slope, median_of_rows(values[:, -RECENT:]), np.maximum(deviation, floor)


def median_of_rows(values: Floats) -> Floats:
    """Return the median of each row; NumPy's own, without its search for NaN.

    Short rows are sorted several times as fast as the two numbers in their middle are found.
    """
    return middle_of_rows(np.sort(values, axis=1))


def middle_of_rows(ordered: Floats) -> Floats:
    """Return the median of each row of numbers in order."""
    half = ordered.shape[1] // 2
    middle: Floats = ordered[:, half] if ordered.shape[1] % 2 else 0.5 * (ordered[:, half - 1] + ordered[:, half])
    return middle


def loss_zscores(loss: ArrayLike) -> Floats:
    """Return the scores of a whole series; entry ``i`` is what `SpikeScore` would have said live at step ``i``.

    Args:
        loss: ``(steps,)`` in nats.

    Returns:
        ``(steps,)``, NaN where no score can be given.

    >>> int(np.nanargmax(loss_zscores([2.0] * 20 + [8.0])))
    20
    """
    return SpikeScore().update_many(loss)
