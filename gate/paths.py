"""The runs that a command line means: files, folders of them, and patterns that no shell has expanded.

A path that is there is taken as it is, whatever letters it has. A folder stands for the run files in it at any depth,
hidden ones and links to folders left out; one without any for the logs of other tools in it. What stands for nothing
stays in the list, so that its check says so.

Not covered: whether a file is a run.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from ..runfile.foreign.folders import logs_among

MOST_RUNS: Final = 100_000
_PATTERN: Final = frozenset("*?[")


def expand(paths: Iterable[Path]) -> list[Path]:
    """Return the run files that some words of a command line stand for, each once, in the order given.

    >>> expand([Path("no-such-folder/a.h5")])
    [PosixPath('no-such-folder/a.h5')]
    """
    runs: dict[Path, None] = {}
    for path in paths:
        for each in islice(_of_word(path), MOST_RUNS):
            runs.setdefault(each)
    return list(runs)


def _of_word(path: Path) -> Iterator[Path]:
    """Yield what one word stands for."""
    if path.is_dir():
        yield from _in_folder(path)
    elif not os.path.lexists(path) and _PATTERN & set(str(path)):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - an absolute pattern is allowed
        for match in matches:
            yield from _in_folder(Path(match)) if Path(match).is_dir() else [Path(match)]
        if not matches:
            yield path
    else:
        yield path


def _in_folder(folder: Path) -> Iterator[Path]:
    """Yield the run files of a folder, without any its logs, and the folder itself where it has neither."""
    some, others = False, list[Path]()
    for home, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.endswith(".h5") and not name.startswith("."):
                some = True
                yield Path(home, name)
            elif len(others) < MOST_RUNS and not name.startswith("."):
                others.append(Path(home, name))
    if not some:
        yield from logs_among(others) or [folder]
