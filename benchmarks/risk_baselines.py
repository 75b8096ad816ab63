"""What others do about a run that is going wrong, as their documentation describes it, as a score of every row.

Each function takes the losses and gradient norms of a run and returns, for every row, a number that is larger the
nearer the rule is to its alarm, and 1 or more exactly where the alarm would have been raised by then. The largest so
far counts: an alarm is not taken back.

Not covered: what these projects do after an alarm (skip a batch, stop, go on).
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def lightning_finite(loss: Floats, grad_norm: Floats) -> Floats:
    """Lightning's guard: loss or gradient is NaN or infinite."""
    return so_far(~np.isfinite(loss) | ~np.isfinite(grad_norm))


def lightning_spike(loss: Floats, grad_norm: Floats, window: int = 10, tolerance: float = 2.0) -> Floats:
    """Lightning's SpikeDetection: not finite, or above the last and above the running mean by twice that mean."""
    scores = np.zeros(len(loss))
    recent: deque[float] = deque(maxlen=window)
    last = 0.0
    for row, value in enumerate(loss.tolist()):
        spike = not math.isfinite(value)
        if recent and not spike:
            mean = float(np.mean(recent))
            scores[row] = max(0.0, value - mean) / (tolerance * abs(mean)) if value > last else 0.0
        scores[row] = math.inf if spike else scores[row]
        if scores[row] < 1:
            recent.append(value)
            last = value
    return so_far(scores)


def llm_foundry(loss: Floats, grad_norm: Floats, window: int = 100, patience: int = 4, times: float = 2.0) -> Floats:
    """llm-foundry's KillLossSpike: more than `patience` losses in a row of twice the mean of a full window.

    Or, after two windows, half of the window above the largest loss of the first one (10 at most). Its window is a
    twentieth of the run and at least 100 batches, so that it says nothing in the first 100 of any run.
    """
    scores = np.zeros(len(loss))
    recent: deque[float] = deque(maxlen=window)
    ratios: deque[float] = deque(maxlen=patience + 1)
    cap = math.inf
    for row, value in enumerate(loss.tolist()):
        if len(recent) == window:
            cap = min(max(recent), 10.0) if row == window else cap
            ratios.append(value / (times * float(np.mean(recent))))
            high = sum(each > cap for each in recent) / (window / 2) if row >= 2 * window else 0.0
            scores[row] = max(min(ratios) if len(ratios) > patience else 0.0, high)
        recent.append(value)
    return so_far(scores)


def olmo(loss: Floats, grad_norm: Floats, window: int = 128, sigmas: float = 6.0) -> Floats:
    """OLMo's SkipStepOptimizer: loss or gradient norm more than six standard deviations above the mean of a window.

    It begins to judge at half a window. The window before the row counts, the row itself does not.
    """
    scores = np.zeros(len(loss))
    for row in range(max(2, window // 2) - 1, len(loss)):
        for series in (loss, grad_norm):
            before = series[max(0, row - window) : row]
            spread = float(before.std(ddof=1)) if len(before) > 1 else math.nan
            over = (float(series[row]) - float(before.mean())) / (sigmas * spread) if spread > 0 else 0.0
            scores[row] = max(scores[row], math.inf if math.isnan(over) else over)
    return so_far(scores)


def gradient_norm(loss: Floats, grad_norm: Floats, rows: int = 8) -> Floats:
    """Return the median of the last gradient norms: the gradient norm alone, not a published rule."""
    scores = np.zeros(len(grad_norm))
    for row in range(len(grad_norm)):
        scores[row] = np.median(grad_norm[max(0, row + 1 - rows) : row + 1])
    return np.where(np.isnan(scores), math.inf, scores)


def so_far(scores: NDArray[np.bool_] | Floats) -> Floats:
    """Return the largest score up to each row."""
    return np.maximum.accumulate(np.asarray(scores, dtype=np.float64))


def auroc(score: Floats, lost: NDArray[np.bool_]) -> float:
    """Return the chance that a lost run scores above a healthy one, a tie counting half; NaN without one of each.

    >>> auroc(np.array([0.1, 0.9, 0.8]), np.array([False, True, True]))
    1.0
    """
    bad, good = score[lost], score[~lost]
    if not len(bad) or not len(good):
        return math.nan
    with np.errstate(invalid="ignore"):
        wins = (bad[:, None] > good[None]).mean() + 0.5 * (bad[:, None] == good[None]).mean()
    return float(wins)


def interval(score: Floats, lost: NDArray[np.bool_], draws: int = 2000) -> tuple[float, float]:
    """Return the central 95 % of the AUROC over runs drawn with replacement."""
    source = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        chosen = source.integers(0, len(lost), len(lost))
        found.append(auroc(score[chosen], lost[chosen]))
    kept = np.array(found)[~np.isnan(found)]
    return (math.nan, math.nan) if not len(kept) else (float(np.quantile(kept, 0.025)), float(np.quantile(kept, 0.975)))
