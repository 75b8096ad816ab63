"""The gate's result as a code quality report of GitLab.

Not covered: lines; a run file has none, so that every finding stands at line 1 of its run.
"""

from __future__ import annotations

import json
from typing import Any, Final

from ..runfile.text import plain
from .result import GateResult
from .sarif import fingerprint

SEVERITIES: Final = {"note": "info", "warning": "minor", "error": "critical"}


def as_gitlab(result: GateResult) -> str:
    """Return the result as a JSON array of issues."""
    issues: list[dict[str, Any]] = []
    for run in result.runs:
        path = plain(run.path.as_posix())
        if run.diagnosis is None:
            issues.append(_issue("unreadable-run", plain(run.error), "blocker", path, f"unreadable {path}"))
            continue
        for finding in run.diagnosis.findings:
            said = plain(f"step {finding.step}: {finding.message}")
            name = plain(f"{finding.rule} {finding.name}")
            issues.append(_issue(name, said, SEVERITIES[finding.severity], path, fingerprint(run, finding)))
    return json.dumps(issues, indent=2, allow_nan=False)


def _issue(name: str, said: str, severity: str, path: str, key: str) -> dict[str, Any]:
    """Return one issue."""
    return {
        "description": said,
        "check_name": name,
        "fingerprint": key,
        "severity": severity,
        "location": {"path": path, "lines": {"begin": 1}},
    }
