"""The grammar of rule expressions: names, numbers, arithmetic, comparisons, ``and``, ``or``, ``not``.

An expression is parsed into a tree of allowed nodes and worked out over arrays by this module; no text is ever
executed. A comparison with a value that was not recorded (NaN) is false, so that a rule can fire only on data.

Not covered: functions, indexing, attributes, strings. They are refused when the rule is read.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class ExpressionError(ValueError):
    """An expression is not of the grammar; the message shows the part that is not."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition over series.

    Args:
        text: As written in the rule.
        names: The series it reads.

    >>> rule = parse("rho >= 1.0 and not fixed")
    >>> sorted(rule.names), rule.holds({"rho": np.array([0.9, 1.2]), "fixed": np.array(0.0)}).tolist()
    (['fixed', 'rho'], [False, True])
    """

    text: str
    names: frozenset[str]
    _tree: ast.expr

    def holds(self, series: Mapping[str, Series]) -> NDArray[np.bool_]:
        """Where the condition holds, elementwise over series of one length (or scalars)."""
        with np.errstate(all="ignore"):
            return np.asarray(_work_out(self._tree, series)).astype(bool)

    def first_comparison(self, series: Mapping[str, Series]) -> tuple[Series, Series]:
        """Both sides of the first comparison: what a finding reports as its value and its threshold."""
        comparison = next(node for node in ast.walk(self._tree) if isinstance(node, ast.Compare))
        with np.errstate(all="ignore"):
            left = _work_out(comparison.left, series)
            return np.asarray(left, dtype=float), np.asarray(_work_out(comparison.comparators[0], series), dtype=float)


def parse(text: str) -> Expression:
    """Reads an expression.

    Raises:
        ExpressionError: The text is not of the grammar.

    >>> parse("__import__('os')")
    Traceback (most recent call last):
    ...
    loopscope.rules.expression.ExpressionError: "__import__('os')": a call is not allowed in a rule; ...
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{text!r}: not an expression ({error}); write for example 'loss > 10'") from None
    names: set[str] = set()
    _check(tree, text, names)
    if not any(isinstance(node, ast.Compare) for node in ast.walk(tree)):
        raise ExpressionError(f"{text!r}: compares nothing; write for example 'loss > 10'")
    return Expression(text, frozenset(names), tree)


def _check(node: ast.expr, text: str, names: set[str]) -> None:
    """Refuses everything that is not of the grammar and collects the names."""
    match node:
        case ast.BoolOp(values=values):
            parts = values
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            parts = [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            parts = [left, right]
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
            parts = [left, right]
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            parts = []
        case ast.Name(id=name):
            names.add(name)
            parts = []
        case _:
            kind = type(node).__name__.lower()
            raise ExpressionError(
                f"{text!r}: a {kind} is not allowed in a rule; "
                "use names, numbers, + - * /, one comparison at a time, and, or, not"
            )
    for part in parts:
        _check(part, text, names)


def _work_out(node: ast.expr, series: Mapping[str, Series]) -> Any:
    """Value of a checked node; booleans for conditions, floats for quantities."""
    match node:
        case ast.BoolOp(op=op, values=values):
            combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
            result = _truth(values[0], series)
            for value in values[1:]:
                result = combine(result, _truth(value, series))
            return result
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(_truth(operand, series))
        case ast.UnaryOp(operand=operand):
            return -np.asarray(_work_out(operand, series), dtype=float)
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_work_out(left, series), _work_out(right, series))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            a, b = (np.asarray(_work_out(side, series), dtype=float) for side in (left, right))
            return _COMPARISONS[type(op)](a, b) & ~np.isnan(a) & ~np.isnan(b)
        case ast.Constant(value=value):
            return np.float64(value)  # type: ignore[arg-type]
        case ast.Name(id=name):
            return series[name]
        case _:
            raise AssertionError(f"unchecked node {node!r}")


def _truth(node: ast.expr, series: Mapping[str, Series]) -> NDArray[np.bool_]:
    """A condition's value, or whether a quantity is recorded and not zero."""
    value = np.asarray(_work_out(node, series))
    return value if value.dtype == bool else np.nan_to_num(value, nan=0.0) != 0
