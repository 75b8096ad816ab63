"""What each variable of a loop does at the end of a run: whether it fails, since when, and which rule says so.

The decay laws are read by ``regimes``, the findings made by ``judging``; here they meet, variable by variable. A
variable fails where its steps grow from pass to pass, or where its state is not finite. One that orbits or drifts does
not settle, which is no failure by itself.

Not covered: the joint state; which variable made another one fail, beyond the order in which they did.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from ..dynamics.regime import Regime
from ..dynamics.trajectory.trajectory import classify
from ..dynamics.trajectory.trajectory_law import Kind, TrajectoryLaw
from ..runfile.layout import VARIABLE_PASSES, Severity
from ..runfile.reader import Run
from .expression import Series
from .findings import Finding
from .variables import is_measured, round_off_of, until_lost, variables_of

UNSETTLED: Final = ("drifting", "orbiting", "exploding")
DID: Final = {"settling": "still settled", "drifting": "drifted", "orbiting": "orbited", "exploding": "exploded"}
LATEST: Final = 8
"""Passes at the end in which the state of a variable that explodes has to grow,"""
GROWS_WITH: Final = 0.5
"""by at least this part of what its steps grow, in the logarithm."""
AT_ONCE: Final = 64
"""Measurements that are read at a time, the last ones first."""
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
        since: Step since which it does that in every measurement, or is not finite; None where it settles, or nobody
            knows.
        before: The measurement before ``since`` and what it did there; None without one, or where ``since`` is exact.
        measured: Step of the last measurement where a later one was due and was not made; None where it is up to date.
        finding: The most serious finding about this variable alone, the earliest of several; None without any.
    """

    name: str
    kind: Kind
    regime: Regime
    does: str
    since: int | None = None
    before: tuple[int, str] | None = None
    measured: int | None = None
    finding: Finding | None = None

    @property
    def fails(self) -> bool:
        """Whether its passes grow or its state is not finite."""
        return self.regime == "unstable"

    @property
    def failed(self) -> bool:
        """Whether a rule of severity error fired about it, although it does not fail at the end."""
        return not self.fails and self.finding is not None and self.finding.severity == "error"

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
        return f"{self.name} {'failed, now ' if self.failed else ''}{self.does}{self.when}"

    @property
    def said(self) -> str:
        """The same with what it rests on.

        >>> VariableVerdict("z_L", "exploding", "unstable", "explodes", 99, before=(49, "still settled")).said
        'z_L fails: it explodes since step 99 (at step 49 it still settled)'
        """
        notes = [f"at step {self.before[0]:,} it {self.before[1]}"] if self.before is not None else []
        notes += [f"measured last at step {self.measured:,}"] if self.measured is not None else []
        # An alarm of before is about another time; an error is what the gate fails for.
        late = self.finding is not None and (self.before is None or self.finding.step > self.before[0])
        if self.finding is not None and self.kind in UNSETTLED and (late or self.failed):
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
    return tuple(sorted(verdicts, key=lambda one: (not one.fails, not one.failed, one.since or 0 if one.fails else 0)))


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
    since, before = unsettled_since(run, name, law.kind) if law.kind in UNSETTLED else (None, None)
    return replace(verdict, since=since, before=before, measured=_overdue(run))


def _overdue(run: Run) -> int | None:
    """Return the step of the last measurement of the passes where the next one was due and was not made."""
    if VARIABLE_PASSES not in run.array_names or not len(run):
        return None
    steps = run.array_steps(VARIABLE_PASSES)
    usual = int(np.diff(steps).max(initial=0))
    return int(steps[-1]) if usual and run["step"][-1] > steps[-1] + usual else None


def unsettled_since(run: Run, variable: str, kind: Kind) -> tuple[int | None, tuple[int, str] | None]:
    """Return the step since which a variable does on the fixed batch what it does at the end, in every measurement.

    The change lies between two measurements: that one and the one before it. One that is undecided counts where it may
    be the same and does not settle by either of its laws.

    Args:
        run: An opened run.
        variable: One of its variables.
        kind: What it does at the end; one of `UNSETTLED`.

    Returns:
        That step, and the measurement before it with what the variable did there. None and None where it does something
        else at the end or was never measured; a second None where it never did anything else.
    """
    first: int | None = None
    for stop in range(len(run.array_steps(VARIABLE_PASSES)) if VARIABLE_PASSES in run.array_names else 0, 0, -AT_ONCE):
        steps, arrays = run.arrays(VARIABLE_PASSES, slice(max(0, stop - AT_ONCE), stop))
        for step, measured in zip(reversed(steps.tolist()), reversed(arrays), strict=True):
            law = laws_of_passes(run, measured, only=variable).get(variable)
            if law is None:  # damaged
                continue
            same = law.kind == kind or (kind in law.between and "settling" not in law.between and kind != "exploding")
            if not same:
                return first, None if first is None else (int(step), DID.get(law.kind, f"was {law.words}"))
            first = int(step)
    return first, None


def laws_of_passes(run: Run, measured: NDArray[Any], only: str = "") -> dict[str, TrajectoryLaw]:
    """Fit the law of every variable to the passes of one measurement; nothing where it is damaged.

    Where one variable is not finite from a pass on, the others are judged before it.

    Args:
        run: The run that it is of.
        measured: ``(V, T + 1, 3)`` as ``VARIABLE_PASSES``.
        only: Of this variable alone.
    """
    names = variables_of(run)
    if not is_measured(measured, len(names)):
        return {}
    passes, first = until_lost(measured.astype(np.float64))
    laws, level = {}, round_off_of(run, passes=True)
    for name, rows, gone in zip(names, passes, first, strict=True):
        if only in ("", name):
            law = classify(rows[:-1, 1], rows[:-1, 2], rows[:, 0], round_off=level)
            law = law if gone or grows_with_its_steps(law, rows[:, 0]) else _growth_in_bounds(law)
            laws[name] = lost_law(name) if gone and law.kind != "exploding" else law
    return laws


def grows_with_its_steps(law: TrajectoryLaw, state: Series) -> bool:
    """Return whether the state grows at the end as steps that grow geometrically make it grow; True of other laws.

    A state that is normalised, or that leaves a rest for an orbit, stays where it is.

    Args:
        law: The law of its steps.
        state: Its norms.

    >>> law = classify(1.1 ** np.arange(20.0))
    >>> grows_with_its_steps(law, 1.1 ** np.arange(21.0)), grows_with_its_steps(law, np.ones(21))
    (True, False)
    """
    if law.kind != "exploding" or law.method == "non-finite":
        return True
    last = state[-1 - LATEST :]
    return bool(np.log(last[-1] / last[0]) >= GROWS_WITH * (len(last) - 1) * math.log(law.rate))


def _growth_in_bounds(law: TrajectoryLaw) -> TrajectoryLaw:
    """Return the law of steps that grow in a state that does not."""
    said = f"Steps grow by a factor {law.rate:.3f} per pass and the state does not: an explosion begins or it orbits"
    return replace(law, kind="undecided", regime="unknown", between=("exploding", "orbiting"), sentence=said)


def lost_law(variable: str) -> TrajectoryLaw:
    """Return the law of a variable whose state is not finite."""
    said, nan = f"The state of {variable} is not finite.", math.nan
    return TrajectoryLaw("exploding", "unstable", nan, nan, nan, nan, nan, nan, "non-finite", said)


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
