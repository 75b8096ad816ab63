"""Where in the user's source a tensor gets its name: the statement behind which it can be marked.

A tensor is made by a function on some line; what it is called there, and whether anything is, only the statement around
that line tells: a helper returns what its caller names, a list takes what nothing names.

Not covered: code without source (``exec``, a session without lines): nothing is known of it.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator
from functools import lru_cache


def statement_at(file: str, number: int) -> ast.stmt | None:
    """Return the innermost statement of a file that a line is in; None where the source is not known.

    Args:
        file: The file.
        number: The line, from 1.
    """
    around = _around(file, number, number)
    return around[-1] if around else None


def whole(file: str, statement: ast.stmt) -> tuple[int, int]:
    """Return the lines behind which a statement has run, or was left out: those of the branches around it.

    Args:
        file: The file.
        statement: One of its statements.
    """
    start, end = statement.lineno, statement.end_lineno or statement.lineno
    for outer in reversed(_around(file, start, end)):
        if not isinstance(outer, ast.If | ast.Try | ast.With) and outer is not statement:
            break
        start, end = outer.lineno, outer.end_lineno or end
    return start, end


def _around(file: str, first: int, last: int) -> list[ast.stmt]:
    """Return the statements that some lines are in, the innermost last."""
    return [each for each in _statements(file) if each.lineno <= first and last <= (each.end_lineno or each.lineno)]


def names_assigned(statement: ast.stmt) -> set[str]:
    """Return the plain names that a statement assigns.

    >>> [sorted(names_assigned(each)) for each in ast.parse("a, (b, c.d) = f(); x += 1; y[0] = 2; return_x()").body]
    [['a', 'b'], ['x'], [], []]
    """
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AugAssign | ast.AnnAssign):
        targets = [statement.target]
    else:
        return set()
    return {name for target in targets for name in _plain_names(target)}


def _plain_names(target: ast.expr) -> Iterator[str]:
    """Yield the plain names in what is assigned to."""
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List):
        for item in target.elts:
            yield from _plain_names(item)


@lru_cache(maxsize=16)
def _statements(file: str) -> tuple[ast.stmt, ...]:
    """Return all statements of a file, outer ones before those inside; none where it cannot be read."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError, RecursionError):
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, ast.stmt))
