"""Judges a run by rules: where each fires, whether one is about to, and on how many steps it could be decided.

A rule fires when its condition has held for its number of steps. One that holds at the last row and has not held for
long enough is pending and gives a warning: nobody knows how the run went on. A rule that could not be decided at
all, or not to the end of the run, is listed as such. Where a loop carries several variables, rules about its states
judge each of them besides the joint state.

Not covered: conditions over several runs; what is judged of every run without a rule (``completeness``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product

import numpy as np
from numpy.typing import NDArray

from ..runfile.reader import Run
from .expression import Evaluator, Outcome, Series
from .findings import Finding, Judgement
from .risk import Risk
from .rule_files import Rule
from .scope import Said, why_not
from .series import LOSS_DERIVED, RISK, ROWS_AT_ONCE, Missing, RunSeries
from .variables import is_of_states, variables_of


@dataclass(frozen=True, slots=True)
class Judged:
    """What rules say of a run.

    Attributes:
        findings: Rules that fired or are pending, first step first.
        judgements: What each rule was judged on, in the order of the rules.
        risk: How likely the run is to be lost, as far as it is recorded.
    """

    findings: list[Finding]
    judgements: list[Judgement]
    risk: Risk


def judge(run: Run, rules: Iterable[Rule]) -> Judged:
    """Apply rules to what a run has recorded.

    Args:
        run: An opened run; of a live one, its rows so far are judged.
        rules: As `load_rules` gives them.
    """
    rules = tuple(rules)
    joint, read = _tried(run, rules)
    findings = [fired for trial in joint if (fired := trial.finding()) is not None]
    of_states = [rule for rule in rules if is_of_states(rule)]
    of_variables: dict[str, Judgement] = {}
    for variable in variables_of(run):
        own, seen = _tried(run, of_states, variable)
        findings += [fired for trial in own if (fired := trial.finding()) is not None]
        of_variables |= {each.rule: each for trial in own if (each := trial.judgement(seen)).state == "judged"}
    said = [trial.judgement(read) for trial in joint]
    said = [each if each.state == "judged" else of_variables.get(each.rule, each) for each in said]
    return Judged(sorted(_without_repeats(findings), key=lambda finding: finding.step), said, read.risk())


def _tried(run: Run, rules: Iterable[Rule], variable: str = "") -> tuple[list[_Trial], RunSeries]:
    """Return the trials of rules over all rows of a run, and the series that they have read.

    Args:
        run: An opened run.
        rules: What is tried.
        variable: Whose states are judged; empty for the joint state.
    """
    said = Said(run.info)
    trials = [_Trial(rule, variable, why_not(rule.only, rule.except_, said)) for rule in rules]
    followed = [trial for trial in trials if not trial.about]
    read = RunSeries(run, {name for trial in followed for name in trial.rule.expr.names}, variable=variable)
    followed = [trial for trial in followed if not trial.settle(read)]
    for start in range(0, len(read.steps), ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, len(read.steps)))
        env = read.rows(rows)
        for trial in followed:
            trial.take(read.steps[rows], env)
    return trials, read


def _without_repeats(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Yield findings, but those of the joint state where one of its variables has told the same by then."""
    told: dict[str, int] = {}
    for each in findings:
        if each.variable:
            told[each.rule] = min(each.step, told.get(each.rule, each.step))
    for each in findings:
        if each.variable or each.step < told.get(each.rule, each.step + 1):
            yield each


def evaluate(run: Run, rules: Iterable[Rule]) -> tuple[list[Finding], list[str]]:
    """Return the findings of `judge`, and the ids of the rules that were not judged."""
    judged = judge(run, rules)
    return judged.findings, [each.rule for each in judged.judgements if each.state != "judged"]


