"""Reads flights: the steps around an alert, kept in the run file at full detail by the flight recorder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from .layout import Event

if TYPE_CHECKING:
    from .reader import Run

PREFIX: Final = "flight."
ALERT: Final = PREFIX + "alert"  # number of the flight, step of its alert: begins every step, so it separates them
RANDOM: Final = "rng_"


@dataclass(frozen=True, slots=True, eq=False)
class FlightStep:
    """One training step at full detail. The probe gives the first three fields, the recorder adds the others.

    Args:
        parameter_norm: ``(P,)`` norms in the order of ``run.info["parameter_names"]``; None where not measured.
        batch_hash: int64, one per micro-batch; None where not measured.
        random: States of the random generators when the step began, as `random_states` gives them.
        step: Training step.
        loops: ``(T + 1, 4)`` as ``LOOP_COLUMNS``; None where no loop was recorded.
        scalars: Numbers of the step by their column in the run file.
    """

    parameter_norm: NDArray[Any] | None = None
    batch_hash: NDArray[np.int64] | None = None
    random: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    step: int = -1
    loops: NDArray[np.float32] | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Flight:
    """The steps around one alert.

    Attributes:
        number: 0 for the first flight of the run.
        generation: Which process recorded it.
        alert_step: Step at which the alert fired.
        alerts: What fired there, as far as no later generation ran the step again.
        parameter_names: What the entries of ``parameter_norm`` belong to.
        steps: The steps, oldest first.
    """

    number: int
    generation: int
    alert_step: int
    alerts: tuple[Event, ...]
    parameter_names: tuple[str, ...]
    steps: tuple[FlightStep, ...]


def count_flights(run: Run) -> int:
    """Return how many flights a run holds, those of superseded steps among them."""
    return max((int(array.values[0]) + 1 for array in run.array_history(ALERT)), default=0)


def read_flight(run: Run) -> list[Flight]:
    """Read the flights of a run, in the order in which they were recorded.

    Flights are kept when their steps are run again after a resume: a run that went back to before a spike is the one
    whose spike somebody wants to look at.

    Args:
        run: An open run.

    Returns:
        The flights; none where no alert fired or nothing was given to the flight recorder.

    >>> import tempfile
    >>> from loopscope.runfile.open import open_run
    >>> from loopscope.runfile.writer import RunWriter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RunWriter.create(folder + "/a.h5", info={}) as writer:
    ...         for step in range(3):
    ...             writer.append_array(step, ALERT, np.array([0, 2]))  # flight 0, whose alert is at step 2
    ...             writer.append_array(step, PREFIX + "batch_hash", np.array([17 + step]))
    ...     with open_run(writer.path) as run:
    ...         flight = read_flight(run)[0]
    >>> flight.alert_step, [step.step for step in flight.steps], flight.steps[0].batch_hash.tolist()
    (2, [0, 1, 2], [17])
    """
    return _flights(run, PREFIX)


def find_flights(run: Run) -> list[Flight]:
    """Find the flights of a run as `read_flight` does, without reading what their steps hold: to list them.

    Args:
        run: An open run.

    Returns:
        The flights; of each step, its number only.
    """
    return _flights(run, ALERT)


def _flights(run: Run, prefix: str) -> list[Flight]:
    """Put the arrays whose names start with a prefix together to flights."""
    listed = run.info.get("parameter_names", ())
    names = tuple(str(name) for name in listed) if isinstance(listed, list | tuple) else ()
    alerts: dict[int, list[Event]] = {}
    for event in run.events:
        if event.severity != "note":
            alerts.setdefault(event.step, []).append(event)
    steps: dict[tuple[int, int, int], list[FlightStep]] = {}  # of each flight
    latest: list[FlightStep] = []
    for array in run.array_history(prefix):
        if array.name == ALERT and array.values.dtype.kind == "i" and array.values.shape == (2,):
            number, alert_step = (int(value) for value in array.values)
            latest = steps.setdefault((number, array.generation, alert_step), [])
            latest.append(FlightStep(step=array.step))
        elif latest:
            latest[-1] = _with(latest[-1], array.name.removeprefix(PREFIX), array.values, run.names)
    return [
        Flight(number, generation, alert_step, tuple(alerts.get(alert_step, ())), names, tuple(recorded))
        for (number, generation, alert_step), recorded in steps.items()
    ]


def _with(step: FlightStep, name: str, values: NDArray[Any], columns: Sequence[str]) -> FlightStep:
    """Return a step with one more of its arrays; names of later versions are passed over."""
    if name.startswith(RANDOM):
        return replace(step, random={**step.random, name.removeprefix(RANDOM): values})
    if name == "scalars" and values.dtype.kind == "f" and values.ndim == 1:
        known = zip(columns, values.tolist(), strict=False)
        return replace(step, scalars={column: value for column, value in known if not math.isnan(value)})
    if name == "loops":
        return replace(step, loops=values)
    if name == "parameter_norm":
        return replace(step, parameter_norm=values)
    return replace(step, batch_hash=values) if name == "batch_hash" else step
