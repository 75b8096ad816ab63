"""The scalars of TensorBoard event files, read without TensorBoard.

An event file is a row of records, each with its length, a CRC of that, an event in Protocol Buffers, and a CRC of the
event. A wrong CRC is an error; a last record that is cut off is one that is being written, and is left out. Of a folder
all event files are read, in the order of their names, which begin with the time.

Not covered: histograms, images, text; plugins that keep scalars in tables of their own.

Source: TFRecord and tensorflow/core/util/event.proto.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from ..text import plain
from .table import LARGEST, MOST_NAMES, MOST_ROWS, LogError, LogTable, Record, choose, read_bytes, table
from .wire import WireError, crc32c, double, fields, masked, signed, single

MARK: Final = "tfevents"
MOST_FILES: Final = 1000
_HEAD, _TAIL = 12, 4  # bytes around a record: length and its CRC; CRC of the content
_LARGEST_RECORD: Final = 64 << 20
_STEP, _WALL_TIME = "\0step", "\0time"  # names that no tag can have

Scalar = tuple[str, float]


def event_files(folder: Path) -> list[Path]:
    """Return the event files that lie in a folder itself, oldest first."""
    return sorted(path for path in folder.iterdir() if MARK in path.name and path.is_file())


def read_events(path: Path) -> LogTable:
    """Read the scalars of an event file, or of all in a folder.

    Raises:
        LogError: One of them is damaged, or there is no loss in them.
    """
    files = event_files(path) if path.is_dir() else [path]
    if len(files) > MOST_FILES:
        raise LogError(f"{plain(path)}: more than {MOST_FILES} event files in one folder")
    records: list[Record] = []
    names: dict[str, None] = {}
    size = 0
    for file in files:
        content = read_bytes(file)
        size += len(content)
        if size > LARGEST:
            raise LogError(f"{plain(path)}: its event files are larger than {LARGEST >> 20} MiB together")
        for record in _records(file, content):
            names.update(dict.fromkeys(name for name in record.values if not name.startswith("\0")))
            records.append(record)
            if len(records) > MOST_ROWS or len(names) > MOST_NAMES:
                raise LogError(f"{plain(path)}: more than {MOST_ROWS:,} events or {MOST_NAMES:,} tags")
    chosen = choose(path, names) | {"step": _STEP, "time": _WALL_TIME}
    wanted = set(chosen.values())
    return table(path, "TensorBoard", _by_step(records, wanted), chosen)


def _by_step(records: list[Record], wanted: set[str]) -> Iterator[Record]:
    """Yield the records in the order of their steps where nothing was resumed: tags may be logged one after another."""
    kept = [record for record in records if wanted & (record.values.keys() - {_STEP, _WALL_TIME})]
    last: dict[str, float] = {}
    resumed = False
    for record in kept:  # a tag that goes back in steps was resumed
        for name in record.values.keys() - {_STEP, _WALL_TIME}:
            resumed |= record.values[_STEP] < last.get(name, -math.inf)
            last[name] = record.values[_STEP]
    yield from kept if resumed else sorted(kept, key=lambda record: record.values[_STEP])


def _records(path: Path, content: bytes) -> Iterator[Record]:
    """Yield the scalars of a file."""
    places = _places(path, content)
    _check(path, content, places)
    for number, (start, end) in enumerate(places, 1):
        where = f"{plain(path)}: record {number}"
        try:
            step, time, scalars = _event(content[start:end])
        except (WireError, UnicodeDecodeError) as error:
            raise LogError(f"{where}: no event: {plain(error)}") from None
        if scalars:
            yield Record(where, {**dict(scalars), _STEP: float(step), _WALL_TIME: time})


def _places(path: Path, content: bytes) -> list[tuple[int, int]]:
    """Return where the content of every record starts and ends."""
    places: list[tuple[int, int]] = []
    at = 0
    while at + _HEAD <= len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        start, end = at + _HEAD, at + _HEAD + size
        if size > _LARGEST_RECORD:
            raise LogError(f"{plain(path)}: record {len(places) + 1} says it has {size} bytes; this is no event file")
        if end + _TAIL > len(content):
            break  # it is being written
        places.append((start, end))
        at = end + _TAIL
    if not places:
        raise LogError(f"{plain(path)}: no event file, or one without events")
    return places


def _check(path: Path, content: bytes, places: list[tuple[int, int]]) -> None:
    """Refuse a file in which a CRC is wrong; records of one length are looked at together."""
    flat = np.frombuffer(content, np.uint8)
    starts = np.array([start for start, _ in places])
    sizes = np.array([end - start for start, end in places])
    wrong = _wrong(flat, starts - _HEAD, np.full(len(starts), 8))
    for size in np.unique(sizes):
        at = sizes == size
        wrong[at] |= _wrong(flat, starts[at], sizes[at])
    if wrong.any():
        raise LogError(f"{plain(path)}: record {int(np.argmax(wrong)) + 1} is damaged: its checksum is wrong")


def _wrong(flat: np.typing.NDArray[np.uint8], starts: np.typing.NDArray[np.int64],
           sizes: np.typing.NDArray[np.int64]) -> np.typing.NDArray[np.bool_]:  # fmt: skip
    """Return which stretches of one length do not have the CRC that follows them."""
    size = int(sizes[0])
    windows = np.lib.stride_tricks.sliding_window_view(flat, size + 4)
    wrong = np.zeros(len(starts), dtype=bool)
    block = max(1, (1 << 24) // (size + 4))
    for first in range(0, len(starts), block):
        part = windows[starts[first : first + block]]
        said = np.ascontiguousarray(part[:, size:]).view("<u4")[:, 0]
        wrong[first : first + block] = masked(crc32c(part[:, :size])) != said
    return wrong


def _event(message: bytes) -> tuple[int, float, list[Scalar]]:
    """Return step, time and scalars of an event."""
    step, time, scalars = 0, math.nan, []
    for number, content in fields(message):
        if number == 1:
            time = double(content)
        elif number == 2 and isinstance(content, int):
            step = signed(content)
        elif number == 5 and isinstance(content, bytes):
            for part, value in fields(content):
                if part == 1 and isinstance(value, bytes) and (scalar := _scalar(value)) is not None:
                    scalars.append(scalar)
    return step, time, scalars


def _scalar(message: bytes) -> Scalar | None:
    """Return the tag and the number of a value; None where it is no scalar."""
    tag, number = "", None
    for field, content in fields(message):
        if field == 1 and isinstance(content, bytes):
            tag = content.decode("utf-8")
        elif field == 2:
            number = single(content)
        elif field == 8 and isinstance(content, bytes):
            number = _tensor(content)
    return None if number is None or not tag or tag.startswith("\0") else (tag, number)


def _tensor(message: bytes) -> float | None:
    """Return the number of a tensor that holds one."""
    kind, content, numbers = 0, b"", b""
    for field, value in fields(message):
        if field == 1 and isinstance(value, int):
            kind = value
        elif field == 4 and isinstance(value, bytes):
            content = value
        elif field in (5, 6) and isinstance(value, bytes):
            numbers = value
    form = {1: "<f", 2: "<d"}.get(kind)
    held = content or numbers
    if form is None or len(held) != struct.calcsize(form):
        return None
    scalar: float = struct.unpack(form, held)[0]
    return scalar
