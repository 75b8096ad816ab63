"""The gate: rules over run files, a verdict for people and programs, and an exit code a CI job can trust.

What cannot be read, and a run in which nothing was recorded, are failures of their own and never a pass.

Not covered: comparison with a committed baseline.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..rules.diagnosis import Diagnosis, diagnose
from ..rules.rules import SEVERITIES, load_rules
from ..runfile.layout import Severity
from ..runfile.open import open_run
from ..runfile.ranks.companions import separate_runs
from ..runfile.reader import RunFileError

PASSED, FAILED, UNREADABLE, NOTHING = 0, 1, 4, 5


@dataclass(frozen=True, slots=True)
class RunCheck:
    """What the gate found in one file: a diagnosis, or why there is none."""

    path: Path
    diagnosis: Diagnosis | None
    error: str = ""

    def exit_code(self, fail_on: Severity) -> int:
        """The exit code that this file alone would give."""
        if self.diagnosis is None:
            return UNREADABLE
        if not self.diagnosis.evaluated:
            return NOTHING
        limit = SEVERITIES.index(fail_on)
        fired = any(SEVERITIES.index(finding.severity) >= limit for finding in self.diagnosis.findings)
        return FAILED if fired else PASSED

    def as_dict(self) -> dict[str, Any]:
        """One entry of ``runs`` in the JSON output."""
        if self.diagnosis is None:
            unknown = dict.fromkeys(("lti", "loop", "trajectory"), "unknown")
            return {"path": str(self.path), "steps": 0, "regimes": unknown, "verdict": "unknown", "summary": self.error,
                    "findings": [], "skipped": [], "error": self.error}  # fmt: skip
        return {"path": str(self.path), **self.diagnosis.as_dict(), "error": None}


@dataclass(frozen=True, slots=True)
class GateResult:
    """The gate's findings over all files."""

    runs: list[RunCheck]
    fail_on: Severity

    @property
    def exit_code(self) -> int:
        """0, or the most serious of the files' codes: unreadable (4), nothing recorded (5), a rule fired (1)."""
        codes = {run.exit_code(self.fail_on) for run in self.runs}
        return next((code for code in (UNREADABLE, NOTHING, FAILED) if code in codes), PASSED)

    @property
    def verdict(self) -> Literal["pass", "fail", "error"]:
        """The verdict in a word."""
        return {PASSED: "pass", FAILED: "fail"}.get(self.exit_code, "error")  # type: ignore[return-value]

    def json(self) -> str:
        """One JSON object; format version 1."""
        runs = [run.as_dict() for run in self.runs]
        return json.dumps({"version": 1, "verdict": self.verdict, "runs": runs}, indent=2, allow_nan=False)

    def text(self) -> str:
        """The same for people."""
        return "\n".join(line for run in self.runs for line in self._lines(run))

    def _lines(self, run: RunCheck) -> list[str]:
        word = {PASSED: "PASS", FAILED: "FAIL"}.get(run.exit_code(self.fail_on), "ERROR")
        if run.diagnosis is None:
            return [f"{word}  {run.error}"]
        found = run.diagnosis
        lines = [f"{word}  {run.path}  ({found.steps} steps)  {found.summary}"]
        for finding in found.findings:
            lines.append(
                f"      {finding.rule} {finding.name} [{finding.severity}] step {finding.step}: {finding.message}"
            )
            if finding.remedy:
                lines.append(f"            try: {finding.remedy}")
        if found.skipped:
            lines.append(f"      not evaluated, a series they read was not recorded: {', '.join(found.skipped)}")
        return lines


def check_runs(paths: Sequence[Path], *, rules_file: Path | None = None, fail_on: Severity = "error") -> GateResult:
    """Applies the rules to run files.

    Args:
        paths: Run files; a rank's file is part of its run where that is given too, else checked alone.
        rules_file: TOML file that changes or adds rules.
        fail_on: Least severity that fails a run.

    Raises:
        RuleError: The rule file is not valid.
    """
    rules = load_rules(rules_file)
    checks = []
    for path in separate_runs(paths):
        try:
            with open_run(path) as run:
                checks.append(RunCheck(path, diagnose(run, rules)))
        except RunFileError as error:
            checks.append(RunCheck(path, None, str(error)))
    return GateResult(checks, fail_on)
