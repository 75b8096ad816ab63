"""Expressions of rules, worked out over the rows of a run: when does a condition hold?

The text is read by ``grammar`` and worked out over arrays by this module; no text is ever executed. The logic has three
values, after Kleene: what was not recorded is NaN, a comparison with NaN is neither true nor false but unknown, and
``not`` of unknown is unknown. So a rule can fire only on data. What has overflowed is infinite: larger than any number,
but nobody knows of two such values which is the larger. ``recorded(name)`` asks whether there is a value, and is always
known.

An expression may look back over steps (``windows``). Then its rows come in order to an `Evaluator`, as many at a time
as there are: live a few, afterwards all of them, with the same result.

Not covered: what a series is (``series``); how long a condition must hold (``judging``).

Source of the logic: Kleene, Introduction to Metamathematics (1952), section 64.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .grammar import (
    Arithmetic,
    Bounded,
    Compare,
    Condition,
    ExpressionError,
    Joined,
    Name,
    Negative,
    Not,
    Number,
    Quantity,
    Recorded,
    Tree,
    Window,
    parse_tree,
)
from .windows import Memory, memory

__all__ = ["Evaluator", "Expression", "ExpressionError", "Outcome", "Series", "Truth", "parse"]

Series = NDArray[np.float64]
Binary = Callable[[Any, Any], Any]

_COMPARISONS: Final[dict[str, Binary]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_ARITHMETIC: Final[dict[str, Binary]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


class Truth(NamedTuple):
    """A condition with three values: true, false, or neither where the data do not say."""

    yes: NDArray[np.bool_]
    no: NDArray[np.bool_]


class Outcome(NamedTuple):
    """What an expression says of rows.

    Attributes:
        truth: Where it is true and where it is false.
        sides: Both sides of each of its comparisons, in the order of the text; where it is false in all rows, of the
            first ones at least.
    """

    truth: Truth
    sides: list[tuple[Series, Series]]

    def first_comparison(self, row: int) -> tuple[float, float]:
        """Return both sides of the first comparison that is known at a row: a finding's value and its threshold."""
        pairs = [(float(left[row]), float(right[row])) for left, right in self.sides]
        return next((pair for pair in pairs if not math.isnan(pair[0] - pair[1])), pairs[0])


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition over series.

    Args:
        text: As written in the rule.
        names: The series it reads; of a series with loops, each loop is one: ``state_norm[-1]``.

    >>> rule = parse("rho >= 1.0 and not fixed")
    >>> sorted(rule.names), rule.holds({"rho": np.array([0.9, 1.2]), "fixed": np.array(0.0)}).tolist()
    (['fixed', 'rho'], [False, True])
    >>> parse("not rho < 1").holds({"rho": np.array([np.nan, 1.2])}).tolist()
    [False, True]
    >>> parse("max(rho, 2) > 1").holds({"rho": np.array([2.0, 0.5, 0.6])}).tolist()
    [False, True, False]
    """

    text: str
    names: frozenset[str]
    _tree: Tree = field(compare=False)

    @property
    def reach(self) -> int:
        """Steps that it looks back over at most; 0 where each row stands for itself."""
        return self._tree.reach

    def truth(self, series: Mapping[str, Series]) -> Truth:
        """Return where the condition is true and where it is false over whole series, whose rows are steps 0, 1, ….

        Args:
            series: Arrays of one length, or single numbers.
        """
        whole = np.broadcast_shapes(*(np.shape(series[name]) for name in self.names))
        rows = whole[0] if whole else 1
        given = {name: np.broadcast_to(series[name], (rows,)) for name in self.names}
        truth = Evaluator(self).update(np.arange(float(rows)), given).truth
        return truth if whole else Truth(*(side.reshape(()) for side in truth))

    def holds(self, series: Mapping[str, Series]) -> NDArray[np.bool_]:
        """Return where the condition is true, as `truth` does."""
        return self.truth(series).yes

    def could_hold(self, values: Mapping[str, float]) -> bool:
        """Return whether the condition could hold in one row, with a window standing for the number that it is of."""
        evaluator = Evaluator(self, [_Passing() for _ in range(self._tree.windows)])
        series = {name: np.array([values[name]]) for name in self.names}
        return bool(evaluator.update(np.zeros(1), series).truth.yes[0])

    def offset_of(self, name: str) -> int:
        """Return the character at which a name of the expression appears first."""
        return min((each.at for each in self._tree.names if each.name == name), default=0)


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        ExpressionError: The text is not of the grammar.

    >>> parse("__import__('os')")
    Traceback (most recent call last):
    ...
    loopscope.rules.grammar.ExpressionError: "__import__('os')": a call is not allowed in a rule, but of ...
    """
    tree = parse_tree(text)
    return Expression(text, frozenset(name.name for name in tree.names), tree)


