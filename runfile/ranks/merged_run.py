"""A run of several ranks, made from rank 0 alone."""

from __future__ import annotations

from ..disk.handle import LOCK
from ..file_source import FileSource
from ..run import Run
from .merged_source import MergedSource


class MergedRun(Run):
    """A run of several ranks, as arrays over its steps; `merged_source` says how the numbers of ranks become one.

    Args:
        first: Rank 0 alone; closed with the merged view.

    Raises:
        TypeError: ``first`` is no run of one file.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from loopscope.runfile.writer import RunWriter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for rank, name in enumerate(("a.h5", "a.rank1.h5")):
    ...         with RunWriter.create(Path(folder) / name, info={"rank": rank, "world_size": 2}) as writer:
    ...             writer.append_step({"step": 0, "loss": 2.0 + rank, "a_bar_radius": 0.5 + rank})
    ...     with MergedRun(Run(Path(folder) / "a.h5")) as run:
    ...         run["loss"], run["a_bar_radius"], run.ranks[1]["loss"]
    (array([2.5]), array([1.5]), array([3.]))
    """

    def __init__(self, first: Run) -> None:
        if not isinstance(first.source, FileSource):
            raise TypeError("a merged run is made from rank 0 alone")
        with LOCK:
            super().__init__(MergedSource(first.source))
