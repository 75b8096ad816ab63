"""Which reader a path gets: by its content where that is sure, by its name else. A run file is none of these.

Not covered: whether the content is what it says it is; the readers find that out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .delimited import read_delimited
from .objects import read_json, read_lines
from .table import LogTable
from .tensorboard import MARK, event_files, read_events
from .wandb_offline import HEAD, read_wandb

Reader = Callable[[Path], LogTable]
BY_ENDING: Final[dict[str, Reader]] = {
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".json": read_json,
    ".wandb": read_wandb,
}
TRAINER_STATE: Final = "trainer_state.json"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"


def recognise(path: Path) -> tuple[Path, Reader] | None:
    """Return the log that a path stands for and its reader; None where it is no log of a known kind.

    Args:
        path: A file; or a folder that holds event files of TensorBoard, an offline run of W&B, or a trainer state.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    if stat.S_ISDIR(mode):
        return _in_folder(path)
    if not stat.S_ISREG(mode) or path.suffix == ".h5":
        return None
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:
        head = b""
    if head == _HDF5:
        return None
    if head[:4] == HEAD:
        return path, read_wandb
    if MARK in path.name:
        return path, read_events
    reader = BY_ENDING.get(path.suffix.lower())
    return None if reader is None else (path, reader)


def _in_folder(folder: Path) -> tuple[Path, Reader] | None:
    """Return the one log that a folder stands for."""
    try:
        if (folder / TRAINER_STATE).is_file():
            return folder / TRAINER_STATE, read_json
        if event_files(folder):
            return folder, read_events
        offline = sorted(each.path for each in os.scandir(folder) if each.name.endswith(".wandb") and each.is_file())
        return (Path(offline[0]), read_wandb) if len(offline) == 1 else None
    except OSError:
        return None
