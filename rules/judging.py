"""Judges a run by rules: where each fires, whether one is about to, and on how many steps it could be decided.

A rule fires when its condition has held for its number of steps. One that holds at the last row and has not held for
long enough is pending and gives a warning: nobody knows how the run went on. A rule that could not be decided at
all, or not to the end of the run, is listed as such.

Not covered: conditions over several runs; what is judged of every run without a rule (``completeness``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice, product

import numpy as np
from numpy.typing import NDArray

from ..runfile.reader import Run
from .expression import Evaluator, Outcome, Series
from .findings import Finding, Judgement
from .rule_files import Rule
from .scope import Said, why_not
from .series import LOSS_DERIVED, RISK, Missing, constants, derived, missing, recorded, series_of


@dataclass(frozen=True, slots=True)
class Judged:
    """What rules say of a run.

    Attributes:
        findings: Rules that fired or are pending, first step first.
        judgements: What each rule was judged on, in the order of the rules.
    """

    findings: list[Finding]
    judgements: list[Judgement]


def judge(run: Run, rules: Iterable[Rule]) -> Judged:
    """Apply rules to what a run has recorded.

    Args:
        run: An opened run; of a live one, its rows so far are judged.
        rules: As `load_rules` gives them.
    """
    steps = np.asarray(run["step"], dtype=np.float64)
    always = constants(run.info)
    read = cache(partial(recorded, run))  # several rules read the same series
    series: dict[str, Series] = dict(always)
    absent: dict[str, Missing | None] = {}
    findings, judgements = [], []
    said = Said(run.info)
    for rule in rules:
        if about := why_not(rule.only, rule.except_, said):
            judgements.append(Judgement(rule.id, rule.name, rule.severity, "not applicable", 0, about))
            continue
        for name in rule.expr.names - absent.keys():
            absent[name] = missing(run, name, read) if len(steps) else Missing("no data", "no step was recorded")
        if not series.keys() >= rule.expr.names & LOSS_DERIVED:
            series |= derived(run)  # all of them at once
        for name in rule.expr.names - series.keys():
            values = series_of(run, name, steps, read)
            series[name] = np.full(len(steps), np.nan) if values is None else values
        env = {name: series[name] for name in rule.expr.names}
        outcome = Evaluator(rule.expr).update(steps, env)
        truth = outcome.truth
        fired = _apply(rule, steps, outcome)
        findings += [fired] if fired is not None else []
        decided = steps[truth.yes | truth.no]
        if fired is not None:
            why = Missing("judged", "")
        else:
            gone = {name: absent[name] for name in sorted(rule.expr.names)}
            why = _why_not(rule, env, gone, always.keys() & env.keys(), decided, steps)
        judgements.append(Judgement(rule.id, rule.name, rule.severity, why.state, len(decided), why.reason))
    return Judged(sorted(findings, key=lambda finding: finding.step), judgements)


def evaluate(run: Run, rules: Iterable[Rule]) -> tuple[list[Finding], list[str]]:
    """Return the findings of `judge`, and the ids of the rules that were not judged."""
    judged = judge(run, rules)
    return judged.findings, [each.rule for each in judged.judgements if each.state != "judged"]


def _apply(rule: Rule, steps: Series, outcome: Outcome) -> Finding | None:
    """Return the finding of one rule, if it fires or is pending."""
    holds = outcome.truth.yes
    if not holds.any():
        return None
    firing = Firing(rule)
    turning = turning_rows(holds, steps, rule.hold)
    fired = [(row, firing.since) for row in turning if firing.update(steps[row], holds[row])]
    if fired:
        row, since = fired[0]
        return finding(rule, steps, row, outcome, since=since, episodes=len(fired))
    if firing.pending and rule.severity != "note":
        return _pending(rule, steps, outcome, firing.since)
    return None


def _pending(rule: Rule, steps: Series, outcome: Outcome, since: float) -> Finding:
    """Return that a rule's condition holds at the last row, and for how long."""
    held = finding(rule, steps, len(steps) - 1, outcome, since=since)
    said = f"pending, holds for {held.held} of {rule.hold} steps where the recording ends: {held.message}"
    return replace(held, severity="warning", state="pending", message=said)


