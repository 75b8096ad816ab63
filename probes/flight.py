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
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .layout import Event

if TYPE_CHECKING:
    from .reader import Run

CAPACITY: Final = 64  # steps before an alert
FOLLOWING: Final = 8  # steps after it
MAX_FLIGHTS: Final = 16  # per run, resumed or not
PREFIX: Final = "flight."
ALERT: Final = PREFIX + "alert"  # number of the flight, step of its alert: begins every step, so it separates them
_RNG: Final = "rng_"
_WORDS: Final = 624  # of a Mersenne twister


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


class Writer(Protocol):
    """The part of a run writer that a flight recorder uses."""

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of the run's steps."""

    def append_array(self, step: int, name: str, values: ArrayLike) -> None:
        """Stages one array."""

    def append_event(self, event: Event) -> None:
        """Stages one event."""


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
        """Takes a step and the events that it began; writes what is due.

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
        """Begins a flight where there is an alert among these events and a step that is not written yet."""
        alerts = [event for event in events if event.severity != "info"]
        if alerts and self._ring and not self._following and self._flights < MAX_FLIGHTS:
            self._flights += 1
            self._alert_step, self._following = min(event.step for event in alerts), FOLLOWING
            writer.append_event(self._announcement(self._ring[-1], alerts))
            self._write_ring(writer)

    def _announcement(self, step: FlightStep, alerts: Sequence[Event]) -> Event:
        """Says in the file which steps are there and why."""
        last = ", the last of this run" if self._flights >= MAX_FLIGHTS else ""
        why = ", ".join(dict.fromkeys(event.kind for event in alerts))
        message = (
            f"flight {self._flights - 1}{last}: {len(self._ring)} steps, {self._ring[0].step} to {step.step}, and the "
            f"{FOLLOWING} after are kept at full detail because of {why}"
        )
        time = step.scalars.get("time", math.nan)
        return Event(step.step, time, "flight", "info", float(self._flights - 1), message=message)

    def _write_ring(self, writer: Writer) -> None:
        """Writes the kept steps and forgets them, so that none is written twice."""
        while self._ring:
            step = self._ring.popleft()
            for name, values in self._arrays(step, writer.names):
                writer.append_array(step.step, name, values)

    def _arrays(self, step: FlightStep, columns: Sequence[str]) -> list[tuple[str, NDArray[Any]]]:
        """The arrays of a step by name, `ALERT` first."""
        found: dict[str, NDArray[Any] | None] = {
            "loops": step.loops,
            "scalars": np.array([step.scalars.get(name, math.nan) for name in columns]),
            "parameter_norm": step.parameter_norm,
            "batch_hash": step.batch_hash,
            **{f"{_RNG}{name}": state for name, state in step.random.items()},
        }
        alert = np.array([self._flights - 1, self._alert_step], dtype=np.int64)
        return [(ALERT, alert)] + [(PREFIX + name, values) for name, values in found.items() if values is not None]


def count_flights(run: Run) -> int:
    """How many flights a run holds, those of superseded steps among them."""
    return max((int(array.values[0]) + 1 for array in run.array_history(ALERT)), default=0)


def read_flight(run: Run) -> list[Flight]:
    """Reads the flights of a run, in the order in which they were recorded.

    Flights are kept when their steps are run again after a resume: a run that went back to before a spike is the one
    whose spike somebody wants to look at.

    Args:
        run: An open run.

    Returns:
        The flights; none where no alert fired or nothing was given to the flight recorder.

    >>> import tempfile
    >>> from loopscope.probes.reader import open_run
    >>> from loopscope.probes.writer import RunWriter
    >>> recorder, alert = FlightRecorder(capacity=2), Event(2, 0.0, "loss_spike", "warning")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RunWriter.create(folder + "/a.h5", info={}) as writer:
    ...         for step in range(3):
    ...             given = FlightStep(step=step, scalars={"loss": 0.5 * step})
    ...             recorder.record(writer, given, [alert] if step == 2 else [])
    ...     with open_run(writer.path) as run:
    ...         flight = read_flight(run)[0]
    >>> flight.alert_step, [step.step for step in flight.steps], flight.steps[0].scalars
    (2, [1, 2], {'loss': 0.5})
    """
    return _flights(run, PREFIX)


def find_flights(run: Run) -> list[Flight]:
    """Finds the flights of a run as `read_flight` does, without reading what their steps hold: to list them.

    Args:
        run: An open run.

    Returns:
        The flights; of each step, its number only.
    """
    return _flights(run, ALERT)


def _flights(run: Run, prefix: str) -> list[Flight]:
    """Puts the arrays whose names start with a prefix together to flights."""
    names = tuple(str(name) for name in run.info.get("parameter_names", ()))
    alerts: dict[int, list[Event]] = {}
    for event in run.events:
        if event.severity != "info":
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
        Flight(number, generation, alert_step, tuple(alerts.get(alert_step, ())), names, tuple(found))
        for (number, generation, alert_step), found in steps.items()
    ]


def _with(step: FlightStep, name: str, values: NDArray[Any], columns: Sequence[str]) -> FlightStep:
    """A step with one more of its arrays; names of later versions are passed over."""
    if name.startswith(_RNG):
        return replace(step, random={**step.random, name.removeprefix(_RNG): values})
    if name == "scalars" and values.dtype.kind == "f":
        known = zip(columns, values.tolist(), strict=False)
        return replace(step, scalars={column: value for column, value in known if not math.isnan(value)})
    if name == "loops":
        return replace(step, loops=values)
    if name == "parameter_norm":
        return replace(step, parameter_norm=values)
    return replace(step, batch_hash=values) if name == "batch_hash" else step


def random_states() -> dict[str, NDArray[Any]]:
    """The states of the global random generators, by name; draws nothing and waits for no device.

    Costs about 0.05 ms, half of it in ``np.random.get_state``.

    Returns:
        ``python`` and ``numpy``: float64 ``(626,)``, the 624 words of the Mersenne twister, its position, and the
        Gaussian number it has in store (NaN: none). ``torch`` and, once CUDA was used, ``cuda0``, ``cuda1``, …: uint8,
        as torch gives them. numpy's is left out where its global generator was replaced by one of another kind.

    >>> before = random_states()
    >>> drawn = random.random()
    >>> restore_random(FlightStep(random=before)) == tuple(before)
    True
    >>> random.random() == drawn
    True
    """
    import torch

    _, words, gauss = random.getstate()
    states: dict[str, NDArray[Any]] = {"python": _packed(words[:_WORDS], words[_WORDS], gauss)}
    found: Any = np.random.get_state()  # noqa: NPY002
    if isinstance(found, tuple) and found[0] == "MT19937":
        _, keys, position, has_gauss, stored = found
        states["numpy"] = _packed(keys, position, stored if has_gauss else None)
    states["torch"] = torch.get_rng_state().numpy()
    if torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            states[f"cuda{device}"] = torch.cuda.get_rng_state(device).numpy()
    return states


def restore_random(step: FlightStep) -> tuple[str, ...]:
    """Puts the global random generators back to where they were when a step began, so that it can be run again.

    Args:
        step: A step of `read_flight`.

    Returns:
        Names of the generators that were set; states of CUDA devices that this machine lacks are left out.

    Raises:
        ValueError: The step has no random states.
    """
    if not step.random:
        raise ValueError(f"step {step.step} was recorded without random states; choose one that has them in .random")
    done = []
    for name, state in step.random.items():
        if name == "python":
            random.setstate((3, tuple(int(word) for word in state[:-1]), _gauss(state)))
        elif name == "numpy":
            gauss = _gauss(state)
            keys = state[:_WORDS].astype(np.uint32)
            np.random.set_state(  # noqa: NPY002
                ("MT19937", keys, int(state[_WORDS]), int(gauss is not None), gauss or 0.0)
            )
        elif not _restore_torch(name, state):
            continue
        done.append(name)
    return tuple(done)


def _restore_torch(name: str, state: NDArray[np.uint8]) -> bool:
    """Sets one of torch's generators; False where there is no such device here."""
    import torch

    given = torch.from_numpy(state.copy())
    if name == "torch":
        torch.set_rng_state(given)
        return True
    device = int(name.removeprefix("cuda"))
    if device >= torch.cuda.device_count():
        return False
    torch.cuda.set_rng_state(given, device)
    return True


def _packed(words: ArrayLike, position: int, gauss: float | None) -> NDArray[np.float64]:
    """The state of a Mersenne twister as numbers that float64 holds exactly."""
    packed = np.empty(_WORDS + 2)
    packed[:_WORDS] = words
    packed[_WORDS:] = position, math.nan if gauss is None else gauss
    return packed


def _gauss(state: NDArray[np.float64]) -> float | None:
    """The Gaussian number that a packed state has in store."""
    return None if math.isnan(state[-1]) else float(state[-1])
