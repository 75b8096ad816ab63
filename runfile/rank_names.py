"""How the files of a run's ranks are named: the one place that knows.

Rank 0 writes ``a.h5``, which also names the run; rank N writes ``a.rankN.h5`` beside it. Nothing here opens a file.

Not covered: whether a file so named belongs to the run (`companions`); a gap in the numbers behind the ranks that are
expected, where the search ends so that a run without other ranks costs one look at the disk.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

_FEW: Final = 64  # ranks that are looked for one by one; of more, the folder is read
_OF_A_RANK: Final = re.compile(r"(?P<stem>.+)\.rank(?P<rank>[1-9][0-9]*)(?P<ending>\.[^.]*)?")


def rank_path(path: Path, rank: int) -> Path:
    """Return where a rank of the run at ``path`` records; a path that names this rank already stays as it is.

    >>> print(rank_path(Path("runs/a.h5"), 0), rank_path(Path("runs/a.h5"), 3), rank_path(Path("runs/a.rank3.h5"), 3))
    runs/a.h5 runs/a.rank3.h5 runs/a.rank3.h5
    """
    return path if rank == rank_of(path) else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def rank_of(path: Path) -> int:
    """Return whose file a name says it is; 0 for one that names no rank.

    >>> rank_of(Path("a.rank12.h5")), rank_of(Path("a.h5")), rank_of(Path("a.rank0.h5"))
    (12, 0, 0)
    """
    named = _OF_A_RANK.fullmatch(path.name)
    return int(named["rank"]) if named else 0


def run_path(path: Path) -> Path:
    """Return the path of the run that a rank's file belongs to by its name; of rank 0's file, the path itself.

    >>> print(run_path(Path("runs/a.rank12.h5")), run_path(Path("runs/a.h5")))
    runs/a.h5 runs/a.h5
    """
    named = _OF_A_RANK.fullmatch(path.name)
    return path.with_name(named["stem"] + (named["ending"] or "")) if named else path


def rank_files(path: Path, expected: int = 1) -> dict[int, Path]:
    """Return the files that lie beside a run's under the names of its further ranks.

    Args:
        path: The run, which is rank 0's file.
        expected: How many ranks the run should have; further ones are found up to the first number that is not there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("a.h5", "a.rank2.h5", "a.rank3.h5", "b.rank1.h5"):
    ...         (Path(folder) / name).touch()
    ...     list(rank_files(Path(folder) / "a.h5", expected=3)), list(rank_files(Path(folder) / "a.h5"))
    ([2, 3], [])
    """
    if expected <= _FEW:
        named = {rank: rank_path(path, rank) for rank in range(1, expected)}
        there = {rank: beside for rank, beside in named.items() if beside.exists()}
    else:
        there = dict(_listed(path))
    ranks = {rank: there[rank] for rank in sorted(there) if rank < expected}
    rank = max(1, expected)
    while (beside := rank_path(path, rank)).exists():
        ranks[rank] = beside
        rank += 1
    return ranks


def _listed(path: Path) -> Iterator[tuple[int, Path]]:
    """Give the files in a run's folder that are named like its ranks: one look at the folder for all of them."""
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            beside = path.with_name(entry.name)
            if (rank := rank_of(beside)) and run_path(beside) == path:
                yield rank, beside


def whole_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the paths without those named like ranks of a run that is among them too.

    A rank file that is given without its run stays, and is then that rank alone. A name is no proof: whoever judges
    runs asks `companions.separate_runs`, which looks into the files.

    >>> print(*whole_runs([Path("a.h5"), Path("a.rank1.h5"), Path("b.rank1.h5")]))
    a.h5 b.rank1.h5
    """
    listed = list(paths)
    there = {path.absolute() for path in listed}
    return [path for path in listed if not rank_of(path) or run_path(path).absolute() not in there]
