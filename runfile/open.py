"""Opens a run: one file, or the files of several ranks as one."""

from __future__ import annotations

import os
from pathlib import Path

from .foreign.recognise import recognise
from .foreign.source import LogSource
from .layout import DamagedRun, NotARun, RunFileError, RunInUse
from .ranks.companions import of_several_ranks
from .ranks.merged_run import MergedRun
from .reader import Run

__all__ = ["DamagedRun", "NotARun", "Run", "RunFileError", "RunInUse", "open_run"]


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run file for reading; live, killed and finished runs all work.

    Costs a few milliseconds whatever the length of the run. Close it or use it in ``with``; in one process all readers
    of a file share one handle.

    Args:
        path: The ``.h5`` file. Of a run of several ranks, rank 0's file (``a.h5``) gives all of them as one run, see
            `ranks.merged_source`, with each alone in ``ranks``; another's (``a.rank1.h5``) gives that rank alone. A
            log of another tool (`foreign`) gives a run without loops; `Run.log` says what kind of log it is.

    Raises:
        NotARun: The path is a folder, another format, or HDF5 written by somebody else.
        DamagedRun: Parts of the run are missing or unreadable; the message says what to do.
        RunFileError: There is no such file, no permission to read it, or it is of a newer version.

    >>> try:
    ...     open_run("no-such-run.h5")
    ... except RunFileError as error:
    ...     print(error)
    no-such-run.h5: no such file; expected a run file, check the path
    """
    if Path(path).suffix != ".h5" and (log := recognise(Path(path))) is not None:
        return Run(LogSource(*log))
    run = Run(Path(path))
    try:
        if not of_several_ranks(run):
            return run
        return MergedRun(run)
    except BaseException:
        run.close()
        raise
