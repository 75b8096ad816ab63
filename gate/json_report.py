"""The gate's result for programs: one JSON object.

Not covered: numbers that are not finite; JSON has none, they are null.
"""

from __future__ import annotations

import json
from typing import Any, Final

from .result import GateResult, RunCheck

VERSION: Final = 1


def as_json(result: GateResult) -> str:
    """Return the result as one JSON object."""
    runs = [_run(run, result) for run in result.runs]
    whole = {"version": VERSION, "verdict": result.verdict, "exit_code": result.exit_code, "fail_on": result.fail_on}
    return json.dumps({**whole, "runs": runs}, indent=2, allow_nan=False)


def _run(run: RunCheck, result: GateResult) -> dict[str, Any]:
    """Return one entry of ``runs``.

    ``outcome`` is what the gate decided of this run, ``verdict`` the regime that its recording shows.
    """
    head = {"path": str(run.path), "outcome": run.verdict(result.fail_on), "exit_code": run.exit_code(result.fail_on)}
    if run.diagnosis is not None:
        return {**head, **run.diagnosis.as_dict(), "error": None}
    unknown = dict.fromkeys(("lti", "loop", "trajectory"), "unknown")
    return {**head, "steps": 0, "ending": None, "regimes": unknown, "verdict": "unknown", "summary": run.error,
            "risk": None, "findings": [], "judgements": [], "skipped": [], "error": run.error}  # fmt: skip
