"""Mirrors: the rows of a run, sent on to TensorBoard, Weights & Biases or Trackio while they are written.

    loopscope.attach(model, "runs/a.h5", mirrors=[TensorBoardMirror("runs/tb"), WandbMirror(wandb.init())])

The recorder's thread hands every finished row on, so the training thread knows nothing of it. Each mirror works off its
rows in a thread of its own, behind a bounded queue: one that is slow loses rows, one that fails is logged and left
alone, one that hangs is left behind at the end. None of them holds up the run file, which has everything.

A row carries the numbers a step has once, under the names of the run file, and two summaries of its loops,
``last_state_norm`` and ``last_residual_norm``. What was not recorded in a step is left out; what was recorded as NaN or
infinite is sent as it is. Trackers show them under ``loopscope/<name>``, so that they never replace the user's own.

Not covered: the loops themselves, passes of the probe batch, spectra and events (the run file has them), and what was
recorded before a resume.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ..runfile.layout import derived_from_loops

log = logging.getLogger("loopscope")

PREFIX: Final = "loopscope/"
ROWS_WAITING: Final = 1024  # rows kept for a slow mirror: about 300 KB
CLOSE_PATIENCE: Final = 10.0  # seconds that all mirrors together may take to finish at the end of a run


class Mirror(Protocol):
    """Anything that takes rows. Both methods are called from one thread, which is not the training thread."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take one row.

        Args:
            step: Training step, from 0. Goes back where a run was resumed from an older checkpoint.
            values: Numbers of the step by their name in the run file.
        """

    def close(self) -> None:
        """Send off what is waiting; the run has ended."""


class TensorBoardMirror:
    """Writes rows to a TensorBoard event file: one event per step, about 0.2 ms, not one per number.

    Args:
        folder: TensorBoard's log folder; made when missing. Each run needs its own.

    Raises:
        ImportError: TensorBoard is not installed.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mirror = TensorBoardMirror(folder)
    ...     mirror.write(0, {"loss": 2.5})
    ...     mirror.close()
    ...     len(list(Path(folder).glob("events.out.tfevents.*")))
    1
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            self._summary = import_module("tensorboard.compat.proto.summary_pb2").Summary
            writer = import_module("torch.utils.tensorboard").FileWriter
        except ImportError as error:
            raise ImportError("TensorBoardMirror needs TensorBoard: pip install 'loopscope[tensorboard]'") from error
        self._writer = writer(os.fspath(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one event that holds all numbers of the step."""
        entries = [self._summary.Value(tag=PREFIX + name, simple_value=value) for name, value in values.items()]
        self._writer.add_summary(self._summary(value=entries), step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbMirror:
    """Logs rows to a Weights & Biases run, over an axis of their own, ``loopscope/step``.

    The run may be the one that a trainer logs to: no ``step=`` is passed, as the trainers' own loggers do not either.
    Where your own code passes ``step=``, give the mirror a run of its own: W&B refuses steps that are not increasing.

    Args:
        run: What ``wandb.init()`` returned; ending it stays with its owner.

    >>> class Printing:
    ...     def define_metric(self, name, step_metric): print(name, "over", step_metric)
    ...     def log(self, data): print(data)
    >>> WandbMirror(Printing()).write(7, {"loss": 2.5})
    loopscope/* over loopscope/step
    {'loopscope/loss': 2.5, 'loopscope/step': 7}
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric(PREFIX + "*", step_metric=PREFIX + "step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log one row."""
        self._run.log({PREFIX + name: value for name, value in values.items()} | {PREFIX + "step": step})

    def close(self) -> None:
        """Do nothing: W&B sends in the background, and the run belongs to whoever started it."""


class TrackioMirror:
    """Logs rows to a Trackio run.

    Args:
        run: What ``trackio.init()`` returned; ending it stays with its owner.

    >>> class Printing:
    ...     def log(self, metrics, step=None): print(step, metrics)
    >>> TrackioMirror(Printing()).write(7, {"loss": 2.5})
    7 {'loopscope/loss': 2.5}
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log one row under its step."""
        self._run.log({PREFIX + name: value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Do nothing: Trackio sends in the background, and the run belongs to whoever started it."""


class Mirrors:
    """All mirrors of a run, as the recorder sees them: nothing here raises, and nothing waits but `close`.

    >>> seen = []
    >>> class Keeping:
    ...     def write(self, step, values): seen.append((step, dict(values)))
    ...     def close(self): seen.append("closed")
    >>> mirrors = Mirrors([Keeping()])
    >>> mirrors.write(3, {"step": 3.0, "loss": 2.5}, None)
    >>> mirrors.close()
    >>> seen
    [(3, {'loss': 2.5}), 'closed']
    """

    def __init__(self, mirrors: Sequence[Mirror]) -> None:
        self._relays = [_Relay(mirror) for mirror in mirrors]

    def write(self, step: int, values: Mapping[str, float], loops: NDArray[np.float32] | None) -> None:
        """Hand on a row of the run file: its numbers, and the last of its loops where it has any."""
        if self._relays:
            row = summary(values, loops)
            for relay in self._relays:
                relay.offer(step, row)

    def close(self) -> None:
        """Let every mirror finish, all together for `CLOSE_PATIENCE` seconds at most."""
        deadline = time.monotonic() + CLOSE_PATIENCE
        for relay in self._relays:
            relay.end()
        for relay in self._relays:
            relay.join(deadline)


def summary(values: Mapping[str, float], loops: NDArray[np.float32] | None) -> dict[str, float]:
    """Return the numbers a mirror is given for a row.

    Args:
        values: Columns of the row by name.
        loops: ``(T + 1, 4)`` as ``LOOP_COLUMNS``, or None.

    >>> summary({"step": 1.0, "time": 9.0, "loss": 2.5}, np.array([[1, 4, 0, 8], [2, np.nan, 0, 8]], dtype=np.float32))
    {'loss': 2.5, 'last_state_norm': 2.0, 'last_residual_norm': 4.0}
    """
    row = {name: float(value) for name, value in values.items() if name not in ("step", "time")}
    return row | derived_from_loops(loops)


class _Relay:
    """One mirror and the thread that feeds it."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._name = type(mirror).__name__
        self._rows: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(ROWS_WAITING)
        self._ending = threading.Event()
        self._failed = False
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name=f"loopscope-{self._name}", daemon=True)

    def _start(self) -> None:
        """Start the thread where it has not been: a run that could not be opened leaves none behind."""
        if self._thread.ident is None:
            self._thread.start()

    def offer(self, step: int, row: dict[str, float]) -> None:
        """Hand over a row, or drop it: never wait."""
        if self._failed:
            return
        self._start()
        try:
            self._rows.put_nowait((step, row))
        except queue.Full:
            if not self._dropped:
                log.warning("loopscope: %s is slower than training; from step %d on it misses rows", self._name, step)
            self._dropped += 1

    def end(self) -> None:
        """Ask the thread to finish what is waiting."""
        self._ending.set()
        with suppress(queue.Full):  # then it is not waiting for a row, and sees the flag after the last one
            self._rows.put_nowait(None)
        self._start()

    def join(self, deadline: float) -> None:
        """Wait for the thread until the deadline and say what was lost."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            left = self._rows.qsize()
            log.warning("loopscope: %s does not come to an end and is left behind, %d rows wait", self._name, left)
        if self._dropped:
            log.warning("loopscope: %s was too slow and missed %d rows", self._name, self._dropped)

    def _run(self) -> None:
        """Feed the mirror until the run ends, then close it; whatever fails is logged."""
        try:
            while (row := self._next()) is not None:
                self._mirror.write(*row)
        except Exception:
            self._failed = True
            log.exception("loopscope: %s failed and is dropped; the run file goes on without it", self._name)
        try:
            self._mirror.close()
        except Exception:
            if not self._failed:
                log.exception("loopscope: %s could not be closed", self._name)

    def _next(self) -> tuple[int, dict[str, float]] | None:
        """Wait for the next row; None once the run has ended and nothing waits."""
        if self._ending.is_set() and self._rows.empty():
            return None
        return self._rows.get()
