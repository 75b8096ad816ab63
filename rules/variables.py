"""What rules read of the single variables of a loop: one number per pass, as they read one per loop of the joint state.

A variable may be updated several times in a pass. Then its last update in every pass counts, so that updates at the
same place of a pass are compared with each other: ``residual_norm[-1]`` of ``z_L`` is the size of the last update of
the last pass, ``residual_norm[-2]`` that of the last update of the pass before. The ratios of late loops are those of
the passes that a variable makes on the fixed batch, where the full loop is measured (`late_ratios_of`).

Not covered: the joint state, which has loops of its own (`Run.loops`); token counts, which the variables share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..dynamics.trajectory.round_off import ROUND_OFF_OF
from ..runfile.layout import LOOP_COLUMNS, PASS_ROUNDING, PROBE_DERIVED, STEP_DERIVED, VARIABLE_COLUMNS, VARIABLE_PASSES
from ..runfile.ratios import late_ratios
from ..runfile.reader import Run
from .expression import Series
from .grammar import loop_entry
from .rule_files import Rule

OF_STATES: Final = frozenset({"state_norm", "residual_norm", "step_cosine"})
"""Series of loops that every variable has its own of."""
_KEPT: Final[WeakKeyDictionary[Run, tuple[tuple[float, int], tuple[NDArray[np.int64], Series]]]] = WeakKeyDictionary()
_OF_UPDATES: Final = ("residual_norm", "step_cosine")
"""Those that stand in the row before the state that the update leads to."""


def variables_of(run: Run) -> tuple[str, ...]:
    """Return the variables of a run that are judged one by one."""
    return variables_in({"variables": list(run.variables), "site": run.info.get("site")})


def variables_in(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the variables that are judged one by one; none where the loop carries one tensor, updated once in a pass.

    Args:
        info: What a run file says of its run; it may be hostile.

    >>> variables_in({"variables": ["h"]}), variables_in({"variables": ["z_L", "z_H"]})
    ((), ('z_L', 'z_H'))
    >>> variables_in({"variables": ["z"], "site": {"variables": [{"name": "z", "turns": [], "of": 7}]}})
    ('z',)
    """
    names = info.get("variables")
    names = tuple(map(str, names)) if isinstance(names, list | tuple) else ()
    if len(names) != 1:
        return names
    site = info.get("site")
    known = site.get("variables") if isinstance(site, Mapping) else None
    only = known[0] if isinstance(known, list) and known else None
    of = only.get("of") if isinstance(only, Mapping) and not only.get("turns") else None
    return names if isinstance(of, int) and of > 1 else ()


def round_off_of(run: Run, *, passes: bool = False) -> float | None:
    """Return the round-off level of the states where their type is known: short parameters make short states.

    Of float32 parameters it is not, for autocast makes bfloat16 states of them; but whether a pass on the fixed batch
    rounds to a short type was tried out.

    Args:
        run: An opened run.
        passes: Of the states in the passes of its variables, as they were measured last.
    """
    kind = run.info.get("parameter_dtype")
    if kind in ("float64", "float16", "bfloat16"):
        return ROUND_OFF_OF[kind]
    if passes and kind == "float32" and PASS_ROUNDING in run.array_names:
        _, (*_, bends) = run.arrays(PASS_ROUNDING, slice(-1, None))
        return ROUND_OFF_OF[kind] if bends.size and float(bends.max()) <= ROUND_OFF_OF[kind] else None
    return None


def is_of_states(rule: Rule) -> bool:
    """Return whether a rule reads states or steps of the loop, so that every variable is judged by it.

    A rule about a learned A̅ is about the loop as a whole.

    >>> from .expression import parse
    >>> said = ("last_state_norm > 9", "residual_ratio > 1", "residual_ratio > 1 and a_bar_learned", "loss > 3")
    >>> [is_of_states(Rule("R", "r", parse(text), "error")) for text in said]
    [True, True, False, False]
    """
    names = rule.expr.names
    if "a_bar_learned" in names:
        return False
    return any(name in STEP_DERIVED or name in PROBE_DERIVED or ((entry := loop_entry(name)) and entry[0] in OF_STATES)
               for name in names)  # fmt: skip


