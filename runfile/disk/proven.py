"""How much of each table of a damaged run can be proven to have been recorded, told from the rows themselves.

A commit row says where the tables end; without a readable one the rows have to. Tables may end in rows that were
allocated and never written, and read as zeros or as the fill value (NaN in tables of floats). What tells a recorded row
from such a one, table by table:

- ``columns``: a name is not empty, and the first ones are known;
- ``steps``: the step is finite and columns without a name hold NaN, which the writer puts there and nobody else;
- ``loop_end``, ``probe_index``: ends never fall; one of zero is a recorded one only where nothing contradicts it;
- ``loops``, ``probe``: means over some tokens, so that the last recorded row has a number of tokens;
- ``spectra``: the step is finite and not everything is zero;
- ``events``: there is a kind and one of three severities;
- ``variables``: the pass of its last row is not zero; ``variable_index``: as ``probe_index``, of a few variables;
- ``array_index``: there is a name, and kind and shape give just the bytes between its end and the one before;
- ``arrays``: zeros at the end of the last array look like bytes that were not written: it does not count.

Generations never fall either: rows of an earlier one behind are left from a kill and were never acknowledged.

Not covered: numbers that were changed, and rows of which only the beginning was written, unless the above shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, get_args

import h5py
import numpy as np
from numpy.typing import NDArray

from ..arrays import number_bytes, stored_bytes
from ..layout import FIRST_COLUMNS, LARGEST_STEP, MOST_VARIABLES, STEP_COLUMNS, TABLES, Severity
from .integrity import READ_ERRORS

Rows = NDArray[Any]
Flags = NDArray[np.bool_]
_BLOCK: Final = 16384  # rows looked at at a time
_SEVERITIES: Final = (*(name.encode() for name in get_args(Severity)), b"info")  # `info`: what a note was called once
_KNOWN_NAMES: Final = np.array(STEP_COLUMNS[:FIRST_COLUMNS], dtype="S")


def proven_lengths(file: h5py.File, bound: dict[str, int], *, recorded: bool) -> dict[str, int]:
    """Return the longest table lengths within ``bound`` at which every row has everything it points at.

    Args:
        file: The open run.
        bound: How many leading rows of each table can be read.
        recorded: Whether all of these are known to have been recorded, by a commit row or because the file is sealed:
            what was never written is not in a sealed file. Then only what rows point at is looked at.
    """
    kept = dict(bound)
    kept["columns"] = _named(file["columns"][: bound["columns"]])
    kept |= _steps(file, bound, kept["columns"], recorded)
    kept |= _passes(file, bound, recorded)
    if not recorded:
        kept["spectra"] = _leading(file["spectra"], bound["spectra"], _is_spectrum)
        kept["events"] = _leading(file["events"], bound["events"], _is_event)
    kept |= _arrays(file, bound, recorded)
    kept |= _variables(file, bound, recorded)
    return {table: kept[table] for table in TABLES}


def names_intact(file: h5py.File) -> bool:
    """Return whether the names that every run begins with are in their places."""
    try:
        intact: bool = np.array_equal(file["columns"][:FIRST_COLUMNS], _KNOWN_NAMES)
    except READ_ERRORS:
        return False
    return intact


def _named(names: Rows) -> int:
    """Return how many columns are named; the first names are known even where they cannot be read."""
    return FIRST_COLUMNS + _first_false(names[FIRST_COLUMNS:] != b"")


def _steps(file: h5py.File, bound: dict[str, int], named: int, recorded: bool) -> dict[str, int]:
    """Return how many steps there are with all of their loop rows."""
    loops = bound["loops"] if recorded else _last_given(file["loops"], bound["loops"])
    ends = file["loop_end"][: bound["loop_end"]]
    ends = ends[: _first_false(_never_falls(ends) & (ends >= 0))]
    if not recorded and file["loops"].shape[0] and not ends.any():
        ends = ends[:0]  # there are loop rows, and nothing says whose
    steps = min(int(np.searchsorted(ends, loops, side="right")), bound["steps"])
    if not recorded:
        steps = _leading(file["steps"], steps, lambda rows: _is_step(rows, named))
    return {"steps": steps, "loop_end": steps, "loops": int(ends[steps - 1]) if steps else 0}


def _passes(file: h5py.File, bound: dict[str, int], recorded: bool) -> dict[str, int]:
    """Return how many passes of the fixed probe batch there are with all of their rows."""
    rows = bound["probe"] if recorded else _last_given(file["probe"], bound["probe"])

    def good(index: Rows) -> Flags:
        generation, end = index[:, 1], index[:, 2]
        whole = _never_falls(end) & (end >= (0 if recorded else 1)) & (end <= rows)  # a pass has at least its h_0
        return whole if recorded else whole & _is_generation(generation)

    passes = _leading(file["probe_index"], bound["probe_index"], good)
    return {"probe_index": passes, "probe": int(file["probe_index"][passes - 1, 2]) if passes else 0}


def _variables(file: h5py.File, bound: dict[str, int], recorded: bool) -> dict[str, int]:
    """Return how many variables of steps there are with all of their rows."""
    if not bound["variable_index"]:
        return {"variable_index": 0, "variables": 0}
    rows = bound["variables"] if recorded else _last_given(file["variables"], bound["variables"])

    def good(index: Rows) -> Flags:
        known = (index[:, 2] >= 0) & (index[:, 2] < MOST_VARIABLES)
        whole = _never_falls(index[:, 3]) & (index[:, 3] >= (0 if recorded else 1)) & (index[:, 3] <= rows) & known
        return whole if recorded else whole & _is_generation(index[:, 1])

    count = _leading(file["variable_index"], bound["variable_index"], good)
    return {"variable_index": count, "variables": int(file["variable_index"][count - 1, 3]) if count else 0}


def _arrays(file: h5py.File, bound: dict[str, int], recorded: bool) -> dict[str, int]:
    """Return how many arrays there are with all of their bytes."""
    if not bound["array_index"]:
        return {"array_index": 0, "arrays": 0}
    index = file["array_index"][: bound["array_index"]]
    ends, size = index["end"], stored_bytes(index)
    whole = (index["name"] != b"") & (size == np.diff(ends, prepend=0)) & (ends <= bound["arrays"])
    if not recorded:
        # Any number of an array but its last may be zero: it reaches as far as the last byte that was written.
        given = _last_given(file["arrays"], bound["arrays"])
        whole &= _is_generation(index["generation"]) & ((ends - number_bytes(index) < given) | (size == 0))
    count = _first_false(whole)
    return {"array_index": count, "arrays": int(ends[count - 1]) if count else 0}


def _has_step(rows: Rows) -> Flags:
    """Return whether each row is of a step at all."""
    plausible: Flags = np.abs(rows[:, 0]) < LARGEST_STEP  # false for NaN
    return plausible


def _is_step(rows: Rows, named: int) -> Flags:
    """Return whether each row of ``steps`` was recorded; without a column that has no name, zeros alone tell."""
    spare = rows[:, -1] if named < rows.shape[1] else np.where(rows.any(axis=1), np.nan, 0.0)
    return _has_step(rows) & np.isnan(spare) & _is_generation(rows[:, STEP_COLUMNS.index("generation")])


def _is_spectrum(rows: Rows) -> Flags:
    """Return whether each row of ``spectra`` was recorded."""
    return _has_step(rows) & rows.any(axis=1) & _is_generation(rows[:, 1])


def _is_event(rows: Rows) -> Flags:
    """Return whether each row of ``events`` was recorded."""
    known: Flags = (rows["kind"] != b"") & np.isin(rows["severity"], _SEVERITIES) & _is_generation(rows["generation"])
    return known


def _is_generation(generation: Rows) -> Flags:
    """Return whether each number can be the generation of its row."""
    return _never_falls(generation) & (generation >= 0) & (generation < 2**31)


def _never_falls(values: Rows) -> Flags:
    """Return whether each value is not below the one before it."""
    rises: Flags = np.append(True, values[1:] >= values[:-1])[: len(values)]
    return rises


def _leading(table: Any, length: int, good: Callable[[Rows], Flags]) -> int:
    """Return how many of the first rows are ``good``, looking at a block and the row before it at a time."""
    for start in range(0, length, _BLOCK):
        before = min(start, 1)
        sound = good(table[start - before : min(start + _BLOCK, length)])[before:]
        if not sound.all():
            return start + int(np.argmin(sound))
    return length


def _last_given(table: Any, length: int) -> int:
    """Return the number of rows up to the last one whose last number is neither zero nor missing."""
    for stop in range(length, 0, -_BLOCK):
        start = max(0, stop - _BLOCK)
        last = table[start:stop].reshape(stop - start, -1)[:, -1]
        given = np.flatnonzero((last != 0) & (last == last))
        if len(given):
            return start + int(given[-1]) + 1
    return 0


def _first_false(good: Flags) -> int:
    """Return how many leading entries are true."""
    return int(np.argmin(good)) if len(good) and not np.all(good) else len(good)
