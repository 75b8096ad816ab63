"""Opens a file of unusual structure in a process of its own first, with little memory and little time.

What our writer makes is recognised by its structure (`skeleton`) and costs no process. A file that is not so made may
be a run that another program has touched, a damaged one, or one made to bring HDF5 down. A child process reads all of
it; if HDF5 crashes, hangs or fills the memory there, the file is refused here. The verdict is kept until the file
changes.

Not covered: a file that is changed between the trial and the reading, and damage that only some processes notice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from ..layout import DamagedRun, NotARun, RunFileError, RunInUse
from .lease import is_held
from .skeleton import NOT_SEEN, Shapes, as_written

CHILD: Final = "loopscope.runfile.examine"
_SECONDS: Final = 15.0  # of processor time, for the smallest file
_PATIENCE: Final = 4  # seconds on the clock for each of these: a busy machine is no damage
_BYTES_A_SECOND: Final = 2 << 20  # that a child reads at least
_KINDS: Final = {kind.__name__: kind for kind in (RunFileError, DamagedRun, NotARun, RunInUse)}
_KEPT_AT_MOST: Final = 4096
_verdicts: dict[tuple[int, ...], RunFileError | Shapes] = {}
_inside = False


def stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes whenever a file does."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def trust_everything() -> None:
    """Open whatever comes without a trial: this process is the child."""
    global _inside
    _inside = True


def seconds_for(size: int) -> float:
    """Return the seconds of processor time that a child may take for a file of so many bytes."""
    return _SECONDS + size / _BYTES_A_SECOND


def needs_trial(path: Path) -> bool:
    """Return whether a file has to be opened elsewhere first: it is not as our writer makes it."""
    return not _inside and not _recognised(path)


def _recognised(path: Path) -> Shapes:
    """Return the shapes of the tables of a file that is as our writer makes it, else nothing."""
    shapes = as_written(path)
    for _ in range(5):  # perhaps its writer was changing what was just read
        if shapes or not is_held(path):
            break
        time.sleep(0.01)
        shapes = as_written(path)
    return shapes


def screen(path: Path) -> Shapes:
    """Return the shapes of the tables of a file that is as our writer makes it.

    Of another one nothing; it is read in a process of its own first.

    Raises:
        RunFileError: What reading it raised there.
    """
    if _inside:
        return NOT_SEEN
    key = stamp(path.stat())
    if key not in _verdicts:
        if len(_verdicts) >= _KEPT_AT_MOST:
            _verdicts.clear()
        try:
            recognised = _recognised(path)
            if not recognised:
                in_a_child("read", path)
            _verdicts[key] = recognised
        except RunFileError as error:
            _verdicts[key] = error
    verdict = _verdicts[key]
    if isinstance(verdict, RunFileError):
        raise type(verdict)(str(verdict))
    return verdict


def in_a_child(task: str, path: Path, *options: str) -> Any:
    """Have a child process do something with a file, and return what it says.

    Args:
        task: ``read`` or ``repair``.
        path: The file.
        options: Further words for the child.

    Raises:
        RunFileError: What the child raised, or that HDF5 brought it down.
    """
    command = [sys.executable, "-m", CHILD, task, os.fspath(path), *options]
    own = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry), "OMP_NUM_THREADS": "1"}
    own |= {"OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            command,
            env=os.environ | own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE * seconds_for(path.stat().st_size),
        )
    except subprocess.TimeoutExpired:
        raise _refused(path, "HDF5 does not come to an end with it") from None
    except OSError as error:
        raise RunFileError(f"{path}: cannot be tried in a process of its own ({error.strerror})") from None
    if done.returncode != 0:
        why = "it takes too much memory or time" if done.returncode in (-9, -24, 1) else "HDF5 crashes on it"
        raise _refused(path, why)
    said = json.loads(done.stdout)
    if "error" in said:
        raise _KINDS[said["error"]](said["message"])
    return said["answer"]


def _refused(path: Path, why: str) -> DamagedRun:
    """Return the error for a file that brought its child down."""
    return DamagedRun(f"{path}: is damaged ({why}); expected a whole run file, ask for another copy")
