"""Writes a run's numbers to CSV, Parquet or JSON for other tools.

CSV and Parquet hold one table: ``steps`` (one row per step, the loop profile in columns ``state_norm[0]``,
``state_norm[1]``, …) or one of the tidy tables ``loops``, ``probe`` (one row per step and loop), ``spectra`` (one row
per step and eigenvalue), ``events``. JSON holds all of them, as columns, in one object.

Three states of a number stay apart. A number that was never recorded is an empty field in CSV and null in Parquet and
JSON. A NaN or an infinity that was given or measured is ``nan``, ``inf``, ``-inf`` in CSV, a NaN or infinity in
Parquet, and the string ``"NaN"``, ``"Infinity"``, ``"-Infinity"`` in JSON, which has no such numbers. The file itself
has only NaN for "never recorded"; `never_recorded` tells it from a given one by ``nonfinite``.

Not covered: rows that a later generation superseded (``Run.history`` has them), arrays of any shape (``Run.arrays``),
and importing.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .disk.integrity import one_line
from .layout import LOOP_COLUMNS, PROBE_DERIVED, STEP_COLUMNS, STEP_DERIVED, RunFileError
from .ranks.merge import NEVER_GIVEN
from .run import Run

TableName: TypeAlias = Literal["steps", "loops", "probe", "spectra", "events"]
Columns: TypeAlias = dict[str, Any]
TABLE_NAMES: Final[tuple[TableName, ...]] = ("steps", "loops", "probe", "spectra", "events")
_WHOLE: Final = (  # whole unless missing
    "step", "generation", "depth_min", "depth_max", "nonfinite", "rows_dropped", "eval_depth_max", "eval_forwards",
)  # fmt: skip
MEASURED: Final = (
    frozenset(NEVER_GIVEN) | set(STEP_COLUMNS[3:]) - {"loss", "grad_norm", "lr"} | set(STEP_DERIVED) | {"step"}
)
"""Columns that nobody gives: a NaN there was never recorded."""
_LINES: Final = 4096  # CSV lines turned into text at a time


def export(run: Run, output: str | os.PathLike[str], *, table: TableName | None = None, force: bool = False) -> Path:
    """Write a run to a file whose ending says how: ``.csv``, ``.parquet`` or ``.json``.

    The file appears whole or not at all. Numbers never recorded are empty in CSV, null in Parquet and JSON; those that
    are not finite stay what they are, in JSON as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.

    Args:
        run: An open run, live ones included.
        output: The file to write.
        table: Which table CSV and Parquet hold, ``steps`` by default; JSON holds all unless one is named.
        force: Replace an existing file.

    Returns:
        The file written.

    Raises:
        ValueError: The ending or the table is none of those.
        RunFileError: The file exists, cannot be written, or pyarrow is missing for Parquet.

    >>> import tempfile
    >>> from loopscope.runfile.open import open_run
    >>> from loopscope.runfile.writer import RunWriter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RunWriter.create(Path(folder) / "a.h5", info={}) as writer:
    ...         writer.append_step({"step": 7, "loss": 2.5}, [[1.0, 0.5, math.nan, 64], [1.25, math.nan, math.nan, 64]])
    ...     with open_run(writer.path) as run:
    ...         print(export(run, Path(folder) / "a.csv", table="loops").read_text())
    step,generation,loop,state_norm,residual_norm,step_cosine,tokens
    7,0,0,1.0,0.5,,64.0
    7,0,1,1.25,,,64.0
    <BLANKLINE>
    """
    target = Path(output)
    writers: dict[str, Callable[[Run, Path, TableName | None], None]] = {
        ".csv": lambda run, path, table: _write_csv(columns(run, table or "steps"), path),
        ".parquet": lambda run, path, table: _write_parquet(columns(run, table or "steps"), path, run),
        ".json": _write_json,
    }
    if target.suffix.lower() not in writers:
        raise ValueError(f"{target}: cannot tell the format; end the name with .csv, .parquet or .json")
    if table is not None and table not in TABLE_NAMES:
        raise ValueError(f"no table {table!r}; there are {', '.join(TABLE_NAMES)}")
    if target.is_dir() or (target.exists() and not force):
        raise RunFileError(f"{target}: exists already; choose another name or ask to overwrite it")
    with _whole_or_nothing(target) as temporary:
        writers[target.suffix.lower()](run, temporary, table)
    return target


def columns(run: Run, table: TableName) -> Columns:
    """Return one table as equally long columns by name.

    ``steps`` is wide: after the numbers per step comes one column per loop and per-loop number. The others are tidy.
    """
    if table == "steps":
        return _steps(run)
    if table == "loops":
        return _tidy(run["step"], [run["generation"]], {name: run.loops(name) for name in LOOP_COLUMNS})
    if table == "probe":
        return _tidy(run.probe_steps, [], {name: run.probe(name) for name in LOOP_COLUMNS})
    if table == "spectra":
        steps, eigenvalues = run.spectra()
        spectrum = _tidy(steps, [], {"real": eigenvalues.real, "imag": eigenvalues.imag}, along="index")
        return spectrum | {"modulus": np.hypot(spectrum["real"], spectrum["imag"])}
    events = [asdict(event) for event in run.events]
    names = ("step", "time", "kind", "severity", "value", "threshold", "message")
    return {name: [event[name] for event in events] for name in names}


def _steps(run: Run) -> Columns:
    """Return one row per step, loop profiles spread over columns."""
    recorded = (name for name in run.names if name not in (*STEP_DERIVED, *PROBE_DERIVED))
    table: Columns = {name: run[name] for name in (*recorded, *STEP_DERIVED)}
    for name in LOOP_COLUMNS[:3]:
        profile = run.loops(name)
        table |= {f"{name}[{t}]": profile[:, t] for t in range(profile.shape[1])}
    return table


def _tidy(
    steps: NDArray[Any], beside: list[NDArray[Any]], profiles: dict[str, NDArray[Any]], along: str = "loop"
) -> Columns:
    """Return one row per step and position along it, leaving out positions at which nothing was recorded."""
    shape = next(iter(profiles.values())).shape
    there = np.zeros(shape, dtype=bool)
    for values in profiles.values():
        there |= ~np.isnan(values)
    row, position = np.nonzero(there)
    table: Columns = {"step": steps[row].astype(np.int64)}
    for generation in beside:
        table["generation"] = generation[row]
    return table | {along: position} | {name: values[there] for name, values in profiles.items()}


def never_recorded(table: Columns) -> dict[str, NDArray[np.bool_]]:
    """Return which entries of every column of numbers were never recorded.

    Everywhere that is a NaN, except in what the trainer and the user give per step: there a NaN was given where
    ``nonfinite`` counts more numbers than are infinite in that row, and the column holds a number in some other row (or
    is the loss). Where a row counts one and lacks two such numbers, both pass for given: rather shown than hidden.

    >>> nan, inf = math.nan, math.inf
    >>> rows = {"loss": [2.0, nan, inf], "lr": [nan] * 3, "mine": [1.0, 2.0, nan], "nonfinite": [0.0, 1.0, 1.0]}
    >>> for name, never in never_recorded({name: np.array(values) for name, values in rows.items()}).items():
    ...     print(name, never.tolist())
    loss [False, False, False]
    lr [True, True, True]
    mine [False, False, True]
    nonfinite [False, False, False]
    """
    never = {
        name: np.array([isinstance(value, float) and math.isnan(value) for value in values], dtype=bool)
        if isinstance(values, list)
        else np.isnan(values)
        for name, values in table.items()
    }
    if "nonfinite" in table:
        given = [name for name in table if name not in MEASURED and "[" not in name]
        unexplained = np.nan_to_num(table["nonfinite"]) - sum(np.isinf(table[name]) for name in given)
        for name in given:
            if name == "loss" or not never[name].all():
                never[name] &= unexplained <= 0
    return never


def _plain(name: str, values: Any, never: NDArray[np.bool_]) -> list[Any]:
    """Return a column as Python numbers, None where never recorded, whole numbers as such."""
    numbers: list[Any] = values if isinstance(values, list) else values.tolist()
    known = [None if missing else value for value, missing in zip(numbers, never.tolist(), strict=True)]
    if name in _WHOLE:
        return [int(v) if v is not None and math.isfinite(v) and v == int(v) else v for v in known]
    return known


def _write_csv(table: Columns, path: Path) -> None:
    """Write one table, a header line first."""
    length, never = len(next(iter(table.values()))), never_recorded(table)
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        lines = csv.writer(stream)
        lines.writerow(table)
        for start in range(0, length, _LINES):
            part = slice(start, start + _LINES)
            lines.writerows(
                zip(*(_plain(name, values[part], never[name][part]) for name, values in table.items()), strict=True)
            )


def _write_parquet(table: Columns, path: Path, run: Run) -> None:
    """Write one table; what the run says about itself goes into the schema's metadata under ``loopscope``."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise RunFileError("exporting to Parquet needs pyarrow; install loopscope[parquet] or export to .csv") from None
    never = never_recorded(table)
    arrays = {
        name: pa.array(_plain(name, values, never[name]))
        if isinstance(values, list) or (name in _WHOLE and np.isfinite(values[~never[name]]).all())
        else pa.array(values, mask=never[name])
        for name, values in table.items()
    }
    made = pa.table(arrays).replace_schema_metadata({"loopscope": json.dumps(_strict(run.info), allow_nan=False)})
    pq.write_table(made, path)


def _write_json(run: Run, path: Path, table: TableName | None) -> None:
    """Write strictly valid JSON: NaN and infinity are strings."""
    wanted = TABLE_NAMES if table is None else (table,)
    out: dict[str, Any] = {"format": "loopscope-export", "version": 2, "path": str(run.path), "state": run.state}
    out["info"] = _strict(run.info)
    for name in wanted:
        held = columns(run, name)
        never = never_recorded(held)
        out[name] = {key: _strict(_plain(key, values, never[key])) for key, values in held.items()}
    with path.open("w", encoding="utf-8") as stream:
        json.dump(out, stream, allow_nan=False)


def _strict(value: Any) -> Any:
    """Return a JSON value with every number that JSON cannot say as its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [_strict(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    return value


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    """Give a path beside ``target`` to write to, which replaces it only when everything went well."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise RunFileError(
            f"{target}: cannot be written ({error.strerror or one_line(error)}); check folder and disk"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
