"""What the user's code calls the values of a loop, and on which lines it makes them.

Not covered: the statements themselves (``source_lines``).
"""
# Indices: i functions (`Flow.events`).

from __future__ import annotations

import ast
from collections import Counter

from .flow import Flow
from .source_lines import names_assigned, statement_at, whole
from .trace import Line, Value


def name_of(flow: Flow, keys: list[int], output: str | None) -> str:
    """Return what the user's code calls a variable, in the code that runs the loop."""
    names: Counter[str] = Counter()
    for key in keys:
        value = flow.values[key]
        line = line_of(flow, flow.made[key], output)
        named = value.names.get(line.code) if line is not None else None
        for name in [named] if named else list(value.names.values())[:1]:
            names[name] += 1
    return names.most_common(1)[0][0] if names else "h"


def line_of(flow: Flow, i: int, output: str | None) -> Line | None:
    """Return where a value is made: where the module that returns it is called, else the function itself."""
    for event in flow.owners[i]:
        if event.name == output:
            return event.line
    return flow.events[i].line


def call_at(flow: Flow, i: int) -> Line | None:
    """Return where the module is called in which a function runs."""
    return flow.owners[i][-1].line if flow.owners[i] else flow.events[i].line


def assigned(spelt: str, line: Line, value: Value) -> tuple[str, Line | None]:
    """Return what a value is called by the statement that assigns it, and where that ends.

    A helper that returns it is left for the line that called it. No line where no statement names the value.
    """
    at: Line | None = line
    known = False
    while at is not None:
        statement = statement_at(at.file, at.number)
        known |= statement is not None
        names = set() if statement is None else names_assigned(statement)
        called = value.names.get(at.code)
        name = called if called in names else min(names) if len(names) == 1 else None  # it goes into that one
        if statement is not None and name is not None:
            start, end = whole(at.file, statement)
            return name, at._replace(number=end, start=start)
        if not isinstance(statement, ast.Return):
            break
        at = at.outer
    return spelt, None if known else line
