"""What is worth an event while training runs: a spike of the loss, a number that stopped being finite, other depths.

A detector sees the rows in order, on the recorder's thread, and speaks on the rising edge: once when a condition
begins, not again until it has ended. After a resume it is fed the recorded rows first, so that it goes on where it was.

Not covered: rules with thresholds of the user's choosing; `live_rules` applies those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..runfile.layout import Event
from .loss_series import SOURCES, LossSeries
from .spikes import SPIKE

SPOKEN_FOR: Final = {"non_finite": "LS001", "loss_spike": "LS010", "depth_changed": "LS016"}
"""The rules that the events of this module are about."""


class EventDetector:
    """Turns rows into events.

    >>> detector = EventDetector()
    >>> events = [detector.update(step, 0.0, {"loss": 3.0}) for step in range(20)]
    >>> [event.kind for event in detector.update(20, 0.0, {"loss": math.inf})]
    ['loss_spike', 'non_finite']
    >>> detector.update(21, 0.0, {"loss": math.inf})
    []
    """

    def __init__(self) -> None:
        self.derived: dict[str, float] = {}  # series of the last row that are made of the loss
        self._series = LossSeries()
        self._spiking = False
        self._broken: frozenset[str] = frozenset()
        self._settling = False

    def update(
        self, step: int, time: float, values: Mapping[str, float], loops: NDArray[np.float32] | None = None
    ) -> list[Event]:
        """Return the events that begin with this row.

        Args:
            step: Training step of the row.
            time: Unix seconds.
            values: What the row was given or measured, by name; a missing name was not recorded.
            loops: Per-loop rows ``(T + 1, 4)`` of the step.
        """
        broken = frozenset(non_finite(values, loops))
        self.derived = self._series.update({**values, "nonfinite": float(len(broken))})
        events = self._loss_spike(step, time, values) + self._non_finite(step, time, values, broken)
        return events + self._depth_changed(step, time, values)

    def replay(self, columns: Mapping[str, NDArray[np.float64]]) -> None:
        """Take the recorded rows of a run that goes on; they give no events.

        Args:
            columns: The columns of `loss_series.SOURCES`, each ``(rows,)``.
        """
        self._series = LossSeries()
        series = self._series.replay({name: columns[name] for name in SOURCES})
        self._spiking = bool(len(series["loss_zscore"]) and series["loss_zscore"][-1] >= SPIKE)

    def _loss_spike(self, step: int, time: float, values: Mapping[str, float]) -> list[Event]:
        """Return the event of a loss that begins to spike."""
        loss = values.get("loss", math.nan)
        score = self.derived["loss_zscore"]
        began = score >= SPIKE and not self._spiking
        self._spiking = score >= SPIKE
        if not began:
            return []
        message = f"loss {loss:.4g} is {score:.1f} robust deviations above what was expected"
        return [Event(step, time, "loss_spike", "warning", score, SPIKE, message)]

    def _depth_changed(self, step: int, time: float, values: Mapping[str, float]) -> list[Event]:
        if not self.derived["depth_change"]:
            return []
        depth = values.get("depth", math.nan)
        message = f"the loop runs to other depths than before, {depth:g} now: spikes of the loss are looked for anew"
        return [Event(step, time, "depth_changed", "note", depth, message=message)]

    def _non_finite(self, step: int, time: float, values: Mapping[str, float], broken: frozenset[str]) -> list[Event]:
        """Return the event of numbers that have just stopped being finite."""
        if self.derived["scaler_settling"]:  # what lasts longer than that is news again
            began, self._settling, self._broken = not self._settling, True, frozenset()
            message = "the gradient norm is infinite while the loss scale of float16 settles; such steps are skipped"
            event = Event(step, time, "grad_overflow", "note", values.get("grad_norm", math.nan), math.nan, message)
            return [event] if began else []
        names, self._broken, self._settling = sorted(broken - self._broken), broken, False
        if not names:
            return []
        message, value = f"not finite: {', '.join(names)}", values.get(names[0], math.nan)
        return [Event(step, time, "non_finite", "error", value, math.nan, message)]


def non_finite(values: Mapping[str, float], loops: NDArray[np.float32] | None) -> list[str]:
    """Return the names of the numbers of a row that are NaN or infinite although they were given or measured.

    >>> non_finite({"loss": math.nan, "lr": 0.1}, None)
    ['loss']
    """
    names = [name for name, value in values.items() if not math.isfinite(value)]
    if loops is not None:  # NaN is what was not measured there
        names += [name for name, column in (("state_norm", loops[:, 0]), ("residual_norm", loops[:-1, 1]))
                  if np.isinf(column).any()]  # fmt: skip
    return names
