"""Where in a TOML file a table or a value stands: ``tomllib`` gives the values and this the lines and columns.

The file has been read by ``tomllib`` before, so that only valid TOML comes here. Strings, comments and brackets are
told apart, and nothing is worked out.

Not covered: keys of inline tables and arrays; they have the place of the key that holds them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_STRINGS: Final = (r'"""(?:\\.|[^\\])*?"{3,5}', r"'''.*?'{3,5}", r'"(?:\\.|[^"\\\n])*"', r"'[^'\n]*'")
_TOKEN: Final = re.compile("|".join((*_STRINGS, r"#[^\n]*", r"[\[\]{}\n]", r"[^\"'#\[\]{}\n]+")), re.DOTALL)
_NAME: Final = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_KEY: Final = re.compile(rf"\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*=[ \t]*")
_HEADER: Final = re.compile(r"[ \t]*(\[\[?)[ \t]*([^\[\]\n]+?)[ \t]*\]\]?")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a file, as editors and compilers write it.

    Args:
        file: Name of the file.
        line: From 1.
        column: From 1.

    >>> str(Place("loopscope.toml", 3, 8))
    'loopscope.toml:3:8'
    """

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def moved(self, columns: int) -> Place:
        """Return the place so many columns to the right."""
        return Place(self.file, self.line, self.column + columns)


class Places:
    r"""The places of one TOML text.

    >>> places = Places("a.toml", '[[rule]]\nid = "A"\n[[rule]]\nid = "B"\nfor = 3\n')
    >>> str(places.table("rule", 1)), str(places.value("rule", 1, "for")), str(places.value("rule", 0, "for"))
    ('a.toml:3:1', 'a.toml:5:7', 'a.toml:1:1')
    """

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._tables: dict[tuple[str, int], Place] = {}
        self._values: dict[tuple[str, int, str], Place] = {}
        self._keys: dict[tuple[str, int, str], Place] = {}
        self._read(text.removeprefix("\ufeff"))

    def table(self, name: str, index: int = 0) -> Place:
        """Return where the header of a table stands, of an array of tables the one with this index."""
        return self._tables.get((name, index)) or self.key("", 0, name.split(".")[0])

    def key(self, table: str, index: int, key: str) -> Place:
        """Return where a key stands; its table's place where it is not written out, else the start of the file."""
        start = self._tables.get((table, index), Place(self._file, 1, 1))
        return self._keys.get((table, index, key), start)

    def value(self, table: str, index: int, key: str) -> Place:
        """Return where the value of a key begins, or its table where the key is not written out."""
        return self._values.get((table, index, key)) or self.key(table, index, key)

    def _read(self, text: str) -> None:
        """Go through the text line by line, over strings and brackets that are longer than a line."""
        table, index, count, at = "", 0, dict[str, int](), 0
        while at < len(text):
            if header := _HEADER.match(text, at):
                table = re.sub(r"[\s\"']", "", header[2])
                index = count.get(table, 0)
                count[table] = index + (1 if header[1] == "[[" else 0)
                self._tables.setdefault((table, index), self._place(text, header.start(1)))
                at = _end_of_statement(text, header.end())
            elif key := _KEY.match(text, at):
                name = re.sub(r"[\s\"']", "", key[1])
                self._keys.setdefault((table, index, name), self._place(text, key.start(1)))
                self._values.setdefault((table, index, name), self._place(text, key.end()))
                at = _end_of_statement(text, key.end())
            else:
                at = _end_of_statement(text, at)

    def _place(self, text: str, at: int) -> Place:
        line = text.count("\n", 0, at)
        return Place(self._file, line + 1, at - (text.rfind("\n", 0, at) + 1) + 1)


def _end_of_statement(text: str, at: int) -> int:
    """Return where the next statement begins: after the first line break outside strings and brackets."""
    depth = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return at + 1
        at = token.end()
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if token[0] == "\n" and depth <= 0:
            return at
    return at
