"""The grammar of rule expressions: a text becomes a tree of few kinds of nodes, or an error with its column.

    expression  =  either
    either      =  both { "or" both }
    both        =  negation { "and" negation }
    negation    =  "not" negation  |  comparison
    comparison  =  sum [ ( "<" | "<=" | ">" | ">=" | "==" | "!=" ) sum ]
    sum         =  product { ( "+" | "-" ) product }
    product     =  factor { ( "*" | "/" ) factor }
    factor      =  "-" factor  |  primary
    primary     =  number  |  series  |  call  |  "(" expression ")"
    series      =  name [ "[" [ "-" ] digits "]" ]
    call        =  "recorded" "(" series ")"
                |  "abs" "(" sum ")"
                |  "clip" "(" sum "," signed "," signed ")"
                |  window "(" sum "," digits ")"
                |  "cusum" "(" sum "," number ")"
    window      =  "max" | "min" | "mean" | "median" | "slope" | "ratio" | "delta" | "ewma"
    signed      =  [ "-" ] number
    name        =  letter { letter | digit | "_" }  |  "`" { any but "`" } "`"

A word of Python (``if``, ``True``) is no name, but in backquotes.

The parser is one function for each line of it and looks one word ahead, so that it takes time in proportion to the
text. Nesting, length, numbers and windows are limited (`LONGEST`, `DEEPEST`, `LARGEST_WINDOW`): no text can make it, or
what reads its tree, slow or deep. Nothing is ever executed.

Not covered: what an expression says of a run (``expression``).
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple, NoReturn

LONGEST: Final = 2000  # characters of an expression
DEEPEST: Final = 40  # parts inside each other
LARGEST_WINDOW: Final = 10_000  # steps of all windows of an expression together
DEEPEST_LOOP: Final = 4096  # largest index of a loop

PER_LOOP: Final = {"state_norm": 0, "residual_norm": 1, "step_cosine": 1, "tokens": 0}
"""Series that are told apart by loop, and how many rows before the last state their last entry is."""
WINDOWS: Final = ("max", "min", "mean", "median", "slope", "ratio", "delta", "ewma")
FUNCTIONS: Final = ("recorded", "abs", "clip", "cusum", *WINDOWS)
COMPARISONS: Final = ("<=", ">=", "==", "!=", "<", ">")
EXAMPLE: Final = "write for example 'loss > 10'"

WindowName = Literal["max", "min", "mean", "median", "slope", "ratio", "delta", "ewma", "cusum"]


class ExpressionError(ValueError):
    """An expression is not of the grammar.

    Attributes:
        offset: Character of the expression, from 0, at which the part begins that is not.
    """

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Number:
    """A number as written."""

    value: float


@dataclass(frozen=True, slots=True)
class Name:
    """A series, or one loop of a series: ``state_norm[-1]``; `at` is its first character."""

    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Negative:
    """A number with its sign turned."""

    of: Quantity


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Two numbers joined by one of ``+ - * /``."""

    operator: str
    left: Quantity
    right: Quantity


@dataclass(frozen=True, slots=True)
class Bounded:
    """A number kept between two limits; of ``abs`` the limits are None."""

    of: Quantity
    limits: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Window:
    """A number made of the last steps of another; `number` counts the windows of an expression."""

    function: WindowName
    of: Quantity
    parameter: float
    number: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """Whether a series has a value."""

    series: Name


