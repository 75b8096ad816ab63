"""Follows runs while they are written: what each is like now, and what has changed since the last look.

A look at a run costs what judging it costs, so that the next one waits at least ten times as long: watching takes a
tenth of a core at most, whatever the length of the run.

Not covered: showing it (``commands/watch.py``), telling people (``notify``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..rules.diagnosis import diagnose
from ..rules.findings import Finding
from ..rules.rule_files import SEVERITIES, Rule
from ..runfile.layout import RunFileError, Severity
from ..runfile.open import open_run
from ..runfile.ranks.companions import separate_runs
from ..runfile.reader import Run
from .notify import Alert
from .result import GateResult, RunCheck
from .sparkline import sparkline

SHARE: Final = 0.1  # of a core
ALERTING: Final[tuple[Severity, ...]] = SEVERITIES[1:]


@dataclass(frozen=True, slots=True)
class Look:
    """One run as it was at the last look.

    Attributes:
        check: What the gate would say of it now.
        state: ``live``, ``finished``, ``interrupted``, or ``unreadable``.
        steps: Recorded steps.
        news: Findings that were not there at the look before.
        quiet: Seconds since the last row was published; NaN where it cannot be read.
    """

    check: RunCheck
    state: str
    steps: int
    news: tuple[Finding, ...]
    quiet: float


class Watch:
    """Looks at runs again and again.

    Args:
        paths: Run files and folders of them; new files in the folders are followed too.
        rules: What is judged.
        fail_on: Least severity that fails a run.
        interval: Seconds between two looks at a run, at least.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        rules: Sequence[Rule],
        *,
        fail_on: Severity = "error",
        interval: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths, self._rules, self._fail_on = list(paths), list(rules), fail_on
        self._interval, self._clock = interval, clock
        self._open: dict[Path, Run] = {}
        self._looks: dict[Path, Look] = {}
        self._due: dict[Path, float] = {}

    @property
    def looks(self) -> dict[Path, Look]:
        """The last look at each run, in the order in which they were first seen."""
        return dict(self._looks)

    @property
    def result(self) -> GateResult:
        """What the gate says of all runs as they are now."""
        return GateResult([look.check for look in self._looks.values()], self._fail_on, tuple(self._rules))

    @property
    def is_over(self) -> bool:
        """Whether there are runs and none of them is live any more."""
        return bool(self._looks) and all(look.state != "live" for look in self._looks.values())

    def look(self) -> list[tuple[Path, Look]]:
        """Look at every run that is due and has changed; return what changed."""
        changed = []
        for path in self._files():
            if self._clock() < self._due.get(path, -float("inf")):
                continue
            began = self._clock()
            before = self._looks.get(path)
            after = self._look_at(path, before)
            self._due[path] = self._clock() + max(self._interval, (self._clock() - began) / SHARE)
            if before is None or (after.steps, after.state, after.news) != (before.steps, before.state, ()):
                changed.append((path, after))
            self._looks[path] = after
        return changed

    def close(self) -> None:
        """Let go of the files."""
        for run in self._open.values():
            run.close()
        self._open.clear()

    def _files(self) -> list[Path]:
        """Return the run files there are now."""
        paths: Iterable[Path] = (
            file for path in self._paths for file in (sorted(path.rglob("*.h5")) if path.is_dir() else [path])
        )
        return separate_runs(list(dict.fromkeys(paths)))

    def _look_at(self, path: Path, before: Look | None) -> Look:
        """Read what is new in a run and judge it."""
        try:
            run = self._open.get(path)
            if run is None:
                run = self._open[path] = open_run(path)
                grown = True
            else:
                grown = run.refresh()
            if before is not None and not grown and before.state == run.state:
                return Look(before.check, before.state, before.steps, (), time.time() - run.committed_at)
            said = diagnose(run, self._rules)
            check = RunCheck(path, said, trends={"loss": sparkline(run["loss"], 24)})
            return Look(check, run.state, len(run), self._news(said.findings, before), time.time() - run.committed_at)
        except Exception as error:  # a defect of ours costs this run its verdict and no other
            if (run := self._open.pop(path, None)) is not None:
                run.close()
            ours = not isinstance(error, RunFileError)
            why = f"{path}: internal error: {type(error).__name__}: {error}" if ours else str(error)
            return Look(RunCheck(path, None, why, internal=ours), "unreadable", 0, (), float("nan"))

    def _news(self, findings: Sequence[Finding], before: Look | None) -> tuple[Finding, ...]:
        """Return the findings that were not there before, notes left out."""
        known = set()
        if before is not None and before.check.diagnosis is not None:
            known = {_identity(each) for each in before.check.diagnosis.findings}
        fresh = [each for each in findings if each.severity in ALERTING and not each.gap and each.name != "run-live"]
        return tuple(each for each in fresh if _identity(each) not in known)


def _identity(finding: Finding) -> tuple[str, str, str, str, int]:
    """Return what tells a finding from the others of its run."""
    return finding.rule, finding.name, finding.variable, finding.state, finding.step


def alerts(path: Path, look: Look) -> list[Alert]:
    """Return what people should know of a run: rules that fired, evidence missing at the end, a lost file."""
    if look.check.diagnosis is None:
        return [Alert(str(path), "unreadable", "error", look.check.error)]
    said = [each for each in look.check.diagnosis.findings if each.severity in ALERTING and each.state == "fired"]
    wanted = [each for each in said if not (look.state == "live" and (each.gap or each.name == "run-live"))]
    return [
        Alert(str(path), each.rule, each.severity, f"step {each.step}: {each.message}. Try: {each.remedy}")
        for each in wanted
    ]
