"""The ``check`` command: judge runs, print a report, give the exit code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ..gate.baseline import update
from ..gate.check import check_runs
from ..gate.formats import Format, default_format, render, target, write_reports
from ..gate.github import publish
from ..gate.result import GateResult
from ..gate.trends import DRAWN, with_trends
from ..gate.where import checkout
from ..runfile.commit import commit_of
from ..runfile.layout import Severity
from .output import complain, say, say_verdicts, show_traceback
from .rules import rule_file

_COMMITS: Final = ("GITHUB_SHA", "CI_COMMIT_SHA", "BUILD_SOURCEVERSION")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of the runs besides whether they pass.

    Attributes:
        at_step: Judge as if every run had ended after this step.
        replay: Tell when each rule would have fired.
        side_by_side: Tell which run is the odd one, and in what.
        baseline: File to compare with.
        update_baseline: Learn that file from the runs instead, where all of them pass.
    """

    at_step: int | None = None
    replay: bool = False
    side_by_side: bool = False
    baseline: Path | None = None
    update_baseline: bool = False


def check(
    runs: Sequence[Path],
    *,
    rules: Path | None,
    fail_on: Severity,
    output: Format | None,
    reports: Sequence[str] = (),
    min_steps: int | None,
    debug: bool,
    asked: Asked = Asked(),
) -> int:
    """Print what the gate says of runs and return its exit code.

    Args:
        runs: Run files, folders of them, patterns, logs.
        rules: TOML file that changes or adds rules.
        fail_on: Least severity that fails a run.
        output: What is printed; by default what suits where the gate runs.
        reports: Files to write besides, as `formats.target` reads them.
        min_steps: Steps a run must have.
        debug: Show the traceback of a defect of ours that costs a run its verdict.
        asked: What is asked besides.

    Raises:
        ValueError: The options do not go together.
    """
    if asked.update_baseline and (asked.baseline is None or asked.at_step is not None):
        raise ValueError("--update-baseline needs --baseline FILE, and whole runs without --at-step")
    result = check_runs(
        runs,
        rules_file=rule_file(rules),
        fail_on=fail_on,
        min_steps=min_steps,
        at_step=asked.at_step,
        replay=asked.replay,
        side_by_side=asked.side_by_side,
        baseline=None if asked.update_baseline else asked.baseline,
        on_failure=(lambda path, error: show_traceback(error)) if debug else None,
    )
    result = show(result, output, reports)
    if asked.update_baseline and asked.baseline is not None:
        _learn(asked.baseline, result)
    return result.exit_code


def show(result: GateResult, output: Format | None, reports: Sequence[str] = ()) -> GateResult:
    """Print what the gate says, write the reports, and hand a job of GitHub its summary and outputs.

    Args:
        result: What the gate decided.
        output: What is printed; by default what suits where the gate runs.
        reports: Files to write besides.

    Returns:
        The result with the commit that is checked out, and all else that a report shows.
    """
    result = replace(result, commit=_commit(os.environ), root=checkout(os.environ, Path.cwd()))
    shown = output or default_format(os.environ)
    if DRAWN & {shown, *(target(report)[0] for report in reports)}:
        result = with_trends(result)
    written = write_reports(result, reports)
    (say_verdicts if shown == "text" else say)(render(result, shown))
    if shown == "github":
        publish(result, os.environ, written[0] if written else None)
    return result


def _learn(baseline: Path, result: GateResult) -> None:
    """Learn a baseline from runs that pass; what was learned goes to standard error, so that a format stays whole."""
    if result.exit_code:
        complain(f"{baseline}: not changed, because not all runs pass")
        return
    complain(update(baseline, [run.path for run in result.runs], result.commit))


def _commit(environment: Mapping[str, str]) -> str:
    """Return the commit that is checked: what the CI says, else what is checked out here."""
    said = next((environment[name] for name in _COMMITS if environment.get(name)), "")
    return said[:64] or commit_of(Path.cwd())
