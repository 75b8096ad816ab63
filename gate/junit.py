"""The gate's result as JUnit XML: a suite for each run, a case for each rule.

A rule that fired at or above the limit is a failure; evidence that is missing is an error; a rule that does not apply
is skipped with its reason; anything else passed.

Not covered: times; the rules have none.
"""

from __future__ import annotations

from collections.abc import Sequence

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite
from junitparser.junitparser import FinalResult

from ..rules.findings import Finding
from ..rules.rule_files import SEVERITIES
from ..runfile.text import plain
from .result import GateResult, RunCheck


def as_junit(result: GateResult) -> str:
    """Return the result as one XML document."""
    report = JUnitXml("loopscope")
    for run in result.runs:
        report.add_testsuite(_suite(run, result))
    text: str = report.tostring().decode("utf-8")
    return text


def _suite(run: RunCheck, result: GateResult) -> TestSuite:
    """Return one run."""
    suite = TestSuite(plain(run.path))
    if run.diagnosis is None:
        suite.add_testcase(
            _case(run, "readable", [Error(plain(run.error), "internal" if run.internal else "unreadable")])
        )
        return suite
    limit = SEVERITIES.index(result.fail_on)
    by_rule: dict[str, list[Finding]] = {}
    for finding in run.diagnosis.findings:
        by_rule.setdefault(f"{finding.rule} {finding.name}", []).append(finding)
    for judgement in run.diagnosis.judgements:
        name = f"{judgement.rule} {judgement.name}"
        if name not in by_rule:
            outcome = [] if judgement.state == "judged" else [Skipped(plain(f"{judgement.state}: {judgement.reason}"))]
            suite.add_testcase(_case(run, name, outcome))
    for name, findings in by_rule.items():
        serious = [each for each in findings if SEVERITIES.index(each.severity) >= limit]
        outcomes = [_outcome(each, result.where(run, each)) for each in serious]
        case = _case(run, name, outcomes)
        if lesser := [each for each in findings if each not in serious]:
            case.system_out = "\n".join(_text(each, result.where(run, each)) for each in lesser)
        suite.add_testcase(case)
    return suite


def _case(run: RunCheck, name: str, outcome: Sequence[FinalResult]) -> TestCase:
    """Return one case."""
    case = TestCase(plain(name), plain(run.path))
    if outcome:
        case.result = list(outcome)
    return case


def _outcome(finding: Finding, where: str) -> Error | Failure:
    """Return what a finding is in the words of JUnit."""
    kind = Error if finding.gap else Failure
    outcome = kind(plain(finding.message), finding.severity)
    outcome.text = _text(finding, where)
    return outcome


def _text(finding: Finding, where: str) -> str:
    """Return a finding with where to look and its remedy."""
    lines = [f"{finding.rule} {finding.name} [{finding.severity}] {finding.when}: {finding.message}"]
    lines += [f"where: {where}"] if where else []
    lines += [f"try: {finding.remedy}"] if finding.remedy else []
    return "\n".join(plain(line) for line in lines)
