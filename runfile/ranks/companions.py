"""Which rank files belong to a run, and what is wrong with the others.

A name is no proof: a file may be left over from an older run of the same name. Ranks of one run train side by side, so
theirs were written at the same time as rank 0's and by as many ranks; both is recorded by `attach` in every file, and
nothing has to be agreed on between processes. What does not belong is left out, with an event of a kind in
``RANK_EVENTS``; the diagnosis turns those into findings.

Not covered: clocks of hosts that differ by more than a run lasts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..disk.handle import LOCK
from ..file_source import FileSource
from ..layout import Event, RunFileError, Severity
from ..rank_names import rank_files, rank_of, rank_path, run_path
from ..source import Recording

_MOST_RANKS: Final = 1 << 16  # whatever says more is damaged
Intervals = list[tuple[float, float]]
RANK_EVENTS: Final = ("rank_missing", "rank_unreadable", "rank_foreign", "rank_ended")
WORLD_SIZE: Final = "world_size"
"""Kind of the event that a resume on another number of ranks leaves; its value is that number."""


def of_several_ranks(run: Recording) -> bool:
    """Return whether a run has, or should have, files of further ranks; a run without costs one look at the disk."""
    return not rank_of(run.path) and (max(world_sizes(run), default=1) > 1 or bool(rank_files(run.path)))


def world_sizes(run: Recording) -> list[int]:
    """Return the numbers of ranks that a run was recorded on, the present one last; empty where no file says."""
    begun = _number(run, "world_size")
    resumed = [event.value for event in run.events if event.kind == WORLD_SIZE]
    return [int(size) for size in (begun, *resumed) if size and 1 <= size <= _MOST_RANKS]  # false for NaN


def _number(run: Recording, name: str) -> float | None:
    """Return a number of the description; None where it is not there or is none."""
    said = run.info.get(name)
    return said if isinstance(said, int | float) and math.isfinite(said) else None


def separate_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the paths without the rank files of a run that is among them too: those are parts of it, not runs.

    A file that is only named like a rank (``lora.rank8.h5``) is a run of its own, and stays. So does one whose run is
    not given, which is then that rank alone.
    """
    listed = list(paths)
    there = {path.absolute() for path in listed}
    return [path for path in listed if run_path(path).absolute() not in there or not belongs(path)]


def belongs(path: Path) -> bool:
    """Return whether a file named like a rank is one of the run that lies beside it.

    It is when the run had as many ranks, and both were written at the same time. Where no process knew how many ranks
    there are, files of all lower ranks lie beside it too. One that cannot be read is taken for what its name says.
    """
    rank, first = rank_of(path), run_path(path)
    if not rank or not first.exists():
        return False
    try:
        with LOCK:
            one = FileSource(first)
            try:
                other = FileSource(path)
                other.close()
            finally:
                one.close()
    except RunFileError:
        return all(rank_path(first, lower).exists() for lower in range(1, rank))
    return _is_rank(one, other, rank)


def only_named_so(first: Recording, other: Recording, rank: int) -> bool:
    """Return whether a file claims nowhere but in its name to be a rank, and the run has no such rank.

    >>> from types import SimpleNamespace as Run
    >>> alone = Run(info={"world_size": 1}, events=[])
    >>> only_named_so(alone, alone, 8), only_named_so(alone, Run(info={"world_size": 16}, events=[]), 8)
    (True, False)
    """
    return rank >= max(world_sizes(first), default=1) and (_number(other, "world_size") or 1) <= 1


def _is_rank(first: Recording, other: Recording, rank: int) -> bool:
    """Return whether a recording is a rank of a run."""
    if why_foreign(first, other, rank):
        return False
    sizes = world_sizes(first)
    return rank < max(sizes) if sizes else all(rank_path(first.path, lower).exists() for lower in range(1, rank))


def resumed_on(world_size: int | None, run: Recording) -> int | None:
    """Return the number of ranks that a resume has to note in the file; None where the file has it already.

    A process that knows no number has no process group: it trains alone.
    """
    known, now = world_sizes(run), world_size or 1
    return now if known and {known[0], known[-1]} != {now} else None


def why_foreign(first: Recording, other: Recording, rank: int) -> str:
    """Say why a file named like a rank of a run is not of it, ``""`` when it is."""
    says, sizes, size = other.info.get("rank", rank), world_sizes(first), _number(other, "world_size")
    if says != rank:
        return f"it holds rank {says}"
    if size and sizes and size not in sizes:
        return f"it is one of {size} ranks, and this run has {sizes[-1]}"
    began, other_began = _number(first, "started"), _number(other, "started")
    if began and other.committed_at < began and other.state != "live":
        return "it ended before this run began"
    if other_began and other_began > first.committed_at and first.state != "live":
        return "it began after this run ended"
    return ""


