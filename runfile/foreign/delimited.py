"""A CSV log: a line of names, then a line for each record. The separator is a comma, a semicolon or a tab.

Not covered: files without a line of names; which column is the loss could only be guessed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from ..text import plain
from .table import LogError, LogTable, Record, choose, number, read_bytes, table

_LONGEST = 1 << 20  # characters of a line of names


def read_delimited(path: Path) -> LogTable:
    """Read a CSV log.

    Raises:
        LogError: It is none; the message names the line.
    """
    lines = _text(path).splitlines()
    names, separator = head_of(lines)
    if not names:
        raise LogError(f"{plain(path)}: expected a first line with the names of the columns")
    chosen = choose(path, names)
    if len(set(names)) < len(names) and any(names.count(name) > 1 for name in chosen.values()):
        raise LogError(f"{plain(path)}: a column is there twice: {', '.join(plain(n[:60]) for n in chosen.values())}")
    return table(path, "CSV", _records(path, lines, separator, names, set(chosen.values())), chosen)


def head_of(lines: list[str]) -> tuple[list[str], str]:
    """Return the names of the columns and what separates them; no names where the first line has none.

    Raises:
        csv.Error: The line is none that a table begins with.

    >>> head_of(["", "step; loss", "0; 2.5"])
    (['step', 'loss'], ';')
    """
    head = next((line for line in lines if line.strip()), "")
    separator = max(",;\t", key=head.count)
    if not head or len(head) > _LONGEST:
        return [], separator
    return [name.strip() for name in next(csv.reader([head], delimiter=separator))], separator


def _text(path: Path) -> str:
    """Return the text of a file; a byte order mark is none of it."""
    content = read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise LogError(f"{plain(path)}:{line}: no UTF-8 text") from None


def _records(path: Path, lines: list[str], separator: str, names: list[str], wanted: set[str]) -> Iterator[Record]:
    """Yield the records; a last line that is still being written is left out."""
    at = [(column, name) for column, name in enumerate(names) if name in wanted]
    reader = csv.reader(iter(lines), delimiter=separator)
    first = True
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise LogError(f"{plain(path)}:{reader.line_num}: {plain(error)}") from None
        if not any(cell.strip() for cell in cells):
            continue
        if first:
            first = False
            continue
        where = f"{plain(path)}:{reader.line_num}"
        if len(cells) != len(names):
            if reader.line_num == len(lines):
                return
            raise LogError(f"{where}: {len(cells)} cells, expected the {len(names)} of the first line")
        values = {name: number(where, name, cells[column]) for column, name in at}
        yield Record(where, {name: value for name, value in values.items() if value is not None})
