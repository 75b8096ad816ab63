"""The commit that is checked out, read from git's own files: no process is started for it.

Not covered: whether the tree has changes that are not committed; repositories whose references are in another format.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_HASH: Final = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_LARGEST: Final = 1 << 20  # bytes of a file of git's that are read


def commit_of(folder: Path) -> str:
    """Return the commit that is checked out in the repository around a folder; empty where there is none.

    >>> commit_of(Path("/"))
    ''
    """
    try:
        root = root_of(folder)
        return "" if root is None else _of(root / ".git")
    except (OSError, ValueError):
        return ""


def root_of(folder: Path) -> Path | None:
    """Return the root of the repository around a folder; None where there is none.

    >>> root_of(Path("/"))
    """
    try:
        here = folder.resolve()
        return next((above for above in (here, *here.parents) if (above / ".git").exists()), None)
    except OSError:
        return None


def _of(git: Path) -> str:
    """Return the commit of a ``.git``, which a worktree has as a file that names its folder."""
    if git.is_file():
        git = (git.parent / _text(git).removeprefix("gitdir:").strip()).resolve()
    head = _text(git / "HEAD").strip()
    if not head.startswith("ref:"):
        return head if _HASH.fullmatch(head) else ""
    name = head.removeprefix("ref:").strip()
    shared = git / "commondir"
    homes = [git, (git / _text(shared).strip()).resolve()] if shared.is_file() else [git]
    for home in homes:
        if (home / name).is_file():
            commit = _text(home / name).strip()
            return commit if _HASH.fullmatch(commit) else ""
        if (home / "packed-refs").is_file():
            lines = (line.split(" ") for line in _text(home / "packed-refs").splitlines())
            commit = next((line[0] for line in lines if line[1:] == [name]), "")
            if _HASH.fullmatch(commit):
                return commit
    return ""


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_LARGEST).decode("utf-8", "replace")
