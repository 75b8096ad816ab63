"""By which rules a run is judged: those of its project, as `loopscope check` in its folder would, or the built-in ones.

Not covered: what a rule file may say (`rules.rule_files`).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from ..rules.rule_files import Rule, RuleError, find_rule_file, load_rules
from .text import shown

BUILT_IN: Final = "built-in rules"
FRESH_SECONDS: Final = 2.0  # a folder is searched for a rule file no more often than this
_LOCK = threading.Lock()
_searched: dict[Path, tuple[float, Path | None]] = {}


@dataclass(frozen=True, slots=True)
class RuleChoice:
    """The rules of a folder.

    Attributes:
        path: The rule file; None for the built-in rules alone.
        stamp: What changes whenever somebody writes the file.
    """

    path: Path | None
    stamp: tuple[int, int, int]

    def rules(self) -> tuple[list[Rule], str]:
        """Return the rules, and whose they are in words; of a file that is not valid the built-in ones, and why."""
        return _loaded(self)


def choice_for(folder: Path) -> RuleChoice:
    """Return the rules by which runs of a folder are judged."""
    path = _found(folder)
    try:
        status = path.stat() if path is not None else None
    except OSError:
        status = None
    if path is None or status is None:
        return RuleChoice(None, (0, 0, 0))
    return RuleChoice(path, (status.st_ino, status.st_size, status.st_mtime_ns))


def _found(folder: Path) -> Path | None:
    """Return the rule file for a folder, looked for once in a while."""
    now = time.monotonic()
    with _LOCK:
        known = _searched.get(folder)
    if known is not None and now - known[0] < FRESH_SECONDS:
        return known[1]
    path = find_rule_file(folder)
    with _LOCK:
        if len(_searched) > 1000:
            _searched.clear()
        _searched[folder] = now, path
    return path


@lru_cache(maxsize=64)
def _loaded(choice: RuleChoice) -> tuple[list[Rule], str]:
    """Read a rule file; again only where it changed."""
    if choice.path is None:
        return load_rules(), BUILT_IN
    try:
        return load_rules(choice.path), f"rules of {shown(choice.path, 200)}"
    except RuleError as error:
        return load_rules(), f"{BUILT_IN}, since the project's cannot be read: {shown(error, 300)}"