def _why_not(
    rule: Rule,
    env: Mapping[str, Series],
    gone: Mapping[str, Missing | None],
    constant: Set[str],
    decided: Series,
    steps: Series,
) -> Missing:
    """Return the state of a rule that did not fire, and the reason where it was not judged.

    Args:
        rule: The rule.
        env: What it reads.
        gone: Of each name, why it is missing.
        constant: Names that are true of the whole run.
        decided: Steps at which the condition could be decided.
        steps: All steps.
    """
    fixed = {name: float(values) if name in constant else math.nan for name, values in env.items()}
    if constant and rule.expr.truth({name: np.array(value) for name, value in fixed.items()}).no.all():
        said = ", ".join(f"{name} is {fixed[name]:g}" for name in sorted(constant & env.keys()))
        return Missing("not applicable", f"{said} in this run")
    reasons = [reason for reason in gone.values() if reason is not None]
    absent = sorted(reasons, key=lambda reason: reason.state)  # "no data" before "not applicable"
    if not len(decided):
        unwatched = [name for name, reason in gone.items() if reason is not None and reason.state == "no data"]
        inapplicable = [reason for reason in absent if reason.state == "not applicable"]
        if inapplicable and not _could_fire(rule, fixed, unwatched):
            return inapplicable[0]
        return absent[0] if absent else _undecided(rule, env, steps)
    if absent and absent[0].state == "no data":
        return absent[0]
    if (span := decided[-1] - decided[0]) < rule.hold:
        return Missing("not applicable", f"the run is too short: {span + 1:.0f} steps; it must hold for {rule.hold}")
    return Missing("judged", "")


def _could_fire(rule: Rule, fixed: Mapping[str, float], names: Sequence[str]) -> bool:
    """Return whether a rule could fire if some names had values and all others, but constants, had none."""
    values = (-1e300, 0.0, 1e300)
    tries = product(values, repeat=len(names))
    return any(rule.expr.could_hold({**fixed, **dict(zip(names, each, strict=True))}) for each in islice(tries, 243))


def _undecided(rule: Rule, env: Mapping[str, Series], steps: Series) -> Missing:
    """Return that a condition was unknown everywhere although its series were recorded."""
    if rule.expr.reach and (span := steps[-1] - steps[0] + 1) <= rule.expr.reach:
        said = f"the run is too short: {span:.0f} steps; it looks back over {rule.expr.reach}"
        return Missing("not applicable", said)
    if early := sorted((LOSS_DERIVED | {RISK}) & env.keys()):
        return Missing("not applicable", f"the run is too short for {', '.join(early)}")
    return Missing("no data", f"{', '.join(sorted(env))}: never known at one and the same step")


def finding(rule: Rule, steps: Series, row: int, outcome: Outcome, *, since: float, episodes: int = 1) -> Finding:
    """Return the finding of a rule that fires at one of these rows."""
    value, threshold = outcome.first_comparison(row)
    return Finding(
        rule=rule.id,
        name=rule.name,
        severity=rule.severity,
        step=int(steps[row]),
        since=int(since),
        value=value,
        threshold=threshold,
        message=rule.said(value, threshold),
        remedy=rule.remedy,
        episodes=episodes,
        held=int(steps[row] - since),
        hold=rule.hold,
    )


class Firing:
    """When one rule fires, told row by row; what its Prometheus words mean.

    >>> from loopscope.rules.expression import parse
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

    @property
    def pending(self) -> bool:
        """Whether the condition holds and has not held for long enough."""
        return not math.isnan(self.since) and not self._fired

    def update(self, step: float, holds: bool) -> bool:
        """Take a step and say whether the rule fires at it; steps come in increasing order."""
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
    """Return the rows from which `Firing` learns all that the others could tell it, in order.

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
