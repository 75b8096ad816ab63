"""The logs that lie in a folder: what names itself so surely that nobody has to point at it.

A trainer state, an offline run of W&B, and the event files of a folder are logs by their names. A table or a file of
JSON lines may be anything, so that the beginning of it has to name a loss. The command line, the dashboard and the
doctor look here, so that one folder means the same everywhere.

Not covered: whether a log can be read to its end; logs whose loss is named later than in their first records.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

from .delimited import head_of
from .objects import flat
from .recognise import TRAINER_STATE
from .table import LogError, NoLoss, choose
from .tensorboard import MARK

_TABLES: Final = frozenset({".csv", ".tsv"})
_LINES: Final = frozenset({".jsonl", ".ndjson"})
_HEAD: Final = 64 << 10  # bytes of a table that are looked at
_RECORDS: Final = 50  # of JSON lines that are looked at
_REMEMBERED: Final = 4096  # tables whose beginning was looked at


def logs_among(files: Iterable[Path]) -> list[Path]:
    """Return the logs that some files are or belong to, each once, in their order.

    >>> logs_among([Path("v0/events.out.tfevents.1.host"), Path("v0/events.out.tfevents.2.host"), Path("v0/a.txt")])
    [PosixPath('v0')]
    """
    return list(dict.fromkeys(log for path in files if (log := log_of(path)) is not None))


def log_of(path: Path) -> Path | None:
    """Return the log that a file is or belongs to: itself, or its folder, whose event files are one run together."""
    if MARK in path.name:
        return path.parent
    if path.name == TRAINER_STATE or path.suffix == ".wandb":
        return path
    return path if path.suffix in _TABLES | _LINES and _names_a_loss(path) else None


def _names_a_loss(path: Path) -> bool:
    """Return whether the beginning of a table names a loss."""
    try:
        status = path.stat()
        return _seen(path, status.st_size, status.st_mtime_ns) if path.is_file() else False
    except OSError:
        return False


@lru_cache(_REMEMBERED)
def _seen(path: Path, size: int, changed: int) -> bool:
    """Return whether a table of this size and time of change names a loss."""
    with path.open("rb") as file:
        text = file.read(_HEAD).decode("utf-8-sig", "replace")
    try:
        choose(path, head_of(text.splitlines())[0] if path.suffix in _TABLES else _keys(text))
    except (NoLoss, csv.Error):
        return False
    except LogError:
        pass  # two names could be it: a log, of which whoever opens it says that
    return True


def _keys(text: str) -> Iterator[str]:
    """Yield the names in the first records of a file of JSON lines; a line that is none ends them."""
    for line in text.split("\n")[:_RECORDS]:
        try:
            record = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            return
        if not isinstance(record, dict):
            return
        yield from flat(record)
