"""A run held open, with what is expensive to compute remembered until new rows arrive.

Not covered: nothing here computes a statistic; it asks the reader and the diagnosis, and keeps their answers.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..rules.diagnosis import diagnose
from ..runfile.ending import Ending, ending
from ..runfile.flights import Flight, find_flights
from ..runfile.layout import RunFileError
from ..runfile.open import open_run
from ..runfile.ranks.companions import of_several_ranks
from ..runfile.reader import Run
from .rule_choice import choice_for
from .settings import Settings, settings_of
from .story import Story, tell
from .text import shown
from .tracks import Tracks

# A diagnosis of a live run may take this share of the time: it is made again only after its cost, this many times over.
DIAGNOSIS_REST: Final = 10.0
QUICK_ROWS: Final = 20_000
"""A run of up to so many rows is judged while its page waits; a longer one behind the page, by a helper."""

T = TypeVar("T")


class Table(NamedTuple):
    """One array per recorded step: ``steps`` (N,) increasing and ``values`` (N, longest array), NaN behind shorter."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]


class Judged(Protocol):
    """A verdict, and the version of the run that it is of."""

    @property
    def story(self) -> Story:
        """The verdict."""

    @property
    def version(self) -> str:
        """See `OpenRun`."""


class Judge(Protocol):
    """Who judges long runs: `reading.LongRuns`."""

    def read(self, path: Path, *, live: bool) -> Judged:
        """Judge a run."""


