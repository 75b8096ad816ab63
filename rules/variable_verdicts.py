"""What each variable of a loop does at the end of a run: whether it fails, since when, and which rule says so.

The decay laws are read by ``regimes``, the findings made by ``judging``; here they meet, variable by variable. A
variable fails where its steps grow from pass to pass, or where its state is not finite. One that orbits or drifts does
not settle, which is no failure by itself.

Not covered: the joint state; which variable made another one fail, beyond the order in which they did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, get_args

import numpy as np

from ..dynamics.regime import Regime
from ..dynamics.trajectory.trajectory_law import Kind, TrajectoryLaw
from ..runfile.layout import VARIABLE_PASSES, Severity
from ..runfile.reader import Run
from .expression import Series
from .findings import Finding
from .variables import late_ratios_of, variables_of

UNSETTLED: Final = ("drifting", "orbiting", "exploding")
KEEPS_STEPS: Final = 0.97
"""Ratio of late passes from which on they do not settle, as in LS031."""
NON_FINITE: Final = "LS001"
"""The rule that counts numbers of a step which are not finite, and does not know whose they are."""
ROWS_AT_ONCE: Final = 10_000


@dataclass(frozen=True, slots=True)
class VariableVerdict:
    """What one variable does.

    Attributes:
        name: Its name.
        kind: What its passes do, as `TrajectoryLaw.kind`.
        regime: The regime of that.
        does: The same in two or three words.
        since: Step since which it does not settle, or is not finite; None where it settles, or nobody knows.
        settled_at: The measurement before ``since``, at which it still settled; None without one, or where ``since`` is
            exact.
        measured: Step of the last measurement where a later one was due and was not made; None where it is up to date.
        finding: The most serious finding about this variable alone, the earliest of several; None without any.
    """

    name: str
    kind: Kind
    regime: Regime
    does: str
    since: int | None = None
    settled_at: int | None = None
    measured: int | None = None
    finding: Finding | None = None

    @property
    def fails(self) -> bool:
        """Whether its passes grow or its state is not finite."""
        return self.regime == "unstable"

    @property
    def when(self) -> str:
        """Since when, in words that follow others; empty where there is nothing to say."""
        return "" if self.since is None else " from the start" if self.since == 0 else f" since step {self.since:,}"

    @property
    def brief(self) -> str:
        """What it does and since when, for a cell of a table.

        >>> VariableVerdict("z_L", "exploding", "unstable", "explodes", 99).brief
        'z_L explodes since step 99'
        """
        return f"{self.name} {self.does}{self.when}"

    @property
    def said(self) -> str:
        """The same with what it rests on.

        >>> VariableVerdict("z_L", "exploding", "unstable", "explodes", 99, settled_at=49).said
        'z_L fails: it explodes since step 99 (at step 49 it still settled)'
        """
        notes = [f"at step {self.settled_at:,} it still settled"] if self.settled_at is not None else []
        notes += [f"measured last at step {self.measured:,}"] if self.measured is not None else []
        if self.finding is not None and self.kind in UNSETTLED:
            notes.append(f"{self.finding.rule} {self.finding.name}, alarm at step {self.finding.step:,}")
        more = f" ({'; '.join(notes)})" if notes else ""
        return f"{self.name} {'fails: it ' if self.fails else ''}{self.does}{self.when}{more}"

    def as_dict(self) -> dict[str, str | int | None]:
        """Return the verdict for JSON."""
        rule = None if self.finding is None else self.finding.rule
        return {"regime": self.regime, "kind": self.kind, "since": self.since, "rule": rule}


def verdicts_of(
    run: Run, laws: Mapping[str, TrajectoryLaw], findings: Sequence[Finding] = ()
) -> tuple[VariableVerdict, ...]:
    """Return what every variable does, those that fail first, in the order in which they began to.

    Args:
        run: An opened run.
        laws: The decay law of each variable, as `regimes.variable_laws` reads them.
        findings: What the rules say of the run.
    """
    verdicts = [_verdict(run, name, law, findings) for name, law in laws.items()]
    return tuple(sorted(verdicts, key=lambda one: (not one.fails, one.since or 0 if one.fails else 0)))


def _verdict(run: Run, name: str, law: TrajectoryLaw, findings: Sequence[Finding]) -> VariableVerdict:
    """Return what one variable does."""
    own = [each for each in findings if each.variable == name and not each.gap]
    order: tuple[Severity, ...] = get_args(Severity)
    own.sort(key=lambda each: (-order.index(each.severity), each.step))
    does = {"undecided": f"is {law.words}", "unknown": "has too few loops to tell"}.get(law.kind, law.words)
    verdict = VariableVerdict(name, law.kind, law.regime, does, finding=own[0] if own else None)
    if law.method == "non-finite":
        since = lost_since(run, name)
        if since is not None:
            return replace(verdict, since=since)
    since, before = unsettled_since(run, name) if law.kind in UNSETTLED else (None, None)
    return replace(verdict, since=since, settled_at=before, measured=_overdue(run))


def _overdue(run: Run) -> int | None:
    """Return the step of the last measurement of the passes where the next one was due and was not made."""
    if VARIABLE_PASSES not in run.array_names or not len(run):
        return None
    steps = run.array_steps(VARIABLE_PASSES)
    usual = int(np.diff(steps).max(initial=0))
    return int(steps[-1]) if usual and run["step"][-1] > steps[-1] + usual else None


def unsettled_since(run: Run, variable: str) -> tuple[int | None, int | None]:
    """Return the step since which the late passes of a variable on the fixed batch have not got shorter.

    Both steps are measurements. The change lies between them: at the second one the variable still settled.

    Args:
        run: An opened run.
        variable: One of its variables.

    Returns:
        That step, and the measurement before it. None and None where the passes settle at the end or were never
        measured; a second None where they never settled before.
    """
    steps, ratios = late_ratios_of(run, variable, "residual_ratio")
    settles = np.flatnonzero(ratios < KEEPS_STEPS)
    first = int(settles[-1]) + 1 if len(settles) else 0
    if first >= len(steps):
        return None, None
    return int(steps[first]), int(steps[first - 1]) if first else None


def lost_since(run: Run, variable: str) -> int | None:
    """Return the step since which the last state of a variable is not finite, to the end of the run; None where it is.

    Steps in which the variable was not recorded say nothing.
    """
    first = None
    for stop in range(len(run), 0, -ROWS_AT_ONCE):
        rows = slice(max(0, stop - ROWS_AT_ONCE), stop)
        last = last_states(run, variable, rows)
        recorded = np.flatnonzero(~np.isnan(last))
        finite = np.flatnonzero(np.isfinite(last))
        lost = recorded[recorded > finite[-1]] if len(finite) else recorded
        if len(lost):
            first = int(run["step"][rows.start + lost[0]])
        if len(finite) or (len(recorded) and not len(lost)):
            break
    return first


def last_states(run: Run, variable: str, rows: slice) -> Series:
    """Return the norm of a variable after its last update ``(steps,)``: infinite if not finite, NaN if not recorded.

    Args:
        run: An opened run.
        variable: One of its variables.
        rows: Which steps.
    """
    state, tokens = (run.loops(name, rows, variable=variable) for name in ("state_norm", "tokens"))
    count = np.count_nonzero(~np.isnan(tokens), axis=1)
    values = np.full(len(state), np.nan)
    at = np.flatnonzero(count)
    values[at] = state[at, count[at] - 1]
    values[at] = np.where(np.isfinite(values[at]), values[at], np.inf)
    return values


def lost_variables(run: Run, step: int) -> list[str]:
    """Return the variables whose state is not finite in a step; none where the loop carries one tensor."""
    row = int(np.searchsorted(run["step"], step))
    rows = slice(row, row + 1)
    if row >= len(run) or run["step"][row] != step:
        return []
    return [name for name in variables_of(run) if np.isinf(last_states(run, name, rows)).any()]


def naming_variables(run: Run, findings: Iterable[Finding]) -> list[Finding]:
    """Return findings, of which the one about numbers that are not finite says of whose state they are."""
    named = []
    for each in findings:
        lost = lost_variables(run, each.step) if each.rule == NON_FINITE and not each.gap else []
        if lost:
            alone = lost[0] if len(lost) == 1 else ""
            said = f"{each.message}: the state of {' and of '.join(lost)}" + (" alone" if alone else "")
            named.append(replace(each, message=said, variable=alone))
        else:
            named.append(each)
    return named


def sentence_of(verdicts: Sequence[VariableVerdict]) -> str:
    """Return one sentence about all variables; empty without any.

    >>> explodes = VariableVerdict("z_L", "exploding", "unstable", "explodes", 99)
    >>> sentence_of([explodes, VariableVerdict("z_H", "settling", "stable", "settles geometrically")])
    'By variable: z_L fails: it explodes since step 99; z_H settles geometrically.'
    """
    fails = any(one.fails for one in verdicts)
    return f"By variable: {('; ' if fails else ', ').join(one.said for one in verdicts)}." if verdicts else ""
