"""The recorder: a thread that turns what came off the device into rows of the run file.

The training thread hands over records and never waits: the queue is bounded, and what does not fit is dropped and
counted. Everything that takes time on the host (division, eigenvalues, detectors, HDF5) happens here. A failure of the
file or of anything else in this thread is said once; training goes on without rows.

A dense A̅ wider than `EXACT_WIDTH` is tracked from step to step (`SpectralTracker`, refreshed exactly in a further
thread; 14 ms for both numbers at width 768 against 0.6 s exactly, on one core) and solved exactly in the steps whose
spectrum is kept. The residual of every radius is recorded with it; a value that did not converge is not recorded.

Not covered: ordering between ranks; each process records for itself, and `merged_run` matches their rows by step.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dynamics.linear.lti import LTISystem
from ..dynamics.linear.tracker import SpectralTracker
from ..rules.detectors import non_finite
from ..rules.rule_files import Rule
from ..runfile.flights import FlightStep
from ..runfile.layout import Event
from ..runfile.ranks.companions import WORLD_SIZE, resumed_on
from ..runfile.reader import Run
from ..runfile.writer import RunWriter
from .alerts import Alerts
from .measure.sums import loop_means
from .mirrors import Mirror, Mirrors
from .schedule import EXACT_WIDTH

log = logging.getLogger("loopscope")

QUEUE_LENGTH = 1024  # records waiting for the thread; about 2 MB of rows at 16 loops
ROWS_PER_FLUSH = 100
SECONDS_PER_FLUSH = 0.5  # the most a kill can cost
FLUSH_PATIENCE = 10.0  # seconds a checkpoint waits for a disk that hangs
EIGENVALUES_KEPT = 64


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
        events: What to tell the reader of the file besides what the recorder finds.
        flight: What the flight recorder needs of the step and no other field has.
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
    events: tuple[Event, ...] = ()
    flight: FlightStep | None = None


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
        self._queue: queue.Queue[Record | threading.Event | None] = queue.Queue(QUEUE_LENGTH)
        self._opened = threading.Event()
        self._error: Exception | None = None
        self._alerts = Alerts(path, rules)
        self._seal = True
        self._was_finished = False
        self._mirrors = Mirrors(mirrors)
        self._radius, self._norm = SpectralTracker("radius"), SpectralTracker("norm")
        arguments = (info, tuple(scalars), resume, overwrite)
        # HDF5 handles live and die in the thread that uses them.
        self._thread = threading.Thread(target=self._run, args=arguments, name="loopscope-recorder", daemon=True)
        self._thread.start()
        self._opened.wait()
        if self._error is not None:
            raise self._error

    @property
    def waiting(self) -> int:
        """Records that were handed over and not written yet."""
        return self._queue.qsize()

    def put(self, record: Record) -> None:
        """Hands over a record; drops it when the thread is behind."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def flush(self, seconds: float = FLUSH_PATIENCE) -> bool:
        """Waits until everything handed over so far is committed to the file, but not for ever.

        Returns:
            Whether it is.
        """
        committed = threading.Event()
        try:
            self._queue.put(committed, timeout=seconds)
        except queue.Full:
            return False
        return committed.wait(seconds)

    def close(self, *, seal: bool = True) -> None:
        """Writes what is waiting, seals the file if asked to, and ends the thread; harmless the second time."""
        if self._thread.is_alive():
            self._seal = seal
            self._queue.put(None)
            self._thread.join()

    def _run(self, info: dict[str, Any], scalars: Sequence[str], resume: bool, overwrite: bool) -> None:
        try:
            writer = self._open(info, scalars, resume, overwrite)
        except Exception as error:
            self._error = error
            return
        finally:
            self._opened.set()
        try:
            self._write_all(writer)
        except Exception:
            log.exception("loopscope: recording to %s failed; training goes on without it", self.path)
            self._drain()
        finally:
            writer.close()
            self._mirrors.close()

    def _open(self, info: dict[str, Any], scalars: Sequence[str], resume: bool, overwrite: bool) -> RunWriter:
        if resume and self.path.exists():
            with Run(self.path) as run:  # this rank's file alone, whatever lies beside it
                self.next_step = int(run["step"][-1]) + 1 if len(run) else 0
                self._alerts.resume(run)
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
        self._alerts.begin(info, writer.names)
        return writer

    def _write_all(self, writer: RunWriter) -> None:
        waiting, flushed, rows = 0, time.monotonic(), writer.rows
        while True:
            try:
                record = self._queue.get(timeout=SECONDS_PER_FLUSH)
            except queue.Empty:
                pass
            else:
                if record is None:
                    break
                if isinstance(record, threading.Event):
                    writer.flush()
                    record.set()
                    continue
                self._write(writer, record)
                waiting += 1
            if waiting and (waiting >= ROWS_PER_FLUSH or time.monotonic() - flushed >= SECONDS_PER_FLUSH):
                self._alerts.judge(writer)
                writer.flush()
                waiting, flushed = 0, time.monotonic()
        self._alerts.judge(writer, ended=True)
        writer.flush()
        # A finished run resumed in vain, by settings that its checkpoint refused say, is as finished as before.
        if self._seal or (self._was_finished and writer.rows == rows):
            writer.seal()

    def _drain(self) -> None:
        """Lets go of records after a failure, so that nobody waits for a full queue."""
        while (record := self._queue.get()) is not None:
            if isinstance(record, threading.Event):
                record.set()
            else:
                self.dropped += 1

    def _write(self, writer: RunWriter, record: Record) -> None:
        loops: NDArray[np.float32] | None = None
        once: dict[str, float] = {}
        if record.sums is not None and record.counts is not None and len(record.counts) > 1:
            loops, once = loop_means(record.sums, record.counts)
        for name, values in record.arrays.items():
            writer.append_array(record.step, name, values)
        if record.is_probe:
            if loops is not None:
                writer.append_probe(record.step, loops)
                self._alerts.add_pass(loops)
            return
        given = record.values | once | self._linear(writer, record)
        extra = {
            "step": float(record.step),
            "time": record.time,
            "nonfinite": float(len(non_finite(given, loops))),
            "rows_dropped": float(self.dropped + record.rows_cut),
        }
        writer.append_step(given | extra, loops)
        self._mirrors.write(record.step, given | extra, loops)
        self._alerts.add(writer, given | extra, loops, record.flight, measured=given)
        for event in record.events:
            writer.append_event(event)

    def _linear(self, writer: RunWriter, record: Record) -> dict[str, float]:
        """Norms and eigenvalues of the matrices that came with a record."""
        matrices = dict(record.matrices)
        a_bar = matrices.pop("a_bar", None)
        values = {f"{name}_norm": _spectral_norm(matrix) for name, matrix in matrices.items()}
        if a_bar is None:
            return values
        if not np.isfinite(a_bar).all():
            return values | {"a_bar_norm": math.nan, "a_bar_radius": math.nan}
        wide = a_bar.ndim == 2 and len(a_bar) > EXACT_WIDTH
        values |= self._tracked(a_bar) if wide else {"a_bar_norm": _spectral_norm(a_bar)}
        if record.spectrum or not wide:
            eigenvalues = LTISystem(a_bar).eigenvalues()
            values |= {"a_bar_radius": float(abs(eigenvalues[0])), "a_bar_radius_error": 0.0}
            if record.spectrum:
                writer.append_spectrum(record.step, eigenvalues[:EIGENVALUES_KEPT])
        return values

    def _tracked(self, a_bar: NDArray[np.generic]) -> dict[str, float]:
        """Radius and norm of a wide A̅ from those of the step before; what did not converge is left out."""
        radius, norm = self._radius.update(a_bar), self._norm.update(a_bar)
        values = {"a_bar_radius_error": radius.residual}
        if radius.converged:
            values["a_bar_radius"] = radius.value
        if norm.converged:
            values["a_bar_norm"] = norm.value
        return values


def _spectral_norm(matrix: NDArray[np.generic]) -> float:
    """Largest singular value of a scaled identity (0-d), diagonal (1-D) or dense (2-D) matrix; NaN when not finite."""
    if not np.isfinite(matrix).all():
        return math.nan
    wide = matrix.astype(np.float64)
    return float(np.linalg.norm(wide, 2)) if wide.ndim == 2 else float(np.abs(wide).max())
