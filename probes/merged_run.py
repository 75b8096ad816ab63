"""The files of several ranks as one run, with the interface of a ``Run``.

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
- events of one kind at one step are one event: the worst value, the earliest time, and which ranks said it. What is to
  be said of the ranks themselves comes first (`companions`);
- arrays of any shape, and flights with them, are those of rank 0;
- the run is live while any rank is, finished when all its files are.

Not covered: anything that is told apart by rank; ``ranks`` holds each as a run of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .companions import abandoned, in_words, outside, what_is_wrong, why_foreign, world_sizes
from .handle import LOCK
from .layout import Event, RunFileError
from .merge import REDUCTIONS, align, last_of, merge_column, merge_loops, merge_tokens, spread, widest
from .ranks import rank_files
from .reader import RecordedArray, Run, Series, State, _frozen

Index = NDArray[np.int64]
T = TypeVar("T")


class MergedRun(Run):
    """A run of several ranks, as arrays over its steps. Made by ``open_run``.

    Rank files that appear later are taken in by ``refresh``. A rank that is missing, unreadable, of another run or gone
    early is an event; the rest of the run is shown.

    Args:
        first: Rank 0 alone; closed with the merged view.

    >>> import tempfile
    >>> from loopscope.probes.writer import RunWriter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for rank, name in enumerate(("a.h5", "a.rank1.h5")):
    ...         with RunWriter.create(Path(folder) / name, info={"rank": rank, "world_size": 2}) as writer:
    ...             writer.append_step({"step": 0, "loss": 2.0 + rank, "a_bar_radius": 0.5 + rank})
    ...     with MergedRun(Run(Path(folder) / "a.h5")) as run:
    ...         run["loss"], run["a_bar_radius"], run.ranks[1]["loss"]
    (array([2.5]), array([1.5]), array([3.]))
    """

    # One file's ``__init__`` would open another handle. Of what ``Run`` does by itself, this class uses only what asks
    # the public methods below.
    def __init__(self, first: Run) -> None:
        self.path = first.path
        self._first = first
        self._files: dict[int, Run] = {0: first}  # whatever could be opened, of this run or not
        self._unreadable: dict[int, tuple[tuple[int, ...], str]] = {}  # what could not, as it was then, and why
        self._members: dict[int, Run] = {}
        self._wrong: list[Event] = []
        self._kept: dict[str, Any] = {}
        with LOCK:
            self._survey()
            self._line_up()

    # -- what the run is ------------------------------------------------------------------------------------------

    @property
    def ranks(self) -> Mapping[int, Run]:
        """The ranks that are merged, each as a run of its own."""
        return dict(self._members)

    @property
    def state(self) -> State:
        """``live`` while any rank is being written, ``finished`` when all files are, else ``interrupted``."""
        states = {run.state for run in self._members.values()}
        return "live" if "live" in states else "interrupted" if "interrupted" in states else "finished"

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

    def __repr__(self) -> str:
        return f"MergedRun({str(self.path)!r}, {len(self._members)} ranks, {self.state}, {len(self)} steps)"

    # -- numbers per step -----------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Series:
        """Return one number per step, merged over the ranks that have the step.

        Raises:
            KeyError: There is no such name (the message lists the known ones).
        """
        with LOCK:
            if name == "step":
                return _frozen(self._steps.astype(np.float64))
            if name in self._names:
                return _frozen(self._keep(f"step {name}", lambda: self._merge(name)))
            return super().__getitem__(name)

    def loops(self, name: str, rows: slice | Index = slice(None)) -> Series:
        """Return one number per step and loop, averaged over the tokens of all ranks that reached the loop."""
        with LOCK:
            wanted = np.arange(len(self._steps))[rows]
            place = np.full(len(self._steps), -1)
            place[wanted] = np.arange(len(wanted))
            asked = {rank: place[at] for rank, at in self._at.items()}
            mine = {rank: self._rows[rank][at >= 0] for rank, at in asked.items()}
            return self._merge_loops(
                name,
                lambda rank, column: self._members[rank].loops(column, mine[rank]),
                {rank: at[at >= 0] for rank, at in asked.items()},
                len(wanted),
            )

    # -- the fixed probe batch ------------------------------------------------------------------------------------

    @property
    def probe_steps(self) -> Index:
        """Steps at which any rank ran its fixed probe batch."""
        with LOCK:
            return _frozen(self._keep("probe_steps", self._align_probe)[0])

    def probe(self, name: str) -> Series:
        """Return one number per probe pass and loop, averaged over the tokens of the ranks' batches."""
        with LOCK:
            steps, at, kept = self._keep("probe_steps", self._align_probe)
            return self._merge_loops(name, lambda rank, n: self._members[rank].probe(n)[kept[rank]], at, len(steps))

    def spectra(self) -> tuple[Index, NDArray[np.complex128]]:
        """Return eigenvalues of A̅ over time, at each step those of the rank with the largest radius."""
        with LOCK:
            steps, values = [], []
            for rank, run in self._members.items():
                own, found = run.spectra()
                kept = outside(own, self._gone[rank])
                steps.append(own[kept])
                values.append(found[kept])
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

    def arrays(self, name: str, rows: slice = slice(None)) -> tuple[Index, list[NDArray[Any]]]:
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
        """What is to be said of the ranks, then what they found, by step; see the module for how events are merged."""
        return list(self._events)

    def history(self, *names: str) -> dict[str, Series]:
        """Return recorded columns over all rows of all files, one rank after another, with a column ``rank``."""
        with LOCK:
            runs = self._members.values()
            lengths = [len(run.history("step")["step"]) for run in runs]
            found = {"rank": np.repeat(np.array(list(self._members), dtype=np.float64), lengths)}
            for name in names or self._names:
                parts = [
                    run.history(name)[name] if name in run._names else np.full(length, np.nan)
                    for run, length in zip(runs, lengths, strict=True)
                ]
                found[name] = np.concatenate(parts)
            return found

    # -- following a live run -------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Look for new rows of all ranks and for new ranks; True when anything changed."""
        with LOCK:
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
            if changed:
                self._line_up()
            return changed

    def close(self) -> None:
        """Give all files back; what was read stays usable. Harmless when repeated."""
        with LOCK:
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
        unreadable = {rank: why for rank, (_, why) in sorted(self._unreadable.items())}
        wrong = what_is_wrong(members, foreign, unreadable)
        changed = (list(members), wrong) != (list(self._members), self._wrong)
        self._members, self._wrong = members, wrong
        return changed

    def _try_to_open(self, rank: int, path: Path) -> None:
        """Open a rank's file; one that could not be read is tried again when it has changed."""
        stamp = _stamp(path)
        if self._unreadable.get(rank, (None, ""))[0] == stamp:
            return
        try:
            self._files[rank] = Run(path)
            self._unreadable.pop(rank, None)
        except RunFileError as error:
            self._unreadable[rank] = stamp, str(error)

    def _line_up(self) -> None:
        """Find which rows of which rank make up the steps, and forget what was merged before."""
        self._kept.clear()
        self.info = self._first.info | {"ranks": list(self._members)}
        self._names = dict.fromkeys((name for run in self._members.values() for name in run._names), 0)
        self._gone = {rank: abandoned(self._first, run) if rank else [] for rank, run in self._members.items()}
        steps = {rank: run["step"].astype(np.int64) for rank, run in self._members.items()}
        self._rows = {rank: np.flatnonzero(outside(own, self._gone[rank])) for rank, own in steps.items()}
        self._steps, at = align([own[self._rows[rank]] for rank, own in steps.items()])
        self._at = dict(zip(self._members, at, strict=True))
        self._events = self._wrong + self._merge_events()

    def _keep(self, key: str, make: Callable[[], T]) -> T:
        """Return what ``make`` gives, made once until something new was read."""
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    def _spread(self, name: str) -> Series:
        """Return a step column of every rank, ``(ranks, steps)``, NaN where a rank has none."""
        columns = [
            run[name][self._rows[rank]] if name in run._names else np.full(len(self._rows[rank]), np.nan)
            for rank, run in self._members.items()
        ]
        return spread(columns, list(self._at.values()), len(self._steps))

    def _merge(self, name: str) -> Series:
        """Return a step column over all ranks."""
        tokens = self._spread_tokens() if REDUCTIONS.get(name) == "token mean" else None
        return merge_column(name, self._spread(name), self._spread("nonfinite"), tokens)

    def _spread_tokens(self) -> Series:
        """Return how many tokens every rank's steps had, those of its first loop."""
        first = []
        for rank, run in self._members.items():
            tokens = run.loops("tokens", self._rows[rank])
            first.append(tokens[:, 0] if tokens.shape[1] else np.full(len(tokens), np.nan))
        return spread(first, list(self._at.values()), len(self._steps))

    def _merge_loops(self, name: str, read: Callable[[int, str], Series], at: dict[int, Index], length: int) -> Series:
        """Return a per-loop number over all ranks; ``read`` gives that of one rank, ``at`` where its rows go."""
        where = list(at.values())
        tokens = [read(rank, "tokens") for rank in at]
        if name == "tokens":
            return merge_tokens(tokens, where, length)
        return merge_loops(name, [read(rank, name) for rank in at], tokens, where, length)

    def _align_probe(self) -> tuple[Index, dict[int, Index], dict[int, Index]]:
        """Return the steps of probe passes, where each rank's are among them, and which of its passes count."""
        steps = {rank: run.probe_steps for rank, run in self._members.items()}
        kept = {rank: np.flatnonzero(outside(own, self._gone[rank])) for rank, own in steps.items()}
        union, at = align([own[kept[rank]] for rank, own in steps.items()])
        return union, dict(zip(self._members, at, strict=True)), kept

    def _last(self, name: str, back: int) -> Series:
        """Return the loop number ``back`` rows before the end of every step, of the merged loops."""
        return self._keep(f"last {name}", lambda: last_of(self.loops(name), self.loops("tokens"), back))

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
