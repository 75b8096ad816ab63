"""The recorder: a thread that turns what came off the device into rows of the run file.

The training thread hands over records and never waits: the inbox is bounded, and what does not fit is dropped and
counted. Everything that takes time on the host (division, eigenvalues, detectors, HDF5) happens here. A failure of the
file or of anything else in this thread goes to the log and, where possible, into the file; training goes on.

A dense A̅ wider than `EXACT_WIDTH` is tracked from step to step (`SpectralTracker`, refreshed exactly in a further
thread; 14 ms for both numbers at width 768 against 0.6 s exactly, on one core) and solved exactly in the steps whose
spectrum is kept. The residual of every radius is recorded with it; a value that did not converge is not recorded.

Not covered: ordering between ranks; each process records for itself, and `merged_run` matches their rows by step.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dynamics.estimate import Estimate
from ..dynamics.linear.lti import LTISystem
from ..dynamics.linear.spectrum import sigma_max
from ..dynamics.linear.tracker import SpectralTracker
from ..rules.detectors import non_finite
from ..rules.rule_files import Rule
from ..runfile.arrays import info_bytes
from ..runfile.ending import STEPS_MISSING
from ..runfile.flights import FlightStep
from ..runfile.layout import INFO_LATER, VARIABLE_PASSES, Event, Severity
from ..runfile.ranks.companions import WORLD_SIZE, resumed_on
from ..runfile.reader import Run
from ..runfile.writer import RunWriter
from .alerts import Alerts
from .inbox import Inbox
from .kept_spectra import EIGENVALUES_KEPT, KeptSpectra
from .measure.sums import loop_means
from .mirrors import Mirror, Mirrors
from .notices import Notices, one_line
from .schedule import EXACT_WIDTH

log = logging.getLogger("loopscope")

QUEUE_LENGTH = 1024  # records waiting for the thread; about 2 MB of rows at 16 loops
ROWS_PER_FLUSH = 100
SECONDS_PER_FLUSH = 0.5  # the most a kill can cost
FLUSH_PATIENCE = 10.0  # seconds a checkpoint waits for a disk that hangs
CLOSE_PATIENCE = 30.0  # seconds that the end of a run waits for a disk on which nothing moves


@dataclass(frozen=True, slots=True)
class VariableRecord:
    """What one variable of the loop did in a step.

    Args:
        sums: Rows of sums.
        counts: Over how many tokens each is.
        places: Of every row of the result, the pass and the update within it.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.int64]
    places: NDArray[np.int64]

    def rows(self) -> NDArray[np.float32]:
        """Return the rows ``(updates + 1, 6)`` as ``VARIABLE_COLUMNS``; empty where there is no loop."""
        if len(self.counts) < 2:
            return np.empty((0, 6), dtype=np.float32)
        means, _ = loop_means(self.sums, self.counts)
        places = np.full((len(means), 2), np.nan, dtype=np.float32)
        places[: len(self.places)] = self.places[: len(means)]
        return np.hstack([means, places])


@dataclass(frozen=True, slots=True)
class Record:
    """One training step, or one pass of the probe batch, as it came off the device.

    Args:
        step: Training step.
        time: Unix seconds when the step ended.
        values: Numbers the step has once, by name.
        sums: Rows of sums of the step's forwards (`sums.LoopSums`).
        counts: Over how many tokens each is.
        matrices: ``a_bar``, ``b_bar``, ``c_out`` as they were in the step's forward, where they were due.
        spectrum: Whether the eigenvalues of ``a_bar`` are kept, not only their largest modulus.
        arrays: Arrays of the step by name, written as they are.
        is_probe: Whether this is a pass of the probe batch, which has no values.
        rows_cut: Loop rows that did not fit into the device buffer.
        flight: What the flight recorder needs of the step and no other field has.
        variables: What every variable of the loop did, where they are several.
    """

    step: int
    time: float
    values: dict[str, float] = field(default_factory=dict)
    sums: NDArray[np.float32] | None = None
    counts: NDArray[np.int64] | None = None
    matrices: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    spectrum: bool = False
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    is_probe: bool = False
    rows_cut: int = 0
    flight: FlightStep | None = None
    variables: Sequence[VariableRecord] = ()


@dataclass(slots=True)
class Learnt:
    """What was learnt of the whole run by a step."""

    step: int
    info: dict[str, Any]


@dataclass(slots=True)
class _Flush:
    """A request to bring everything before it into the file.

    Args:
        done: Set when it was tried.
        committed: Whether it worked.
    """

    done: threading.Event = field(default_factory=threading.Event)
    committed: bool = False


