"""The ``check`` command: judge runs, print a report, give the exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ..gate.check import check_runs
from ..gate.json_report import as_json
from ..gate.result import GateResult
from ..gate.text import as_text
from ..runfile.layout import Severity
from .output import say, show_traceback

FORMATS: Final[dict[str, Callable[[GateResult], str]]] = {"text": as_text, "json": as_json}


def check(
    runs: Sequence[Path],
    *,
    rules: Path | None,
    fail_on: Severity,
    output: str,
    min_steps: int | None,
    debug: bool,
) -> int:
    """Print what the gate says of runs and return its exit code.

    Args:
        runs: Run files.
        rules: TOML file that changes or adds rules.
        fail_on: Least severity that fails a run.
        output: One of `FORMATS`.
        min_steps: Steps a run must have.
        debug: Show the traceback of a defect of ours that costs a run its verdict.
    """
    result = check_runs(
        runs,
        rules_file=rules,
        fail_on=fail_on,
        min_steps=min_steps,
        on_failure=(lambda path, error: show_traceback(error)) if debug else None,
    )
    say(FORMATS[output](result))
    return result.exit_code
