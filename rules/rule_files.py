"""Rules as TOML: the shipped ones and the files of users, read strictly.

A rule is a condition over the series of a run file that must hold for a number of steps; the words are those of
Prometheus alerts, counted in steps. The shipped rules are in ``rules.toml`` beside this file. A file of the user's adds
rules or changes shipped ones by their id. A mistake in such a file must never make the gate weaker, so that every key,
type and value is checked, and an error names file, line and column.

Not covered: applying rules to a run (``judging.py``); what a series is (``series.py``).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, get_args

from ..runfile.layout import Severity
from ..runfile.text import plain
from .expression import Expression, ExpressionError, parse
from .grammar import PER_LOOP, loop_entry
from .places import Place, Places
from .scope import LONGEST_KEY, LONGEST_PATTERN, MOST_KEYS, Said, Scope

SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)
BUILT_IN: Final = frozenset({"LS000", "LS002", "LS003", "LS004", "LS005", "LS007", *(f"LS09{n}" for n in range(5))})
"""Ids of what has no expression: judged of every run or log (`completeness`), or of several together (gate)."""
LONGEST_FILE: Final = 1 << 20  # bytes
MOST_RULES: Final = 1000  # of a file: each keeps some memory while training runs
Action = Literal["record", "flight", "notify", "callback", "stop"]
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
EVERY_RUN: Final = Scope()  # of ``only``
NO_RUN: Final = Scope()  # of ``except``
DEFAULT_ACTIONS: Final[tuple[Action, ...]] = ("record", "flight", "notify", "callback")
"""What is done when a rule fires in training, where it does not say: everything but to stop the training."""
MOST_STEPS: Final = 10**9

PROJECT: Final = "tool.loopscope"
_IDENTIFIER: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")  # 32 bytes: a kind of event
_NUMBER: Final = re.compile(r"\{([^{}]*)\}")
_LONGEST_TEXT: Final = 1000


class RuleError(ValueError):
    """A rule or rule file is not valid; the message names the file, the line, the column and what to do."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition.

    Args:
        id: Stable identifier, e.g. ``LS020``.
        name: Short name for people.
        expr: Condition, see `expression`.
        severity: ``note``, ``warning`` or ``error``.
        hold: Steps the condition must hold before the rule fires (``for`` in TOML).
        keep_firing_for: Steps after the end of a firing within which a new one counts as the same.
        message: What is the matter; ``{value}`` and ``{threshold}`` stand for the sides of the first comparison.
        remedy: What to try.
        only: Judged only of runs that say all of this of themselves, see `Scope`.
        except_: Not judged of runs that say any of this (``except`` in TOML).
        actions: What is done live when it fires, of `ACTIONS`.
        place: Where its expression stands; None for a rule made in Python.
    """

    id: str
    name: str
    expr: Expression
    severity: Severity
    hold: int = 0
    keep_firing_for: int = 50
    message: str = "{value} against {threshold}"
    remedy: str = ""
    only: Scope = EVERY_RUN
    except_: Scope = NO_RUN
    actions: tuple[Action, ...] = DEFAULT_ACTIONS
    place: Place | None = field(default=None, compare=False)

    def said(self, value: float, threshold: float) -> str:
        """Return the message with its two numbers, to four digits; nothing else in it is replaced.

        >>> Rule("R", "r", parse("loss > 3"), "error", message="{value} > {threshold}: {x!r}").said(3.14159, 3.0)
        '3.142 > 3: {x!r}'
        """
        numbers = {"{value}": f"{value:.4g}", "{threshold}": f"{threshold:.4g}"}
        return re.sub(r"\{value\}|\{threshold\}", lambda name: numbers[name[0]], self.message)


def load_rules(path: Path | None = None) -> list[Rule]:
    """Return the shipped rules, changed and extended by a file of the user's.

    In the file, a ``[[rule]]`` with a shipped id changes the fields it names; ``enabled = false`` removes the rule.
    Of a ``pyproject.toml``, the rules are ``[[tool.loopscope.rule]]``.

    Raises:
        RuleError: The file is not valid.

    >>> [rule.id for rule in load_rules()][:2]
    ['LS001', 'LS006']
    """
    tables = {table.id: table for table in _shipped()}
    own = {} if path is None else {table.id: table for table in _own(path)}
    for table in own.values():
        if table.id in BUILT_IN:
            table.refuse("id", f"{table.id} has no expression and cannot be changed")
        if table.id.startswith("LS") and table.id not in tables:
            table.refuse("id", f"there is no shipped rule {table.id}; ids of your own may not begin with LS")
    merged = tables | {identifier: table.over(tables.get(identifier)) for identifier, table in own.items()}
    rules = [(table, table.rule()) for table in merged.values()]
    return [rule for table, rule in rules if table.fields.get("enabled", True)]


def rules_named_in(path: Path) -> list[str]:
    """Return the ids of the rules that a file adds or changes and does not switch off, in its order.

    Raises:
        RuleError: The file is not valid.
    """
    load_rules(path)  # every mistake comes out before any use
    return [table.id for table in _own(path) if table.fields.get("enabled", True)]


def find_rule_file(start: Path) -> Path | None:
    """Return the rule file that a project has: ``loopscope.toml``, or a ``pyproject.toml`` with ``[tool.loopscope]``.

    Looked for in the folder and those above it, up to the root of its repository or, outside of one, the user's home;
    of a folder in neither, in that folder alone, because what lies above belongs to anybody.

    Args:
        start: The working directory.
    """
    for folder in _folders_from(start):
        if (own := folder / "loopscope.toml").is_file():
            return own
        if _speaks_of_loopscope(project := folder / "pyproject.toml"):
            return project
    return None


def _speaks_of_loopscope(project: Path) -> bool:
    """Return whether a pyproject.toml has the table ``tool.loopscope``, whatever else is in it."""
    try:
        text = _text(project) if project.is_file() else ""
    except RuleError:  # a file that cannot be read says nothing of loopscope
        return False
    if "loopscope" not in text:
        return False
    try:
        tools = tomllib.loads(text).get("tool")
    except (ValueError, RecursionError):  # told of when its rules are read, where there are any
        return PROJECT in text
    return isinstance(tools, dict) and "loopscope" in tools


def _folders_from(start: Path) -> list[Path]:
    """Return the folders in which a project's rule file may lie, the nearest first."""
    start = Path(os.path.abspath(start))  # noqa: PTH100 - links of folders stay as the user named them
    folders = [start, *start.parents]
    for number, folder in enumerate(folders):
        if (folder / ".git").exists():
            return folders[: number + 1]
    with suppress(RuntimeError):  # no home
        if (home := Path.home()) in folders:
            return folders[: folders.index(home) + 1]
    return [start]


