"""The gate's result for programs: one JSON object.

Not covered: numbers that are not finite; JSON has none, they are null.
"""

from __future__ import annotations

import json
from typing import Any, Final

from .result import GateResult, RunCheck

VERSION: Final = 2
"""2 added tool, rules_file, commit, at_step, baseline, comparison; of runs scope, commit, configuration; of findings
loss_step and lead. Nothing of version 1 is gone. ``loop_code`` of runs came later, and older reports of version 2
lack it."""


def as_json(result: GateResult) -> str:
    """Return the result as one JSON object."""
    return json.dumps(as_object(result), indent=2, allow_nan=False)


def as_object(result: GateResult) -> dict[str, Any]:
    """Return the result in words of JSON."""
    from .. import __version__

    rules_file = None
    if result.rules_file is not None:
        rules_file = {"path": str(result.rules_file), "sha256": result.rules_digest}
    return {
        "version": VERSION,
        "verdict": result.verdict,
        "exit_code": result.exit_code,
        "fail_on": result.fail_on,
        "tool": {"name": "loopscope", "version": __version__},
        "rules_file": rules_file,
        "commit": result.commit or None,
        "at_step": result.at_step,
        "baseline": None if result.baseline is None else str(result.baseline),
        "comparison": None if result.comparison is None else result.comparison.as_dict(),
        "runs": [_run(run, result) for run in result.runs],
    }


def _run(run: RunCheck, result: GateResult) -> dict[str, Any]:
    """Return one entry of ``runs``.

    ``outcome`` is what the gate decided of this run, ``verdict`` the regime that its recording shows.
    """
    head = {"path": str(run.path), "outcome": run.verdict(result.fail_on), "exit_code": run.exit_code(result.fail_on),
            "commit": run.commit or None, "configuration": dict(run.configuration),
            "loop_code": {"body": run.code.body or None, "a_bar_parameters": list(run.code.a_bar_parameters),
                          "file": run.code.file or None, "line": run.code.line or None,
                          "holds_loop": run.code.holds_loop}}  # fmt: skip
    if run.diagnosis is not None:
        return {**head, **run.diagnosis.as_dict(), "error": None}
    unknown = dict.fromkeys(("lti", "loop", "trajectory"), "unknown")
    return {**head, "scope": None, "steps": 0, "ending": None, "regimes": unknown, "verdict": "unknown",
            "summary": run.error, "risk": None, "findings": [], "judgements": [], "skipped": [],
            "error": run.error}  # fmt: skip
