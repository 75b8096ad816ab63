"""What is worth an event while training runs: a spike of the loss, a number that stopped being finite.

A detector sees the rows in order, on the recorder's thread, and speaks on the rising edge: once when a condition
begins, not again until it has ended. After a resume it is fed the recorded rows first, so that it goes on where it was.

Not covered: rules with thresholds of the user's choosing; `live_rules` applies those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..runfile.layout import Event
from .spikes import SPIKE, SpikeScore

WATCHED = frozenset({"nonfinite", "loss_zscore"})  # what events of this module are about, as rules name it


class EventDetector:
    """Turns rows into events.

    >>> detector = EventDetector()
    >>> found = [detector.update(step, 0.0, {"loss": 3.0}) for step in range(20)]
    >>> [event.kind for event in detector.update(20, 0.0, {"loss": math.inf})]
    ['loss_spike', 'non_finite']
    >>> detector.update(21, 0.0, {"loss": math.inf})
    []
    """

    def __init__(self) -> None:
        self.loss_zscore = math.nan  # of the last row
        self._score = SpikeScore()
        self._spiking = False
        self._broken: frozenset[str] = frozenset()

    def update(
        self, step: int, time: float, values: Mapping[str, float], loops: NDArray[np.float32] | None = None
    ) -> list[Event]:
        """Events that begin with this row.

        Args:
            step: Training step of the row.
            time: Unix seconds.
            values: What the row was given or measured, by name; a missing name was not recorded.
            loops: Per-loop rows ``(T + 1, 4)`` of the step.
        """
        return self._loss_spike(step, time, values) + self._non_finite(step, time, values, loops)

    def _loss_spike(self, step: int, time: float, values: Mapping[str, float]) -> list[Event]:
        loss = values.get("loss", math.nan)
        self.loss_zscore = score = self._score.update(loss)
        began = score >= SPIKE and not self._spiking
        self._spiking = score >= SPIKE
        if not began:
            return []
        message = f"loss {loss:.4g} is {score:.1f} robust deviations above the recent median"
        return [Event(step, time, "loss_spike", "warning", score, SPIKE, message)]

    def _non_finite(
        self, step: int, time: float, values: Mapping[str, float], loops: NDArray[np.float32] | None
    ) -> list[Event]:
        broken = frozenset(non_finite(values, loops))
        began, self._broken = sorted(broken - self._broken), broken
        if not began:
            return []
        message = f"not finite: {', '.join(began)}"
        return [Event(step, time, "non_finite", "error", values.get(began[0], math.nan), math.nan, message)]


def non_finite(values: Mapping[str, float], loops: NDArray[np.float32] | None) -> list[str]:
    """Names of the numbers of a row that are NaN or infinite although they were given or measured.

    >>> non_finite({"loss": math.nan, "lr": 0.1}, None)
    ['loss']
    """
    names = [name for name, value in values.items() if not math.isfinite(value)]
    if loops is not None:  # NaN is what was not measured there
        names += [name for name, column in (("state_norm", loops[:, 0]), ("residual_norm", loops[:-1, 1]))
                  if np.isinf(column).any()]  # fmt: skip
    return names