def stopping_on(rules: Sequence[Rule], which: Sequence[str]) -> list[Rule]:
    """Return the rules, of which some stop a training besides what else they do.

    Args:
        rules: As `load_rules` gives them.
        which: Ids of rules, and severities, from which on all do.

    Raises:
        RuleError: There is no such rule or severity.

    >>> [rule.id for rule in stopping_on(load_rules(), ["LS001", "LS010"]) if "stop" in rule.actions]
    ['LS001', 'LS010']
    """
    ids = {rule.id for rule in rules}
    for word in which:
        if word not in ids and word not in SEVERITIES:
            raise RuleError(f"stop on {plain(word)}: no rule and no severity; severities are {', '.join(SEVERITIES)}")
        if word == "note" or any(rule.id == word and rule.severity == "note" for rule in rules):
            raise RuleError(f"stop on {plain(word)}: a note is not looked for while training runs")
    least = min((SEVERITIES.index(word) for word in which if word in SEVERITIES), default=len(SEVERITIES))
    stops = {rule.id for rule in rules if rule.id in which or SEVERITIES.index(rule.severity) >= least}
    return [replace(rule, actions=(*rule.actions, "stop")) if rule.id in stops and "stop" not in rule.actions else rule
            for rule in rules]  # fmt: skip


def refuse_unknown_series(
    rules: Iterable[Rule], known: Iterable[str], lacking: str = "no run has", remedy: str = ""
) -> None:
    """Refuse rules over names that nobody records, which are misspelt: such a rule could never fire.

    Args:
        rules: As `load_rules` gives them.
        known: Every name that a rule can read in any of the runs at hand.
        lacking: Words for the runs that lack a name, for the message.
        remedy: What helps where no known name is near; by default the known ones are listed.

    Raises:
        RuleError: A rule names something else; the message gives the nearest known name.
    """
    from difflib import get_close_matches

    names = frozenset(known)
    for rule in rules:
        for name in sorted(rule.expr.names - names):
            if loop_entry(name) is not None:
                continue
            if name in PER_LOOP:
                at = "" if rule.place is None else f"{rule.place.moved(rule.expr.offset_of(name))}: "
                raise RuleError(f"{at}rule {rule.id}: {name} has a value for each loop; write {name}[-1] for the last")
            near = get_close_matches(name, sorted(names), 1)
            hint = f"did you mean {near[0]}?" if near else remedy or f"known: {', '.join(sorted(names))}"
            at = "" if rule.place is None else f"{rule.place.moved(rule.expr.offset_of(name))}: "
            raise RuleError(f"{at}rule {rule.id}: {lacking} a series {name!r}; {hint}")


