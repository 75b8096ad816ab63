"""The gate's result for people: a line for each run, and below it what was found and what to try.

Everything that comes from files and names is shown escaped, one line for each thing.

Not covered: colours; a CI log shows none.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..rules.diagnosis import Diagnosis
from ..rules.findings import Finding
from ..runfile.text import plain
from .result import GateResult, RunCheck

INDENT = " " * 6


def as_text(result: GateResult) -> str:
    """Return the result as lines."""
    return "\n".join(line for run in result.runs for line in _of_run(run, result))


def _of_run(run: RunCheck, result: GateResult) -> Iterator[str]:
    """Yield the lines of one run."""
    word = run.verdict(result.fail_on).upper()
    if run.diagnosis is None:
        yield f"{word}  {plain(run.error)}"
        return
    diagnosis = run.diagnosis
    yield f"{word}  {plain(run.path)}  ({_steps(diagnosis)})  {plain(diagnosis.summary)}"
    for finding in diagnosis.findings:
        yield from _of_finding(finding)
    yield from _not_judged(diagnosis)


def _steps(diagnosis: Diagnosis) -> str:
    """Return how many steps were judged, and how the run ended where it did not end as it should."""
    steps = "1 step" if diagnosis.steps == 1 else f"{diagnosis.steps} steps"
    return steps if diagnosis.ending.state == "finished" else f"{steps}, {diagnosis.ending.state}"


def _of_finding(finding: Finding) -> Iterator[str]:
    """Yield the lines of a finding."""
    yield plain(f"{INDENT}{finding.rule} {finding.name} [{finding.severity}] step {finding.step}: {finding.message}")
    if finding.remedy:
        yield plain(f"{INDENT}{INDENT}try: {finding.remedy}")


def _not_judged(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield which rules were judged on how much, and why others were not."""
    lengths: dict[int, list[str]] = {}
    for each in diagnosis.judgements:
        if each.state == "judged":
            lengths.setdefault(each.steps, []).append(each.rule)
    for steps, rules in sorted(lengths.items(), reverse=True):
        yield plain(f"{INDENT}judged on {steps} steps: {', '.join(rules)}")
    for state in ("not applicable", "no data"):
        reasons: dict[str, list[str]] = {}
        for each in diagnosis.judgements:
            if each.state == state:
                reasons.setdefault(each.reason, []).append(each.rule)
        for reason, rules in reasons.items():
            yield plain(f"{INDENT}{state}: {', '.join(rules)} ({reason})")
