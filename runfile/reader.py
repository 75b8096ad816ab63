"""The names with which a run is read, in one place: `Run`, its arrays and its errors.

``run.py`` is the view, ``source.py`` says what stands behind it, ``file_source.py`` is one file.
"""

from .layout import DamagedRun, NotARun, RunFileError, RunInUse
from .run import Run
from .source import RecordedArray

__all__ = ["DamagedRun", "NotARun", "RecordedArray", "Run", "RunFileError", "RunInUse"]