@dataclass(frozen=True, slots=True)
class Compare:
    """Two numbers compared."""

    operator: str
    left: Quantity
    right: Quantity


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite of a condition."""

    of: Condition


@dataclass(frozen=True, slots=True)
class Joined:
    """Conditions of which all (``and``) or one (``or``) must hold."""

    word: str
    parts: tuple[Condition, ...]


Quantity = Number | Name | Negative | Arithmetic | Bounded | Window
Condition = Recorded | Compare | Not | Joined | Quantity


@lru_cache(maxsize=1024)
def loop_entry(name: str) -> tuple[str, int] | None:
    """Return of which series and of which loop a name is, or None where it names no loop.

    >>> loop_entry("state_norm[-1]"), loop_entry("loss")
    (('state_norm', -1), None)
    """
    parts = _ENTRY.fullmatch(name)
    return (parts[1], int(parts[2])) if parts and parts[1] in PER_LOOP else None


class Tree(NamedTuple):
    """An expression that was read.

    Attributes:
        root: Its condition.
        names: Every series it reads.
        windows: How many windows it has; their numbers are below that.
        reach: Steps of all its windows together.
    """

    root: Condition
    names: tuple[Name, ...]
    windows: int
    reach: int


class _Word(NamedTuple):
    kind: Literal["number", "name", "sign", "end", "wrong"]
    text: str
    at: int


_ENTRY: Final = re.compile(r"(\w+)\[(-?\d+)\]")
_WORD: Final = re.compile(
    r"(?P<number>(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*|`[^`\n]*`)"
    r"|(?P<sign><=|>=|==|!=|[-+*/<>()\[\],])|(?P<wrong>\S)"
)


def parse_tree(text: str) -> Tree:
    """Read an expression.

    Raises:
        ExpressionError: The text is not of the grammar.

    >>> parse_tree("slope(loss, 50) > 0").windows
    1
    """
    if len(text) > LONGEST:
        raise ExpressionError(f"{text[:20]!r}…: {len(text)} characters; an expression has at most {LONGEST}")
    parser = _Parser(text)
    root = parser.either(0)
    parser.end()
    if not parser.compares:
        raise ExpressionError(f"{_quoted(text)}: compares nothing; {EXAMPLE}")
    return Tree(root, tuple(parser.names), parser.windows, parser.reach)


class _Parser:
    """Reads one text; a method for each line of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._words = self._split(text)
        self._word = next(self._words)
        self.names: list[Name] = []
        self.windows = 0
        self.compares = False
        self.reach = 0

    @staticmethod
    def _split(text: str) -> Iterator[_Word]:
        """Yield the words of the text, and then for ever its end."""
        for match in _WORD.finditer(text):
            yield _Word(match.lastgroup or "wrong", match[0], match.start())  # type: ignore[arg-type]
        while True:
            yield _Word("end", "", len(text))

    def either(self, depth: int) -> Condition:
        """Read conditions joined by ``or``."""
        return self._joined("or", self._both, depth)

    def end(self) -> None:
        """Refuse what is left."""
        if self._word.kind != "end":
            self._refuse(self._word)

    def _both(self, depth: int) -> Condition:
        return self._joined("and", self._negation, depth)

    def _joined(self, word: str, part: Callable[[int], Condition], depth: int) -> Condition:
        """Read one part, or several with a word between them."""
        parts = [part(depth)]
        while self._word.kind == "name" and self._word.text == word:
            self._next()
            parts.append(part(depth))
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _negation(self, depth: int) -> Condition:
        self._check_depth(depth)
        if self._word.kind == "name" and self._word.text == "not":
            self._next()
            return Not(self._negation(depth + 1))
        return self._comparison(depth)

    def _comparison(self, depth: int) -> Condition:
        at = self._word
        left = self._sum(depth)
        if self._word.text not in COMPARISONS:
            return left
        operator = self._next().text
        first, after = self._number_like(left, at), self._word
        second = self._number_like(self._sum(depth), after)
        if self._word.text in COMPARISONS:
            self._fail("one comparison at a time: write 'a < b and b < c'", self._word.at)
        self.compares = True
        return Compare(operator, first, second)

    def _sum(self, depth: int) -> Condition:
        return self._chain(("+", "-"), self._product, depth)

    def _product(self, depth: int) -> Condition:
        return self._chain(("*", "/"), self._factor, depth)

    def _chain(self, operators: tuple[str, ...], part: Callable[[int], Condition], depth: int) -> Condition:
        """Read numbers joined by operators of one rank, from the left."""
        at = self._word
        left = part(depth)
        length = depth
        while self._word.kind == "sign" and self._word.text in operators:
            operator = self._next().text
            length += 1  # a chain is as deep as it is long
            self._check_depth(length)
            first, after = self._number_like(left, at), self._word
            left = Arithmetic(operator, first, self._number_like(part(depth + 1), after))
        return left

    def _factor(self, depth: int) -> Condition:
        self._check_depth(depth)
        if self._word.text == "-":
            self._next()
            after = self._word
            return Negative(self._number_like(self._factor(depth + 1), after))
        return self._primary(depth)

    def _primary(self, depth: int) -> Condition:
        word = self._word
        if word.kind == "number":
            return Number(self._number())
        if word.text == "(":
            self._next()
            inside = self.either(depth + 1)
            self._expect(")")
            return inside
        if word.kind != "name" or keyword.iskeyword(word.text):
            self._refuse(word)
        self._next()
        if self._word.text == "(":
            return self._call(word, depth + 1)
        return self._series(word)

    def _series(self, word: _Word) -> Name:
        """Read what may follow the name of a series: the index of a loop."""
        name = word.text
        if name.startswith("`"):
            name = name[1:-1]
            if not name:
                self._refuse(word)
        if self._word.text == "[":
            if name not in PER_LOOP:
                known = ", ".join(PER_LOOP)
                self._fail(f"{name!r} has no loops to choose from; {known} have", self._word.at)
            self._next()
            name = f"{name}[{self._index()}]"
            self._expect("]")
        series = Name(name, word.at)
        self.names.append(series)
        return series

    def _index(self) -> int:
        """Read which loop is meant."""
        negative = self._word.text == "-"
        if negative:
            self._next()
        at = self._word.at
        digits = self._word.text if self._word.text.isdecimal() and self._word.text.isascii() else ""
        if not digits or len(digits) > 9 or int(digits) > DEEPEST_LOOP or (negative and not int(digits)):
            self._fail(f"expected the number of a loop: 0, 1, …, or -1 for the last, at most {DEEPEST_LOOP}", at)
        self._next()
        return -int(digits) if negative else int(digits)

    def _call(self, word: _Word, depth: int) -> Condition:
        """Read a function and what it is of."""
        if word.text not in FUNCTIONS:
            said = f"a call is not allowed in a rule, but of {', '.join(FUNCTIONS)}"
            self._fail(said, word.at)
        self._check_depth(depth)
        self._next()
        if word.text == "recorded":
            asked = self._word
            if asked.kind != "name" or keyword.iskeyword(asked.text):
                self._refuse(asked)
            self._next()
            series = self._series(asked)
            self._expect(")")
            return Recorded(series)
        after = self._word
        of = self._number_like(self._sum(depth), after)
        made = self._function(word, of)
        self._expect(")")
        return made

    def _function(self, word: _Word, of: Quantity) -> Quantity:
        """Read the further arguments of a function of numbers."""
        if word.text == "abs":
            return Bounded(of, None)
        self._expect(",")
        if word.text == "clip":
            at = self._word.at
            low = self._signed()
            self._expect(",")
            high = self._signed()
            if low > high:
                self._fail("the lower limit is above the upper one", at)
            return Bounded(of, (low, high))
        number, self.windows = self.windows, self.windows + 1
        if word.text == "cusum":
            return Window("cusum", of, self._number(), number)
        return Window(word.text, of, self._steps(), number)  # type: ignore[arg-type]

    def _signed(self) -> float:
        negative = self._word.text == "-"
        if negative:
            self._next()
        return -self._number() if negative else self._number()

    def _number(self) -> float:
        """Read a number that float64 can hold."""
        word = self._word
        if word.kind != "number":
            self._fail("expected a number", word.at)
        try:
            value = float(word.text)
        except ValueError:
            self._fail(f"{word.text[:20]!r} is no number", word.at)
        if not math.isfinite(value):
            self._fail("a number here is too large", word.at)
        self._next()
        return value

    def _steps(self) -> float:
        """Read the length of a window."""
        word = self._word
        digits = word.text if word.text.isdecimal() and word.text.isascii() and len(word.text) < 9 else "0"
        self.reach += int(digits)
        if not int(digits) or self.reach > LARGEST_WINDOW:
            said = f"a window is a whole number of steps from 1, all of an expression at most {LARGEST_WINDOW}"
            self._fail(said, word.at)
        self._next()
        return float(digits)

    def _number_like(self, node: Condition, word: _Word) -> Quantity:
        """Refuse a condition where a number belongs."""
        if isinstance(node, Recorded | Compare | Not | Joined):
            self._fail("this is a condition; a number is expected here", word.at)
        return node

    def _check_depth(self, depth: int) -> None:
        if depth > DEEPEST:
            self._fail(f"more than {DEEPEST} parts inside each other", self._word.at)

    def _next(self) -> _Word:
        word, self._word = self._word, next(self._words)
        return word

    def _expect(self, sign: str) -> None:
        if self._word.text != sign:
            self._fail(f"not an expression (expected {sign!r}); {EXAMPLE}", self._word.at)
        self._next()

    def _refuse(self, word: _Word) -> NoReturn:
        if word.kind == "end":
            self._fail(f"not an expression (it ends too early); {EXAMPLE}", word.at)
        said = (
            f"{word.text[:20]!r} is not allowed here; use names, numbers, + - * /, one comparison at a time, and, or, "
        )
        self._fail(said + "not, and functions such as recorded(name), slope(name, steps)", word.at)

    def _fail(self, why: str, at: int) -> NoReturn:
        raise ExpressionError(f"{_quoted(self._text)}: {why}", at)


def _quoted(text: str) -> str:
    """Return the expression in quotes, cut where it is long."""
    return repr(text if len(text) <= 80 else text[:80] + "…")
