"""Rules: conditions on a run that a person or a CI job wants to hear of.

A rule is a condition over the series of a run file that must hold for a number of steps; the words are those of
Prometheus alerts, counted in steps. The shipped rules are in ``rules.toml`` beside this file. A file of the user's adds
rules or changes shipped ones by their id.

Series that are recorded more rarely than every step keep their last value until the next one, so that a rule may
combine them. Besides the run's series an expression can use ``loss_zscore`` (see `spikes`) and ``a_bar_learned``
(1 when A̅ is trained, 0 when it is fixed by design).

Not covered: sending a finding anywhere; conditions over several runs.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .expression import Expression, ExpressionError, Series, parse
from .reader import Run
from .spikes import loss_zscores

Severity = Literal["note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


class RuleError(ValueError):
    """A rule or rule file is not valid; the message names the file, the rule and what to do."""


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
        message: What is the matter; ``{value}`` and ``{threshold}`` are the sides of the first comparison.
        remedy: What to try.
    """

    id: str
    name: str
    expr: Expression
    severity: Severity
    hold: int = 0
    keep_firing_for: int = 50
    message: str = "{value:g} against {threshold:g}"
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that fired.

    Args:
        rule: Id of the rule.
        name: Its name.
        severity: Its severity.
        step: Step at which it fired first.
        since: Step at which the condition began to hold.
        value: Left side of the rule's first comparison at ``step``.
        threshold: Right side of it.
        message: What is the matter, with the numbers.
        remedy: What to try.
        episodes: How many times it fired.
    """

    rule: str
    name: str
    severity: Severity
    step: int
    since: int
    value: float
    threshold: float
    message: str
    remedy: str
    episodes: int

    def as_dict(self) -> dict[str, Any]:
        """The finding for JSON; a number that is not finite becomes ``None``."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


def load_rules(path: Path | None = None) -> list[Rule]:
    """The shipped rules, changed and extended by a file of the user's.

    In the file, a ``[[rule]]`` with a shipped id changes the fields it names; ``enabled = false`` removes the rule.

    Raises:
        RuleError: The file is not valid.

    >>> [rule.id for rule in load_rules()][:2]
    ['LS001', 'LS010']
    """
    shipped = tomllib.loads(resources.files(__package__).joinpath("rules.toml").read_text(encoding="utf-8"))
    tables: dict[str, dict[str, Any]] = {table["id"]: table for table in shipped["rule"]}
    if path is not None:
        for table in _read_tables(path):
            identifier = table["id"]
            tables[identifier] = tables.get(identifier, {"name": identifier.lower(), "severity": "error"}) | table
    where = "rules.toml" if path is None else str(path)
    return [_rule(table, where) for table in tables.values() if table.get("enabled", True)]


