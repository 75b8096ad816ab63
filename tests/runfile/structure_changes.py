"""The ways in which `structure_worker` changes a run file: what it is made of, not single bytes.

A change is given the open file, a generator, the folder of the case and the name of a table; it returns what it did.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from loopscope.runfile.disk.superblock import lookup3
from loopscope.runfile.layout import TABLES, tables_of

Change = Callable[[h5py.File, np.random.Generator, Path, str], str]
NAMES = (*TABLES, "commit")
NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 7, 64, 10**4, 2**31, 2**32, 2**40, 2**62, 2**63 - 1)
TEXTS = (
    b"", b"\xff\xfe", b"\x1b]0;x\x07\r\nPASS\n::error::x", b"step", b"loss", b"|O", b"O", b"<U99999999", b"<M8[s]",
    b"V8", b"|S0", b"flight.alert", b"flight.loops", b"flight.scalars", b"info_later", b"loss_spike", b"error",
    b"run_interrupted", b"probe_lost", b"world_size", b"rank_missing", b"a_bar", b"jacobian_eigenvalues", b"x" * 300,
)  # fmt: skip


def odd_type(rng: np.random.Generator) -> Any:
    """Return a type that a table may be given instead of its own."""
    kinds: list[Any] = [
        "<f8", ">f8", "<f4", "<i8", "<u2", "S3", "S64", "?", "<c16", "V7", h5py.string_dtype(), h5py.ref_dtype,
        h5py.regionref_dtype, h5py.vlen_dtype(np.float64), h5py.enum_dtype({"a": 1, "b": 2}), ("<f4", (2, 2)),
        np.dtype([("step", "<i8"), ("kind", "S32")]), np.dtype([("a", h5py.string_dtype()), ("b", h5py.ref_dtype)]),
    ]  # fmt: skip
    return kinds[rng.integers(len(kinds))]


def replace(file: h5py.File, name: str, **given: Any) -> None:
    """Put another dataset in the place of a table."""
    if name in file:
        del file[name]
    file.create_dataset(name, **given)


def change_kind(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    del file[name]
    kind = rng.choice(["group", "scalar", "empty", "named type", "missing", "text"])
    if kind == "group":
        file.create_group(name).create_dataset("inner", data=[1, 2])
    elif kind == "scalar":
        file[name] = 7.0
    elif kind == "empty":
        file[name] = h5py.Empty("f8")
    elif kind == "named type":
        file[name] = np.dtype("<f8")
    elif kind == "text":
        file[name] = "9f3c1ab"
    return f"{name} is a {kind}"


def change_type(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    kind, shape = odd_type(rng), file[name].shape
    chunked = rng.random() < 0.5
    extra = {"maxshape": (None, *shape[1:]), "chunks": (4, *shape[1:])} if chunked else {}
    replace(file, name, shape=shape, dtype=kind, **extra)
    return f"{name} of type {kind}"


def change_named_type(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    old = file[name]
    shape, dtype = old.shape, old.dtype
    kind = f"type of {name}"
    if kind not in file:
        file[kind] = dtype
    replace(file, name, shape=shape, dtype=file[kind])
    return f"{name} of a named type"


def change_shape(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    old = file[name]
    options = [(0,), (1,), (3, 3, 3), (*old.shape, 1), (old.shape[0],), (old.shape[0], 40), (old.shape[0], 2), (0, 0)]
    shape = options[rng.integers(len(options))]
    replace(file, name, shape=shape, dtype=old.dtype)
    return f"{name} of shape {shape}"


def change_declared(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    old = file[name]
    data, width, dtype = old[...], old.shape[1:], old.dtype
    rows = 2 ** int(rng.integers(10, 50))
    chunk = int(rng.choice([1, 64, 2**12, 2**20]))
    filters = {"compression": "gzip"} if rng.random() < 0.5 else {}
    attributes = dict(old.attrs)
    with contextlib.suppress(ValueError, MemoryError, RuntimeError, OSError):
        replace(
            file, name, shape=(rows, *width), maxshape=(None, *width), chunks=(chunk, *width), dtype=dtype, **filters
        )
        file[name].attrs.update(attributes)
        if chunk < 2**20:
            file[name][: len(data)] = data
    if rng.random() < 0.5:
        publish(file, name, rows)
    return f"{name} declares {rows} rows in chunks of {chunk} {'gzip' if filters else ''}"


def change_dense(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    """Many equal rows that take few bytes; every second time with numbers that look like the last one."""
    old = file[name]
    width, dtype = old.shape[1:], old.dtype
    last = old[-1:] if len(old) and rng.random() < 0.5 else np.zeros((1, *width), dtype)
    rows = int(rng.choice([10**5, 10**6, 4 * 10**6])) // max(1, dtype.itemsize * int(np.prod(width)) // 16)
    replace(file, name, shape=(rows, *width), chunks=(min(rows, 16384), *width), dtype=dtype, compression="gzip")
    block = np.repeat(last, min(rows, 16384), axis=0)
    for start in range(0, rows, 16384):
        file[name][start : start + 16384] = block[: rows - start]
    publish(file, name, rows)
    if rng.random() < 0.3 and name in ("steps", "loop_end"):
        publish(file, "loop_end" if name == "steps" else "steps", rows)
    return f"{name} of {rows} equal rows, packed"


def change_storage(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    old = file[name]
    data, shape, dtype = old[...], old.shape, old.dtype
    kind = rng.choice(["external", "external self", "virtual", "virtual other", "compact", "contiguous", "late"])
    del file[name]
    size = int(np.prod(shape)) * dtype.itemsize
    if kind.startswith("external"):
        other = str(folder / "secret") if kind == "external" else file.filename
        file.create_dataset(name, shape=shape, dtype=dtype, external=[(other, 0, max(1, size))])
    elif kind.startswith("virtual"):
        layout = h5py.VirtualLayout(shape, dtype)
        source = file.filename if kind == "virtual" else str(folder / "other.h5")
        layout[...] = h5py.VirtualSource(source, name, shape)
        file.create_virtual_dataset(name, layout)
    elif kind == "compact" and size < 60_000:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(shape)
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), space, made)
    elif kind == "late":
        file.create_dataset(name, shape=shape, dtype=dtype)
    else:
        file[name] = data
    return f"{name} is stored {kind}"


def change_link(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    kind = rng.choice(["soft", "dangling", "external", "external self", "self", "alias", "circle"])
    others = [other for other in NAMES if other in file and other != name]
    del file[name]
    if kind == "soft":
        file["elsewhere"] = np.zeros(3)
        file[name] = h5py.SoftLink("/elsewhere")
    elif kind == "dangling":
        file[name] = h5py.SoftLink("/nowhere")
    elif kind.startswith("external"):
        file[name] = h5py.ExternalLink(file.filename if kind.endswith("f") else str(folder / "other.h5"), f"/{name}")
    elif kind == "self":
        file[name] = file["/"]
    elif kind == "circle":
        file[name] = h5py.SoftLink(f"/{name}")
    elif kind == "alias":
        file[name] = file[str(rng.choice(others))]
    return f"{name} is a {kind} link"


def change_filter(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    old = file[name]
    data, shape, dtype = old[...], old.shape, old.dtype
    kind = rng.choice(["lzf", "scaleoffset", "fletcher32", "szip", "unknown", "gzip", "big chunk"])
    chunks = tuple(max(1, n) for n in shape)
    with contextlib.suppress(ValueError, TypeError, RuntimeError, OSError):
        del file[name]
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((2**28, *chunks[1:]) if kind == "big chunk" else chunks)
        if kind == "unknown":
            made.set_filter(32000 + int(rng.integers(100)), h5py.h5z.FLAG_OPTIONAL, (1, 2, 3))
        elif kind == "fletcher32":
            made.set_fletcher32()
        elif kind == "lzf":
            made.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL)
        elif kind == "scaleoffset":
            made.set_scaleoffset(h5py.h5z.SO_INT, 0)
        elif kind == "gzip":
            made.set_deflate(9)
            made.set_deflate(9)
        space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED, *shape[1:]))
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), space, made)
        file[name][...] = data
    return f"{name} through {kind}"


def change_attribute(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    name = str(rng.choice(["format", "version", "layout", "run_id", "eigenvalues", "info", "info", "info"]))
    texts = [
        '{"world_size": 1048576}', '{"world_size": [2, 3]}', '{"world_size": "many"}', '{"world_size": NaN}',
        '{"world_size": 1e300, "rank": {}, "started": "now"}', '{"started": [], "world_size": 2}', "[1]", "null", "7",
        '{"a": ' * 50_000 + "1" + "}" * 50_000, '{"n": ' + "9" * 10_000 + "}", "\udcff", "", "{" * 9,
        '{"parameter_names": 7, "site": 3, "command": {"a": 1}, "name": "\\u001b]0;x\\u0007"}',
        '{"parameter_names": [[]]}', '{"variables": 7}', '{"variables": ["a", "a", "a"]}', '{"variables": [[], null]}',
        '{"variables": {"z_H": 1}, "variable_tokens": -1}', '{"variables": ["\\u001b[31m", "z"]}', '{"variables": []}',
        '{"variables": [' + '"z",' * 5000 + '"z"], "means_over": {"a": []}, "preset": 3, "ended": [1]}',
        '{"config": "text", "site": {"variables": 5, "sublayers": null}, "model": []}', "x" * 5_000_000,
    ]  # fmt: skip
    values: list[Any] = [
        *texts, 7, -1, 1, 2, 3, 4, 2.5, np.nan, 2**62, np.zeros(5), h5py.Empty("f8"), b"bytes\xff", [1, 2],
        np.array(["a", "b"], dtype=h5py.string_dtype()), np.zeros((2, 2)), True, np.array((1, 2.0), dtype="i4,f8"),
        np.array([b"a", b"b"]), file.ref,
    ]  # fmt: skip
    options = {"info": texts, "version": [1, 2, 3, 4, 0, -1, 2**62]}.get(name, values)
    options = options if rng.random() < 0.8 else values
    value = options[rng.integers(len(options))]
    with contextlib.suppress(ValueError, TypeError, RuntimeError, OSError):
        del file.attrs[name]
        if isinstance(value, str) and "\udcff" in value:
            value = np.array(b"\xff\xfe{", dtype=h5py.string_dtype("ascii", 3))
        file.attrs[name] = value
    return f"attribute {name} is {str(value)[:50]!r}"


def change_many(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    kind = rng.choice(["objects", "deep", "attributes", "large attribute"])
    if kind == "objects":
        for i in range(3000):
            file.create_group(f"g{rng.integers(2**40)}.{i}")
    elif kind == "deep":
        group = file
        for _ in range(800):
            group = group.require_group("d")
    elif kind == "attributes":
        for i in range(200):
            file.attrs[f"a{i}"] = "x" * 300
    else:
        file[name].attrs["columns"] = "x" * 60_000
    return f"many {kind}"


def change_numbers(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    """Plausible types, implausible content."""
    table = file[name]
    if not table.shape[0]:
        return f"{name} has no rows"
    row = int(rng.integers(table.shape[0]))
    raw = rng.integers(0, 256, int(np.prod(table.shape[1:])) * table.dtype.itemsize, dtype=np.uint8)
    kind = rng.choice(["random", "zeros", "ones", "huge"])
    raw = {"random": raw, "zeros": raw * 0, "ones": raw * 0 + 255, "huge": np.where(raw > 200, 127, raw)}[str(kind)]
    with contextlib.suppress(ValueError, TypeError, OSError):
        table[row] = raw.view(table.dtype).reshape(table.shape[1:]) if table.shape[1:] else raw.view(table.dtype)[0]
    if name == "commit":
        publish(file, "steps", int(rng.integers(-5, 10**6)))
    return f"row {row} of {name} is {kind}"


def change_entry(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    """One field or column of one row, or of all, with a value that means something to whoever reads it."""
    table = file[name]
    if not table.shape[0]:
        return f"{name} has no rows"
    rows = slice(None) if rng.random() < 0.3 else slice(row := int(rng.integers(table.shape[0])), row + 1)
    data = table[rows]
    field = ""
    if data.dtype.names:
        field = str(rng.choice(data.dtype.names))
        place = data[field]
    else:
        place = data[:, int(rng.integers(data.shape[1]))] if data.ndim == 2 else data
    if place.dtype.kind == "S":
        value: Any = TEXTS[rng.integers(len(TEXTS))]
    elif place.dtype.kind == "f":
        value = float(rng.choice([np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-300, 1e300, 2.0**53, 2.0**62, 2.0**63, 5.5]))
        if np.isfinite(value):
            value = float(np.clip(value, np.finfo(place.dtype).min, np.finfo(place.dtype).max))
    else:
        limits = np.iinfo(place.dtype)
        value = int(np.clip(int(rng.choice(np.array(NUMBERS, np.int64))), limits.min, limits.max))
    place[...] = value
    table[rows] = data
    if name == "commit" and rng.random() < 0.9:
        for row in range(table.shape[0]):
            seal_commit(file, row)
    where = "all rows" if rows == slice(None) else "one row"
    return f"{field or 'a column'} of {name} is {str(value)[:40]!r} in {where}"


def change_length(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    name = str(rng.choice(TABLES)) if name == "commit" else name
    rows = int(rng.choice([-1, 0, 1, 10**4, 2**31, 2**50, 2**63 - 1]))
    publish(file, name, rows)
    return f"{name} claims {rows} rows"


def change_version(file: h5py.File, rng: np.random.Generator, folder: Path, name: str) -> str:
    """Commit rows of another version than the tables that are there, or none of the tables of a version."""
    kind = str(rng.choice(["narrow", "wide", "fewer tables", "more tables"]))
    if kind in ("narrow", "wide"):
        rows = file["commit"][...]
        width = int(rng.choice([0, 1, 4, 11, 12, 13, 14, 15] if kind == "narrow" else [16, 17, 18, 40]))
        made = np.zeros((len(rows), width), "<i8")
        keep = max(0, min(width - 4, rows.shape[1] - 4))
        made[:, :keep] = rows[:, :keep]
        if width >= 4:
            made[:, -4:] = rows[:, -4:]
        replace(file, "commit", data=made, maxshape=(None, width), chunks=(64, max(1, width))) if width else replace(
            file, "commit", data=made
        )
        for row in range(len(rows) if width else 0):
            seal_commit(file, row)
        return f"commit rows of {width} numbers"
    for table in ("arrays", "array_index", "variables", "variable_index"):
        if kind == "fewer tables" and table in file and rng.random() < 0.5:
            del file[table]
        elif kind == "more tables" and table not in file:
            replace(file, table, data=np.zeros((5, 4), "<i8"))
    return kind


def publish(file: h5py.File, name: str, rows: int) -> None:
    """Write a valid commit row that says a table has so many rows."""
    if "commit" not in file or not isinstance(file["commit"], h5py.Dataset) or file["commit"].ndim != 2:
        return
    row = file["commit"][-1].copy()
    columns = list(tables_of(len(row)))
    if name in columns and row.dtype.kind == "i":
        row[columns.index(name)] = rows
        file["commit"][-1] = row
        seal_commit(file, len(file["commit"]) - 1)


def seal_commit(file: h5py.File, at: int) -> None:
    """Make the check value of a commit row right."""
    row = file["commit"][at].astype("<i8")
    row[-1] = zlib.crc32(row[:-1].tobytes())
    file["commit"][at] = row


CHANGES: tuple[Change, ...] = (
    change_kind, change_type, change_named_type, change_shape, change_declared, change_dense, change_storage,
    change_link, change_filter, change_attribute, change_many, change_numbers, change_entry, change_length,
    change_version,
)  # fmt: skip
DEEP: tuple[Change, ...] = (change_numbers, change_entry, change_entry, change_entry, change_length, change_attribute)
"""Changes that leave every object what it was, so that more of whoever reads the file is reached."""

BLOCKS = (b"OHDR", b"FRHP", b"FHDB", b"BTHD", b"BTLF", b"EAHD", b"EAIB", b"EADB", b"GCOL", b"TREE", b"SNOD", b"HEAP")


def change_metadata(path: Path, rng: np.random.Generator) -> str:
    """Change bytes of a block of metadata and make its checksum right, so that HDF5 believes it."""
    raw = bytearray(path.read_bytes())
    places = [(mark, at) for mark in BLOCKS for at in occurrences(raw, mark)]
    if not places:
        return "no metadata"
    mark, at = places[rng.integers(len(places))]
    length = block_length(raw, mark, at)
    for _ in range(int(rng.integers(1, 4))):
        place = at + int(rng.integers(4, max(5, min(length, 600))))
        if place < len(raw):
            raw[place] = int(rng.choice([0, 1, 255, 127, raw[place] ^ (1 << int(rng.integers(8)))]))
    if mark not in (b"GCOL", b"TREE", b"SNOD", b"HEAP") and at + length + 4 <= len(raw):
        struct.pack_into("<I", raw, at + length, lookup3(bytes(raw[at : at + length])))
    path.write_bytes(raw)
    return f"{mark.decode()} at {at} changed"


def occurrences(raw: bytearray, mark: bytes) -> list[int]:
    """Return where a mark stands, forty places at most."""
    places, at = [], raw.find(mark)
    while at >= 0 and len(places) < 40:
        places.append(at)
        at = raw.find(mark, at + 1)
    return places


def block_length(raw: bytearray, mark: bytes, at: int) -> int:
    """Return the bytes of a block before its checksum, as our writer makes it."""
    if mark == b"OHDR":
        size = 1 << (raw[at + 5] & 3)
        stamps = (16 if raw[at + 5] & 0x20 else 0) + (4 if raw[at + 5] & 0x10 else 0)
        return 6 + stamps + size + int.from_bytes(raw[at + 6 + stamps : at + 6 + stamps + size], "little")
    if mark == b"BTLF":
        tree = raw.find(b"BTHD")
        return 6 + 11 * int.from_bytes(raw[tree + 24 : tree + 26], "little")
    return {b"FRHP": 142, b"BTHD": 34, b"EAHD": 68}.get(mark, 200)
