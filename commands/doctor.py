"""The ``doctor`` command: say what there is to judge in a folder, what cannot be judged, and what would change that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..gate.doctor import Item, Report, examine
from ..gate.result import NOTHING, PASSED
from ..runfile.text import plain
from .output import say

_INDENT: Final = " " * 4


def doctor(folder: Path, *, as_json: bool = False) -> int:
    """Print what there is in a folder and return 0 where something of it can be judged, 5 where nothing can.

    Args:
        folder: The folder.
        as_json: Print one JSON object.

    Raises:
        NotADirectoryError: There is no such folder.
    """
    report = examine(folder)
    if as_json:
        items = [item.as_dict() for item in report.items]
        say(json.dumps({"folder": str(folder), "judgeable": report.judgeable, "left_out": report.left_out,
                        "items": items}, indent=2))  # fmt: skip
    else:
        say("\n".join(_lines(folder, report)))
    return PASSED if report.judgeable else NOTHING


def _lines(folder: Path, report: Report) -> Iterator[str]:
    """Yield the report for people."""
    if not report.items:
        yield f"{plain(folder)}: no run, no log of a known kind, and no training script"
    for item in report.items:
        yield from _of_item(item)
    if report.left_out:
        yield plain(report.left_out)
    yield ""
    loop = sum(bool(item.judged) and item.kind == "run" for item in report.items)
    yield f"can be judged: {loop} with their loop, {report.judgeable - loop} by their loss only"


def _of_item(item: Item) -> Iterator[str]:
    """Yield the lines of one thing."""
    yield plain(f"{item.path}  {item.what}")
    if item.judged:
        yield plain(f"{_INDENT}can be judged: {', '.join(item.judged)}")
    for reason, rules in item.not_judged:
        yield plain(f"{_INDENT}cannot: {', '.join(rules)} ({reason})")
    if item.problem:
        yield plain(f"{_INDENT}{item.problem}")
    for number, line in enumerate(item.remedy):
        yield plain(f"{_INDENT}{'do:' if not number else '   '} {line}")
