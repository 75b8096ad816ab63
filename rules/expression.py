"""The grammar of rule expressions: names, numbers, arithmetic, comparisons, ``and``, ``or``, ``not``, ``recorded()``.

An expression is parsed into a tree of allowed nodes and worked out over arrays by this module; no text is ever
executed. Its logic has three values, after Kleene: what was not recorded is NaN, a comparison with NaN is neither true
nor false but unknown, and ``not`` of unknown is unknown. So a rule can fire only on data. ``recorded(name)`` asks
whether there is a value, and is always known.

Not covered: functions of several steps, indexing, attributes, strings. They are refused when the rule is read.

Source of the logic: Kleene, Introduction to Metamathematics (1952), section 64.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]

LONGEST: Final = 2000  # characters of an expression
DEEPEST: Final = 40  # nested parts of one

_COMPARISONS: Final[dict[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_EXAMPLE: Final = "write for example 'loss > 10'"


class ExpressionError(ValueError):
    """An expression is not of the grammar.

    Attributes:
        offset: Character of the expression, from 0, at which the part begins that is not.
    """

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


class Truth(NamedTuple):
    """A condition with three values: true, false, or neither where the data do not say."""

    yes: NDArray[np.bool_]
    no: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition over series.

    Args:
        text: As written in the rule.
        names: The series it reads.

    >>> rule = parse("rho >= 1.0 and not fixed")
    >>> sorted(rule.names), rule.holds({"rho": np.array([0.9, 1.2]), "fixed": np.array(0.0)}).tolist()
    (['fixed', 'rho'], [False, True])
    >>> parse("not rho < 1").holds({"rho": np.array([np.nan, 1.2])}).tolist()
    [False, True]
    """

    text: str
    names: frozenset[str]
    _tree: ast.expr

    def truth(self, series: Mapping[str, Series]) -> Truth:
        """Return where the condition is true and where it is false, elementwise over series of one length."""
        with np.errstate(all="ignore"):
            return _truth(self._tree, series)

    def holds(self, series: Mapping[str, Series]) -> NDArray[np.bool_]:
        """Return where the condition is true, elementwise over series of one length (or scalars)."""
        return self.truth(series).yes

    def first_comparison(self, values: Mapping[str, float]) -> tuple[float, float]:
        """Return both sides of the first comparison that is known: a finding's value and its threshold.

        Args:
            values: One value of each series, NaN where it was not recorded.
        """
        series = {name: np.asarray(value) for name, value in values.items()}
        comparisons = [node for node in ast.walk(self._tree) if isinstance(node, ast.Compare)]
        with np.errstate(all="ignore"):
            pairs = [(_quantity(each.left, series), _quantity(each.comparators[0], series)) for each in comparisons]
        sides = [(float(left), float(right)) for left, right in pairs]
        return next((pair for pair in sides if not any(math.isnan(side) for side in pair)), sides[0])

    def offset_of(self, name: str) -> int:
        """Return the character at which a name of the expression appears first."""
        places = [_offset(n, self.text) for n in ast.walk(self._tree) if isinstance(n, ast.Name) and n.id == name]
        return min(places, default=0)


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        ExpressionError: The text is not of the grammar.

    >>> parse("__import__('os')")
    Traceback (most recent call last):
    ...
    loopscope.rules.expression.ExpressionError: "__import__('os')": a call is not allowed in a rule; ...
    """
    if len(text) > LONGEST:
        raise ExpressionError(f"{text[:20]!r}…: {len(text)} characters; an expression has at most {LONGEST}")
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        said = f"{text!r}: not an expression ({error.msg}); {_EXAMPLE}"
        raise ExpressionError(said, max((error.offset or 1) - 1, 0)) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{_short(text)}: not an expression ({error}); {_EXAMPLE}") from None
    names: set[str] = set()
    _check_condition(tree, text, names, 0)
    if not any(isinstance(node, ast.Compare) for node in ast.walk(tree)):
        raise ExpressionError(f"{text!r}: compares nothing; {_EXAMPLE}")
    return Expression(text, frozenset(names), tree)


def _check_condition(node: ast.expr, text: str, names: set[str], depth: int) -> None:
    """Refuse what is no condition of the grammar, and collect the names."""
    if depth > DEEPEST:
        raise ExpressionError(f"{_short(text)}: more than {DEEPEST} parts inside each other", _offset(node, text))
    match node:
        case ast.BoolOp(values=values):
            for value in values:
                _check_condition(value, text, names, depth + 1)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            _check_condition(operand, text, names, depth + 1)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
            _check_quantity(left, text, names, depth + 1)
            _check_quantity(right, text, names, depth + 1)
        case ast.Call(func=ast.Name(id="recorded"), args=[ast.Name(id=name)], keywords=[]):
            names.add(name)
        case _:
            _check_quantity(node, text, names, depth)


def _check_quantity(node: ast.expr, text: str, names: set[str], depth: int) -> None:
    """Refuse what is no number of the grammar, and collect the names."""
    if depth > DEEPEST:
        raise ExpressionError(f"{_short(text)}: more than {DEEPEST} parts inside each other", _offset(node, text))
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _check_quantity(operand, text, names, depth + 1)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            _check_quantity(left, text, names, depth + 1)
            _check_quantity(right, text, names, depth + 1)
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            if not _is_finite(value):
                raise ExpressionError(f"{_short(text)}: a number here is too large", _offset(node, text))
        case ast.Name(id=name):
            names.add(name)
        case _:
            _refuse(node, text)


def _refuse(node: ast.expr, text: str) -> NoReturn:
    raise ExpressionError(
        f"{_short(text)}: a {type(node).__name__.lower()} is not allowed in a rule; use names, numbers, + - * /, "
        "one comparison at a time, and, or, not, recorded(name)",
        _offset(node, text),
    )


def _is_finite(value: float) -> bool:
    """Return whether a literal is a number that float64 can hold."""
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _offset(node: ast.expr, text: str) -> int:
    """Return the character at which a node begins; Python counts bytes, and lines."""
    line = text.splitlines(keepends=True)[: node.lineno]
    before = sum(len(part) for part in line[:-1])
    return before + len(line[-1].encode()[: node.col_offset].decode("utf-8", "ignore"))


def _short(text: str) -> str:
    """Return the expression in quotes, cut where it is long."""
    return repr(text if len(text) <= 80 else text[:80] + "…")


def _truth(node: ast.expr, series: Mapping[str, Series]) -> Truth:
    """Return the value of a checked condition."""
    match node:
        case ast.BoolOp(op=op, values=values):
            parts = [_truth(value, series) for value in values]
            yes, no = parts[0]
            for part in parts[1:]:
                yes, no = (yes & part.yes, no | part.no) if isinstance(op, ast.And) else (yes | part.yes, no & part.no)
            return Truth(yes, no)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yes, no = _truth(operand, series)
            return Truth(no, yes)
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            a, b = _quantity(left, series), _quantity(right, series)
            known, holds = ~(np.isnan(a) | np.isnan(b)), np.asarray(_COMPARISONS[type(op)](a, b))
            return Truth(holds & known, ~holds & known)
        case ast.Call(args=[ast.Name(id=name)]):
            known = ~np.isnan(series[name])
            return Truth(known, ~known)
        case _:
            value = _quantity(node, series)
            known = ~np.isnan(value)
            return Truth((value != 0) & known, (value == 0) & known)


def _quantity(node: ast.expr, series: Mapping[str, Series]) -> Series:
    """Return the value of a checked number; NaN where one of its series was not recorded."""
    match node:
        case ast.UnaryOp(operand=operand):
            return -_quantity(operand, series)
        case ast.BinOp(left=left, op=op, right=right):
            return np.asarray(_ARITHMETIC[type(op)](_quantity(left, series), _quantity(right, series)))
        case ast.Constant(value=int() | float() as value):
            return np.asarray(float(value))
        case ast.Name(id=name):
            return np.asarray(series[name], dtype=np.float64)
        case _:
            raise AssertionError(f"unchecked node {node!r}")
