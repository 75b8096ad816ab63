"""Makes run files whole again after a kill, a cut-off copy or a bad disk, and says what it found and did.

A killed run needs no repair to be read or resumed: opening it for writing undoes the kill (`handle.make_writable`,
which settles the superblock). Repairing it only closes it cleanly, so that any HDF5 tool opens it.
A damaged run is salvaged: the longest beginning in which every table is readable and fits the others.

Not covered: files whose root or table headers are gone (nothing says where the rows are), and wrong numbers in
uncompressed live files, which carry no checksum of them.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import h5py

from ..layout import STEP_COLUMNS, TABLES, Commit, DamagedRun, RunFileError, RunInUse
from . import handle as handles
from .handle import LOCK
from .integrity import (
    READ_ERRORS,
    check_format,
    check_hdf5,
    commits_whole,
    last_commit,
    one_line,
    readable_rows,
    tables_in,
)
from .lease import Lease, is_held, lease_path
from .proven import names_intact, proven_lengths
from .rewrite import attributes_intact, copy_run, temporary_path
from .superblock import Superblock, open_clean
from .trial import in_a_child, needs_trial

_BLOCK: Final = 16384  # rows decoded at a time while looking for unreadable ones


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What ``repair`` found and did.

    Attributes:
        path: The file that is whole now: the run itself, or its repaired copy.
        found: ``"whole"``, ``"unclosed"`` (killed, nothing missing) or ``"damaged"``.
        rows: Steps in it, all generations.
        rows_lost: Committed steps that could not be read any more.
        backup: Where the damaged original is kept; None when nothing had to be left out.
        actions: What was found and done, in sentences.
    """

    path: Path
    found: Literal["whole", "unclosed", "damaged"]
    rows: int
    rows_lost: int
    backup: Path | None
    actions: tuple[str, ...]


def repair(path: str | os.PathLike[str], *, in_place: bool = False) -> RepairReport:
    """Make a run file whole: close it cleanly, and leave out what cannot be read any more.

    Args:
        path: The run file.
        in_place: Repair the file itself, keeping the original beside it (``.bak``) when anything has to be left out.
            Otherwise the original stays untouched and a copy, ``name.repaired.h5``, is repaired.

    Raises:
        RunInUse: A live process is writing the run.
        NotARun: The path is something else.
        DamagedRun: Nothing can be recovered.
        RunFileError: There is no such file, the copy exists already, or the folder cannot be written to.

    Reads the whole file once; copies it first unless ``in_place``.

    >>> import tempfile
    >>> from loopscope.runfile.writer import RunWriter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RunWriter.create(Path(folder) / "a.h5", info={}) as writer:
    ...         writer.append_step({"step": 0, "loss": 2.5})
    ...     repair(writer.path, in_place=True).actions
    ('nothing to repair',)
    """
    original = Path(path)
    handles.file_key(original)
    check_hdf5(original)
    if needs_trial(original):
        return _elsewhere(original, in_place)
    if is_held(original):
        raise RunInUse(f"{original}: a live process is writing this run; stop it before repairing")
    target = original
    if not in_place:
        target = original.with_name(f"{original.stem}.repaired{original.suffix}")
        if target.exists():
            raise RunFileError(f"{target}: exists already; remove it or repair in place")
        _copy(original, target)
    try:
        report = _repair(target)
    except BaseException:
        if not in_place:
            target.unlink(missing_ok=True)
        raise
    if report.backup is not None and not in_place:  # the untouched original is the backup
        report.backup.unlink()
        actions = tuple(action for action in report.actions if str(report.backup) not in action)
        return RepairReport(target, report.found, report.rows, report.rows_lost, original, actions)
    return report


def _elsewhere(path: Path, in_place: bool) -> RepairReport:
    """Have a process of its own repair a file that may bring HDF5 down."""
    said = in_a_child("repair", path, *(("in-place",) if in_place else ()))
    said |= {"path": Path(said["path"]), "backup": said["backup"] and Path(said["backup"])}
    return RepairReport(**said | {"actions": tuple(said["actions"])})


def _repair(path: Path) -> RepairReport:
    """Repair one file in place while holding its lease."""
    actions: list[str] = []
    if lease_path(path).exists():
        actions.append("removed the lease of a process that is gone")
    lease = Lease(path)
    try:
        with LOCK:
            if (leftover := temporary_path(path)).exists():
                leftover.unlink()
                actions.append(f"removed {leftover.name}, left by an unfinished rewrite")
            with open_clean(path) as file:
                check_format(path, file)
                kept, wanted, commit = _examine(path, file)
                if kept != wanted or commit is None or not (names_intact(file) and attributes_intact(file)):
                    return _salvage(path, file, commit, kept, wanted, actions)
                beyond = int(file["steps"].shape[0]) - kept["steps"]
            return _close_cleanly(path, kept["steps"], beyond, actions)
    except DamagedRun as error:
        reason = str(error).removeprefix(f"{path}: ").split(";")[0]
        raise DamagedRun(f"{path}: cannot be repaired ({reason}); restore it from a copy") from None
    except OSError as error:
        reason = one_line(error)
        if error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EPERM, errno.EDQUOT):
            raise RunFileError(f"{path}: cannot be repaired ({reason}); check folder and disk") from None
        raise DamagedRun(f"{path}: cannot be repaired ({reason}); restore it from a copy") from None
    except READ_ERRORS as error:
        raise DamagedRun(f"{path}: cannot be repaired ({one_line(error)}); restore it from a copy") from None
    finally:
        lease.release()


