"""The child process of `disk.trial`: reads all of one file, or repairs it, and says on standard output what came of it.

    python -m loopscope.runfile.examine read FILE
    python -m loopscope.runfile.examine repair FILE [in-place]

It has little memory and little time, so that a file made to exhaust either is refused and nothing else happens.

Not covered: keeping a library that was taken over from acting. Limits are limits of resources.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from .disk.repair import repair
from .disk.trial import seconds_for, trust_everything
from .layout import LOOP_COLUMNS, RunFileError
from .reader import Run

_MEMORY: Final = 384 << 20  # bytes on top of what the process has when it begins, for the smallest file
_PER_BYTE: Final = 3  # more for every byte of the file: numbers are kept as they are read, and once more as rectangles


def main() -> None:
    """Do what the command line says and print one JSON object."""
    task, path, *options = sys.argv[1:]
    _limit(Path(path).stat().st_size, writes=task == "repair")
    trust_everything()
    said: dict[str, Any]
    try:
        answer = read(Path(path)) if task == "read" else _repaired(Path(path), "in-place" in options)
        said = {"answer": answer}
    except RunFileError as error:
        said = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write(json.dumps(said))


def read(path: Path) -> int:
    """Ask a run for everything it has, and return its number of steps."""
    with Run(path) as run:
        for name in run.names:
            run[name]
        for name in LOOP_COLUMNS:
            run.loops(name)
            run.probe(name)
        run.spectra()
        run.history("step")
        for name in run.array_names:
            for row in range(len(run.array_steps(name))):
                run.arrays(name, slice(row, row + 1))
        return len(run)


def _repaired(path: Path, in_place: bool) -> dict[str, Any]:
    """Repair a file and return the report in words of JSON."""
    report = asdict(repair(path, in_place=in_place))
    return {key: os.fspath(value) if isinstance(value, Path) else value for key, value in report.items()}


def _limit(file_size: int, *, writes: bool) -> None:
    """Bound the memory and the processor time of this process and what it leaves behind."""
    pages = Path("/proc/self/statm")
    if pages.exists():  # Linux; elsewhere the limit of address space does not hold
        size = int(pages.read_text().split()[0]) * resource.getpagesize()
        room = size + _MEMORY + _PER_BYTE * file_size
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    seconds = math.ceil(seconds_for(file_size) + time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not writes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


if __name__ == "__main__":
    main()