def refuse_unknown_settings(rules: Iterable[Rule], runs: Sequence[Said]) -> None:
    """Refuse rules whose ``only`` or ``except`` asks for what no run says of itself: a misspelt one never counts.

    Args:
        rules: As `load_rules` gives them.
        runs: What each of the runs at hand says of itself.

    Raises:
        RuleError: A rule asks for something else.
    """
    for rule in rules:
        for key, _ in (*rule.only.patterns, *rule.except_.patterns):
            if all(said.find(key) is None for said in runs):
                at = "" if rule.place is None else f"{rule.place.file}: "
                raise RuleError(f"{plain(at)}rule {plain(rule.id)}: no run says its {plain(repr(key))}")


@dataclass(frozen=True, slots=True)
class _Table:
    """One ``[[rule]]`` as written, and where."""

    id: str
    fields: Mapping[str, Any]
    places: Mapping[str, Place]  # of the values
    start: Place

    def refuse(self, key: str, why: str) -> NoReturn:
        raise RuleError(f"{plain(self.places.get(key, self.start))}: rule {plain(self.id)}: {plain(why)}")

    def over(self, shipped: _Table | None) -> _Table:
        """Return this table, with missing keys taken from the shipped one."""
        below = {"name": self.id.lower(), "severity": "error"} if shipped is None else shipped.fields
        places = {} if shipped is None else shipped.places
        return _Table(self.id, {**below, **self.fields}, {**places, **self.places}, self.start)

    def rule(self) -> Rule:
        """Return the rule, every field checked."""
        known = ({entry.name for entry in fields(Rule)} - {"hold", "place", "except_"}) | {"for", "except", "enabled"}
        for key in sorted(self.fields.keys() - known):
            self.refuse(key, f"unknown field {key}; known: {', '.join(sorted(known))}")
        for key in ("name", "expr", "message", "remedy", "severity"):
            self._check(key, isinstance(self.fields.get(key, ""), str), "must be a text in quotes")
            self._check(key, len(self.fields.get(key, "")) <= 2 * _LONGEST_TEXT, "is too long")
        for key in ("for", "keep_firing_for"):
            steps = self.fields.get(key, 0)
            counts = isinstance(steps, int) and not isinstance(steps, bool) and 0 <= steps <= MOST_STEPS
            self._check(key, counts, "counts steps and must be a whole number from 0 to 10^9")
        self._check("enabled", isinstance(self.fields.get("enabled", True), bool), "must be true or false")
        self._check("severity", self.fields["severity"] in SEVERITIES, f"must be one of {', '.join(SEVERITIES)}")
        if "expr" not in self.fields:
            self.refuse("id", 'expr is missing; write for example expr = "loss > 10"')
        for name in _NUMBER.findall(self.fields.get("message", "")):
            self._check("message", name in ("value", "threshold"), f"has {{{name}}}; only {{value}} and {{threshold}} "
                        "are replaced, by numbers of four digits")  # fmt: skip
        texts = ("id", "name", "severity", "keep_firing_for", "message", "remedy")
        return Rule(
            **{key: self.fields[key] for key in texts if key in self.fields},
            hold=self.fields.get("for", 0),
            expr=self._expression(),
            only=self._scope("only"),
            except_=self._scope("except"),
            actions=self._actions(),
            place=self.places.get("expr", self.start).moved(1),
        )

    def _scope(self, key: str) -> Scope:
        """Return what a run must say of itself, checked."""
        given = self.fields.get(key, {})
        said = (
            'must be a table such as { injection = "concatenation" }, of texts, numbers, true, false, or lists of them'
        )
        self._check(key, isinstance(given, dict) and len(given) <= MOST_KEYS, said)
        for name, patterns in given.items():
            several = patterns if isinstance(patterns, list) else [patterns]
            plain_values = all(isinstance(each, str | int | float) for each in several) and len(several) <= MOST_KEYS
            short = len(name) <= LONGEST_KEY and all(len(str(each)) <= LONGEST_PATTERN for each in several)
            self._check(key, bool(several) and bool(name) and plain_values and short, said)
        return Scope.of(given)

    def _actions(self) -> tuple[Action, ...]:
        """Return what is done when it fires, checked."""
        given = self.fields.get("actions", list(DEFAULT_ACTIONS))
        known = isinstance(given, list) and all(isinstance(each, str) and each in ACTIONS for each in given)
        self._check("actions", known, f"must be a list of {', '.join(ACTIONS)}")
        return tuple(action for action in ACTIONS if action in given)

    def _check(self, key: str, holds: bool, why: str) -> None:
        if not holds:
            self.refuse(key, f"{key} = {_shown(self.fields[key])} {why}")

    def _expression(self) -> Expression:
        try:
            return parse(self.fields["expr"])
        except ExpressionError as error:
            at = self.places.get("expr", self.start).moved(1 + error.offset)
            raise RuleError(f"{plain(at)}: rule {plain(self.id)}: {plain(error)}") from None


