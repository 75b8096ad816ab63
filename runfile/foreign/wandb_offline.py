"""The history of an offline run of Weights & Biases, read without its library.

The file (``offline-run-…/run-….wandb``) is a log in blocks of 32 KiB after a head of seven bytes; a record may reach
over several blocks, each part with a CRC-32. The records are Protocol Buffers; those of the history hold names and
numbers as JSON. It is no published format: it was read off files that wandb 0.22.0 wrote, and a head of another version
is refused by name.

Not covered: media, tables, system metrics, and runs that were sent to a server and not kept.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..text import plain
from .table import MOST_NAMES, MOST_ROWS, LogError, LogTable, Record, choose, read_bytes, table
from .wire import WireError, fields, signed

HEAD: Final = b":W&B"
_BLOCK: Final = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4  # kinds of parts of a record
_HISTORY, _CONFIG, _RUN, _EXIT = 2, 4, 17, 18  # kinds of records
_KEY, _NESTED, _JSON = 1, 2, 16  # fields of an item
_MOST_SETTINGS: Final = 500


def read_wandb(path: Path) -> LogTable:
    """Read the history of an offline run.

    Raises:
        LogError: The file is damaged, of another version, or has no loss.
    """
    content = read_bytes(path)
    if content[:4] != HEAD or len(content) < 7 or content[4:7] != b"\xe1\xbe\x00":
        said = "no offline run of W&B, or of a version that is not known here; export its history as CSV"
        raise LogError(f"{plain(path)}: {said}")
    records: list[Record] = []
    names: dict[str, None] = {}
    config: dict[str, Any] = {}
    ended = False
    for number, whole in enumerate(_whole_records(path, content), 1):
        where = f"{plain(path)}: record {number}"
        try:
            for kind, inner in fields(whole):
                if kind == _HISTORY and isinstance(inner, bytes):
                    record = _history(where, inner)
                    names.update(dict.fromkeys(record.values))
                    records.append(record)
                elif kind in (_CONFIG, _RUN) and isinstance(inner, bytes):
                    config |= _settings(inner, of_run=kind == _RUN)
                ended |= kind == _EXIT
        except (WireError, UnicodeDecodeError) as error:
            raise LogError(f"{where}: cannot be read: {plain(error)}") from None
        if len(records) > MOST_ROWS or len(names) > MOST_NAMES:
            raise LogError(f"{plain(path)}: more than {MOST_ROWS:,} rows or {MOST_NAMES:,} names")
    names.pop("_step", None)
    chosen = choose(path, names)
    chosen.setdefault("step", "_step")
    interrupted = "" if ended else "wandb wrote no end of the run: it goes on, or was killed"
    return table(path, "W&B offline", records, chosen, config=config, reason=interrupted,
                 state="finished" if ended else "interrupted")  # fmt: skip


def _whole_records(path: Path, content: bytes) -> Iterator[bytes]:
    """Yield the records, their parts put together; a last one that is cut off is left out."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left  # the rest of a block that no head fits in
            continue
        crc, size, kind = struct.unpack_from("<IHB", content, at)
        if not (crc or size or kind):
            at += left
            continue
        body = content[at + 7 : at + 7 + size]
        if size > left - 7 or kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
            raise LogError(f"{plain(path)}: damaged at byte {at}")
        if len(body) < size:
            return
        if zlib.crc32(body, zlib.crc32(bytes([kind]))) != crc:
            raise LogError(f"{plain(path)}: damaged at byte {at}: its checksum is wrong")
        parts = body if kind in (_FULL, _FIRST) else parts + body
        at += 7 + size
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""


def _history(where: str, message: bytes) -> Record:
    """Return the numbers of one row."""
    values: dict[str, float] = {}
    for field, content in fields(message):
        if field == 1 and isinstance(content, bytes):
            name, value = _item(content)
            if isinstance(value, int | float) and not isinstance(value, bool):
                values[name] = _float(value)
            elif value in ("NaN", "Infinity", "-Infinity"):
                values[name] = float(value)
        elif field == 2 and isinstance(content, bytes):
            for inner, number in fields(content):
                if inner == 1 and isinstance(number, int):
                    values["_step"] = float(signed(number))
    return Record(where, values)


def _item(message: bytes) -> tuple[str, Any]:
    """Return the name and the value of an item; None where it is nothing that JSON knows."""
    name, nested, value = "", [], None
    for field, content in fields(message):
        if not isinstance(content, bytes):
            continue
        if field == _KEY:
            name = content.decode("utf-8")
        elif field == _NESTED:
            nested.append(content.decode("utf-8"))
        elif field == _JSON and len(content) <= 1 << 16:
            try:
                value = json.loads(content)
            except (ValueError, RecursionError):
                value = None
    return name or "/".join(nested), value


def _settings(message: bytes, *, of_run: bool) -> dict[str, Any]:
    """Return the settings of a configuration record, or of that inside the record of a run."""
    settings: dict[str, Any] = {}
    if of_run:
        for field, content in fields(message):
            if field == _CONFIG and isinstance(content, bytes):
                settings |= _settings(content, of_run=False)
        return settings
    for field, content in fields(message):
        if field == 1 and isinstance(content, bytes) and len(settings) < _MOST_SETTINGS:
            name, value = _item(content)
            if name and not name.startswith("_"):
                settings[name] = value
    return settings


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")
