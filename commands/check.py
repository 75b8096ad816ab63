"""The ``check`` command: judge runs, print a report, give the exit code."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..gate.check import check_runs
from ..gate.formats import Format, default_format, render, target, write_reports
from ..gate.github import publish
from ..gate.trends import DRAWN, with_trends
from ..runfile.layout import Severity
from .output import say, show_traceback
from .rules import rule_file


def check(
    runs: Sequence[Path],
    *,
    rules: Path | None,
    fail_on: Severity,
    output: Format | None,
    reports: Sequence[str] = (),
    min_steps: int | None,
    debug: bool,
) -> int:
    """Print what the gate says of runs and return its exit code.

    Args:
        runs: Run files.
        rules: TOML file that changes or adds rules.
        fail_on: Least severity that fails a run.
        output: What is printed; by default what suits where the gate runs.
        reports: Files to write besides, as `formats.target` reads them.
        min_steps: Steps a run must have.
        debug: Show the traceback of a defect of ours that costs a run its verdict.
    """
    result = check_runs(
        runs,
        rules_file=rule_file(rules),
        fail_on=fail_on,
        min_steps=min_steps,
        on_failure=(lambda path, error: show_traceback(error)) if debug else None,
    )
    shown = output or default_format(os.environ)
    if DRAWN & {shown, *(target(report)[0] for report in reports)}:
        result = with_trends(result)
    written = write_reports(result, reports)
    say(render(result, shown))
    if shown == "github":
        publish(result, os.environ, written[0] if written else None)
    return result.exit_code
