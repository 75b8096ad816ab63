"""When the loss shows that something is wrong, and how long before that an alarm came: its lead.

The loss shows it where it is not finite, and where its mean over `WINDOW` steps is a tenth above the lowest such mean
before. An alarm's lead is counted from the first such step at or after the step since which its condition held: what
the loss showed and forgot before is another story.

Not covered: whether the trouble of the loss came from what the alarm was about. A lead says when, not why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..runfile.reader import Run
from .findings import Finding

WINDOW: Final = 20  # losses averaged before they are compared
ABOUT_THE_LOSS: Final = frozenset({"LS010", "LS011", "LS012", "LS017", "LS018"})
"""Rules that say that the loss rises: with their alarms the loss shows it, whatever its mean does."""
RISE: Final = 0.1  # a mean loss this share above the lowest one before shows that something is wrong


class LossTrouble:
    """The steps of a run at which its loss shows that something is wrong; looked for once, asked for every alarm.

    Args:
        run: An opened run.
    """

    def __init__(self, run: Run) -> None:
        steps, loss = run["step"], run["loss"]
        lost = np.isinf(loss) | (np.isnan(loss) & (run["nonfinite"] > 0))
        given = np.isfinite(loss)
        self._steps = np.union1d(steps[lost], risen_steps(steps[given], loss[given]))

    def first(self, since: int) -> int | None:
        """Return the first step from ``since`` on at which the loss shows it; None when none does."""
        at = int(np.searchsorted(self._steps, since))
        return int(self._steps[at]) if at < len(self._steps) else None


def loss_shows(run: Run, since: int, findings: Sequence[Finding] = ()) -> int | None:
    """Return the first step from ``since`` on at which the loss shows that something is wrong; None when none does.

    Here a single spike shows it too; the lead of an alarm asks for a rise that stays for a while.

    Args:
        run: An opened run.
        since: The first step that counts.
        findings: What the rules say of the run: those about the loss show it.
    """
    seen = [each.step for each in findings if each.rule in ABOUT_THE_LOSS and each.step >= since]
    seen += [event.step for event in run.events if event.kind == "loss_spike" and event.step >= since]
    risen = LossTrouble(run).first(since)
    return min([*seen, *([] if risen is None else [risen])], default=None)


def risen_steps(steps: NDArray[np.float64], loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the steps whose mean loss over the last `WINDOW` is clearly above the lowest such mean before.

    >>> steps = np.arange(100.0)
    >>> loss = np.where(steps < 60, 3.0, 5.0)
    >>> float(risen_steps(steps, loss)[0]) - 60 < WINDOW, len(risen_steps(steps, np.full(100, 3.0)))
    (True, 0)
    """
    if len(loss) <= WINDOW:
        return steps[:0]
    total = np.concatenate([[0.0], np.cumsum(loss)])
    mean = (total[WINDOW:] - total[:-WINDOW]) / WINDOW
    lowest = np.minimum.accumulate(mean)
    risen: NDArray[np.float64] = steps[WINDOW - 1 :][mean > lowest + RISE * np.abs(lowest)]
    return risen