def went_back(first: Recording) -> list[tuple[float, float]]:
    """Return the steps that a run went back to when it was resumed, and when."""
    if not first.generation:
        return []
    rows, returns = first.history("step", "time", "generation"), []
    for generation in range(1, first.generation + 1):
        begin = int(np.searchsorted(rows["generation"], generation))  # they never fall
        if 0 < begin < len(rows["step"]) and rows["generation"][begin] == generation:
            moment = (rows["time"][begin - 1] + rows["time"][begin]) / 2  # clocks of hosts may differ a little
            returns.append((float(rows["step"][begin]), float(moment)))
    return returns


def abandoned(back: Sequence[tuple[float, float]], steps: NDArray[Any], times: NDArray[Any]) -> Intervals:
    """Return the steps, as intervals, that a rank recorded and that the run then went back behind without it.

    A run of four ranks that is resumed on two from an older checkpoint leaves steps in the files of the other two that
    belong to a branch that no longer exists. Rank 0 knows when it went back and to which step (`went_back`).

    >>> abandoned([(2.0, 9.5)], np.array([0, 1, 2, 3, 4]), np.array([5, 6, 7, 8, 10]))
    [(2.0, 3.0)]
    """
    intervals = []
    for step, moment in back:
        before = steps[times < moment]
        if len(before) and before[-1] >= step:
            intervals.append((step, float(before[-1])))
    return intervals


def outside(steps: NDArray[Any], intervals: Intervals) -> NDArray[np.bool_]:
    """Return which steps lie in none of the closed intervals.

    >>> outside(np.arange(5), [(1, 2), (4, 9)]).tolist()
    [True, False, False, True, False]
    """
    kept = np.ones(len(steps), dtype=bool)
    for first, last in intervals:
        kept &= (steps < first) | (steps > last)
    return kept


def what_is_wrong(
    runs: Mapping[int, FileSource], foreign: Mapping[int, str], unreadable: Mapping[int, str]
) -> list[Event]:
    """Return one event for every rank whose numbers are not in the merged view, or not to its end.

    Args:
        runs: The ranks that are merged.
        foreign: Ranks whose file is of another run, and why it is.
        unreadable: Ranks whose file cannot be read, and the error.
    """
    begin, end = _span(runs)
    sizes = world_sizes(runs[0])
    wanted = sizes[-1] if sizes else None
    there = runs.keys() | foreign.keys() | unreadable.keys()
    missing = [rank for rank in range(1, wanted or 1) if rank not in there]
    events = [
        *(_event("rank_unreadable", "error", begin, f"rank {n} is left out: {why}") for n, why in unreadable.items()),
        *(_event("rank_foreign", "warning", begin, _left_over(n, why, wanted or 1)) for n, why in foreign.items()),
    ]
    if missing:
        alone = len(runs) == 1 and not foreign and not unreadable  # a probe on rank 0 only, as many attach it
        text = f"{in_words(missing)} of {wanted} left no file: the numbers are those of {in_words(sorted(runs))}"
        events.append(_event("rank_missing", "note" if alone else "warning", begin, text))
    return [*events, *_ended_early(runs, wanted, end)]


def _ended_early(runs: Mapping[int, FileSource], wanted: int | None, end: int) -> list[Event]:
    """Return an event for every rank that is not writing any more and stopped before the last step."""
    went_on = any(run.state != "interrupted" for run in runs.values())
    events: list[Event] = []
    if not any(len(run) for run in runs.values()):
        return events
    for rank, run in runs.items():
        last = run.step_at(-1) if len(run) else None
        # A rank that a resume left out has not died.
        if run.state == "live" or last == end or (wanted is not None and rank >= wanted):
            continue
        until = "recorded no step" if last is None else f"stopped at step {last}"
        text = f"rank {rank} {until}, the run went on to step {end}: later numbers are without it"
        # All of them killed at once differ by the rows that were not yet flushed.
        events.append(_event("rank_ended", "warning" if went_on else "note", last or 0, text))
    return events


def _span(runs: Mapping[int, FileSource]) -> tuple[int, int]:
    """Return the first and the last step that any rank recorded; 0 without rows."""
    steps = [(run.step_at(0), run.step_at(-1)) for run in runs.values() if len(run)]
    return min((first for first, _ in steps), default=0), max((last for _, last in steps), default=0)


def _left_over(rank: int, why: str, wanted: int) -> str:
    """Say that a file is of another run, and whether a rank of this one is missing therefore."""
    said = f"the file named as rank {rank} is of another run and left out: {why}"
    return f"{said}; this run lacks its rank {rank}" if rank < wanted else f"{said}; delete the file"


def _event(kind: str, severity: Severity, step: int, message: str) -> Event:
    """Return an event that no process recorded, so that it has no time."""
    return Event(step=step, time=0.0, kind=kind, severity=severity, message=message)


def in_words(ranks: Sequence[int]) -> str:
    """Say which ranks.

    >>> in_words([0]), in_words([1, 2, 3, 7])
    ('rank 0', 'ranks 1 to 3, 7')
    """
    stretches: list[list[int]] = []
    for rank in ranks:
        if stretches and rank == stretches[-1][-1] + 1:
            stretches[-1].append(rank)
        else:
            stretches.append([rank])
    said = [f"{s[0]} to {s[-1]}" if len(s) > 2 else ", ".join(map(str, s)) for s in stretches]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(said)}"
