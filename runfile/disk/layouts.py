"""A run file changes its layout in place: live to sealed when the run ends, sealed to live when it is resumed.

Not covered: the copy itself (``rewrite``).
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Final

from ..layout import VERSION, Commit, DamagedRun, RunFileError
from . import handle as handles
from .handle import Handle
from .integrity import one_line
from .rewrite import copy_run, temporary_path

_LOG: Final = logging.getLogger("loopscope")
_ERRORS: Final = (OSError, RuntimeError, ValueError, KeyError, RunFileError)


def restore_live_layout(path: Path) -> None:
    """Bring a sealed run, or one of an older version, into today's layout that can grow."""
    handle = handles.acquire(path)
    try:
        assert handle.file is not None
        if handle.file.attrs.get("layout") != "sealed" and int(handle.file.attrs["version"]) == VERSION:
            return
        commit, _ = handle.last_commit()
        if commit is None:
            raise DamagedRun(f"{path}: holds no commit row; try `loopscope repair`")
        copy_run(handle.file, temporary_path(path), commit, "live")
        temporary_path(path).chmod(path.stat().st_mode & 0o777)
    finally:
        handles.release(handle)
    temporary_path(path).replace(path)


def replace_by_sealed(handle: Handle, path: Path, commit: Commit) -> None:
    """Replace a finished live file by its sealed copy; without room for both, the live one stays as it is."""
    if handle.file is None:
        return
    temporary = temporary_path(path)
    try:
        copy_run(handle.file, temporary, commit, "sealed")
        temporary.chmod(path.stat().st_mode & 0o777)
        handles.close(handle)
        temporary.replace(path)
    except _ERRORS as error:
        _LOG.warning("%s: finished, but could not be compressed (%s)", path, one_line(error))
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