def _shipped() -> list[_Table]:
    """Return the rules that come with loopscope, as written."""
    return _tables("rules.toml", resources.files(__package__).joinpath("rules.toml").read_text(encoding="utf-8"))


def _own(path: Path) -> list[_Table]:
    """Return the rules of a file of the user's, as written."""
    return _tables(str(path), _text(path), PROJECT if path.name == "pyproject.toml" else "")


def _text(path: Path) -> str:
    """Return the text of a rule file."""
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST_FILE + 1)
        if len(content) > LONGEST_FILE:
            raise RuleError(f"{plain(path)}: larger than {LONGEST_FILE} bytes; this is no rule file")
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RuleError(f"{plain(path)}: cannot be read as a rule file: {plain(why)}") from None


def _tables(file: str, text: str, inside: str = "") -> list[_Table]:
    """Return the ``[[rule]]`` tables of a text, with ids that are there once each.

    Args:
        file: Its name, for errors.
        text: What it holds.
        inside: The table of it that is ours, as ``tool.loopscope``; empty: all of it.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RuleError(_syntax_error(file, str(error))) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets a thousand deep
        raise RuleError(f"{plain(file)}: cannot be read as a rule file: {plain(error)}") from None
    places = Places(file, text)
    for name in inside.split(".") if inside else ():
        content = content.get(name, {})
        if not isinstance(content, dict):
            raise RuleError(f"{plain(places.table(name))}: {name!r} must be a table")
    above = f"{inside}." if inside else ""
    rule = f"{above}rule"
    for key in sorted(content.keys() - {"rule"}):
        at = places.table(f"{above}{key}") if isinstance(content[key], dict | list) else places.key(inside, 0, key)
        raise RuleError(f"{plain(at)}: unknown name {plain(repr(key))}; a rule file holds [[{rule}]] tables")
    tables = content.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RuleError(f"{plain(places.table(rule))}: 'rule' must be [[{rule}]] tables, with two brackets")
    if len(tables) > MOST_RULES:
        raise RuleError(f"{plain(places.table(rule))}: {len(tables)} rules; a file has at most {MOST_RULES}")
    made = [_table(places, rule, index, table) for index, table in enumerate(tables)]
    _refuse_duplicates(made)
    return made


def _table(places: Places, name: str, index: int, table: dict[str, Any]) -> _Table:
    """One rule as written; its id is checked, because every further error names it."""
    start = places.table(name, index)
    identifier = table.get("id")
    if "id" not in table:
        raise RuleError(f'{plain(start)}: expected [[rule]] tables, each with an id = "…"')
    if not isinstance(identifier, str) or not _IDENTIFIER.fullmatch(identifier):
        at = places.value(name, index, "id")
        raise RuleError(f"{plain(at)}: id = {plain(_shown(identifier))} must be a text of at most 32 letters, digits "
                        "and -_. that begins with a letter")  # fmt: skip
    here = {key: places.value(name, index, key) for key in table}
    return _Table(identifier, table, here, start)


def _refuse_duplicates(tables: Sequence[_Table]) -> None:
    first: dict[str, _Table] = {}
    for table in tables:
        if (before := first.setdefault(table.id, table)) is not table:
            table.refuse("id", f"its id is there twice, first in line {before.start.line}")


def _syntax_error(file: str, said: str) -> str:
    """Return a message of tomllib, which ends in "(at line 3, column 5)", with the place first."""
    where = re.search(r" \(at line (\d+), column (\d+)\)$", said)
    at = f"{file}:{where[1]}:{where[2]}" if where else file
    return f"{plain(at)}: cannot be read as a rule file: {plain(said[: where.start()] if where else said)}"


def _shown(value: object) -> str:
    """Return a value of a rule file in an error: short, and never a number of 400 digits."""
    try:
        shown = repr(value)
    except ValueError:  # an integer of more than 4300 digits
        return "…"
    return shown if len(shown) <= 40 else shown[:40] + "…"
