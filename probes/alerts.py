"""What is worth an alarm while a run is recorded, and what is done about it.

Detectors speak of every spike of the loss and every number that stops being finite, rules of their conditions. What is
done about such an event are the actions of its rule (`rule_files.ACTIONS`): it goes into the run file, the worst of
them to the log as well (rank 0's), the flight recorder writes the steps around it, and the training thread takes it
in its next step. The rows of the run do not depend on any of this: a part that fails is switched off, and
the log and the file say so.

Not covered: sending an alert anywhere but to the log; what the training thread does (`probe`, `stopping`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..rules.detectors import SPOKEN_FOR, EventDetector
from ..rules.live_rules import LiveRules
from ..rules.loss_series import SOURCES
from ..rules.rule_files import DEFAULT_ACTIONS, Action, Rule
from ..runfile.flights import FlightStep, count_flights
from ..runfile.layout import STEP_DERIVED, Event, derived_from_loops
from ..runfile.reader import Run
from ..runfile.writer import RunWriter
from .flight_recorder import FlightRecorder
from .notices import one_line

log = logging.getLogger("loopscope")

MOST_HEARD: Final = 256  # alerts that wait for the training thread; older ones are dropped


class Alerts:
    """Watches the rows of one run.

    Args:
        path: The run file, for messages.
        rules: What an alert is besides spikes and numbers that are not finite.

    Attributes:
        stop: The first event whose rule stops the training, named by that rule; None where there is none.
    """

    def __init__(self, path: Path, rules: Sequence[Rule]) -> None:
        self._path, self._given = path, rules
        self._heard: deque[Event] = deque(maxlen=MOST_HEARD)
        self.stop: Event | None = None
        self._actions = {rule.id: frozenset(rule.actions) for rule in rules}
        self._detector: EventDetector | None = EventDetector()
        self._rules: LiveRules | None = None
        self._flight: FlightRecorder | None = FlightRecorder()
        self._past: dict[str, NDArray[np.float64]] = {}  # columns of the run that is resumed
        self._now = 0, 0.0  # step and time of the newest row
        self._off: list[Event] = []  # that a part is off from now on, to be written with the next row
        self._aloud = True

    def begin(self, info: Mapping[str, Any], names: Sequence[str]) -> None:
        """Get ready for a new run with these step columns."""
        self._aloud = not info.get("rank")
        self._rules = LiveRules(self._given, info, (*names, *STEP_DERIVED))

    def learn(self, info: Mapping[str, Any]) -> None:
        """Take note of what was learnt of the whole run after it began."""
        self._judged(lambda rules: rules.learn(info))

    def resume(self, run: Run) -> None:
        """Go on where a run was interrupted; its rows before the first new one count."""
        self._aloud = not run.info.get("rank")
        self._rules = LiveRules(self._given, run.info, run.names)
        self._rules.resume(run)
        self._flight = FlightRecorder(flights=count_flights(run))
        self._past = {name: run[name] for name in ("step", *SOURCES)}

    def add(
        self,
        writer: RunWriter,
        values: Mapping[str, float],
        loops: NDArray[np.float32] | None,
        flight: FlightStep | None,
        *,
        measured: Mapping[str, float],
        variables: Sequence[NDArray[np.float32]] = (),
        passes: NDArray[np.float32] | None = None,
    ) -> None:
        """Take the row of a step that was just written.

        Args:
            writer: Of the run file.
            values: The whole row, by name.
            loops: Its loops ``(T + 1, 4)``.
            flight: What the flight recorder needs of the step and the row does not hold.
            measured: The part of ``values`` that was given or measured, which ought to be finite.
            variables: What every variable of the loop did, in their order, ``(updates + 1, 6)`` each.
            passes: Their passes on the fixed batch, as ``VARIABLE_PASSES``, where they were measured.
        """
        step, time = self._now = int(values["step"]), values["time"]
        events, derived = self._spikes(step, time, measured, loops)
        known = {**values, **derived, **derived_from_loops(loops)}
        take = partial(LiveRules.add, step=step, values=known, time=time, loops=loops)
        events += self._judged(lambda rules: take(rules, variables=variables, passes=passes))
        kept = None if flight is None else replace(flight, step=step, loops=loops, scalars=values)
        self._tell(writer, events, kept)

    def add_pass(self, loops: NDArray[np.float32]) -> None:
        """Take a pass of the probe batch."""
        self._judged(lambda rules: rules.add_pass(loops))

    def heard(self) -> Iterator[Event]:
        """Yield the events whose rules call back, each once; for the training thread."""
        while self._heard:
            yield self._heard.popleft()

    def idle(self, writer: RunWriter, now: float) -> None:
        """Look at the clock while no row comes."""
        self._tell(writer, self._judged(lambda rules: rules.idle(now)))

    def judge(self, writer: RunWriter, *, ended: bool = False) -> None:
        """Have the rules judge what they have so far."""
        self._tell(writer, self._judged(lambda rules: rules.judge(ended=ended)))

    def _replay(self, detector: EventDetector, step: int) -> None:
        """Bring a detector to where it was before this step, the first after a resume."""
        past, self._past = self._past, {}
        count = int(np.searchsorted(past["step"], step))
        detector.replay({name: values[:count] for name, values in past.items()})

    def _spikes(
        self, step: int, time: float, measured: Mapping[str, float], loops: NDArray[np.float32] | None
    ) -> tuple[list[Event], Mapping[str, float]]:
        """Return spikes and numbers that stop being finite, and what the detector works out of a row."""
        if self._detector is None:
            return [], {}
        try:
            if self._past:
                self._replay(self._detector, step)
            return self._detector.update(step, time, measured, loops), self._detector.derived
        except Exception as error:
            self._detector = None
            log.exception("loopscope: the detector of spikes failed and is off until `loopscope check`")
            without = "spikes and numbers that are not finite are no alert while it trains"
            self._switch_off("spikes_off", without, error)
            return [], {}

    def _judged(self, judge: Callable[[LiveRules], list[Event] | None]) -> list[Event]:
        """Return the events that the rules give."""
        if self._rules is None:
            return []
        try:
            return judge(self._rules) or []
        except Exception as error:
            self._rules = None
            log.exception("loopscope: rules failed and are off until `loopscope check`; recording goes on")
            self._switch_off("rules_off", "no rule is judged while it trains, and none stops it", error)
            return []

    def _switch_off(self, kind: str, without: str, error: Exception) -> None:
        """Have the run file say that a part failed, and what there is not from now on."""
        message = f"from this step on {without}: {one_line(error)}"
        self._off.append(Event(*self._now, kind, "warning", message=message))

    def _tell(self, writer: RunWriter, events: Sequence[Event], step: FlightStep | None = None) -> None:
        """Write events, say the worst of them aloud, and keep the steps around an alert.

        Args:
            writer: Of the run file.
            events: What was found.
            step: The step that was just recorded, where events come with one.
        """
        for event in events:
            if self._has(event, "record"):
                writer.append_event(event)
            # A spike may be one of hundreds, and it may be nothing; what a rule calls an alert is worth a line.
            worth_a_line = event.severity == "error" or event.kind not in ("loss_spike", "depth_changed")
            if self._aloud and worth_a_line and self._has(event, "notify"):
                more = f"`loopscope check {self._path}` says what to try"
                log.warning("loopscope: step %d: %s %s (%s)", event.step, event.kind, event.message, more)
            if event.severity != "note":
                self._tell_training(event)
        self._keep_flight(writer, [event for event in events if self._has(event, "flight")], step)
        while self._off:
            writer.append_event(self._off.pop())

    def _keep_flight(self, writer: RunWriter, events: Sequence[Event], step: FlightStep | None) -> None:
        """Write the steps around alerts, and remember this one for those that come."""
        if self._flight is None:
            return
        try:
            if step is not None:
                self._flight.record(writer, step, events)
            else:
                self._flight.alert(writer, events)
        except Exception as error:
            self._flight = None
            log.exception("loopscope: the flight recorder failed and is off; recording to %s goes on", self._path)
            self._switch_off("flights_off", "the steps around an alert are not kept", error)

    def _tell_training(self, event: Event) -> None:
        """Leave an event for the training thread where its rule asks for that."""
        if self._has(event, "callback"):
            self._heard.append(event)
        if self.stop is None and self._has(event, "stop"):
            self.stop = replace(event, kind=SPOKEN_FOR.get(event.kind, event.kind))

    def _has(self, event: Event, action: Action) -> bool:
        """Return whether something is done about an event."""
        return action in self._actions.get(SPOKEN_FOR.get(event.kind, event.kind), DEFAULT_ACTIONS)