class OpenRun:
    """One run file, open for reading; safe to use from several threads.

    Args:
        path: The run file.
        judge: Who judges it where it is long; by default, this process.

    Raises:
        RunFileError: The file is no run or is damaged.

    Attributes:
        run: The reader, for whatever is cheap to ask.
        tracks: Its numbers as pictures need them.
        version: A short text that changes whenever the run, or the rules of its project, say anything new.
    """

    def __init__(self, path: Path, judge: Judge | None = None) -> None:
        self.run = open_run(path)
        self._judge = judge
        self.tracks = Tracks(self.run)
        self.version = ""
        self._lock = threading.RLock()
        self._kept: dict[str, Any] = {}
        self._story: Story | None = None
        self._story_of = ""
        self._story_due = 0.0
        self._judging = threading.Lock()
        self._behind: threading.Thread | None = None
        self._failed: tuple[str, RunFileError] | None = None
        self._took: dict[str, float] = {}
        self._took_before = 0.0
        self.refresh()

    def close(self) -> None:
        """Let go of the file."""
        self.run.close()

    def refresh(self) -> None:
        """Take in what was committed since the last call."""
        with self._lock:
            self.run.refresh()
            if type(self.run) is Run and of_several_ranks(self.run):
                self._open_again()
            # Of each rank: the newest of them all may stay the same while another one writes.
            commits = [f"{one.committed_at:.9f}" for one in self.run.ranks.values()]
            self._rules = choice_for(self.run.path.parent)
            version = " ".join([*commits, self.run.state, *(map(str, self._rules.stamp) if self._rules.path else ())])
            if version != self.version:
                self.version = version
                self.tracks.follow()
                self._kept.clear()

    def _open_again(self) -> None:
        """Take in the other ranks of a run that was one file when it was opened."""
        alone, self.run = self.run, open_run(self.run.path)
        self.tracks = Tracks(self.run)
        alone.close()

    @property
    def kept_bytes(self) -> int:
        """Bytes of numbers that are kept in memory for this run, about."""
        return self.tracks.kept_bytes

    def _keep(self, key: str, make: Callable[[], T]) -> T:
        """Return what ``make`` gives, made once per version."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            kept: T = self._kept[key]
            return kept

    @contextmanager
    def drawing(self, part: str) -> Iterator[None]:
        """Hold the run for one part of drawing it, and note how long that keeps a processor busy."""
        with self._lock:
            self.tracks.trim()
            began = time.thread_time()
            yield
            self._took[part] = time.thread_time() - began

    def time_anew(self) -> None:
        """Take the time of drawing anew: a page begins to draw what is new."""
        self._took_before = sum(list(self._took.values()))
        self._took.clear()

    @property
    def took(self) -> float:
        """Seconds of processor time that drawing what is new in this run takes: the less of the last two times.

        A plot that has to be drawn whole, as the first time or where a line leaves its axis, is an exception: a page
        that rested after it would show new rows late. Where that happens every time, both times are long.
        """
        return min(sum(list(self._took.values())), self._took_before)

    # -- what it means --------------------------------------------------------------------------------------------

    def settings(self) -> Settings:
        """Return what the run was started with."""
        return self._keep("settings", lambda: settings_of(self.run.info))

    def ending(self) -> Ending:
        """Return how the run ended."""
        return self._keep("ending", lambda: ending(self.run))

    def story(self, *, wait: bool = True) -> Story | None:
        """Return the verdict; of a live run it may be a little older than the last row.

        Args:
            wait: Whether to wait for it; else a long run is judged behind the page, and until then what is known of it
                is returned.

        Raises:
            RunFileError: The run cannot be judged.
        """
        known = self._story
        if known is not None and self.judged:
            return known
        if not wait and len(self.run) > QUICK_ROWS:
            self._judge_behind()
            return known
        with self._judging:
            if self._story is not None and self.judged:
                return self._story
            began, version = time.monotonic(), self.version
            if self._judge is not None and len(self.run) > QUICK_ROWS:
                read = self._judge.read(self.run.path, live=self.run.state == "live")
                made, version = read.story, version if self.run.state == "live" else read.version
            else:
                made = self.judged_now()
                self.tracks.trim()  # the rules look at everything
            now = time.monotonic()
            self._story, self._story_of = made, version
            self._story_due = now + DIAGNOSIS_REST * (now - began)
            return made

    def _judge_behind(self) -> None:
        """Have the run judged by a thread of its own, unless that goes on.

        Raises:
            RunFileError: It cannot be judged as it is.
        """
        if self._failed is not None and self._failed[0] == self.version:
            raise self._failed[1]
        if self._behind is None or not self._behind.is_alive():
            self._behind = threading.Thread(target=self._judge_apart, name="loopscope verdict", daemon=True)
            self._behind.start()

    def _judge_apart(self) -> None:
        """Judge the run; keep the reason where it cannot be judged."""
        version = self.version
        try:
            self.story()
        except RunFileError as error:
            self._failed = version, error
        except Exception as error:  # whatever a hostile file brings about
            logging.getLogger(__name__).warning("%s cannot be judged", shown(self.run.path), exc_info=True)
            words = f"cannot be judged ({type(error).__name__}: {shown(error, 120)})"
            self._failed = version, RunFileError(f"{shown(self.run.path)}: {words}")

    def judged_now(self) -> Story:
        """Judge the run as it is now; one that may grow by a view of its own, since other threads refresh ours."""
        rules, words = self._rules.rules()
        if self.run.state == "finished":
            return tell(self.run, diagnose(self.run, rules), self.settings(), words)
        with open_run(self.run.path) as still:
            return tell(still, diagnose(still, rules), self.settings(), words)

    @property
    def known_story(self) -> Story | None:
        """The verdict as it was made last, for what is drawn while the run is held; None before the first."""
        return self._story

    @property
    def judged(self) -> bool:
        """Whether the verdict is of the rows that are there now, or as new as it has to be."""
        waiting = self.run.state == "live" and time.monotonic() < self._story_due
        return self._story is not None and (self._story_of == self.version or waiting)

    # -- numbers --------------------------------------------------------------------------------------------------

    def last(self, name: str) -> float:
        """Return the newest value of a number, NaN where the newest row has none or the name is unknown."""
        with self._lock:
            run = self.run
            if name in ("last_state_norm", "last_residual_norm") and len(run):
                loops = run.loops(name.removeprefix("last_"), slice(len(run) - 1, len(run)))[0]
                finite = np.flatnonzero(~np.isnan(loops))
                return float(loops[finite[-1]]) if len(finite) else float("nan")
            if name not in run.names or not len(run):
                return float("nan")
            values = run[name]
            recorded = np.flatnonzero(~np.isnan(values[-1000:]))
            return float(values[-1000:][recorded[-1]]) if len(recorded) else float("nan")

    def spectra(self) -> tuple[NDArray[np.int64], NDArray[np.complex128]]:
        """Return the recorded eigenvalues of A̅: steps ``(K,)`` and values ``(K, E)``, NaN padded."""
        return self._keep("spectra", self.run.spectra)

    def array_at(self, name: str, step: float | None) -> tuple[float, NDArray[Any]] | None:
        """Return the last array of a name recorded at or before a step, and its step; None where there is none."""
        steps = self.array_steps(name)
        row = -1 if step is None else int(np.searchsorted(steps, step, side="right")) - 1
        if row < 0:
            return None
        _, (array,) = self.run.arrays(name, slice(row, row + 1))
        return float(steps[row]), array

    def array_steps(self, name: str) -> NDArray[np.int64]:
        """Return the steps at which arrays of a name were recorded; none where there are none of them."""
        return self._keep(f"array steps {name}", lambda: self.run.array_steps(name))

    def table(self, name: str) -> Table:
        """Return short arrays as rows of one table; of a live run, only the new ones are read."""
        return self._keep(f"table {name}", lambda: self._table(name))

    def _table(self, name: str) -> Table:
        """Read a table and give its steps the type of every axis here."""
        steps, values = self.run.array_table(name)
        return Table(steps.astype(np.float64), values)

    def flights(self) -> list[Flight]:
        """Return the flight recordings without their detail."""
        return self._keep("flights", lambda: find_flights(self.run))

    def variable(self, name: str, variable: str) -> Table:
        """Return one number per training step and update of one of the tensors that the loop carries."""
        return self._keep(f"variable {variable} {name}", lambda: self._variable(name, variable))

    def _variable(self, name: str, variable: str) -> Table:
        """Read the updates of a variable; steps at which it was not recorded are left out."""
        values = self.run.loops(name, variable=variable)
        there = ~np.isnan(values).all(axis=1)
        return Table(self.run["step"][there], values[there])

    def probe(self, name: str) -> Table:
        """Return one number per pass of the fixed batch and loop, infinite where a loop ran and it was not finite."""
        return self._keep(f"probe {name}", lambda: self._probe(name))

    def _probe(self, name: str) -> Table:
        """Read the passes of the fixed batch."""
        values = self.run.probe(name)
        return Table(self.run.probe_steps.astype(np.float64), values)
