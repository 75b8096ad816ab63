"""The gate's result as a code quality report of GitLab.

Every issue must have a file and a line: a finding without a place in the checkout stands at line 1 of its run.

Not covered: widgets of a merge request that show no code quality.
"""

from __future__ import annotations

import json
from typing import Any, Final

from ..runfile.text import plain
from .result import GateResult
from .sarif import fingerprint
from .where import Spot

SEVERITIES: Final = {"note": "info", "warning": "minor", "error": "critical"}


def as_gitlab(result: GateResult) -> str:
    """Return the result as a JSON array of issues."""
    issues: list[dict[str, Any]] = []
    for run in result.runs:
        path = plain(run.path.as_posix())
        if run.diagnosis is None:
            issues.append(_issue("unreadable-run", plain(run.error), "blocker", Spot(path, 1), f"unreadable {path}"))
            continue
        for finding in run.diagnosis.findings:
            where = result.where(run, finding)
            said = plain(f"{run.path}, step {finding.step}: {finding.message}{f' ({where})' if where else ''}")
            name = plain(f"{finding.rule} {finding.name}")
            spot = result.spot(run, finding) or Spot(path, 1)
            issues.append(_issue(name, said, SEVERITIES[finding.severity], spot, fingerprint(run, finding)))
    return json.dumps(issues, indent=2, allow_nan=False)


def _issue(name: str, said: str, severity: str, spot: Spot, key: str) -> dict[str, Any]:
    """Return one issue."""
    return {
        "description": said,
        "check_name": name,
        "fingerprint": key,
        "severity": severity,
        "location": {"path": plain(spot.file), "lines": {"begin": spot.line}},
    }
