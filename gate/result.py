"""What the gate decided: of each run a verdict and the exit code it would give alone, and those of all runs together.

Every report format is a reader of this, and of nothing else.

Not covered: how the verdicts come about (``check``), how they are shown (one file per format).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..rules.diagnosis import Diagnosis
from ..rules.findings import Finding, Outcome, outcome, serious
from ..rules.rule_files import SEVERITIES, Rule
from ..runfile.layout import Severity
from .compare import Comparison
from .where import UNKNOWN, LoopCode, Spot, spot, words

PASSED: Final = 0
FAILED: Final = 1
INTERNAL: Final = 3
UNREADABLE: Final = 4
NOTHING: Final = 5
MOST_SERIOUS_FIRST: Final = (INTERNAL, UNREADABLE, NOTHING, FAILED)

Verdict = Outcome
_COUNTED: Final[Mapping[Outcome, str]] = {"fail": "failed", "error": "could not be judged", "pass": "passed"}
_CODES: Final[Mapping[Outcome, int]] = {"pass": PASSED, "fail": FAILED, "error": NOTHING}


@dataclass(frozen=True, slots=True)
class RunCheck:
    """What the gate says of one file: a diagnosis, or why there is none.

    Attributes:
        path: The run.
        diagnosis: What its recording says; None where it could not be read.
        error: Why it could not be read, in one line.
        internal: Whether that was a defect of loopscope and not of the file.
        trends: Sparklines of its main series by name, for reports that have no pictures.
        configuration: The settings that it was started with, by dotted names.
        commit: The commit that it was trained from; empty where its file does not say.
        code: What its file says of the code of its loop.
    """

    path: Path
    diagnosis: Diagnosis | None
    error: str = ""
    internal: bool = False
    trends: Mapping[str, str] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    commit: str = ""
    code: LoopCode = UNKNOWN

    def at_or_above(self, fail_on: Severity) -> list[Finding]:
        """Return the findings whose severity fails a run."""
        return [] if self.diagnosis is None else serious(self.diagnosis.findings, fail_on)

    @property
    def by_weight(self) -> list[Finding]:
        """The findings, the most serious first; of those alike what fired before what is missing, then by step."""
        findings = [] if self.diagnosis is None else self.diagnosis.findings
        return sorted(findings, key=lambda each: (-SEVERITIES.index(each.severity), each.gap, each.step))

    @property
    def reason(self) -> Finding | None:
        """The first finding that a reader must see; None where there is neither an error nor a warning."""
        return next((each for each in self.by_weight if each.severity != "note"), None)

    def exit_code(self, fail_on: Severity) -> int:
        """Return the exit code that this file alone would give."""
        if self.diagnosis is None:
            return INTERNAL if self.internal else UNREADABLE
        return _CODES[outcome(self.diagnosis.findings, fail_on)]

    def verdict(self, fail_on: Severity) -> Verdict:
        """Return the verdict on this run in a word."""
        return _word(self.exit_code(fail_on))

    @property
    def limits(self) -> str:
        """What a reader of the verdict must know of how little was seen: `` (loss only)``; empty of a run file."""
        return "" if self.diagnosis is None or self.diagnosis.scope == "loop" else f" ({self.diagnosis.scope})"


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate says of all runs.

    Attributes:
        runs: Each run, in the order given.
        fail_on: Least severity that fails a run.
        rules: The rules that were applied.
        rules_file: The user's rule file, where there was one.
        rules_digest: SHA-256 of that file; empty without one.
        comparison: The runs side by side, where that was asked for.
        at_step: The step after which every run was judged as if it had ended there; None: to its end.
        replay: Whether it was asked when each rule would have fired.
        baseline: The baseline that the runs were compared with.
        commit: The commit that was checked out where the gate ran; empty where it is not known.
        root: The root of that checkout; None: nobody asked where in it a finding is.
    """

    runs: list[RunCheck]
    fail_on: Severity
    rules: Sequence[Rule] = field(default_factory=tuple)
    rules_file: Path | None = None
    rules_digest: str = ""
    comparison: Comparison | None = None
    at_step: int | None = None
    replay: bool = False
    baseline: Path | None = None
    commit: str = ""
    root: Path | None = None

    @property
    def counted(self) -> str:
        """How many runs have which verdict, in words."""
        verdicts = [run.verdict(self.fail_on) for run in self.runs]
        counts = [f"{verdicts.count(word)} {said}" for word, said in _COUNTED.items() if word in verdicts]
        return ", ".join(counts) or "no runs"

    @property
    def exit_code(self) -> int:
        """0, or the most serious of the runs' codes: internal (3), unreadable (4), not judged (5), a rule fired (1)."""
        codes = {run.exit_code(self.fail_on) for run in self.runs}
        return next((code for code in MOST_SERIOUS_FIRST if code in codes), PASSED)

    def spot(self, run: RunCheck, finding: Finding) -> Spot | None:
        """Return the line of the checkout that a finding is about; None where there is none."""
        return spot(finding, run.code, self.rules, self.rules_file, self.baseline, self.root)

    def where(self, run: RunCheck, finding: Finding) -> str:
        """Return in words where to look for the cause of a finding; empty where that is not known."""
        return words(finding, run.code, self.rules)

    @property
    def verdict(self) -> Verdict:
        """The verdict in a word."""
        return _word(self.exit_code)

    @property
    def limits(self) -> str:
        """What a reader of the verdict must know of how little was seen; empty where all runs are run files."""
        blind = sum(run.limits != "" for run in self.runs)
        return "" if not blind else " (loss only)" if blind == len(self.runs) else f" ({blind} of them loss only)"


def _word(code: int) -> Verdict:
    """Return an exit code as a word."""
    return "pass" if code == PASSED else "fail" if code == FAILED else "error"