def per_pass(run: Run, variable: str, name: str, rows: slice = slice(None)) -> Series:
    """Return a number of a variable at every step and pass, in the form of `Run.loops`.

    Args:
        run: An opened run.
        variable: One of its variables.
        name: One of ``LOOP_COLUMNS``.
        rows: Which steps.

    Returns:
        ``(steps, passes + 1)``, NaN where a pass did not run. Column t is the value after t passes; ``residual_norm``
        and ``step_cosine`` there are of the last update of pass t + 1.
    """
    ends, count = _ends(run.loops("pass", rows, variable=variable))
    values = run.loops(name, rows, variable=variable)
    if name in _OF_UPDATES:
        ends, there = ends[:, 1:] - 1, np.arange(1, ends.shape[1] + 1)[None] < count[:, None]
        ends = np.concatenate([ends, np.zeros((len(ends), min(1, there.shape[1])), np.int64)], axis=1)
    else:
        there = np.arange(ends.shape[1])[None] < count[:, None]
    return np.where(there, np.take_along_axis(values, np.maximum(ends, 0), axis=1), np.nan)


def at_passes(run: Run, variable: str, name: str, passes: Sequence[int]) -> list[Series]:
    """Return one number of a variable per step at each of some passes, as `Run.at_loops` does for the joint state.

    Args:
        run: An opened run.
        variable: One of its variables.
        name: One of ``LOOP_COLUMNS``.
        passes: Passes from 0; negative ones are counted back from the last state.
    """
    table, (_, count) = per_pass(run, variable, name), _ends(run.loops("pass", variable=variable))
    numbers = []
    for at in passes:
        column = count + at if at < 0 else np.full(len(count), at)
        inside = (column >= 0) & (column < count)
        values = np.full(len(count), np.nan)
        values[inside] = table[inside, column[inside]]
        numbers.append(values)
    return numbers


def late_ratios_of(run: Run, variable: str, name: str) -> tuple[NDArray[np.int64], Series]:
    """Return a ratio of the late passes of a variable on the fixed batch, as `Run.series` does of the joint state.

    Args:
        run: An opened run.
        variable: One of its variables.
        name: One of ``PROBE_DERIVED``.

    Returns:
        The steps at which the passes were measured, and the ratio of each measurement.
    """
    steps, table = _late_ratios(run)
    values = table[PROBE_DERIVED.index(name), :, run.variables.index(variable)]
    known = ~np.isnan(values)
    return steps[known], values[known]


def _late_ratios(run: Run) -> tuple[NDArray[np.int64], Series]:
    """Return the steps of all measurements and ``PROBE_DERIVED`` of every variable in each, ``(2, K, V)``.

    They are kept as long as the run has no new rows: every rule over every variable asks for them.
    """
    when = (run.committed_at, len(run))
    if (kept := _KEPT.get(run)) is None or kept[0] != when:
        steps, arrays = run.arrays(VARIABLE_PASSES) if VARIABLE_PASSES in run.array_names else (np.zeros(0), [])
        count = len(run.variables)
        table = np.full((len(PROBE_DERIVED), len(arrays), count), np.nan)
        lengths = np.array([each.shape[1] if is_measured(each, count) else 0 for each in arrays], np.int64)
        for length in np.unique(lengths[lengths > 0]):
            at = np.flatnonzero(lengths == length)
            rows = np.concatenate([arrays[i] for i in at]).astype(np.float64)
            table[:, at] = np.stack(late_ratios(rows[:, :-1, 1], rows[:, :, 0])).reshape(-1, len(at), count)
            for i in at[~np.isfinite(rows[:, 1:, 0]).reshape(len(at), -1).all(axis=1)]:
                table[:, i] = _ratios(arrays[i])
        kept = _KEPT[run] = when, (np.asarray(steps, np.int64), table)
    return kept[1]


