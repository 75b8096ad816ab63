"""The files of several ranks as one source of numbers.

Rows are matched by training step; a step is there when any rank has it. What becomes of each number:

- per-loop numbers, of training steps and of the probe batch: the mean over the tokens of all ranks, which is exact,
  because a mean times its tokens is the sum that was measured. ``tokens`` of a loop are added. A loop that only some
  ranks reached is averaged over those, as the micro-batches of one process are;
- loss, learning rate, depth and a user's own scalars: the mean over the ranks that have the step. A NaN or an infinity
  that one rank was given makes the result NaN or infinite;
- spectral numbers and gradient norm: the maximum over ranks. A loop that is unstable on one rank is unstable;
- counts of what went wrong are added; times, generation and tokens of a step are the largest (`merge.REDUCTIONS` has
  the rule of every column);
- eigenvalues are those of the rank with the largest radius; where replicas hold the same A̅, all have the same;
- numbers derived from loops (last norms, ratios) are derived from the merged loops;
- events of one kind at one step are one event: the worst value, the earliest time, and which ranks said it. Events
  about the ranks themselves come first (`companions`);
- arrays of any shape, and flights with them, are those of rank 0;
- the run is live while any rank is, finished when all its files are.

Not covered: numbers of single ranks; ``ranks`` holds each as a source of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..file_source import FileSource
from ..growing import Growing, Rows
from ..layout import Event, RunFileError
from ..ragged import Index, Series
from ..rank_names import rank_files
from ..source import RecordedArray, Source, State
from .companions import (
    Intervals,
    abandoned,
    in_words,
    only_named_so,
    outside,
    went_back,
    what_is_wrong,
    why_foreign,
    world_sizes,
)
from .merge import REDUCTIONS, last_of, merge_column, merge_loops, merge_tokens, united, widest

T = TypeVar("T")
_BLOCK: Final = 8192  # steps merged at a time


class MergedSource:
    """A run of several ranks; implements `Source`. Its callers hold the lock of `disk.handle`.

    Rank files that appear later are taken in by ``refresh``. A rank that is missing, unreadable, of another run or gone
    early is an event; the rest of the run is shown.

    Args:
        first: Rank 0 alone; closed with the merged view.

    Attributes:
        path: Rank 0's file.
        info: What rank 0's writer said, and which ranks are merged (``ranks``).
    """

    def __init__(self, first: FileSource) -> None:
        self.path = first.path
        self.info: dict[str, Any] = {}
        self._first = first
        self._files: dict[int, FileSource] = {0: first}  # whatever could be opened, of this run or not
        self._unreadable: dict[int, tuple[tuple[int, ...], str]] = {}  # what could not, as it was then, and why
        self._members: dict[int, FileSource] = {}
        self._wrong: list[Event] = []
        self._said: list[Event] = []
        self._gone: dict[int, Intervals] = {}
        self._back: list[tuple[float, float]] = []
        self._steps = Growing(np.float64)
        self._merged: dict[str, Growing] = {}
        self._kept: dict[str, Any] = {}
        self._names: tuple[str, ...] = ()
        self._survey()
        self._line_up()

    # -- what the run is ------------------------------------------------------------------------------------------

    @property
    def names(self) -> Sequence[str]:
        """Numbers per step that any rank recorded."""
        return self._names

    @property
    def ranks(self) -> Mapping[int, Source]:
        """The ranks that are merged, each as a source of its own."""
        return dict(self._members)

    @property
    def state(self) -> State:
        """``live`` while any rank is being written, ``finished`` when all files are, else ``interrupted``."""
        states = {run.state for run in self._members.values()}
        return "live" if "live" in states else "interrupted" if "interrupted" in states else "finished"

    @property
    def log(self) -> str:
        """No log of another tool."""
        return ""

    @property
    def generation(self) -> int:
        """How often the run was resumed, on the rank that was resumed most often."""
        return max(run.generation for run in self._members.values())

    @property
    def committed_at(self) -> float:
        """When the last row of any rank was published, seconds since 1970."""
        return max(run.committed_at for run in self._members.values())

    def __len__(self) -> int:
        return len(self._steps)

    # -- numbers per step -----------------------------------------------------------------------------------------

    def values(self, name: str) -> Series:
        """Return one number per step, merged over the ranks that have the step."""
        if name == "step":
            return self._steps.values()
        return self._grown(name, lambda steps: self._merge(name, steps))

    def loops(self, name: str, rows: Rows = slice(None)) -> Series:
        """Return one number per step and loop, averaged over the tokens of all ranks that reached the loop."""
        steps = self._steps.values()[rows]
        if np.any(steps[1:] <= steps[:-1]):  # asked for in another order
            steps, place = np.unique(steps, return_inverse=True)
            return self._loops_at(name, steps)[place]
        parts = [self._loops_at(name, block) for block in _blocks(steps)]
        return widest(parts) if parts else np.empty((0, 0))

    # -- the fixed probe batch ------------------------------------------------------------------------------------

    @property
    def probe_steps(self) -> Index:
        """Steps at which any rank ran its fixed probe batch."""
        return self._keep("probe_steps", self._line_up_passes)[0]

    def probe(self, name: str) -> Series:
        """Return one number per probe pass and loop, averaged over the tokens of the ranks' batches."""
        steps, at, kept = self._keep("probe_steps", self._line_up_passes)
        return _merge_loops(name, lambda rank, n: self._members[rank].probe(n)[kept[rank]], at, len(steps))

    def variable(self, number: int, name: str) -> tuple[Index, Series]:
        """Return steps, and a number of one variable per step and update, over the tokens of all ranks that have it."""
        kept = {
            rank: outside(run.variable(number, "tokens")[0], self._gone[rank]) for rank, run in self._members.items()
        }
        own = {rank: run.variable(number, "tokens")[0][kept[rank]] for rank, run in self._members.items()}
        steps = united(list(own.values()))
        at: dict[int, Rows] = {rank: np.searchsorted(steps, each) for rank, each in own.items()}
        if name in ("pass", "inner"):  # of the ranks that have a step, those of the longest
            parts = widest([self._members[rank].variable(number, name)[1][kept[rank]] for rank in own])
            table = np.full((len(steps), parts.shape[1]), np.nan)
            for row, values in zip(np.concatenate([np.asarray(at[rank]) for rank in own]), parts, strict=True):
                table[row] = np.fmax(table[row], values)
            return steps.astype(np.int64), table
        merged = _merge_loops(
            name, lambda rank, n: self._members[rank].variable(number, n)[1][kept[rank]], at, len(steps)
        )
        return steps.astype(np.int64), merged

    def spectra(self) -> tuple[Index, NDArray[np.complex128]]:
        """Return eigenvalues of A̅ over time, at each step those of the rank with the largest radius."""
        steps, values = [], []
        for rank, run in self._members.items():
            own, eigenvalues = run.spectra()
            kept = outside(own, self._gone[rank])
            steps.append(own[kept])
            values.append(eigenvalues[kept])
        step, table = np.concatenate(steps), widest(values)
        radius = np.nan_to_num(np.abs(table[:, 0]) if table.shape[1] else np.zeros(len(table)), nan=-1.0)
        order = np.lexsort((-radius, step))  # of equal radii the lowest rank's stays first
        _, first = np.unique(step[order], return_index=True)
        return step[order][first], table[order][first]

    # -- arrays of any shape: rank 0's ----------------------------------------------------------------------------

    @property
    def array_names(self) -> tuple[str, ...]:
        """Every name that ``arrays`` knows."""
        return self._first.array_names

    def arrays(self, name: str, rows: slice) -> tuple[Index, list[NDArray[Any]]]:
        """Return rank 0's arrays of a name: they have no rule to be merged by."""
        return self._first.arrays(name, rows)

    def array_steps(self, name: str) -> Index:
        """Return the steps of rank 0's arrays of a name."""
        return self._first.array_steps(name)

    def array_table(self, name: str) -> tuple[Index, Series]:
        """Return rank 0's arrays of a name as one table."""
        return self._first.array_table(name)

    def array_history(self, prefix: str) -> list[RecordedArray]:
        """Return rank 0's arrays whose name starts with ``prefix``, superseded ones included."""
        return self._first.array_history(prefix)

    # -- events and history ---------------------------------------------------------------------------------------

    @property
    def events(self) -> list[Event]:
        """Events about the ranks, then events that the ranks recorded, by step; the module says how they are merged."""
        return self._wrong + self._said

    def history(self, *names: str) -> dict[str, Series]:
        """Return recorded columns over all rows of all files, one rank after another, with a column ``rank``."""
        runs = self._members.values()
        lengths = [len(run.history("step")["step"]) for run in runs]
        columns = {"rank": np.repeat(np.array(list(self._members), dtype=np.float64), lengths)}
        for name in names or self._names:
            parts = [
                run.history(name)[name] if name in run else np.full(length, np.nan)
                for run, length in zip(runs, lengths, strict=True)
            ]
            columns[name] = np.concatenate(parts)
        return columns

    # -- following a live run -------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Look for new rows of all ranks and for new ranks; True when anything changed."""
        changed = False
        for rank, run in list(self._files.items()):
            try:
                changed |= run.refresh()
            except RunFileError as error:
                if rank == 0:
                    raise
                self._files.pop(rank).close()
                self._unreadable[rank] = _stamp(run.path), str(error)
        changed |= self._survey()
        changed |= any(run.changed_from < math.inf for run in self._members.values())  # refreshed by itself
        if changed:
            self._line_up()
        return changed

    def close(self) -> None:
        """Give all files back; what was read stays usable. A second call does nothing."""
        for run in self._files.values():
            run.close()

    # -- behind it ------------------------------------------------------------------------------------------------

    def _survey(self) -> bool:
        """Open what is there now and decide what is of this run; True when that, or what is wrong with it, changed."""
        sizes = world_sizes(self._first)
        for rank, path in rank_files(self.path, max(sizes, default=1)).items():
            if rank not in self._files:
                self._try_to_open(rank, path)
        others = {rank: run for rank, run in sorted(self._files.items()) if rank}
        foreign = {rank: why for rank, run in others.items() if (why := why_foreign(self._first, run, rank))}
        members = {0: self._first} | {rank: run for rank, run in others.items() if rank not in foreign}
        foreign = {rank: why for rank, why in foreign.items() if not only_named_so(self._first, others[rank], rank)}
        unreadable = {rank: why for rank, (_, why) in sorted(self._unreadable.items())}
        wrong = what_is_wrong(members, foreign, unreadable)
        changed = (list(members), wrong) != (list(self._members), self._wrong)
        if list(members) != list(self._members):
            self._gone = {}  # nothing that was merged of others holds
        self._members, self._wrong = members, wrong
        return changed

    def _try_to_open(self, rank: int, path: Path) -> None:
        """Open a rank's file; one that could not be read is tried again when it has changed."""
        stamp = _stamp(path)
        if self._unreadable.get(rank, (None, ""))[0] == stamp:
            return
        try:
            self._files[rank] = FileSource(path)
            self._unreadable.pop(rank, None)
        except RunFileError as error:
            self._unreadable[rank] = stamp, str(error)

    def _line_up(self) -> None:
        """Take in what the ranks recorded: what was merged stays, up to the first step at which one of them changed."""
        self._kept.clear()
        self.info = self._first.info | {"ranks": list(self._members)}
        self._names = tuple(dict.fromkeys(name for run in self._members.values() for name in run.names))
        back = went_back(self._first)
        gone = self._abandoned(back)
        since = min(run.changed_from for run in self._members.values()) if gone == self._gone else -math.inf
        tails = [run.values("step", slice(run.first_at(since), None)) for run in self._members.values()]
        new = united([own[outside(own, gone[rank])] for rank, own in zip(gone, tails, strict=True)])
        kept = int(np.searchsorted(self._steps.values(), since))
        for column in (self._steps, *self._merged.values()):
            column.truncate(kept)
        self._steps.append(new)
        self._back, self._gone = back, gone
        self._said = self._merge_events()
        for run in self._members.values():
            run.looked()

    def _abandoned(self, back: list[tuple[float, float]]) -> dict[int, Intervals]:
        """Return the steps of each rank that the run went back behind without it; where that is enough, by new rows."""
        intervals: dict[int, Intervals] = {0: []}
        for rank, run in self._members.items():
            known = self._gone.get(rank)
            if rank == 0 or not back:
                intervals[rank] = []
            elif known is not None and back == self._back and self._only_newer(run, known):
                intervals[rank] = known
            else:
                intervals[rank] = abandoned(back, run.values("step"), run.values("time"))
        return intervals

    def _only_newer(self, run: FileSource, known: Intervals) -> bool:
        """Return whether all that is new of a rank was recorded after the run went back for the last time."""
        times = run.values("time", slice(run.first_at(run.changed_from), None))
        latest = max(moment for _, moment in self._back)
        return bool(np.all(times >= latest)) and all(end < run.changed_from for _, end in known)

    def _keep(self, key: str, make: Callable[[], T]) -> T:
        """Return what ``make`` gives, made once until something new was read."""
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    def _grown(self, key: str, merge: Callable[[Series], Series]) -> Series:
        """Return one number per step, asking ``merge`` for those of the steps only that are not known yet."""
        column = self._merged.setdefault(key, Growing(np.float64))
        for steps in _blocks(self._steps.values()[len(column) :]):
            column.append(merge(steps))
        return column.values()

    def _places(self, steps: Series) -> dict[int, tuple[Rows, Rows]]:
        """Return which of each rank's rows are of some of the steps, given in order, and where they go among those."""
        return {rank: self._places_of(rank, steps) for rank in self._members}

    def _places_of(self, rank: int, steps: Series) -> tuple[Rows, Rows]:
        """Return which of a rank's rows are of some of the steps, and where they go among those."""
        run, gone = self._members[rank], self._gone[rank]
        first, end = run.first_at(steps[0]), run.first_at(np.nextafter(steps[-1], np.inf))
        own = run.values("step", slice(first, end))
        if not gone and np.array_equal(own, steps[: len(own)]):  # the usual case, without a copy
            return slice(first, end), slice(0, end - first)
        at = np.minimum(np.searchsorted(steps, own), len(steps) - 1)
        mine = np.flatnonzero((steps[at] == own) & outside(own, gone))
        return first + mine, at[mine]

    def _spread(self, name: str, steps: Series, read: Callable[[FileSource, Rows], Series]) -> Series:
        """Return what ``read`` gives of every rank, ``(ranks, steps)``, NaN where a rank has no such step or column."""
        table = np.full((len(self._members), len(steps)), np.nan)
        for row, (rank, (rows, at)) in zip(table, self._places(steps).items(), strict=True):
            if name in self._members[rank]:
                row[at] = read(self._members[rank], rows)
        return table

    def _merge(self, name: str, steps: Series) -> Series:
        """Return a step column over all ranks at some steps."""
        values = self._spread(name, steps, lambda run, rows: run.values(name, rows))
        nonfinite = self._spread("nonfinite", steps, lambda run, rows: run.values("nonfinite", rows))
        tokens = None
        if REDUCTIONS.get(name) == "token mean":
            tokens = self._spread("tokens", steps, lambda run, rows: run.at_loop("tokens", 0, rows))
        return merge_column(name, values, nonfinite, tokens)

    def _loops_at(self, name: str, steps: Series) -> Series:
        """Return a per-loop number over all ranks at some steps."""
        places = self._places(steps)
        return _merge_loops(
            name,
            lambda rank, column: self._members[rank].loops(column, places[rank][0]),
            {rank: at for rank, (_, at) in places.items()},
            len(steps),
        )

    def _line_up_passes(self) -> tuple[Index, dict[int, Index], dict[int, Index]]:
        """Return the steps of probe passes, where each rank's are among them, and which of its passes count."""
        steps = {rank: run.probe_steps for rank, run in self._members.items()}
        kept = {rank: np.flatnonzero(outside(own, self._gone[rank])) for rank, own in steps.items()}
        union = united([own[kept[rank]] for rank, own in steps.items()])
        return union, {rank: np.searchsorted(union, own[kept[rank]]) for rank, own in steps.items()}, kept

    def last(self, name: str, back: int) -> Series:
        """Return the loop number ``back`` rows before the end of every step, of the merged loops."""

        def merge(steps: Series) -> Series:
            return last_of(self._loops_at(name, steps), self._loops_at("tokens", steps), back)

        return self._grown(f"last {name}", merge)

    def at_loops(self, name: str, loops: Sequence[int]) -> list[Series]:
        """Return a number of some loops of every step, of the merged loops."""
        late = {loop: self.last(name, -1 - loop) for loop in loops if loop < 0}
        early = {loop: np.full(len(self), np.nan) for loop in loops if loop >= 0}
        for start in range(0, len(self) if early else 0, _BLOCK):
            rows = slice(start, min(start + _BLOCK, len(self)))
            table = self.loops(name, rows)
            for loop, values in early.items():
                if table.shape[1] > loop:
                    values[rows] = table[:, loop]
        return [(early if loop in early else late)[loop] for loop in loops]

    def _merge_events(self) -> list[Event]:
        """Return the events of all ranks by step, those of one kind at one step as one."""
        said: dict[tuple[int, str, str, int], dict[int, Event]] = {}
        for rank, run in self._members.items():
            before: Counter[tuple[int, str, str]] = Counter()  # one rank may say two things of a kind at one step
            for event in run.events:
                key = (event.step, event.kind, event.severity)
                if outside(np.array([event.step]), self._gone[rank])[0]:
                    said.setdefault((*key, before[key]), {})[rank] = event
                before[key] += 1
        merged = [_one_event(events, len(self._members)) for events in said.values()]
        return sorted(merged, key=lambda event: event.step)


def _merge_loops(name: str, read: Callable[[int, str], Series], at: Mapping[int, Rows], length: int) -> Series:
    """Return a per-loop number over all ranks; ``read`` gives that of one rank, ``at`` where its rows go."""
    where = list(at.values())
    tokens = [read(rank, "tokens") for rank in at]
    if name == "tokens":
        return merge_tokens(tokens, where, length)
    return merge_loops(name, [read(rank, name) for rank in at], tokens, where, length)


def _blocks(steps: Series) -> Iterator[Series]:
    """Split steps into parts that the processor's caches hold."""
    for start in range(0, len(steps), _BLOCK):
        yield steps[start : start + _BLOCK]


def _one_event(said: Mapping[int, Event], ranks: int) -> Event:
    """Return what several ranks said as one event: the worst of them, and who said it."""
    worst = max(said.values(), key=lambda event: (math.isnan(event.value), event.value))
    who = f"all {ranks} ranks" if len(said) == ranks > 1 else in_words(list(said))
    return replace(worst, time=min(event.time for event in said.values()), message=f"{worst.message} ({who})")


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when a file does; of one that cannot be reached, nothing."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
