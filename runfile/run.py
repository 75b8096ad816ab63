"""One run, as arrays over its steps: the view that everybody reads a recording through.

The numbers come from a `source.Source`: one file (`file_source`), or the files of several ranks
(`ranks.merged_source`). The view adds what all of them share: derived numbers, read-only arrays, and one lock.

Not covered: where the numbers are and how they are read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .disk.handle import LOCK, look
from .file_source import FileSource
from .layout import LOOP_COLUMNS, MOST_VARIABLES, PROBE_DERIVED, STEP_DERIVED, VARIABLE_COLUMNS, Event
from .ragged import Index, Series
from .ratios import late_ratios
from .source import RecordedArray, Source, State


class Run:
    """One run, as arrays over its steps. Made by ``open_run``; safe to use from several threads.

    Args:
        source: What gives the numbers; a path is that one file, whatever lies beside it.

    Every array is float64 unless said otherwise, has one entry per visible step, and is read-only: it is shared with
    the cache. NaN means "not recorded", or a NaN that the training gave (then ``run["nonfinite"]`` is positive there).
    """

    def __init__(self, source: Source | str | os.PathLike[str]) -> None:
        if isinstance(source, str | os.PathLike):
            look(Path(source))
            with LOCK:
                source = FileSource(Path(source))
        self._source: Source = source
        self._of_ranks: dict[int, tuple[Source, Run]] = {}
        self._late: tuple[tuple[float, int, int], NDArray[np.float64]] | None = None  # ratios, and of what

    # -- what the run is ------------------------------------------------------------------------------------------

    @property
    def source(self) -> Source:
        """What gives the numbers."""
        return self._source

    @property
    def path(self) -> Path:
        """The file, of several ranks rank 0's."""
        return self._source.path

    @property
    def info(self) -> dict[str, Any]:
        """What the writer said about model, loop, configuration, host and versions."""
        return self._source.info

    @property
    def state(self) -> State:
        """``live`` while a process writes it, ``finished`` when it ended, ``interrupted`` when its writer is gone."""
        return self._source.state

    @property
    def log(self) -> str:
        """Kind of a log that another tool wrote, in which no loop was recorded (`foreign`); empty of a run file."""
        return self._source.log

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that ``run[name]`` and ``run.series(name)`` know."""
        return (*self._source.names, *STEP_DERIVED, *PROBE_DERIVED)

    @property
    def generation(self) -> int:
        """How often the run was resumed; of several ranks, on the one that was resumed most often."""
        return self._source.generation

    @property
    def committed_at(self) -> float:
        """When the last row was published, seconds since 1970; 0 for a run without any commit."""
        return self._source.committed_at

    @property
    def ranks(self) -> Mapping[int, Run]:
        """The files behind these numbers, by the rank that wrote them, each as a run of its own."""
        with LOCK:
            return {rank: self._of_rank(rank, source) for rank, source in self._source.ranks.items()}

    def __len__(self) -> int:
        return len(self._source)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __repr__(self) -> str:
        several = f", {len(ranks)} ranks" if len(ranks := self._source.ranks) > 1 else ""
        return f"{type(self).__name__}({str(self.path)!r}{several}, {self.state}, {len(self)} steps)"

    # -- numbers per step -----------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Series:
        """Return one number per step.

        Args:
            name: One of ``names``. The ratios measured on the probe batch are NaN at steps without a probe pass.

        Raises:
            KeyError: There is no such name (the message lists the known ones).
        """
        with LOCK:
            if name in self._source.names:
                return _frozen(self._source.values(name))
            if name in STEP_DERIVED:
                return _frozen(self._source.last(*STEP_DERIVED[name]))
            if name in PROBE_DERIVED:
                return _frozen(self._on_steps(name))
        raise KeyError(f"{self.path} has no {name!r}; it has {', '.join(self.names)}")

    def series(self, name: str) -> tuple[Index, Series]:
        """Return the steps at which ``name`` was recorded and its values there, NaNs left out."""
        with LOCK:
            if name in PROBE_DERIVED:
                values = self._ratios(name)
                recorded = ~np.isnan(values)
                return self.probe_steps[recorded], values[recorded]
            values = self[name]
            recorded = ~np.isnan(values)
            return self["step"][recorded].astype(np.int64), values[recorded]

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the tensors that the loop carries, where they are recorded one by one; else none."""
        named = self.info.get("variables")
        return tuple(map(str, named))[:MOST_VARIABLES] if isinstance(named, list) else ()

    def loops(self, name: str, rows: slice | Index = slice(None), *, variable: str | None = None) -> Series:
        """Return one number per step and loop.

        Args:
            name: ``state_norm``, ``residual_norm``, ``step_cosine`` or ``tokens`` (of that loop); of a variable also
                ``pass`` and ``inner``.
            rows: Which visible steps; all of them by default.
            variable: One of ``variables``; a column is then an update of it, which may be several to a pass: ``pass``
                says of which pass it is, and ``inner`` which one of that pass. Default: the state as a whole, all
                variables together.

        Returns:
            ``(steps, T + 1)`` for the deepest of those steps, NaN where a loop did not run. Column t is loop t:
            ``state_norm`` of h_t, ``residual_norm`` of h_{t+1} − h_t (NaN at the last), ``step_cosine`` of that update
            with the one before (NaN at the first and last).
        """
        with LOCK:
            if variable is not None:
                return self._of_variable(variable, name)[rows]
            return self._source.loops(_per_loop(name), rows)

    def at_loops(self, name: str, loops: Sequence[int]) -> list[Series]:
        """Return one number per step of each of some loops; of a finished run it is read for this look and not kept.

        Args:
            name: As in ``loops``.
            loops: Loops from 0; negative ones are counted back from the row of the last state.

        Returns:
            Of each loop ``(steps,)``, NaN where it did not run.
        """
        with LOCK:
            return self._source.at_loops(_per_loop(name), loops)

    # -- the fixed probe batch ------------------------------------------------------------------------------------

    @property
    def probe_steps(self) -> Index:
        """Steps at which the fixed probe batch was run, shape ``(P,)``."""
        with LOCK:
            return _frozen(self._source.probe_steps)

    def probe(self, name: str) -> Series:
        """Return one number per probe pass and loop, ``(P, D + 1)``, as ``loops`` does for training steps."""
        with LOCK:
            return self._source.probe(_per_loop(name))

    def spectra(self) -> tuple[Index, NDArray[np.complex128]]:
        """Return eigenvalues of A̅ over time: steps ``(K,)``, values ``(K, E)``, largest modulus first, NaN padded."""
        with LOCK:
            return self._source.spectra()

    # -- arrays of any shape --------------------------------------------------------------------------------------

    @property
    def array_names(self) -> tuple[str, ...]:
        """Every name that ``arrays`` knows, in the order in which they first appeared."""
        with LOCK:
            return self._source.array_names

    def arrays(self, name: str, rows: slice = slice(None)) -> tuple[Index, list[NDArray[Any]]]:
        """Return the arrays recorded under one name; reads them and what lies between them, and keeps none of them.

        Args:
            name: One of ``array_names``.
            rows: Which of them; all by default, ``slice(-1, None)`` for the newest.

        Returns:
            Steps ``(K,)``, strictly increasing, and K arrays of the dtypes and shapes they were given with. An array is
            superseded by a later one of the same name whose step is not greater, and by a later generation that ran its
            step again.

        Raises:
            KeyError: There is no such name (the message lists the known ones).
        """
        with LOCK:
            if name not in (known := self._source.array_names):
                raise KeyError(f"{self.path} has no arrays {name!r}; it has {', '.join(known) or 'none'}")
            return self._source.arrays(name, rows)

    def array_steps(self, name: str) -> Index:
        """Return the steps of ``arrays(name)`` without reading the arrays; none where there is no such name."""
        with LOCK:
            return self._source.array_steps(name)

    def array_table(self, name: str) -> tuple[Index, Series]:
        """Return the arrays of a name as one table, for short ones with one axis: norms per block or per loop.

        They are kept as columns are: asked again after ``refresh``, it reads only the new ones.

        Returns:
            Steps ``(K,)``, strictly increasing, and values ``(K, longest)``, NaN behind shorter arrays; ``(0,)`` and
            ``(0, 0)`` where there is no such name.
        """
        with LOCK:
            return self._source.array_table(name)

    def array_history(self, prefix: str) -> list[RecordedArray]:
        """Return every array whose name starts with ``prefix``, in file order, superseded ones included."""
        with LOCK:
            return self._source.array_history(prefix)

    # -- events and history ---------------------------------------------------------------------------------------

    @property
    def events(self) -> list[Event]:
        """Events in the order they were found; those of steps that a later generation ran again are left out.

        What happened to the files comes first: ranks that are missing (`companions.RANK_EVENTS`), and a file that was
        deleted, replaced or cut while it was followed (`file_source.FILE_EVENTS`).
        """
        with LOCK:
            return list(self._source.events)

    def history(self, *names: str) -> dict[str, Series]:
        """Return recorded columns, all or those named, over all rows in file order, superseded ones included.

        Of several ranks the rows follow one rank after another, with a column ``rank``.
        """
        with LOCK:
            return {name: _frozen(values) for name, values in self._source.history(*names).items()}

    # -- following a live run -------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Look for new rows; True when anything changed. Reads the commit row and, later on demand, only the tail.

        After a resume that went back, ``len`` can shrink and earlier entries change: compare ``generation``. A file
        that was deleted, replaced by another run, or cut gives one of the ``events``.
        """
        with LOCK:
            return self._source.refresh()

    def close(self) -> None:
        """Give the file back; what was read stays usable. Closing again does nothing."""
        with LOCK:
            self._source.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- derived numbers ------------------------------------------------------------------------------------------

    def _of_variable(self, variable: str, name: str) -> Series:
        """Return a number of a variable at all visible steps, NaN where it was not recorded."""
        if variable not in self.variables:
            raise KeyError(f"{self.path} has no variable {variable!r}; it has {', '.join(self.variables) or 'none'}")
        if name not in VARIABLE_COLUMNS:
            raise KeyError(f"no number {name!r} of a variable; there are {', '.join(VARIABLE_COLUMNS)}")
        at, values = self._source.variable(self.variables.index(variable), name)
        steps = self["step"]
        table = np.full((len(steps), values.shape[1]), np.nan)
        row = np.searchsorted(steps, at)
        known = row < len(steps)
        known[known] = steps[row[known]] == at[known]
        table[row[known]] = values[known]
        return table

    def _ratios(self, name: str) -> Series:
        """Return a late-loop ratio of every probe pass, NaN where the trajectory was too short to have one."""
        known = self._source.committed_at, len(self._source), len(self._source.probe_steps)
        if self._late is None or self._late[0] != known:
            self._late = known, self._late_ratios()
        of_name: Series = self._late[1][PROBE_DERIVED.index(name)]
        return of_name

    def _late_ratios(self) -> NDArray[np.float64]:
        """Return ``PROBE_DERIVED`` of every probe pass, ``(2, passes)``."""
        residual, state, tokens = (self.probe(name) for name in ("residual_norm", "state_norm", "tokens"))
        rows = np.count_nonzero(~np.isnan(tokens), axis=1)
        values = np.full((len(PROBE_DERIVED), len(rows)), np.nan)
        for n in np.unique(rows[rows > 1]):  # one group per depth of the probe pass: usually one
            at = rows == n
            values[:, at] = late_ratios(residual[at, : n - 1], state[at, :n], tokens[at, :n])
        return values

    def _on_steps(self, name: str) -> Series:
        """Spread a probe series over all steps, NaN where none was measured."""
        steps = self["step"]
        values = np.full(len(steps), np.nan)
        at = np.searchsorted(steps, self.probe_steps)
        known = at < len(steps)
        known[known] = steps[at[known]] == self.probe_steps[known]
        values[at[known]] = self._ratios(name)[known]
        return values

    def _of_rank(self, rank: int, source: Source) -> Run:
        """Return one rank as a run of its own, the same object as long as its file is the same."""
        if source is self._source:
            return self
        if rank not in self._of_ranks or self._of_ranks[rank][0] is not source:
            self._of_ranks[rank] = source, Run(source)
        return self._of_ranks[rank][1]


def _per_loop(name: str) -> str:
    """Return the name of a per-loop number, once it is certain that there is one of that name."""
    if name not in LOOP_COLUMNS:
        raise KeyError(f"no per-loop number {name!r}; there are {', '.join(LOOP_COLUMNS)}")
    return name


def _frozen(values: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view."""
    view = values.view()
    view.flags.writeable = False
    return view
