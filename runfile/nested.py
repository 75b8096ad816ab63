"""Nested settings as a run file holds them, which anybody may have written, under dotted names.

Not covered: what the settings mean (`dashboard.settings`), and bounds on their number and length (who reads them).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

DEEPEST: Final = 6


def flat(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested settings under dotted names; what lies deeper than `DEEPEST` stays as it is.

    >>> list(flat({"a": {"b": 1, "c": [2, 3]}, "d": "x"}))
    [('a.b', 1), ('a.c', [2, 3]), ('d', 'x')]
    """
    if isinstance(value, dict) and value and depth < DEEPEST:
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key), depth + 1)
    elif name:
        yield name, value
