"""The gate's result for people: a line for each run, and below it what was found and what to try.

Everything that comes from files and names is shown escaped, one line for each thing. Of several runs the last lines
count the verdicts and name those that failed: they stand where the prompt comes back.

Not covered: colours; a terminal gets them from the command.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from ..rules.diagnosis import Diagnosis
from ..rules.findings import Finding
from ..runfile.text import plain
from .compare import Comparison
from .replay import alarms, sentence
from .result import GateResult, RunCheck

INDENT: Final = " " * 6
MOST_NAMED: Final = 20  # runs that did not pass, in the last lines


def as_text(result: GateResult) -> str:
    """Return the result as lines."""
    lines: list[str] = []
    before: list[str] = []
    for run in result.runs:
        lines += _of_run(run, result)
        judged = [] if run.diagnosis is None else [*_not_judged(run.diagnosis)]
        lines += judged if judged != before else [f"{INDENT}judged as the run above"] if judged else []
        before = judged or before
    lines += [] if result.comparison is None else _of_comparison(result.comparison)
    lines += _tally(result) if len(result.runs) > 1 else []
    return "\n".join(lines)


def _tally(result: GateResult) -> Iterator[str]:
    """Yield how many runs have which verdict, and which ones did not pass."""
    yield f"{result.verdict.upper()}{result.limits}  {len(result.runs)} runs: {result.counted}"
    not_passed = [run for run in result.runs if run.verdict(result.fail_on) != "pass"]
    for run in not_passed[:MOST_NAMED]:
        word, first = run.verdict(result.fail_on).upper(), run.reason
        yield plain(f"{INDENT}{word}  {run.path}  {f'{first.rule} {first.name}, step {first.step}' if first else ''}")
    if len(not_passed) > MOST_NAMED:
        yield f"{INDENT}and {len(not_passed) - MOST_NAMED} more"


def _of_run(run: RunCheck, result: GateResult) -> Iterator[str]:
    """Yield the lines of one run."""
    word = run.verdict(result.fail_on).upper()
    if run.diagnosis is None:
        yield f"{word}  {plain(run.error)}"
        return
    diagnosis = run.diagnosis
    at = "" if result.at_step is None else f", as if it had ended at step {result.at_step}"
    yield f"{word}{run.limits}  {plain(run.path)}  ({_steps(diagnosis)}{at})  {plain(diagnosis.summary)}"
    if result.replay:
        yield from _of_replay(diagnosis)
    if not math.isnan(diagnosis.risk.value):
        yield plain(f"{INDENT}{diagnosis.risk.sentence}")
    for finding in diagnosis.findings:
        yield from _of_finding(finding, result.where(run, finding))


def _steps(diagnosis: Diagnosis) -> str:
    """Return how many steps were judged, and how the run ended where it did not end as it should."""
    steps = "1 step" if diagnosis.steps == 1 else f"{diagnosis.steps} steps"
    return steps if diagnosis.ending.state == "finished" else f"{steps}, {diagnosis.ending.state}"


def _of_finding(finding: Finding, where: str) -> Iterator[str]:
    """Yield the lines of a finding."""
    yield plain(f"{INDENT}{finding.rule} {finding.name} [{finding.severity}] {finding.when}: {finding.message}")
    if where:
        yield plain(f"{INDENT}{INDENT}where: {where}")
    if finding.remedy:
        yield plain(f"{INDENT}{INDENT}try: {finding.remedy}")


def _not_judged(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield which rules were judged on how much, and why others were not."""
    lengths: dict[int, list[str]] = {}
    for each in diagnosis.judgements:
        if each.state == "judged":
            lengths.setdefault(each.steps, []).append(each.rule + (f" ({each.reason})" if each.reason else ""))
    for steps, rules in sorted(lengths.items(), reverse=True):
        yield plain(f"{INDENT}judged on {steps} steps: {', '.join(rules)}")
    for state in ("not applicable", "no data"):
        reasons: dict[str, list[str]] = {}
        for each in diagnosis.judgements:
            if each.state == state:
                reasons.setdefault(each.reason, []).append(each.rule)
        for reason, rules in reasons.items():
            yield plain(f"{INDENT}{state}: {', '.join(rules)} ({reason})")


def _of_replay(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield when each rule would have fired, and how long before the loss."""
    fired = alarms(diagnosis)
    yield f"{INDENT}replay: {sentence(fired)}"
    if fired:
        rows = [
            (str(each.finding.step), str(each.finding.since), f"{each.finding.rule} {each.finding.name}",
             each.finding.severity, "" if each.finding.loss_step is None else str(each.finding.loss_step), each.words)
            for each in fired
        ]  # fmt: skip
        yield from _table(("fires at", "holds since", "rule", "severity", "loss shows it", "lead"), rows)


def _of_comparison(comparison: Comparison) -> Iterator[str]:
    """Yield the runs side by side: a row for each quantity, a mark where a run is odd."""
    yield f"COMPARED  {plain(comparison.sentence)}"
    names = [str(number) for number in range(1, len(comparison.runs) + 1)]
    yield from (f"{INDENT}{number}: {plain(path)}" for number, path in zip(names, comparison.runs, strict=True))
    rows = []
    for row in comparison.rows:
        cells = (_cell(value, odd=abs(score) > 1) for value, score in zip(row.values, row.scores, strict=True))
        rows.append((row.name, *cells))
    if rows:
        yield from _table(("at the end", *names), rows)
        yield f"{INDENT}* outside of what the others lead one to expect"
    if comparison.settings:
        yield from _table(("setting", *names), [(name, *values) for name, values in comparison.settings.items()])


def _cell(value: float, *, odd: bool) -> str:
    """Return a level for people; a dash where it was not recorded."""
    return "-" if math.isnan(value) else f"{value:.4g}{' *' if odd else ''}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, its columns one under another."""
    cells = [[plain(cell)[:40] for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        yield INDENT + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