class _Trial:
    """One rule over a run, some rows at a time.

    Args:
        rule: The rule.
        variable: Whose states it judges; empty for the joint state.
        about: Why the rule is not about the run; empty where it is.

    Attributes:
        rule: The rule.
        about: As given.
        decided: Rows so far in which its condition could be decided.
    """

    def __init__(self, rule: Rule, variable: str, about: str) -> None:
        self.rule, self.about, self.decided = rule, about, 0
        self._variable = variable
        self._evaluator, self._firing = Evaluator(rule.expr), Firing(rule)
        self._first, self._last = math.nan, math.nan  # step that could be decided
        self._fired: Finding | None = None
        self._pending: Finding | None = None
        self._episodes = 0

    def settle(self, read: RunSeries) -> bool:
        """Say whether the rule is done with: of what it reads nothing was recorded, so that all rows are as the first.

        Args:
            read: The run, of which no row was handed out yet.
        """
        steps, names = read.steps, self.rule.expr.names
        if not len(steps) or not all(name in read.constants or read.never(name) for name in names):
            return False
        nothing = {name: read.constants.get(name, np.array(math.nan)) for name in names}
        truth = Evaluator(self.rule.expr).update(steps[:1], nothing).truth
        if truth.no[0]:
            self.decided, self._first, self._last = len(steps), float(steps[0]), float(steps[-1])
        return not truth.yes[0]

    def take(self, steps: Series, series: Mapping[str, Series]) -> None:
        """Take the rows that follow."""
        outcome = self._evaluator.update(steps, series)
        truth = outcome.truth
        decided = truth.yes | truth.no
        if count := int(np.count_nonzero(decided)):
            self._first = float(steps[np.argmax(decided)]) if not self.decided else self._first
            self._last = float(steps[len(steps) - 1 - np.argmax(decided[::-1])])
            self.decided += count
        for row, since in self._firing.update_many(steps, truth.yes):
            self._episodes += 1
            if self._fired is None:
                self._fired = finding(self.rule, steps, row, outcome, since=since, variable=self._variable)
        self._pending = None
        if self._firing.pending and self._fired is None and self.rule.severity != "note":
            self._pending = _pending(self.rule, steps, outcome, self._firing.since, self._variable)

    def finding(self) -> Finding | None:
        """Return the finding of the rule after all rows, if it fired or is pending."""
        return self._pending if self._fired is None else replace(self._fired, episodes=self._episodes)

    def judgement(self, read: RunSeries) -> Judgement:
        """Return what the rule was judged on, after all rows."""
        fired = self._fired or self._pending
        why = Missing("not applicable", self.about) if self.about else Missing("judged", "")
        why = why if self.about or fired else self._why_not(read)
        return Judgement(self.rule.id, self.rule.name, self.rule.severity, why.state, self.decided, why.reason)

    def _why_not(self, read: RunSeries) -> Missing:
        """Return the state of a rule without a finding, and the reason where it was not judged."""
        rule, steps = self.rule, read.steps
        gone = {name: read.missing(name) for name in sorted(rule.expr.names)}
        constant = rule.expr.names & read.constants.keys()
        fixed = {name: float(read.constants[name]) if name in constant else math.nan for name in rule.expr.names}
        row = {name: np.array([value]) for name, value in fixed.items()}
        if constant and Evaluator(rule.expr).update(np.zeros(1), row).truth.no[0]:
            said = ", ".join(f"{name} is {fixed[name]:g}" for name in sorted(constant))
            return Missing("not applicable", f"{said} in this run")
        reasons = [reason for reason in gone.values() if reason is not None]
        absent = sorted(reasons, key=lambda reason: reason.state)  # "no data" before "not applicable"
        if not self.decided:
            unwatched = [name for name, reason in gone.items() if reason is not None and reason.state == "no data"]
            inapplicable = [reason for reason in absent if reason.state == "not applicable"]
            if inapplicable and not _could_fire(rule, fixed, unwatched):
                return inapplicable[0]
            return absent[0] if absent else _undecided(rule, steps)
        if absent and absent[0].state == "no data":
            return absent[0]
        if (span := self._last - self._first) < rule.hold:
            length = "1 step" if span < 1 else f"{span + 1:.0f} steps"
            said = f"the run is too short: {length}; it must hold for {rule.hold}"
            return Missing("not applicable", said)
        return Missing("judged", "")


def _pending(rule: Rule, steps: Series, outcome: Outcome, since: float, variable: str) -> Finding:
    """Return that a rule's condition holds at the last row, and for how long."""
    held = finding(rule, steps, len(steps) - 1, outcome, since=since, variable=variable)
    steps_held = f"{held.held} of {rule.hold} steps" if held.held else f"the last step only, of {rule.hold}"
    said = f"pending, holds for {steps_held} where the recording ends: {held.message}"
    return replace(held, severity="warning", state="pending", message=said)


def _could_fire(rule: Rule, fixed: Mapping[str, float], names: Sequence[str]) -> bool:
    """Return whether a rule could fire if some names had values and all others, but constants, had none."""
    values = (-1e300, 0.0, 1e300)
    tries = product(values, repeat=len(names))
    return any(rule.expr.could_hold({**fixed, **dict(zip(names, each, strict=True))}) for each in islice(tries, 243))


def _undecided(rule: Rule, steps: Series) -> Missing:
    """Return that a condition was unknown everywhere although its series were recorded."""
    if rule.expr.reach and (span := steps[-1] - steps[0] + 1) <= rule.expr.reach:
        said = f"the run is too short: {span:.0f} steps; it looks back over {rule.expr.reach}"
        return Missing("not applicable", said)
    if early := sorted((LOSS_DERIVED | {RISK}) & rule.expr.names):
        return Missing("not applicable", f"the run is too short for {', '.join(early)}")
    return Missing("no data", f"{', '.join(sorted(rule.expr.names))}: never known at one and the same step")


def finding(rule: Rule, steps: Series, row: int, outcome: Outcome, *, since: float, variable: str = "") -> Finding:
    """Return the finding of a rule that fires at one of these rows.

    Args:
        rule: The rule.
        steps: ``(rows,)``.
        row: At which it fires.
        outcome: Of its condition over these rows.
        since: Step since which the condition has held.
        variable: Whose states were judged; empty for the joint state.
    """
    value, threshold = outcome.first_comparison(row)
    said = rule.said(value, threshold)
    return Finding(
        rule=rule.id,
        name=rule.name,
        severity=rule.severity,
        step=int(steps[row]),
        since=int(since),
        value=value,
        threshold=threshold,
        message=f"{variable}: {said}" if variable else said,
        remedy=rule.remedy,
        episodes=1,
        held=int(steps[row] - since),
        hold=rule.hold,
        variable=variable,
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

    def update_many(self, steps: Series, holds: NDArray[np.bool_]) -> Iterator[tuple[int, float]]:
        """Take rows; yield those at which the rule fires, and the step since which the condition has held there."""
        if math.isnan(self.since) and not holds.any():
            return  # nothing begins and nothing ends
        for row in turning_rows(holds, steps, self._hold, self.since):
            if self.update(steps[row], holds[row]):
                yield row, self.since


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
