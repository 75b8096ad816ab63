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
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..runfile.layout import Severity
from ..runfile.reader import Run
from .expression import Expression, ExpressionError, Series, parse
from .spikes import loss_zscores

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
    series: dict[str, Series | None] = dict(constants(run.info))
    findings, skipped = [], []
    for rule in rules:
        for name in rule.expr.names - series.keys():
            series[name] = series_of(run, name, steps)
        env = {name: values for name in rule.expr.names if (values := series[name]) is not None}
        if env.keys() != rule.expr.names:
            skipped.append(rule.id)
        elif (found := _apply(rule, steps, env)) is not None:
            findings.append(found)
    return sorted(findings, key=lambda finding: finding.step), skipped


def _apply(rule: Rule, steps: Series, env: Mapping[str, Series]) -> Finding | None:
    """The finding of one rule, if it fires."""
    holds = np.broadcast_to(rule.expr.holds(env), steps.shape)
    firing = Firing(rule)
    turning = turning_rows(holds, steps, rule.hold)
    fired = [(row, firing.since) for row in turning if firing.update(steps[row], holds[row])]
    if not fired:
        return None
    row, since = fired[0]
    return finding(rule, steps, row, env, since=since, episodes=len(fired))


def finding(
    rule: Rule, steps: Series, row: int, env: Mapping[str, Series], *, since: float, episodes: int = 1
) -> Finding:
    """What is said of a rule that fires at one of these rows."""
    sides = rule.expr.first_comparison(env)
    value, threshold = (float(np.broadcast_to(side, steps.shape)[row]) for side in sides)
    return Finding(
        rule=rule.id,
        name=rule.name,
        severity=rule.severity,
        step=int(steps[row]),
        since=int(since),
        value=value,
        threshold=threshold,
        message=rule.message.format(value=value, threshold=threshold),
        remedy=rule.remedy,
        episodes=episodes,
    )


class Firing:
    """When one rule fires, told row by row; what its Prometheus words mean.

    >>> firing = Firing(Rule("R", "late", parse("loss > 3"), "error", hold=1, keep_firing_for=2))
    >>> holds = [True, True, True, False, True, True, False, False, False, True, True]
    >>> [step for step in range(len(holds)) if firing.update(step, holds[step])]
    [1, 10]
    """

    def __init__(self, rule: Rule) -> None:
        self._hold, self._keep = rule.hold, rule.keep_firing_for
        self.since = math.nan  # step at which the condition began to hold; NaN: it does not
        self._fired = False  # whether this stretch has held for long enough
        self._last = -math.inf  # step up to which it did
        self._quiet_until = -math.inf  # a stretch that begins by then belongs to the firing before

    def update(self, step: float, holds: bool) -> bool:
        """Whether the rule fires at this step; steps come in increasing order."""
        if not holds:
            if self._fired:
                self._quiet_until = self._last + self._keep
            self.since, self._fired = math.nan, False
            return False
        if math.isnan(self.since):
            self.since = step
        self._last = step
        if self._fired or step < self.since + self._hold:
            return False
        self._fired = True
        return self.since > self._quiet_until


def turning_rows(holds: NDArray[np.bool_], steps: Series, hold: int, since: float = math.nan) -> list[int]:
    """The rows from which `Firing` learns all that the others could tell it, in order.

    Args:
        holds: ``(rows,)``, whether the condition holds.
        steps: ``(rows,)``, strictly increasing.
        hold: Steps for which it must.
        since: Step since which it held before the first of these rows; NaN when it did not.

    >>> turning_rows(np.array([False, True, True, True, True, False, False]), np.arange(7.0), hold=2)
    [0, 1, 3, 4, 5]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], holds, [False]]).astype(np.int8)))
    first, end = edges[::2], edges[1::2]
    began = steps[first]
    if len(first) and first[0] == 0 and not math.isnan(since):
        began[0] = since
    fired = np.minimum(np.searchsorted(steps, began + hold), end - 1)
    row_0, after = np.arange(len(steps))[:1], end[end < len(steps)]
    rows: list[int] = np.unique(np.concatenate([row_0, first, fired, end - 1, after])).tolist()
    return rows


def series_of(run: Run, name: str, steps: Series) -> Series | None:
    """A recorded or derived series at every step; ``None`` when the run does not know the name."""
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


def constants(info: Mapping[str, Any]) -> dict[str, Series]:
    """What a rule can ask that is true of the whole run: ``a_bar_learned``, NaN when the run has no A̅."""
    learned = info.get("a_bar_learned")
    return {"a_bar_learned": np.array(math.nan if learned is None else float(learned))}
