"""A run held open, with what is expensive to compute remembered until new rows arrive.

What is not covered: nothing here computes a statistic; it asks the reader and the diagnosis, and keeps their answers.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..rules.diagnosis import Diagnosis, diagnose
from ..runfile.flights import Flight, find_flights
from ..runfile.open import open_run
from ..runfile.ranks.companions import of_several_ranks
from ..runfile.reader import Run
from .figures import Series

# A diagnosis of a live run may take this share of the time: it is made again only after its cost, this many times over.
DIAGNOSIS_REST = 10.0

T = TypeVar("T")


class Table(NamedTuple):
    """One array per recorded step: ``steps`` (N,) increasing and ``values`` (N, longest array), NaN behind shorter."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]


class OpenRun:
    """One run file, open for reading; safe to use from several threads.

    Args:
        path: The run file.

    Raises:
        RunFileError: The file is no run or is damaged.

    Attributes:
        run: The reader, for whatever is cheap to ask.
        version: A short text that changes whenever the run says anything new.
    """

    def __init__(self, path: Path) -> None:
        self.run = open_run(path)
        self.version = ""
        self._lock = threading.RLock()
        self._kept: dict[str, Any] = {}
        self._diagnosis: Diagnosis | None = None
        self._diagnosis_of = ""
        self._diagnosis_due = 0.0
        self._took: dict[str, float] = {}
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
            version = " ".join([*(f"{one.committed_at:.9f}" for one in self.run.ranks.values()), self.run.state])
            if version != self.version:
                self.version = version
                self._kept.clear()

    def _open_again(self) -> None:
        """Take in the other ranks of a run that was one file when it was opened."""
        alone, self.run = self.run, open_run(self.run.path)
        alone.close()

    @property
    def kept_bytes(self) -> int:
        """Bytes of numbers that are kept in memory for this run, about: those of the arrays made here."""
        with self._lock:
            return sum(_bytes(kept) for kept in self._kept.values())

    def _keep(self, key: str, make: Callable[[], T]) -> T:
        """Return what ``make`` gives, made once per version."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            kept: T = self._kept[key]
            return kept

    @property
    def took(self) -> float:
        """Seconds that drawing this run took the last time."""
        with self._lock:
            return sum(self._took.values())

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Note how long one part of drawing this run takes."""
        began = time.perf_counter()
        yield
        with self._lock:
            self._took[part] = time.perf_counter() - began

    def diagnosis(self) -> Diagnosis:
        """Return the verdict; of a live run it may be a little older than the last row."""
        with self._lock:
            known = self._diagnosis
            waiting = self.run.state == "live" and time.monotonic() < self._diagnosis_due
            if known is not None and (self._diagnosis_of == self.version or waiting):
                return known
            began = time.monotonic()
            found = diagnose(self.run)
            now = time.monotonic()
            self._diagnosis, self._diagnosis_of = found, self.version
            self._diagnosis_due = now + DIAGNOSIS_REST * (now - began)
            return found

    def series(self, name: str) -> Series:
        """Return a recorded quantity, or an empty series when the run does not know the name."""
        return self._keep(f"series {name}", lambda: self._series(name))

    def _series(self, name: str) -> Series:
        """Read a series and give its steps the type of every axis here."""
        if name not in self.run.names:
            return Series()
        steps, values = self.run.series(name)
        return Series(steps.astype(np.float64), values)

    def spectra(self) -> tuple[NDArray[np.int64], NDArray[np.complex128]]:
        """Return the recorded eigenvalues of A̅: steps ``(K,)`` and values ``(K, E)``, NaN padded."""
        return self._keep("spectra", self.run.spectra)

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

    def probe(self, name: str) -> NDArray[np.float64]:
        """Return one number per pass of the fixed probe batch and loop, ``(P, D + 1)``, NaN padded."""
        return self._keep(f"probe {name}", lambda: self.run.probe(name))

    def residual(self) -> NDArray[np.float64]:
        """Return ‖h[t+1]−h[t]‖, ``(rows, T)``: NaN where a loop did not run, infinite where it ran and is not finite.

        The file stores NaN for both a loop that did not run and a loop whose state is NaN; the token count tells them
        apart, since it is recorded for exactly the loops that ran.
        """
        return self._keep("residual", self._residual)

    def _residual(self) -> NDArray[np.float64]:
        """Read the residuals and mark the lost ones."""
        norm = self.run.loops("residual_norm")[:, :-1]
        lost = ~np.isfinite(norm)
        if np.isnan(norm).any():
            lost &= ~np.isnan(self.run.loops("tokens")[:, 1:])  # h[t+1] has tokens: loop t ran
        norm[lost] = np.inf
        return norm


def _bytes(kept: Any) -> int:
    """Return how many bytes the arrays in something kept take."""
    if isinstance(kept, np.ndarray):
        return int(kept.nbytes)
    return sum(map(_bytes, kept)) if isinstance(kept, tuple) else 0
