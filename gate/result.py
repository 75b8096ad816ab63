"""What the gate decided: of each run a verdict and the exit code it would give alone, and those of all runs together.

Every report format is a reader of this, and of nothing else.

Not covered: how the verdicts come about (``check``), how they are shown (one file per format).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from ..rules.diagnosis import Diagnosis
from ..rules.findings import Finding
from ..rules.rule_files import SEVERITIES, Rule
from ..runfile.layout import Severity

PASSED: Final = 0
FAILED: Final = 1
INTERNAL: Final = 3
UNREADABLE: Final = 4
NOTHING: Final = 5
MOST_SERIOUS_FIRST: Final = (INTERNAL, UNREADABLE, NOTHING, FAILED)

Verdict = Literal["pass", "fail", "error"]


@dataclass(frozen=True, slots=True)
class RunCheck:
    """What the gate says of one file: a diagnosis, or why there is none.

    Attributes:
        path: The run.
        diagnosis: What its recording says; None where it could not be read.
        error: Why it could not be read, in one line.
        internal: Whether that was a defect of loopscope and not of the file.
        trends: Sparklines of its main series by name, for reports that have no pictures.
    """

    path: Path
    diagnosis: Diagnosis | None
    error: str = ""
    internal: bool = False
    trends: Mapping[str, str] = field(default_factory=dict)

    def at_or_above(self, fail_on: Severity) -> list[Finding]:
        """Return the findings whose severity fails a run."""
        limit = SEVERITIES.index(fail_on)
        findings = [] if self.diagnosis is None else self.diagnosis.findings
        return [finding for finding in findings if SEVERITIES.index(finding.severity) >= limit]

    def exit_code(self, fail_on: Severity) -> int:
        """Return the exit code that this file alone would give.

        A rule that fired is a verdict, whatever else is missing. Without one, evidence that is missing is a failure of
        its own.
        """
        if self.diagnosis is None:
            return INTERNAL if self.internal else UNREADABLE
        serious = self.at_or_above(fail_on)
        if any(not finding.gap for finding in serious):
            return FAILED
        return NOTHING if serious else PASSED

    def verdict(self, fail_on: Severity) -> Verdict:
        """Return the verdict on this run in a word."""
        return _word(self.exit_code(fail_on))


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate says of all runs.

    Attributes:
        runs: Each run, in the order given.
        fail_on: Least severity that fails a run.
        rules: The rules that were applied.
        rules_file: The user's rule file, where there was one.
    """

    runs: list[RunCheck]
    fail_on: Severity
    rules: Sequence[Rule] = field(default_factory=tuple)
    rules_file: Path | None = None

    @property
    def exit_code(self) -> int:
        """0, or the most serious of the runs' codes: internal (3), unreadable (4), not judged (5), a rule fired (1)."""
        codes = {run.exit_code(self.fail_on) for run in self.runs}
        return next((code for code in MOST_SERIOUS_FIRST if code in codes), PASSED)

    @property
    def verdict(self) -> Verdict:
        """The verdict in a word."""
        return _word(self.exit_code)


def _word(code: int) -> Verdict:
    """Return an exit code as a word."""
    return "pass" if code == PASSED else "fail" if code == FAILED else "error"
