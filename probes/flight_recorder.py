"""The flight recorder: the last steps at full detail, written into the run file when an alert fires.

A ring in the recorder's thread keeps what a researcher needs to run a step again: its loops and numbers, the norm of
every parameter, hashes of its batches, and the states of the random generators as they were when it began. An alert
writes the ring, and the steps that follow it, as arrays into the run file; `read_flight` reads them and
`restore_random` puts the generators back. A run holds 16 flights at most, so that the file stays bounded.

Not covered: weights and optimizer state (a checkpoint has them), and generators other than the global ones of torch on
the CPU and CUDA devices, numpy and Python's ``random``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runfile.flights import ALERT, PREFIX, RANDOM, FlightStep
from ..runfile.layout import Event

if TYPE_CHECKING:
    pass

CAPACITY: Final = 64  # steps before an alert
FOLLOWING: Final = 8  # steps after it
MAX_FLIGHTS: Final = 16  # per run, resumed or not


class Writer(Protocol):
    """The part of a run writer that a flight recorder uses."""

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of the run's steps."""

    def append_array(self, step: int, name: str, values: ArrayLike) -> None:
        """Stage one array."""

    def append_event(self, event: Event) -> None:
        """Stage one event."""


class FlightRecorder:
    """Keeps the last steps and writes them when an alert fires.

    An alert among the steps that follow another one belongs to the same flight, whose steps are written anyway.

    Args:
        capacity: Steps kept, the one of the alert among them.
        flights: How many flights the run file has already.
    """

    def __init__(self, capacity: int = CAPACITY, flights: int = 0) -> None:
        self._ring: deque[FlightStep] = deque(maxlen=capacity)
        self._flights = flights
        self._alert_step = -1
        self._following = 0  # steps of the present flight that are still to come

    def record(self, writer: Writer, step: FlightStep, events: Iterable[Event]) -> None:
        """Take a step and the events that it began; write what is due.

        Args:
            writer: Of the run file.
            step: The step with everything known of it.
            events: Those of severity ``warning`` and ``error`` are alerts.
        """
        if self._flights >= MAX_FLIGHTS and not self._following:
            return
        self._ring.append(step)
        if self._following:
            self._following -= 1
            self._write_ring(writer)
        else:
            self.alert(writer, events)

    def alert(self, writer: Writer, events: Iterable[Event]) -> None:
        """Begin a flight where there is an alert among these events and a step that is not written yet."""
        alerts = [event for event in events if event.severity != "note"]
        if alerts and self._ring and not self._following and self._flights < MAX_FLIGHTS:
            self._flights += 1
            self._alert_step, self._following = min(event.step for event in alerts), FOLLOWING
            writer.append_event(self._announcement(self._ring[-1], alerts))
            self._write_ring(writer)

    def _announcement(self, step: FlightStep, alerts: Sequence[Event]) -> Event:
        """Say in the file which steps are there and why."""
        last = ", the last of this run" if self._flights >= MAX_FLIGHTS else ""
        why = ", ".join(dict.fromkeys(event.kind for event in alerts))
        message = (
            f"flight {self._flights - 1}{last}: {len(self._ring)} steps, {self._ring[0].step} to {step.step}, and the "
            f"{FOLLOWING} after are kept at full detail because of {why}"
        )
        time = step.scalars.get("time", math.nan)
        return Event(step.step, time, "flight", "note", float(self._flights - 1), message=message)

    def _write_ring(self, writer: Writer) -> None:
        """Write the kept steps and forget them, so that none is written twice."""
        while self._ring:
            step = self._ring.popleft()
            for name, values in self._arrays(step, writer.names):
                writer.append_array(step.step, name, values)

    def _arrays(self, step: FlightStep, columns: Sequence[str]) -> list[tuple[str, NDArray[Any]]]:
        """Return the arrays of a step by name, `ALERT` first."""
        arrays: dict[str, NDArray[Any] | None] = {
            "loops": step.loops,
            "scalars": np.array([step.scalars.get(name, math.nan) for name in columns]),
            "parameter_norm": step.parameter_norm,
            "batch_hash": step.batch_hash,
            **{f"{RANDOM}{name}": state for name, state in step.random.items()},
        }
        alert = np.array([self._flights - 1, self._alert_step], dtype=np.int64)
        return [(ALERT, alert)] + [(PREFIX + name, values) for name, values in arrays.items() if values is not None]