def _read_tables(path: Path) -> list[dict[str, Any]]:
    """The ``[[rule]]`` tables of a user's file."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RuleError(f"{path}: cannot be read as a rule file: {error}") from None
    tables = content.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) and isinstance(t.get("id"), str) for t in tables):
        raise RuleError(f'{path}: expected [[rule]] tables, each with an id = "…"')
    return tables


def _rule(table: Mapping[str, Any], where: str) -> Rule:
    """A rule from its table, every field checked by name."""
    renamed = {("hold" if key == "for" else key): value for key, value in table.items() if key != "enabled"}
    identifier = table["id"]
    known = {field.name for field in fields(Rule)}
    if unknown := set(renamed) - known:
        raise RuleError(f"{where}: rule {identifier}: unknown field {', '.join(sorted(unknown))}; known: for, enabled, "
                        f"{', '.join(sorted(known - {'hold'}))}")  # fmt: skip
    if "expr" not in renamed:
        raise RuleError(f'{where}: rule {identifier}: expr is missing; write for example expr = "loss > 10"')
    if renamed["severity"] not in SEVERITIES:
        raise RuleError(f"{where}: rule {identifier}: severity {renamed['severity']!r} is not one of {SEVERITIES}")
    for key in ("hold", "keep_firing_for"):
        if not isinstance(renamed.get(key, 0), int) or renamed.get(key, 0) < 0:
            raise RuleError(f"{where}: rule {identifier}: {key} counts steps and must be a whole number from 0")
    try:
        rule = Rule(**renamed | {"expr": parse(str(renamed["expr"]))})
        rule.message.format(value=1.0, threshold=1.0)
    except ExpressionError as error:
        raise RuleError(f"{where}: rule {identifier}: {error}") from None
    except (KeyError, IndexError, ValueError) as error:
        raise RuleError(f"{where}: rule {identifier}: message may use only {{value}}, {{threshold}}: {error}") from None
    return rule


def evaluate(run: Run, rules: Iterable[Rule]) -> tuple[list[Finding], list[str]]:
    """Applies rules to what a run has recorded.

    Returns:
        The findings, first step first, and the ids of the rules that could not be evaluated because the run does not
        have a series they read.
    """
    steps = np.asarray(run["step"], dtype=np.float64)
    series: dict[str, Series | None] = {}
    findings, skipped = [], []
    for rule in rules:
        for name in rule.expr.names - series.keys():
            series[name] = _series(run, name, steps)
        env = {name: values for name in rule.expr.names if (values := series[name]) is not None}
        if env.keys() != rule.expr.names:
            skipped.append(rule.id)
        elif (finding := _apply(rule, steps, env)) is not None:
            findings.append(finding)
    return sorted(findings, key=lambda finding: finding.step), skipped


def _apply(rule: Rule, steps: Series, env: Mapping[str, Series]) -> Finding | None:
    """The finding of one rule, if it fires."""
    holds = np.broadcast_to(rule.expr.holds(env), steps.shape)
    fired = _episodes(holds, steps, rule.hold, rule.keep_firing_for)
    if not fired:
        return None
    began, at = fired[0]
    value, threshold = (float(np.broadcast_to(side, steps.shape)[at]) for side in rule.expr.first_comparison(env))
    return Finding(
        rule=rule.id,
        name=rule.name,
        severity=rule.severity,
        step=int(steps[at]),
        since=int(steps[began]),
        value=value,
        threshold=threshold,
        message=rule.message.format(value=value, threshold=threshold),
        remedy=rule.remedy,
        episodes=len(fired),
    )


def _episodes(holds: NDArray[np.bool_], steps: Series, hold: int, keep: int) -> list[tuple[int, int]]:
    """Rows ``(began, fired)`` of every firing: at ``fired`` the condition has held for ``hold`` steps."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], holds, [False]]).astype(np.int8)))
    found: list[tuple[int, int]] = []
    quiet_from = -math.inf
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        fired = int(np.searchsorted(steps, steps[first] + hold))
        if fired >= end:
            continue
        if steps[first] > quiet_from:
            found.append((int(first), fired))
        quiet_from = steps[end - 1] + keep
    return found


def _series(run: Run, name: str, steps: Series) -> Series | None:
    """A name's value at every step: a constant, a derived series or a recorded one; ``None`` when there is none."""
    if name in _CONSTANTS:
        return np.array(_CONSTANTS[name](run.info))
    if name == "loss_zscore":
        return loss_zscores(run["loss"])
    try:
        recorded_at, values = run.series(name)
    except KeyError:
        return None
    return _last_known(steps, np.asarray(recorded_at, dtype=np.float64), np.asarray(values, dtype=np.float64))


def _last_known(steps: Series, recorded_at: Series, values: Series) -> Series:
    """The value recorded last at or before each step; NaN before the first."""
    if not len(recorded_at):
        return np.full(len(steps), np.nan)
    at = np.searchsorted(recorded_at, steps, side="right") - 1
    return np.where(at >= 0, values[np.maximum(at, 0)], np.nan)


def _learned(info: Mapping[str, Any]) -> float:
    """Whether A̅ is trained; NaN when the run has none."""
    learned = info.get("a_bar_learned")
    return math.nan if learned is None else float(learned)


_CONSTANTS: dict[str, Callable[[Mapping[str, Any]], float]] = {"a_bar_learned": _learned}
