"""Rows of many runs read by helpers: processes of their own, since reading one run keeps one processor busy.

A helper is this module run as a program. It gets paths on its standard input, one a line as JSON, and answers each
with the cells of its row. What a helper cannot say, the process that asked reads itself.

Not covered: which runs are read, and when (`summary`).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from .row_cells import cells_of, read_once

WORTH: Final = 24
"""So many runs that wait to be read are worth the start of a helper, which takes about a second."""
MOST: Final = 3


def helpers_for(waiting: int) -> int:
    """Return how many helpers so many waiting runs are worth on this machine: one processor is for the page.

    >>> helpers_for(3)
    0
    """
    return min(MOST, (os.cpu_count() or 1) - 1, waiting // WORTH)


class Helper:
    """A process that reads rows. It ends when it is closed, or with this process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment()
        )

    def cells(self, path: Path) -> dict[str, Any] | None:
        """Return the cells of a run; None where the helper has none, or is gone."""
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None and answers is not None
        try:
            asked.write(json.dumps(str(path)).encode() + b"\n")
            asked.flush()
            said = json.loads(answers.readline() or b"null")
        except (OSError, ValueError):
            return None
        return said if isinstance(said, dict) else None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()


def _environment() -> dict[str, str]:
    """Return an environment in which a helper finds this package, wherever this process has it from."""
    home = str(Path(__file__).resolve().parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, home])}


def main() -> None:
    """Answer paths with cells until there are no more."""
    with contextlib.suppress(OSError):
        os.nice(10)  # a training may run on this machine
    for line in sys.stdin.buffer:
        try:
            answer = json.dumps(read_once(Path(json.loads(line)), cells_of))
        except Exception:  # whatever a hostile file brings about: the process that asked finds the words for it
            answer = "null"
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
