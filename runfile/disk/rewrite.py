"""Whole run files: creating an empty one, and copying one into the live or the sealed layout.

Live: small uncompressed row chunks that can grow. Sealed: gzip with byte shuffle, one chunk column per metric, so that
one metric of a million rows is one short read. Sealing, resuming a sealed run and salvaging are the same copy.

Not covered: replacing the original by the copy, which its callers do with ``os.replace``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
import uuid
from pathlib import Path
from typing import Any, Final, Literal

import h5py
import numpy as np

from .. import layout
from ..layout import Commit
from .contract import text
from .handle import create_file
from .integrity import READ_ERRORS, read_info

Layout = Literal["live", "sealed"]
_BLOCK: Final = 65536  # rows copied at a time; a multiple of every sealed chunk, so each chunk is compressed once
_SEALED_ROWS: Final = {"loops": 65536, "arrays": 65536, "variables": 65536}
_BY_COLUMN: Final = ("steps", "loops", "probe", "variables")


def create_run(path: Path, *, info: str, names: tuple[str, ...], eigenvalues: int) -> Commit:
    """Write a run file with all tables, no rows but a first commit, in the live layout; return that commit."""
    columns = len(names) + layout.SPARE_COLUMNS
    _require_room(path, len(info))
    commit = Commit(dict.fromkeys(layout.TABLES, 0) | {"columns": len(names)}, 0, False, time.time_ns())
    with create_file(path) as file:
        _write_attributes(file, {"info": info, "run_id": uuid.uuid4().hex, "eigenvalues": eigenvalues}, "live")
        for name, (shape, dtype) in layout.table_shapes(columns, eigenvalues).items():
            _create_table(file, name, 0, shape, dtype, "live", columns)
        encoded = np.array([name.encode() for name in names], dtype=file["columns"].dtype)
        file["columns"][: len(encoded)] = encoded
        file["commit"].resize(1, axis=0)
        file["commit"][0] = commit.pack()
    sync(path)
    return commit


def copy_run(source: h5py.File, target: Path, commit: Commit, kind: Layout) -> None:
    """Copy the committed rows of an open run into a new file at ``target`` and bring it safely to disk."""
    shapes = layout.table_shapes(int(source["columns"].shape[0]), int(source.attrs["eigenvalues"]))
    sizes = (commit.lengths[name] * math.prod(shapes[name][0]) * shapes[name][1].itemsize for name in layout.TABLES)
    _require_room(target, sum(sizes))
    with create_file(target) as file:
        _write_attributes(file, _kept_attributes(source), kind)
        columns = int(source["columns"].shape[0])
        # All tables come before any rows: the list of their names must not end up behind the last rows, where a file
        # is cut off first.
        lengths = commit.lengths | {"commit": 1}
        tables = {
            name: _create_table(file, name, lengths[name], shape, dtype, kind, columns)
            for name, (shape, dtype) in shapes.items()
        }
        for name, length in commit.lengths.items():
            known = layout.FIRST_COLUMNS if name == "columns" else 0  # whatever became of them in the source
            for start in range(known, length, _BLOCK):
                stop = min(start + _BLOCK, length)
                rows = source[name][start:stop]
                if name == "steps":
                    rows[:, commit.lengths["columns"] :] = np.nan  # numbers whose names are lost belong to no name
                tables[name][start:stop] = rows
        file["columns"][: layout.FIRST_COLUMNS] = np.array(layout.STEP_COLUMNS[: layout.FIRST_COLUMNS], dtype="S")
        tables["commit"][0] = commit.pack()
    sync(target)


def attributes_intact(file: h5py.File) -> bool:
    """Return whether it can be read which run this is and what the writer said about it."""
    try:
        read_info(file)
        return bool(text(file, "run_id"))
    except READ_ERRORS:
        return False


def _kept_attributes(source: h5py.File) -> dict[str, Any]:
    """Return the attributes that a copy keeps; strings that are damaged do not cost the numbers."""
    kept = {"eigenvalues": source.attrs["eigenvalues"], "info": "", "run_id": uuid.uuid4().hex}
    for name in ("info", "run_id"):
        with contextlib.suppress(*READ_ERRORS):
            kept[name] = text(source, name)
    try:
        read_info(source)
    except READ_ERRORS:
        kept["info"] = json.dumps({"damaged": kept["info"]})
    return kept


def temporary_path(path: Path) -> Path:
    """Return where a file is made before it replaces ``path``; holding the lease makes it ours."""
    return path.with_name(path.name + ".tmp")


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def free_bytes(path: Path) -> int:
    """Return how much room the disk of a file has."""
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize


def _require_room(path: Path, needed: int) -> None:
    """Raise before HDF5 meets a full disk: a file it cannot finish writing can crash the process when it is closed."""
    if free_bytes(path) < needed + layout.DISK_RESERVE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_attributes(file: h5py.File, kept: dict[str, Any], kind: Layout) -> None:
    """Write the root attributes; ``format`` and ``version`` are what a reader checks first."""
    file.attrs["format"] = layout.FORMAT
    file.attrs["version"] = layout.VERSION
    file.attrs["layout"] = kind
    for key, value in kept.items():
        file.attrs[key] = value


def _create_table(
    file: h5py.File, name: str, length: int, shape: tuple[int, ...], dtype: np.dtype[Any], kind: Layout, columns: int
) -> Any:
    """Create one table; column names of the fixed ones are written beside it for readers in other languages."""
    if name == "columns":  # all rows at once; compressed, the bytes carry a checksum
        packed = {} if kind == "live" else {"chunks": (columns,), "compression": "gzip"}
        return file.create_dataset(name, shape=(columns,), dtype=dtype, **packed)
    if kind == "live":
        table = file.create_dataset(
            name,
            shape=(length, *shape),
            maxshape=(None, *shape),
            chunks=(layout.chunk_rows(name, shape, dtype), *shape),
            dtype=dtype,
            fillvalue=np.nan if dtype.kind == "f" else None,
        )
    else:
        width = tuple(1 for _ in shape) if name in _BY_COLUMN else shape
        table = file.create_dataset(
            name,
            shape=(length, *shape),
            maxshape=(None, *shape),
            chunks=(min(max(length, 1), _SEALED_ROWS.get(name, 16384)), *width),
            dtype=dtype,
            compression="gzip",
            compression_opts=4,
            shuffle=True,
        )
    named = {"loops": layout.LOOP_COLUMNS, "probe": layout.LOOP_COLUMNS, "probe_index": layout.PROBE_INDEX_COLUMNS}
    named |= {"commit": layout.COMMIT_COLUMNS, "variables": layout.VARIABLE_COLUMNS}
    named |= {"variable_index": layout.VARIABLE_INDEX_COLUMNS}
    if name in named:
        table.attrs["columns"] = ",".join(named[name])
    return table