def _close_cleanly(path: Path, rows: int, beyond: int, actions: list[str]) -> RepairReport:
    """Finish a file in which nothing is missing."""
    backup = None
    if Superblock.read(path) is None:
        backup = _backup(path)
        block = Superblock.read(path, verify=False)
        assert block is not None
        block.settle(path, path.stat().st_size)
        actions += [f"the original is kept as {backup}", "the file's first bytes were wrong and were recomputed"]
    if beyond > 0:
        actions.append(f"up to {beyond} steps behind the last commit were never acknowledged and stay ignored")
    unclosed = handles.make_writable(path)
    if unclosed:
        actions.append("closed the file that a killed process had left open")
    state: Literal["damaged", "unclosed", "whole"] = "damaged" if backup else "unclosed" if unclosed else "whole"
    return RepairReport(path, state, rows, 0, backup, tuple(actions or ["nothing to repair"]))


def _examine(path: Path, file: h5py.File) -> tuple[dict[str, int], dict[str, int], Commit | None]:
    """Read everything; return the lengths that can be kept, those that were committed, and the last commit."""
    size = path.stat().st_size
    missing = dict.fromkeys(TABLES, 0)  # of an older version; what has no rows is kept whole
    readable = missing | {table: _readable(file[table], size) for table in (*tables_in(file), "commit")}
    there = missing | {table: int(file[table].shape[0]) for table in tables_in(file)}
    commit, at = last_commit(file["commit"], readable["commit"])
    kept = missing
    if commit is not None:
        bound = {table: min(readable[table], commit.lengths[table]) for table in TABLES}
        kept = proven_lengths(file, bound, recorded=True)
        if commits_whole(file["commit"], at):
            return kept, commit.lengths, commit
    # Newer rows than those of the last readable commit row, if there is any, were published.
    sealed = file.attrs.get("layout") == "sealed"
    proven = proven_lengths(file, readable, recorded=sealed)
    return {table: max(kept[table], proven[table]) for table in TABLES}, there, None


def _salvage(
    path: Path, file: h5py.File, last: Commit | None, kept: dict[str, int], wanted: dict[str, int], actions: list[str]
) -> RepairReport:
    """Replace a damaged file by what can be kept of it, the original put beside it."""
    backup = _backup(path)
    generation = last.generation if last is not None else _last_generation(file, kept["steps"])
    commit = Commit(kept, generation, False, last.time_ns if last is not None else time.time_ns())
    copy_run(file, temporary_path(path), commit, "sealed")
    temporary_path(path).replace(path)
    lost = {table: wanted[table] - kept[table] for table in TABLES if wanted[table] > kept[table]}
    beside = "the commit rows" if last is None else "names of columns or the description of the run"
    missing = ", ".join(f"{n} rows of {table}" for table, n in lost.items()) or beside
    actions += [f"the original is kept as {backup}", f"could not be read: {missing}", f"kept {kept['steps']} steps"]
    return RepairReport(path, "damaged", kept["steps"], lost.get("steps", 0), backup, tuple(actions))


def _readable(dataset: Any, size: int) -> int:
    """Return how many leading rows of a table are inside a file of ``size`` bytes and can be decoded."""
    inside = readable_rows(dataset, size)
    block = max(_BLOCK, *dataset.chunks[:1]) if dataset.chunks else _BLOCK
    for start in range(0, inside, block):
        stop = min(start + block, inside)
        try:
            dataset[start:stop]
        except READ_ERRORS:
            return _readable_within(dataset, start, stop)
    return inside


def _readable_within(dataset: Any, start: int, stop: int) -> int:
    """Return up to where rows ``start:stop`` can be decoded, by halving."""
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            dataset[start:middle]
        except READ_ERRORS:
            stop = middle
        else:
            start = middle
    return start


def _last_generation(file: h5py.File, steps: int) -> int:
    """Return the generation of the last step, 0 without any."""
    value = float(file["steps"][steps - 1, STEP_COLUMNS.index("generation")]) if steps else 0.0
    return int(value) if math.isfinite(value) else 0


def _backup(path: Path) -> Path:
    """Copy a file beside itself, never over an older backup."""
    number = 0
    while (target := path.with_name(f"{path.name}.bak{number or ''}")).exists():
        number += 1
    _copy(path, target)
    return target


def _copy(source: Path, target: Path) -> None:
    """Copy a whole file or leave nothing behind."""
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise RunFileError(f"{target}: cannot be written ({error.strerror}); check folder and disk") from None
