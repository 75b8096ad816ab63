"""Rules while training runs: the same conditions that ``loopscope check`` applies to the file, on rows as they come.

Rows are judged a few at a time (`BLOCK`), which makes their cost too small to measure, and a row is judged only when
the next one has come, because the passes of the probe batch belong to the step before them. What fires here is what
`judging.judge` finds in the file: both drive the same `Firing` over the same series.

Not covered: rules that the detectors speak for (`detectors.SPOKEN_FOR`), which tell of every single spike; notes, which
are nobody's alarm; rules that are not about this run; rows that no longer count after a rollback without a resume: what
they had begun ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runfile.layout import PROBE_DERIVED, STEP_DERIVED, Event, Severity, derived_from_loops
from ..runfile.ratios import late_ratios
from ..runfile.reader import Run
from .detectors import SPOKEN_FOR
from .expression import Evaluator, Series
from .findings import Finding
from .grammar import loop_entry
from .judging import Firing, finding
from .risk import SOURCES, RunRisk, columns_of
from .rule_files import Rule
from .scope import Said, why_not
from .series import LOSS_DERIVED, RISK, SECONDS, RunSeries, constants, entries_of
from .variables import is_of_states, loops_of_rows, ratios_of_passes, variables_in

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
BLOCK: Final = 16  # rows judged at a time: a quarter of what the flight recorder keeps


Key = tuple[str, str]
"""Of which variable, empty for the joint state and what is of none, and which series."""


_STEP: Final[Key] = ("", "step")


class _Row(NamedTuple):
    """A row that is not judged yet."""

    step: float
    time: float
    known: dict[Key, float]  # the last value of every series
    given: dict[str, float]  # what of the risk's sources the row itself brought


class LiveRules:
    """Applies rules to the rows of a run in progress.

    Args:
        rules: As `load_rules` gives them.
        info: What is true of the whole run.
        names: Series that the run has. A rule over others waits until a row brings them.

    >>> from loopscope.rules.rule_files import load_rules
    >>> live = LiveRules(load_rules(), {"a_bar_learned": True}, ["a_bar_radius", "growth_ratio"])
    >>> events = [event for step in range(40) for event in live.add(step, {"a_bar_radius": 1.1, "growth_ratio": 1.2})]
    >>> events += live.judge(ended=True)
    >>> [(event.kind, event.step, event.severity) for event in events]
    [('LS020', 3, 'error')]
    """

    def __init__(self, rules: Iterable[Rule], info: Mapping[str, Any], names: Iterable[str]) -> None:
        audible = (rule for rule in rules if rule.severity != "note" and rule.id not in SPOKEN_FOR.values())
        said = Said(info)
        self._rules = tuple(rule for rule in audible if not why_not(rule.only, rule.except_, said))
        self._constants = constants(info)
        self._names = {name for rule in self._rules for name in rule.expr.names} - self._constants.keys()
        self._entries = [name for name in self._names if loop_entry(name) is not None]
        self._of_states = [n for n in self._names if n in STEP_DERIVED or n in PROBE_DERIVED] + self._entries
        self._variables = variables_in(info)
        self._followed = [_Followed(rule, self._variables) for rule in self._rules]
        self._last_time = math.nan  # of a row of this process
        self._last_step = -1
        self._idle: set[str] = set()  # rules that have alerted while no row came
        self._told: set[tuple[str, float]] = set()  # and the row that then came, in which they do not again
        self._known: dict[Key, float] = {}
        self._know_nothing()
        self._rows: list[_Row] = []  # not judged yet
        self._risk = RunRisk() if RISK in self._names else None
        self._columns: dict[str, Series] = {}  # what its risk is made of
        self._past: dict[Key, Series] = {}  # of the run that is resumed, until its first new row says what of it counts

    def learn(self, info: Mapping[str, Any]) -> None:
        """Take note of what was learnt of the whole run after it began."""
        self._constants |= {name: value for name, value in constants(info).items() if name in info}
        if "variables" in info and (variables := variables_in(info)) != self._variables:
            self._variables = variables
            for each in self._followed:
                each.follow(variables)
            self._know_nothing()

    def resume(self, run: Run) -> None:
        """Go on where a run was interrupted; the rows before the first new one count."""
        self._columns = columns_of(run) if self._risk is not None else {}
        for variable in ("", *self._variables):
            read = RunSeries(run, self._of_states if variable else self._names, variable=variable)
            rows = read.rows(slice(0, len(read.steps)))
            self._past |= {(variable, name): values for name, values in rows.items()} | {_STEP: read.steps}

    def add(
        self,
        step: int,
        values: Mapping[str, float],
        *,
        time: float = math.nan,
        loops: NDArray[np.float32] | None = None,
        variables: Sequence[NDArray[np.float32]] = (),
        passes: NDArray[np.float32] | None = None,
    ) -> list[Event]:
        """Take the row of a step; return the alerts of earlier rows, where it is time to judge them.

        Args:
            step: Training step.
            values: What was recorded, by name.
            time: Unix seconds.
            loops: The loops of the step, ``(T + 1, 4)`` as ``LOOP_COLUMNS``.
            variables: What every variable did in it, in their order, ``(updates + 1, 6)`` as ``VARIABLE_COLUMNS``.
            passes: Where the full loop was measured, the passes on the fixed batch, as ``VARIABLE_PASSES``.
        """
        if self._past:
            self._replay(step)
        if self._rows and step <= self._rows[-1].step:
            self._forget()
        self._learn(values)
        self._learn({SECONDS: time - self._last_time})
        if loops is not None and self._entries:
            self._learn(entries_of(self._entries, loops))
        for variable, updates in zip(self._variables if self._of_states else (), variables, strict=False):
            if len(updates):
                own = loops_of_rows(updates)
                self._learn(entries_of(self._entries, own) | derived_from_loops(own), variable)
        measured = [] if passes is None else ratios_of_passes(passes, len(self._variables))
        for variable, ratios in zip(self._variables if measured else (), measured, strict=True):
            self._learn(ratios, variable)
        self._last_time, self._last_step = time, step
        if self._idle:
            self._told, self._idle = {(rule, float(step)) for rule in self._idle}, set()
        given = {name: values[name] for name in SOURCES if name in values} if self._risk is not None else {}
        self._rows.append(_Row(float(step), time, dict(self._known), given))
        return self.judge() if len(self._rows) > BLOCK else []

    def add_pass(self, loops: NDArray[np.float32]) -> None:
        """Take a pass of the probe batch, ``(T + 1, 4)`` as ``LOOP_COLUMNS``; it belongs to the row before it."""
        if not self._names.isdisjoint((*PROBE_DERIVED, RISK)) and len(loops) > 1:
            rows = loops.astype(np.float64)
            ratios = late_ratios(rows[None, :-1, 1], rows[None, :, 0], rows[None, :, 3])
            measured = {name: float(ratio[0]) for name, ratio in zip(PROBE_DERIVED, ratios, strict=True)}
            self._learn(measured)
            if self._rows:
                self._rows[-1].known.update(self._known)
                self._rows[-1].given.update(measured)

    def judge(self, *, ended: bool = False) -> list[Event]:
        """Return the alerts of the rows that are complete; of all, when the run has ended."""
        ready = self._rows if ended else self._rows[:-1]
        self._rows = self._rows[len(ready) :]
        if not ready:
            return []
        if self._risk is not None:
            for row in ready:
                row.known["", RISK] = self._risk.update(row.given)
        steps, times = np.array([row.step for row in ready]), np.array([row.time for row in ready])
        env = {key: np.array([row.known.get(key, math.nan) for row in ready]) for key in self._known}
        return sorted(self._fired(steps, times, env), key=lambda event: event.step)

    def _know_nothing(self) -> None:
        """Begin with no value of any series that has none yet."""
        keys = [("", name) for name in self._names]
        keys += [(variable, name) for variable in self._variables for name in self._of_states]
        self._known = dict.fromkeys(keys, math.nan) | self._known

    def _learn(self, values: Mapping[str, float], variable: str = "") -> None:
        """Keep what was recorded; a series that was not keeps what it had last.

        Not that of a loop which this step does not run, and not what is made of every row.
        """
        for name in self._names & values.keys():
            if not math.isnan(values[name]) or name in LOSS_DERIVED or loop_entry(name) is not None:
                self._known[variable, name] = values[name]

    def idle(self, now: float) -> list[Event]:
        """Return the alerts of rules over ``seconds`` while no row comes; each once, until the next row.

        Args:
            now: Unix seconds.
        """
        waiting = [each for each in self._followed if SECONDS in each.rule.expr.names and not each.rule.hold]
        if not waiting or math.isnan(self._last_time) or self._rows[:-1]:
            return []
        known = self._constants | {name: np.array(value) for (of, name), value in self._known.items() if not of}
        known[SECONDS] = np.array(now - self._last_time)
        steps, events = np.array([self._last_step + 1.0]), []
        for each in waiting:
            if each.rule.id not in self._idle and (fired := each.would_fire(steps, known)) is not None:
                self._idle.add(each.rule.id)
                events.append(_event(each.rule, replace(fired, step=self._last_step), now))
        return events

    def _fired(self, steps: Series, times: Series, env: Mapping[Key, Series]) -> Iterable[Event]:
        """Yield the alerts of a stretch of rows, rule by rule."""
        joint = self._constants | {name: values for (of, name), values in env.items() if not of}
        own = {variable: joint | {name: values for (of, name), values in env.items() if of == variable}
               for variable in self._variables}  # fmt: skip
        for each in self._followed:
            for row, fired in each.update(steps, joint, own):
                if (each.rule.id, steps[row]) not in self._told:
                    yield _event(each.rule, fired, times[row])

    def _replay(self, step: int) -> None:
        """Let the rules go through what the resumed run recorded before this step, without reporting it."""
        count = int(np.searchsorted(self._past[_STEP], step))
        past = {key: values[:count] for key, values in self._past.items()}
        self._past = {}
        if count:
            unknown = np.full(count, np.nan)
            steps = past.pop(_STEP)
            list(self._fired(steps, unknown, dict.fromkeys(self._known, unknown) | past))
            self._known.update({key: float(values[-1]) for key, values in past.items()})
        if self._risk is not None:
            self._risk.replay({name: values[:count] for name, values in self._columns.items()})
            self._columns = {}

    def _forget(self) -> None:
        """Begin anew after a step back: the rows that counted so far are of a branch that does not exist any more."""
        self._rows = []
        self._risk = None if self._risk is None else RunRisk()
        self._followed = [_Followed(rule, self._variables) for rule in self._rules]


class _Followed:
    """One rule, and what it remembers of the rows so far: of the joint state, and of every variable.

    Args:
        rule: The rule.
        variables: Those of the loop, where they are judged one by one.
    """

    def __init__(self, rule: Rule, variables: Sequence[str]) -> None:
        self.rule = rule
        self._evaluator, self._firing = Evaluator(rule.expr), Firing(rule)
        self._told = False  # of a variable: the joint state then has nothing to add
        self.follow(variables)

    def follow(self, variables: Sequence[str]) -> None:
        """Judge these variables from here on."""
        own = variables if is_of_states(self.rule) else ()
        self._of = {variable: (Evaluator(self.rule.expr), Firing(self.rule)) for variable in own}

    def update(
        self, steps: Series, joint: Mapping[str, Series], own: Mapping[str, Mapping[str, Series]] = NOTHING
    ) -> Iterable[tuple[int, Finding]]:
        """Take rows; yield those at which the rule fires, and for which variable.

        Args:
            steps: ``(rows,)``.
            joint: The series of the joint state.
            own: Of every variable, the same with its own states.
        """
        silent_from = 0 if self._told else len(steps)
        for variable, (evaluator, firing) in self._of.items():
            for row, fired in self._fires(evaluator, firing, steps, own[variable], variable):
                self._told, silent_from = True, min(silent_from, row)
                yield row, fired
        for row, fired in self._fires(self._evaluator, self._firing, steps, joint):
            if row < silent_from:
                yield row, fired

    def _fires(
        self, evaluator: Evaluator, firing: Firing, steps: Series, series: Mapping[str, Series], variable: str = ""
    ) -> Iterable[tuple[int, Finding]]:
        """Yield the rows at which the rule fires."""
        outcome = evaluator.update(steps, series)
        for row, since in firing.update_many(steps, outcome.truth.yes):
            yield row, finding(self.rule, steps, row, outcome, since=since, variable=variable)

    def would_fire(self, steps: Series, series: Mapping[str, Series]) -> Finding | None:
        """Return what would be said if this row came now; nothing is remembered of it."""
        before = self._evaluator.state()
        outcome = self._evaluator.update(steps, series)
        self._evaluator.restore(before)
        holds = bool(outcome.truth.yes[0])
        return finding(self.rule, steps, 0, outcome, since=float(steps[0])) if holds else None


def _event(rule: Rule, finding: Finding, time: float) -> Event:
    """Return the event that a rule that fired puts into the run file."""
    severity: Severity = "error" if rule.severity == "error" else "warning"
    message = f"{rule.name}: {finding.message}"
    return Event(finding.step, time, rule.id, severity, finding.value, finding.threshold, message)
