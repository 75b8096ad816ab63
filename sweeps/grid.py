"""A sweep described in a TOML file: the file of one run, and which of its fields take which values.

    preset = "demo"

    [train]
    steps = 200

    [grid]                                   # every combination
    injection = ["concatenation", "parcae"]
    lr = [0.01, 0.05]
    "model.width" = [32, 64]
    seed = [0, 1]

Several tables ``[[grid]]`` add up, for combinations that are no full grid. A table ``[random]`` draws instead:

    [random]
    draws = 20
    seed = 0                                 # of the draws; each run has its number as its own seed
    lr = { low = 0.001, high = 0.1, scale = "log" }
    norm = ["pre", "sandwich"]

Not covered: adaptive search. Every cell is known before the first is trained.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from ..models.config import LoopedConfig
from ..models.run_config import DATA_FIELDS, RunConfig, read_toml
from ..models.train_config import TrainConfig

_TABLES: Final = ("model", "data", "train")
_FIELDS: Final = {
    "model": frozenset(field.name for field in fields(LoopedConfig)),
    "data": frozenset(DATA_FIELDS),
    "train": frozenset(field.name for field in fields(TrainConfig)) - {"seed"},
}
KEYS: Final = "preset, seed, [model], [data], [train], [grid], [random]"
MOST_CELLS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: Made of the values that tell it from the others; its run file is ``<name>.h5``.
        values: Those values, by the key that the sweep's file uses.
        run: What is trained.
    """

    name: str
    values: Mapping[str, Any]
    run: RunConfig


def load_sweep(path: str | os.PathLike[str]) -> tuple[Cell, ...]:
    """Read the cells of a sweep's TOML file.

    Args:
        path: The file.

    Returns:
        The cells in the order of the file, the last key of a grid running fastest.

    Raises:
        ValueError: Not TOML, no grid, an unknown field, a value out of range, or two cells that are the same run; the
            message names the file and the key.
        OSError: The file cannot be read.
    """
    read = read_toml(path)
    try:
        return cells(read)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def cells(table: Mapping[str, Any]) -> tuple[Cell, ...]:
    """Return the cells of a sweep's table.

    >>> made = cells({"preset": "demo", "grid": {"injection": ["addition", "parcae"], "lr": [0.01, 0.05]}})
    >>> [cell.name for cell in made]
    ['addition-lr0.01', 'addition-lr0.05', 'parcae-lr0.01', 'parcae-lr0.05']
    >>> made[1].run.train_config().lr
    0.05
    """
    rest = dict(table)
    grids, draws = rest.pop("grid", None), rest.pop("random", None)
    if grids is None and draws is None:
        raise ValueError("expected a table [grid] or [random] that says which fields vary")
    base = RunConfig(**_known(rest))
    chosen: list[dict[str, Any]] = []
    for grid in grids if isinstance(grids, list) else [grids] if grids is not None else []:
        chosen += _combinations(grid)
    if draws is not None:
        chosen += _drawn(draws)
    if len(chosen) > MOST_CELLS:
        raise ValueError(f"expected at most {MOST_CELLS} cells, found {len(chosen)}")
    chosen_cells = [Cell(_name(values), values, _run(base, values)) for values in chosen]
    names = [cell.name for cell in chosen_cells]
    if twice := next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None:
        raise ValueError(f"two cells are the same run: {twice}")
    return tuple(chosen_cells)


def _known(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of the base run, its keys checked."""
    for name, value in table.items():
        if name not in ("preset", "seed", *_TABLES):
            raise ValueError(f"{name}: not a key of a sweep; it has {KEYS}")
        if name in _TABLES and not isinstance(value, dict):
            raise ValueError(f"{name}: expected a table [{name}], found {value!r}")
    return dict(table)


def _combinations(grid: object) -> Iterator[dict[str, Any]]:
    """Return every combination of a grid's values."""
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError("grid: expected a table of lists, as lr = [0.01, 0.05]")
    for key, values in grid.items():
        _place(key)
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid.{key}: expected a list of values, found {values!r}")
    count = math.prod(len(values) for values in grid.values())
    if count > MOST_CELLS:
        raise ValueError(f"expected at most {MOST_CELLS} cells, found {count}")
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


def _drawn(table: object) -> Iterator[dict[str, Any]]:
    """Return the draws of a table ``[random]``."""
    if not isinstance(table, Mapping):
        raise ValueError("random: expected a table")
    ranges = {key: value for key, value in table.items() if key not in ("draws", "seed")}
    count, seed = table.get("draws"), table.get("seed", 0)
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_CELLS:
        raise ValueError(f"random.draws: expected a whole number from 1 to {MOST_CELLS}, found {count!r}")
    if not isinstance(seed, int) or not ranges:
        raise ValueError("random: expected a whole number as seed and at least one field to draw")
    for key in ranges:
        _place(key)
    source = random.Random(seed)
    for number in range(count):
        drawn = {key: _draw(source, key, value) for key, value in ranges.items()}
        yield drawn | {"seed": number}  # equal draws are still different runs


def _draw(source: random.Random, key: str, value: object) -> Any:
    """Draw one value: from a list, or between two numbers."""
    if isinstance(value, list) and value:
        return source.choice(value)
    if isinstance(value, Mapping) and {"low", "high"} <= set(value) <= {"low", "high", "scale"}:
        low, high, scale = value["low"], value["high"], value.get("scale", "linear")
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
        if numbers and low <= high and scale in ("linear", "log") and (scale == "linear" or low > 0):
            if isinstance(low, int) and isinstance(high, int) and scale == "linear":
                return source.randint(low, high)
            if scale == "linear":
                return float(f"{source.uniform(low, high):.4g}")
            return float(f"{math.exp(source.uniform(math.log(low), math.log(high))):.4g}")
    raise ValueError(f"random.{key}: expected a list, or {{ low = ..., high = ..., scale = 'linear' or 'log' }}")


def _place(key: str) -> tuple[str, str]:
    """Return the table and the field that a key of a grid means.

    >>> _place("lr"), _place("model.width"), _place("seed")
    (('train', 'lr'), ('model', 'width'), ('', 'seed'))
    """
    table, _, name = key.rpartition(".")
    if table:
        if name in _FIELDS.get(table, ()):
            return table, name
    elif name in ("seed", "preset"):
        return "", name
    else:
        homes = [home for home in _TABLES if name in _FIELDS[home]]
        if len(homes) == 1:
            return homes[0], name
        if homes:
            raise ValueError(f"{key}: say which, {' or '.join(f'{home}.{name}' for home in homes)}")
    known = ", ".join(sorted({"seed", "preset", *(name for names in _FIELDS.values() for name in names)}))
    raise ValueError(f"{key}: not a field of a run; there are {known}")


def _run(base: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return the base run with a cell's values."""
    changes: dict[str, Any] = {}
    for key, value in values.items():
        table, name = _place(key)
        changes.setdefault(table, {})[name] = value
    return base.updated(**changes.pop("", {}), **changes)


def _name(values: Mapping[str, Any]) -> str:
    """Return a file name made of a cell's values: words stand alone, numbers after their field.

    >>> _name({"injection": "parcae", "model.width": 64, "lr": 0.05, "seed": 1})
    'parcae-width64-lr0.05-seed1'
    """
    parts = []
    for key, value in values.items():
        alone = isinstance(value, str) and key != "preset"
        parts.append(str(value) if alone else f"{key.rpartition('.')[2]}{_text(value)}")
    return re.sub(r"[^\w.=+-]", "_", "-".join(parts))


def _text(value: object) -> str:
    """Return a value as it stands in a file name."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "x".join(_text(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