class Evaluator:
    """Follows an expression over the rows of a run, in order.

    Args:
        expression: What is asked.
        memories: What each of its windows remembers; at the start of a run, nothing.

    >>> evaluator = Evaluator(parse("delta(x, 1) > 2"))
    >>> [evaluator.update(np.array([s]), {"x": np.array([v])}).truth.yes.tolist() for s, v in [(0.0, 1.0), (1.0, 4.0)]]
    [[False], [True]]
    """

    def __init__(self, expression: Expression, memories: Sequence[Memory] | None = None) -> None:
        self._root = expression._tree.root
        self._windows = list(memories) if memories is not None else _memories(expression._tree)
        self._steps: Series = np.empty(0)
        self._series: Mapping[str, Series] = {}
        self._sides: list[tuple[Series, Series]] = []

    def update(self, steps: Series, series: Mapping[str, Series]) -> Outcome:
        """Take rows and say where the condition is true and where it is false.

        Args:
            steps: ``(rows,)``, growing from row to row and call to call.
            series: What it reads, each ``(rows,)`` or one number for all rows.
        """
        self._steps, self._series, self._sides = steps, series, []
        with np.errstate(all="ignore"):
            truth = self._truth(self._root) if self._windows else self._short(self._root)
        sides, self._series, self._sides = self._sides, {}, []
        return Outcome(truth, sides)

    def state(self) -> list[dict[str, Any]]:
        """Return what is remembered of the rows so far, as JSON can hold it."""
        return [each.state() for each in self._windows]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Go on from what `state` gave for the same expression."""
        for window, kept in zip(self._windows, state, strict=True):
            window.restore(kept)

    def _short(self, root: Condition) -> Truth:
        """Return the value of the whole condition, without parts that change nothing in any row.

        Of a condition that is false in all rows nobody asks for the sides of its comparisons.
        """
        if not isinstance(root, Joined) or root.word != "and":
            return self._truth(root)
        truth = self._truth(root.parts[0])
        for part in root.parts[1:]:
            if truth.no.all():
                break
            other = self._truth(part)
            truth = Truth(truth.yes & other.yes, truth.no | other.no)
        return truth

    def _truth(self, node: Condition) -> Truth:
        """Return the value of a condition."""
        match node:
            case Joined(word, parts):
                yes, no = self._truth(parts[0])
                for part in parts[1:]:
                    other = self._truth(part)
                    both = word == "and"
                    yes, no = (yes & other.yes, no | other.no) if both else (yes | other.yes, no & other.no)
                return Truth(yes, no)
            case Not(of):
                yes, no = self._truth(of)
                return Truth(no, yes)
            case Compare(sign, left, right):
                place = len(self._sides)
                a, b = self._quantity(left), self._quantity(right)
                self._sides.insert(place, (a, b))
                unknown, holds = np.isnan(a), np.asarray(_COMPARISONS[sign](a, b))
                if not isinstance(right, Number):
                    unknown |= np.isnan(b) | (np.isinf(a) & (a == b))  # of two infinities neither is the larger
                    holds = holds & ~unknown
                return Truth(holds & ~unknown if sign == "!=" else holds, ~(holds | unknown))
            case Recorded(series):
                known = ~np.isnan(self._quantity(series))
                return Truth(known, ~known)
            case _:
                value = self._quantity(node)
                known = ~np.isnan(value)
                return Truth((value != 0) & known, (value == 0) & known)

    def _quantity(self, node: Quantity) -> Series:
        """Return the value of a number; NaN where one of its series was not recorded."""
        match node:
            case Number(value):
                return _everywhere(value, self._steps)
            case Name(name):
                values = np.asarray(self._series[name], dtype=np.float64)
                return values if values.ndim else _everywhere(values, self._steps)
            case Negative(of):
                return -self._quantity(of)
            case Arithmetic(sign, left, right):
                return np.asarray(_ARITHMETIC[sign](self._quantity(left), self._quantity(right)))
            case Bounded(of, limits):
                unbounded = self._quantity(of)
                return np.abs(unbounded) if limits is None else np.clip(unbounded, *limits)
            case Window(of=of, number=number):
                return self._windows[number].update(self._steps, self._quantity(of))


def _everywhere(value: ArrayLike, steps: Series) -> Series:
    """Return one number at every step; `np.broadcast_to` does the same and takes several times as long."""
    return np.ndarray(steps.shape, np.float64, np.array(value, dtype=np.float64), 0, (0,))


class _Passing:
    """Stands for a window where it is asked what could be: gives back what it is given."""

    def update(self, steps: Series, values: Series) -> Series:
        """Return the values."""
        return values

    def state(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Do nothing."""


def _memories(tree: Tree) -> list[Memory]:
    """Return an empty memory for each window of a tree, by number."""
    memories: dict[int, Memory] = {}
    waiting: list[Condition] = [tree.root]
    while waiting:
        match waiting.pop():
            case Joined(_, parts):
                waiting += parts
            case Compare(_, left, right) | Arithmetic(_, left, right):
                waiting += [left, right]
            case Window(of=of, number=number) as window:
                memories[number] = memory(window)
                waiting.append(of)
            case Not(of) | Negative(of) | Bounded(of, _):
                waiting.append(of)
            case _:
                pass
    return [memories[number] for number in range(tree.windows)]