@dataclass(frozen=True, slots=True)
class _Close:
    """The end of the recording.

    Args:
        step: The last step.
        interrupted: Why the run has not come to its end; empty when it has.
    """

    step: int
    interrupted: str


@dataclass(frozen=True, slots=True)
class _Continues:
    """Where a recording is expected to go on.

    Args:
        step: The next step.
        pace: Steps from one row to the next.
        severity: How bad a gap is: the user may begin a recording in the middle of a training, and not go on there.
    """

    step: int
    pace: int
    severity: Severity

    def gap_before(self, step: int) -> Event | None:
        """Return that steps are missing before the first row, where they are."""
        if step < self.step + self.pace:
            return None
        missing = f"steps {self.step} to {step - 1} are not in this file"
        why = f"it ended at step {self.step - 1}" if self.step else "there was no file to go on in"
        why = why if self.severity == "warning" else "recording began there"
        message = f"{missing}: training went on at step {step}, and {why}"
        return Event(step, time.time(), STEPS_MISSING, self.severity, float(step - self.step), message=message)


def _pace(steps: NDArray[np.float64]) -> int:
    """Return how many steps apart the last rows of a run are, at most."""
    apart = np.diff(steps[-20:])
    return max(1, int(apart.max())) if len(apart) else 1


class Recorder:
    """Owns the run file of a live run.

    Args:
        path: The run file.
        info: What is true of the whole run; written once.
        scalars: Names of the user's own scalars.
        rules: What an alert is, besides what the detectors say.
        resume: Continue an existing file.
        overwrite: Replace an existing file.
        mirrors: What every finished row is handed on to.

    Attributes:
        dropped: Rows that were lost on their way to the file.
        next_step: The step that comes after those in the file.

    Raises:
        OSError, RunFileError: The file cannot be created or continued; nothing has been started then.
    """

    def __init__(
        self,
        path: Path,
        *,
        info: dict[str, Any],
        scalars: Sequence[str],
        resume: bool,
        overwrite: bool,
        rules: Sequence[Rule] = (),
        mirrors: Sequence[Mirror] = (),
    ) -> None:
        self.path = path
        self.dropped = 0
        self.next_step = 0
        self._dropped_before = 0  # of rows dropped, those that a flush has reported
        self._inbox: Inbox[Record | Event | Learnt | _Flush | _Close] = Inbox(QUEUE_LENGTH)
        self._handled = 0  # things taken from the inbox, by which a wait tells a slow disk from one that hangs
        self._opened = threading.Event()
        self._error: Exception | None = None
        self.alerts = Alerts(path, rules)
        self._notices: Notices | None = None  # what this thread has to say, once there is a file
        self._may_seal = True
        self._was_finished = False
        self._continues: _Continues | None = None  # until the first row has come
        self._mirrors = Mirrors(mirrors)
        self._radius, self._norm = SpectralTracker("radius"), SpectralTracker("norm")
        self._tracked_steps = array("q")  # the step of every update of the trackers
        self._written_exact: tuple[int, Estimate] | None = None
        self._spectra = KeptSpectra()
        arguments = (info, tuple(scalars), resume, overwrite)
        # HDF5 handles live and die in the thread that uses them.
        self._thread = threading.Thread(target=self._run, args=arguments, name="loopscope-recorder", daemon=True)
        self._thread.start()
        self._opened.wait()
        if self._error is not None:
            raise self._error

    @property
    def waiting(self) -> int:
        """Return how many records were handed over and not written yet."""
        return len(self._inbox)

    def put(self, record: Record) -> None:
        """Hand over a record; drop it when the thread is behind."""
        if not self._inbox.offer(record):
            self.dropped += 1

    def say(self, event: Event) -> None:
        """Hand over an event for the file; drop it when the thread is behind."""
        self._inbox.offer(event)

    def learn(self, step: int, info: dict[str, Any]) -> None:
        """Hand over what was learnt of the whole run; drop it when the thread is behind."""
        self._inbox.offer(Learnt(step, info))

    def flush(self, seconds: float = FLUSH_PATIENCE) -> bool:
        """Wait until everything handed over so far is committed to the file, but not for ever.

        Returns:
            Whether it is, and no row was dropped on the way since the last call.
        """
        request = _Flush()
        if not self._inbox.hand_over(request, seconds):
            return False
        if not request.done.wait(seconds) or not request.committed:
            return False
        dropped, self._dropped_before = self.dropped - self._dropped_before, self.dropped
        return not dropped

    def close(self, *, interrupted: str = "", step: int = -1) -> None:
        """Write what is waiting, seal the file where the run has come to its end, and end the thread.

        A disk that hangs is waited for as long as anything moves, and `CLOSE_PATIENCE` seconds more; the file is then
        left as it is and reads as interrupted. A second call changes nothing.

        Args:
            interrupted: Why the run has not come to its end; empty when it has.
            step: The last step.
        """
        if not self._thread.is_alive():
            return
        asked = False
        while self._thread.is_alive():
            handled = self._handled
            if not asked:
                asked = self._inbox.hand_over(_Close(step, interrupted), CLOSE_PATIENCE)
            self._thread.join(CLOSE_PATIENCE)
            if self._thread.is_alive() and self._handled == handled:
                self._may_seal = False
                left = f"{len(self._inbox)} rows are not in the file, which reads as interrupted"
                log.error("loopscope: the disk of %s does not answer; %s", self.path, left)
                return

    def _run(self, info: dict[str, Any], scalars: Sequence[str], resume: bool, overwrite: bool) -> None:
        """Open the file and write until the end of the run; this is the thread."""
        try:
            writer = self._open(info, scalars, resume, overwrite)
        except Exception as error:
            self._error = error
            return
        finally:
            self._opened.set()
        self._notices = Notices(writer.append_event)
        try:
            self._write_all(writer)
        except Exception as error:
            log.exception("loopscope: recording to %s failed; training goes on without it", self.path)
            writer.interrupt(f"the recorder failed: {one_line(error)}")
            writer.close()
            self._drain()
        finally:
            writer.close()
            self._mirrors.close()

    def _open(self, info: dict[str, Any], scalars: Sequence[str], resume: bool, overwrite: bool) -> RunWriter:
        """Create the file, or continue it behind its last row."""
        if resume and self.path.exists():
            with Run(self.path) as run:  # this rank's file alone, whatever lies beside it
                self.next_step = int(run["step"][-1]) + 1 if len(run) else 0
                self._continues = _Continues(self.next_step, _pace(run["step"]), "warning")
                self.alerts.resume(run)
                ranks = resumed_on(info.get("world_size"), run)
                self._was_finished = run.state == "finished"
            writer = RunWriter.resume(self.path)
            if ranks is not None:
                said = f"resumed on {ranks} rank{'s' if ranks > 1 else ''}"
                writer.append_event(Event(self.next_step, time.time(), WORLD_SIZE, "note", ranks, message=said))
            return writer
        writer = RunWriter.create(
            self.path, info=info, scalars=scalars, eigenvalues=EIGENVALUES_KEPT, overwrite=overwrite
        )
        self.alerts.begin(info, writer.names)
        self._continues = _Continues(0, 1, "warning" if resume else "note")
        return writer

    def _write_all(self, writer: RunWriter) -> None:
        """Write what comes until the end of the run."""
        waiting, flushed, rows = 0, time.monotonic(), writer.rows
        while True:
            item = self._inbox.take(SECONDS_PER_FLUSH)
            if item is None:
                self.alerts.idle(writer, time.time())
            else:
                self._handled += 1
                if isinstance(item, _Close):
                    break
                if isinstance(item, _Flush):
                    self._answer(item, writer)
                    continue
                self._take(writer, item)
                waiting += 1
            if waiting and (waiting >= ROWS_PER_FLUSH or time.monotonic() - flushed >= SECONDS_PER_FLUSH):
                self.alerts.judge(writer)
                writer.flush()
                waiting, flushed = 0, time.monotonic()
        self.alerts.judge(writer, ended=True)
        # A finished run resumed in vain, by settings that its checkpoint refused say, is as finished as before.
        in_vain = self._was_finished and writer.rows == rows
        if item.interrupted and not in_vain:
            writer.interrupt(item.interrupted, step=item.step)
        writer.flush()
        if not self._may_seal:
            writer.interrupt("the disk did not answer when the run was closed", step=item.step)
        elif in_vain or not item.interrupted:
            writer.seal()

    @staticmethod
    def _answer(request: _Flush, writer: RunWriter) -> None:
        """Try a flush and say whether it worked."""
        lost = writer.rows_lost
        request.committed = writer.flush() and writer.rows_lost == lost
        request.done.set()

    def _drain(self) -> None:
        """Let go of records after a failure, so that nobody waits for room."""
        while not isinstance(item := self._inbox.take(SECONDS_PER_FLUSH), _Close):
            if isinstance(item, _Flush):
                item.done.set()  # and nothing is committed
            elif isinstance(item, Record):
                self.dropped += 1

    def _take(self, writer: RunWriter, item: Record | Event | Learnt) -> None:
        """Write a record, an event or what was learnt; one that fails costs itself only."""
        if isinstance(item, Learnt):
            self.alerts.learn(item.info)
            writer.append_array(item.step, INFO_LATER, info_bytes(item.info))
            return
        if isinstance(item, Event):
            writer.append_event(item)
            return
        try:
            self._write(writer, item)
        except Exception as error:
            self._say_lost(item.step, "this step", error)
            self.dropped += 1

    def _say_lost(self, step: int, what: str, error: Exception) -> None:
        """Say what of a step could not be recorded."""
        if self._notices is not None:
            message = f"{what} could not be recorded: {one_line(error)}"
            self._notices.say(step, "step_incomplete", message, cause=what, trace=error)

    def _write(self, writer: RunWriter, record: Record) -> None:
        """Write the row of a step or of a pass; a part that cannot be computed costs that part."""
        loops: NDArray[np.float32] | None = None
        once: dict[str, float] = {}
        linear: dict[str, float] = {}
        try:
            if record.sums is not None and record.counts is not None and len(record.counts) > 1:
                loops, once = loop_means(record.sums, record.counts)
        except Exception as error:
            self._say_lost(record.step, "the loop of a step", error)
        for name, values in record.arrays.items():
            try:
                writer.append_array(record.step, name, values)
            except ValueError as error:
                self._say_lost(record.step, name, error)
        variables: list[NDArray[np.float32]] = []
        for number, variable in enumerate(record.variables):
            try:
                variables.append(variable.rows())
                if len(variables[-1]):
                    writer.append_variable(record.step, number, variables[-1])
            except Exception as error:
                self._say_lost(record.step, "a variable of the loop", error)
        if record.is_probe:
            if loops is not None:
                writer.append_probe(record.step, loops)
                self.alerts.add_pass(loops)
            return
        try:
            linear = self._linear(writer, record)
        except Exception as error:
            self._say_lost(record.step, "the linear part", error)
        given = record.values | once | linear
        extra = {
            "step": float(record.step),
            "time": record.time,
            "nonfinite": float(len(non_finite(given, loops))),
            "rows_dropped": float(self.dropped + record.rows_cut),
        }
        if self._continues is not None:
            gap, self._continues = self._continues.gap_before(record.step), None
            if gap is not None:
                writer.append_event(gap)
                log.log(logging.WARNING if gap.severity == "warning" else logging.INFO, "loopscope: %s", gap.message)
        writer.append_step(given | extra, loops)
        self._mirrors.write(record.step, given | extra, loops)
        passes = record.arrays.get(VARIABLE_PASSES)
        self.alerts.add(writer, given | extra, loops, record.flight, measured=given, variables=variables, passes=passes)

    def _linear(self, writer: RunWriter, record: Record) -> dict[str, float]:
        """Return the norms and eigenvalues of the matrices that came with a record."""
        matrices = dict(record.matrices)
        a_bar = matrices.pop("a_bar", None)
        values = {f"{name}_norm": sigma_max(matrix) for name, matrix in matrices.items()}
        if a_bar is None:
            return values
        if not np.isfinite(a_bar).all():
            return values | {"a_bar_norm": math.nan, "a_bar_radius": math.nan}
        wide = a_bar.ndim == 2 and len(a_bar) > EXACT_WIDTH
        values |= self._tracked(a_bar, record.step) if wide else {"a_bar_norm": sigma_max(a_bar)}
        if record.spectrum or not wide:
            eigenvalues = LTISystem(a_bar).eigenvalues()
            values |= {"a_bar_radius": float(abs(eigenvalues[0])), "a_bar_radius_error": 0.0}
            if wide:  # solved exactly in this step: the interval has no width
                values |= dict.fromkeys(("a_bar_radius_lower", "a_bar_radius_upper"), values["a_bar_radius"])
            if record.spectrum:
                self._spectra.write(writer, record.step, a_bar, eigenvalues)
        return values

    def _tracked(self, a_bar: NDArray[np.generic], step: int) -> dict[str, float]:
        """Return the radius and norm of a wide A̅ from those of the step before; what did not converge is left out.

        The interval of the radius is there at every step; an exact value is there with its own step once it arrives.
        """
        radius, norm = self._radius.update(a_bar), self._norm.update(a_bar)
        self._tracked_steps.append(step)
        values = {"a_bar_radius_error": radius.residual}
        if math.isfinite(radius.upper):
            values |= {"a_bar_radius_lower": radius.lower, "a_bar_radius_upper": radius.upper}
        if radius.converged:
            values["a_bar_radius"] = radius.value
        if norm.converged:
            values["a_bar_norm"] = norm.value
        exact = self._radius.exact
        if exact is not None and exact != self._written_exact:
            index, estimate = self._written_exact = exact
            values |= {
                "a_bar_radius_exact": estimate.value,
                "a_bar_radius_exact_step": float(self._tracked_steps[index]),
            }
        return values
