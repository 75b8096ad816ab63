"""Run by test_structure.py: changes the structure of run files and says what everybody who reads them came to.

    python structure_worker.py FOLDER FIRST_SEED SECONDS

Not bytes but what HDF5 makes of them: kinds of objects, types, shapes, links, where a table is stored, filters,
attributes, declared sizes, depth and number of objects. After that, in one case of four, bytes of the metadata too,
with their checksums made right. Each case is read, diagnosed, exported and repaired in a forked process with bounds on
memory and time. For each one line is printed: the change, and ``data``, ``refused`` or what must not be.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from damage_worker import questions, write
from loopscope.runfile.disk.repair import repair
from loopscope.runfile.disk.superblock import lookup3
from loopscope.runfile.export import export
from loopscope.runfile.layout import COMMIT_COLUMNS, TABLES, RunFileError
from loopscope.runfile.open import open_run

SECRET = b"root:x:0:0:a line of another file"
ROOM = 500 << 20  # bytes that a case may take on top of what is there
SECONDS = 60.0
Change = Callable[[h5py.File, np.random.Generator, Path], str]
NAMES = (*TABLES, "commit")


def some_table(file: h5py.File, rng: np.random.Generator) -> str:
    """Return the name of a table that is there."""
    return str(rng.choice([name for name in NAMES if name in file]))


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


def change_kind(file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    name = some_table(file, rng)
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


def change_type(file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    name, kind = some_table(file, rng), odd_type(rng)
    shape = file[name].shape
    chunked = rng.random() < 0.5
    extra = {"maxshape": (None, *shape[1:]), "chunks": (4, *shape[1:])} if chunked else {}
    replace(file, name, shape=shape, dtype=kind, **extra)
    return f"{name} of type {kind}"


def change_named_type(file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    name = some_table(file, rng)
    old = file[name]
    shape, dtype = old.shape, old.dtype
    file["a type"] = dtype
    replace(file, name, shape=shape, dtype=file["a type"])
    return f"{name} of a named type"


def change_shape(file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    name = some_table(file, rng)
    old = file[name]
    options = [(0,), (1,), (3, 3, 3), (*old.shape, 1), (old.shape[0],), (old.shape[0], 40), (old.shape[0], 2), (0, 0)]
    shape = options[rng.integers(len(options))]
    replace(file, name, shape=shape, dtype=old.dtype)
    return f"{name} of shape {shape}"


def change_declared(file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    name = some_table(file, rng)
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


def change_dense(file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    name = str(rng.choice(["loops", "probe", "events", "spectra", "arrays"]))
    width, dtype = file[name].shape[1:], file[name].dtype
    rows = int(rng.choice([10**5, 10**6, 4 * 10**6])) // max(1, dtype.itemsize // 16)
    replace(file, name, shape=(rows, *width), chunks=(min(rows, 16384), *width), dtype=dtype, compression="gzip")
    block = np.zeros((min(rows, 16384), *width), dtype)
    for start in range(0, rows, 16384):
        file[name][start : start + 16384] = block[: rows - start]
    publish(file, name, rows)
    return f"{name} of {rows} equal rows, packed"


def change_storage(file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    name = some_table(file, rng)
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


def change_link(file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    name, kind = some_table(file, rng), rng.choice(["soft", "dangling", "external", "self", "alias", "circle", "user"])
    del file[name]
    if kind == "soft":
        file["elsewhere"] = np.zeros(3)
        file[name] = h5py.SoftLink("/elsewhere")
    elif kind == "dangling":
        file[name] = h5py.SoftLink("/nowhere")
    elif kind == "external":
        file[name] = h5py.ExternalLink(str(folder / "other.h5"), f"/{name}")
    elif kind == "self":
        file[name] = file["/"]
    elif kind == "circle":
        file[name] = h5py.SoftLink(f"/{name}")
    elif kind == "alias":
        file[name] = file[some_table(file, rng)]
    return f"{name} is a {kind} link"


def change_filter(file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    name = some_table(file, rng)
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


def change_attribute(file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    name = str(rng.choice(["format", "version", "layout", "run_id", "eigenvalues", "info"]))
    texts = [
        '{"world_size": 1048576}', '{"world_size": [2, 3]}', '{"world_size": "many"}', '{"world_size": NaN}',
        '{"world_size": 1e300, "rank": {}, "started": "now"}', '{"started": [], "world_size": 2}', "[1]", "null", "7",
        '{"a": ' * 50_000 + "1" + "}" * 50_000, '{"n": ' + "9" * 10_000 + "}", "\udcff", "", "{" * 9,
        '{"parameter_names": 7, "site": 3, "command": {"a": 1}, "name": "\\u001b]0;x\\u0007"}',
        '{"parameter_names": [[]]}',
        '{"config": "text", "site": {"variables": 5, "sublayers": null}, "model": []}', "x" * 5_000_000,
    ]  # fmt: skip
    values: list[Any] = [
        *texts, 7, -1, 2.5, np.nan, 2**62, np.zeros(5), h5py.Empty("f8"), b"bytes\xff", np.array([b"a", b"b"]), [1, 2],
        np.array(["a", "b"], dtype=h5py.string_dtype()), np.zeros((2, 2)), True, np.array((1, 2.0), dtype="i4,f8"),
    ]  # fmt: skip
    value = (
        texts[rng.integers(len(texts))] if name == "info" and rng.random() < 0.8 else values[rng.integers(len(values))]
    )
    with contextlib.suppress(ValueError, TypeError, RuntimeError, OSError):
        del file.attrs[name]
        if isinstance(value, str) and "\udcff" in value:
            value = np.array(b"\xff\xfe{", dtype=h5py.string_dtype("ascii", 3))
        file.attrs[name] = file.ref if rng.random() < 0.05 else value
    return f"attribute {name} is {str(value)[:50]!r}"


def change_many(file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    kind = rng.choice(["objects", "deep", "attributes", "large attribute"])
    if kind == "objects":
        for i in range(3000):
            file.create_group(f"g{i}")
    elif kind == "deep":
        group = file
        for _ in range(800):
            group = group.create_group("d")
    elif kind == "attributes":
        for i in range(200):
            file.attrs[f"a{i}"] = "x" * 300
    else:
        file[some_table(file, rng)].attrs["columns"] = "x" * 60_000
    return f"many {kind}"


def change_numbers(file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    """Plausible types, implausible content."""
    name = some_table(file, rng)
    table = file[name]
    if not table.shape[0]:
        return "nothing"
    row = int(rng.integers(table.shape[0]))
    raw = rng.integers(0, 256, int(np.prod(table.shape[1:])) * table.dtype.itemsize, dtype=np.uint8)
    kind = rng.choice(["random", "zeros", "ones", "huge"])
    raw = {"random": raw, "zeros": raw * 0, "ones": raw * 0 + 255, "huge": np.where(raw > 200, 127, raw)}[str(kind)]
    with contextlib.suppress(ValueError, TypeError, OSError):
        table[row] = raw.view(table.dtype).reshape(table.shape[1:]) if table.shape[1:] else raw.view(table.dtype)[0]
    if name == "commit":
        publish(file, "steps", int(rng.integers(-5, 10**6)))
    return f"row {row} of {name} is {kind}"


def change_length(file: h5py.File, rng: np.random.Generator, folder: Path) -> str:
    name = str(rng.choice(TABLES))
    rows = int(rng.choice([-1, 0, 1, 10**4, 2**31, 2**50, 2**63 - 1]))
    publish(file, name, rows)
    return f"{name} claims {rows} rows"


def publish(file: h5py.File, name: str, rows: int) -> None:
    """Write a valid commit row that says a table has so many rows."""
    if "commit" not in file or not isinstance(file["commit"], h5py.Dataset) or file["commit"].ndim != 2:
        return
    row = file["commit"][-1].copy()
    columns = list(COMMIT_COLUMNS)
    if len(row) == len(columns) and name in columns:
        row[columns.index(name)] = rows
        row[-1] = zlib.crc32(row[:-1].astype("<i8").tobytes())
        file["commit"][-1] = row


CHANGES: tuple[Change, ...] = (
    change_kind, change_type, change_named_type, change_shape, change_declared, change_dense, change_storage,
    change_link, change_filter, change_attribute, change_attribute, change_many, change_numbers, change_length,
)  # fmt: skip
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
    """Where a mark is found."""
    places, at = [], raw.find(mark)
    while at >= 0 and len(places) < 20:
        places.append(at)
        at = raw.find(mark, at + 1)
    return places


def block_length(raw: bytearray, mark: bytes, at: int) -> int:
    """Bytes of a block before its checksum, as our writer makes it."""
    if mark == b"OHDR":
        size = 1 << (raw[at + 5] & 3)
        stamps = (16 if raw[at + 5] & 0x20 else 0) + (4 if raw[at + 5] & 0x10 else 0)
        return 6 + stamps + size + int.from_bytes(raw[at + 6 + stamps : at + 6 + stamps + size], "little")
    if mark == b"BTLF":
        tree = raw.find(b"BTHD")
        return 6 + 11 * int.from_bytes(raw[tree + 24 : tree + 26], "little")
    return {b"FRHP": 142, b"BTHD": 34, b"EAHD": 68}.get(mark, 200)


def examine(path: Path) -> str:
    """Do with a file what everybody does with files."""
    said = "data"
    try:
        with open_run(path) as run:
            for ask in questions(run).values():
                with contextlib.suppress(RunFileError, KeyError):
                    answer = repr(ask())
                    assert "another file" not in answer, "bytes of another file"
            repr(run)
            for table in ("json", "csv"):
                with contextlib.suppress(RunFileError):
                    export(run, path.with_name(f"out.{table}"), force=True)
                    assert SECRET not in path.with_name(f"out.{table}").read_bytes(), "bytes of another file"
    except RunFileError as error:
        said = f"refused ({str(error).split(':', 1)[-1][:80]})"
        assert len(str(error).splitlines()) == 1
    try:
        repair(path, in_place=True)
    except RunFileError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert SECRET not in path.read_bytes(), "bytes of another file"
    return said


def in_a_child(work: Callable[[], str]) -> tuple[str, int]:
    """Run something in a forked process with bounds; return what it says, or how it ended, and the bytes it took."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (size + 2 * ROOM, size + 2 * ROOM))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            said = work()
        except BaseException as error:
            where = "; ".join(f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-4:])
            said = f"RAISED {type(error).__name__}: {' '.join(str(error).split())[:200]} ({where})"
        os.write(writing, said.encode("utf-8", "replace")[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read().decode()
    _, status, usage = os.wait4(child, 0)
    taken = (usage.ru_maxrss - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
    if os.WIFSIGNALED(status):
        said = "HUNG" if os.WTERMSIG(status) == signal.SIGALRM else f"CRASHED by signal {os.WTERMSIG(status)}"
    return said, taken


def one_case(files: list[Path], folder: Path, seed: int) -> str:
    """Change a copy of a run and say what came of it."""
    rng = np.random.default_rng(seed)
    source = files[rng.integers(len(files))]
    path = folder / "a.h5"
    folder.mkdir()
    shutil.copyfile(source, path)
    shutil.copyfile(source, folder / "other.h5")
    (folder / "secret").write_bytes(SECRET * 4000)
    done, _ = in_a_child(lambda: change(path, folder, rng))  # HDF5 may not survive making such a file either
    said, taken = in_a_child(lambda: examine(path))
    if taken > ROOM:
        said = f"{said} MEMORY {taken >> 20} MB"
    shutil.rmtree(folder)
    return f"{seed} {source.parent.name}: {done}: {said}"


def change(path: Path, folder: Path, rng: np.random.Generator) -> str:
    """Change a file; return what was done to it, as far as HDF5 let it be done."""
    done: list[str] = []
    try:
        if rng.random() < 0.8:
            version = [None, "latest", "v108", ("v110", "v110")][rng.integers(4)]
            with h5py.File(path, "r+", libver=version) as file:
                changes = (CHANGES[rng.integers(len(CHANGES))] for _ in range(int(rng.choice([1, 1, 1, 2, 3]))))
                done.extend(make(file, rng, folder) for make in changes)
        if not done or rng.random() < 0.25:
            done.append(change_metadata(path, rng))
    except Exception as error:  # what cannot be made need not be read
        done.append(f"stopped by {type(error).__name__}")
    return "; ".join(done)


def main() -> None:
    """Change and examine for some seconds; print a line for each case, and the number of cases last."""
    folder, first, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    files = []
    for name, end in (("sealed", "seal"), ("killed", "kill"), ("closed", "close")):
        (folder / name).mkdir(parents=True)
        files.append(folder / name / "a.h5")
        write(files[-1], generations=2 if end == "close" else 1, end=end)
        with contextlib.suppress(RunFileError):
            repair(files[-1], in_place=True)  # closed cleanly, so that h5py opens it for changing
    begin, seed = time.monotonic(), first
    while time.monotonic() - begin < seconds:
        sys.stdout.write(one_case(files, folder / "case", seed) + "\n")
        sys.stdout.flush()
        seed += 1
    sys.stdout.write(f"{seed - first} cases\n")


if __name__ == "__main__":
    main()