def ratios_of_passes(measured: NDArray[Any], count: int) -> list[dict[str, float]]:
    """Return ``PROBE_DERIVED`` of every variable from the passes that were measured at one step; nothing if damaged.

    Args:
        measured: ``(V, T + 1, 3)`` as ``VARIABLE_PASSES``.
        count: V, the number of variables of the run.

    >>> steps, norms, t = 0.5 ** np.arange(9), np.ones(9), np.full(9, np.nan)
    >>> ratios_of_passes(np.stack([norms, steps, t], axis=1)[None], 1)
    [{'residual_ratio': 0.5, 'growth_ratio': 1.0}]
    """
    if not is_measured(measured, count):
        return []
    return [dict(zip(PROBE_DERIVED, map(float, own), strict=True)) for own in _ratios(measured).T]


def _ratios(measured: NDArray[Any]) -> Series:
    """Return ``PROBE_DERIVED`` of every variable ``(2, V)`` from the passes of one measurement."""
    rows, first = until_lost(measured.astype(np.float64))
    ratios = np.stack(late_ratios(rows[:, :-1, 1], rows[:, :, 0]))
    ratios[:, first] = np.inf
    return ratios


def until_lost(passes: Series) -> tuple[Series, NDArray[np.bool_]]:
    """Return the passes before the first one in which a variable is not finite, and which variables those are.

    One that is not finite takes the others with it in the next passes: what these did on their own stands before.

    Args:
        passes: ``(V, T + 1, 3)`` as ``VARIABLE_PASSES``.

    >>> passes = np.ones((2, 5, 3))
    >>> passes[0, 3:], passes[1, 4:] = np.inf, np.nan
    >>> rows, first = until_lost(passes)
    >>> rows.shape, first.tolist()
    ((2, 3, 3), [True, False])
    """
    lost = ~np.isfinite(passes[:, 1:, 0])
    if not lost.any():
        return passes, np.zeros(len(passes), bool)
    at = int(np.argmax(lost.any(axis=0)))
    return passes[:, : at + 1], lost[:, at]


def is_measured(measured: NDArray[Any], count: int) -> bool:
    """Return whether an array has the shape of ``VARIABLE_PASSES`` for so many variables, with a pass in it."""
    return measured.ndim == 3 and measured.shape[0] == count and measured.shape[1] > 1 and measured.shape[2] == 3


def loops_of_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a variable did in one step as the loops of a step are, ``(passes + 1, 4)`` as ``LOOP_COLUMNS``.

    Args:
        rows: ``(updates + 1, 6)`` as ``VARIABLE_COLUMNS``.

    >>> rows = [[1, 5, 0, 8, 0, 0], [2, 6, 0, 8, 1, 1], [3, 7, 0, 8, 1, 2], [4, 8, 0, 8, 2, 1], [5, 9, 0, 8, 2, 2]]
    >>> loops_of_rows(np.array(rows, np.float32))[:, :2].tolist()
    [[1.0, 6.0], [3.0, 8.0], [5.0, nan]]
    """
    ends, count = _ends(rows[None, :, VARIABLE_COLUMNS.index("pass")].astype(np.float64))
    at = ends[0, : int(count[0])]
    loops: NDArray[np.float32] = rows[at][:, : len(LOOP_COLUMNS)].copy()
    for name in _OF_UPDATES:
        column = LOOP_COLUMNS.index(name)
        loops[:-1, column] = rows[at[1:] - 1, column]
        loops[-1:, column] = np.nan
    return loops


def _ends(passes: Series) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the column of the last update of every pass ``(steps, passes + 1)``, and how many passes there are."""
    later = np.concatenate([passes[:, 1:], np.full((len(passes), min(1, passes.shape[1])), np.nan)], axis=1)
    last = ~np.isnan(passes) & (passes != later)
    count: NDArray[Any] = last.sum(axis=1)
    order = np.argsort(~last, axis=1, kind="stable")
    return order[:, : int(count.max(initial=0))], np.asarray(count, np.int64)
