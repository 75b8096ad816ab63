"""The gate's result as SARIF 2.1.0, for code scanning: every rule with its help, every finding with a place.

A finding points at the line of the rule where the user's rule file has it; otherwise at the run file, which has no
lines.

Not covered: fixes; what to try is text.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from ..rules.findings import Finding
from ..rules.pages import by_itself, page
from ..rules.rule_files import Rule
from ..runfile.text import plain
from .result import GateResult, RunCheck

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS: Final = {"note": "note", "warning": "warning", "error": "error"}
MOST_RESULTS: Final = 5000  # GitHub takes 25 000 of one run, and shows 5000


def as_sarif(result: GateResult) -> str:
    """Return the result as one SARIF log."""
    from .. import __version__

    rules = {rule.id: _rule(rule) for rule in result.rules}
    results: list[dict[str, Any]] = []
    problems: list[dict[str, Any]] = []
    for run in result.runs:
        if run.diagnosis is None:
            problems.append({"level": "error", "message": {"text": plain(run.error)}})
            continue
        for finding in run.diagnosis.findings:
            rules.setdefault(finding.rule, {"id": finding.rule, "name": plain(finding.name)})
            results.append(_result(run, finding, result))
    results.sort(key=lambda each: list(LEVELS).index(each["level"]), reverse=True)
    driver = {"name": "loopscope", "version": __version__, "rules": list(rules.values())}
    log = {
        "tool": {"driver": driver},
        "results": results[:MOST_RESULTS],
        "invocations": [
            {
                "executionSuccessful": not problems,
                "exitCode": result.exit_code,
                "toolExecutionNotifications": problems,
            }
        ],
        "columnKind": "utf16CodeUnits",
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [log]}, indent=2, allow_nan=False)


def _rule(rule: Rule) -> dict[str, Any]:
    """Return the description of a rule."""
    described: dict[str, Any] = {
        "id": plain(rule.id),
        "name": plain(rule.name),
        "shortDescription": {"text": plain(rule.name)},
        "fullDescription": {"text": plain(rule.message)},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
    }
    whole = page(rule.id)
    if rule.remedy or whole:
        described["help"] = {"text": plain(rule.remedy or rule.name)}
    if whole:
        described["help"]["markdown"] = by_itself(whole)
    return described


def _result(run: RunCheck, finding: Finding, result: GateResult) -> dict[str, Any]:
    """Return one finding."""
    physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(run.path)}}
    if (spot := result.spot(run, finding)) is not None:
        region = {"startLine": spot.line} | ({"startColumn": spot.column} if spot.column else {})
        physical = {"artifactLocation": {"uri": _uri(Path(spot.file))}, "region": region}
    where = result.where(run, finding)
    said = f"{run.path}, step {finding.step}: {finding.message.removesuffix('.')}."
    said += f" Where: {where}." if where else ""
    said += f" Try: {finding.remedy}." if finding.remedy else ""
    return {
        "ruleId": plain(finding.rule),
        "level": LEVELS[finding.severity],
        "message": {"text": plain(said)},
        "locations": [{"physicalLocation": physical}],
        "partialFingerprints": {"loopscope/v1": fingerprint(run, finding)},
    }


def fingerprint(run: RunCheck, finding: Finding) -> str:
    """Return what stays the same of a finding when a job is run again: run, rule and variable, not the step."""
    of = f"\0{finding.variable}" if finding.variable else ""
    return hashlib.sha256(f"{run.path.name}\0{finding.rule}\0{finding.name}{of}".encode()).hexdigest()[:32]


def _uri(path: Path) -> str:
    """Return a path as a relative URI where it can be one."""
    shown = path.as_posix()
    return f"file://{quote(shown)}" if path.is_absolute() else quote(shown)
