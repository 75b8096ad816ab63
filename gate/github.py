"""The gate's result in a job of GitHub Actions: annotations, the job's summary, and its outputs.

GitHub shows ten annotations of each kind for a step, so that the most serious come first and the rest are counted. The
summary goes to the file that ``$GITHUB_STEP_SUMMARY`` names, verdict and report to the one of ``$GITHUB_OUTPUT``.

Not covered: code scanning; that takes the SARIF format.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..rules.findings import Finding
from ..rules.rule_files import SEVERITIES
from ..runfile.text import plain
from .markdown import as_markdown
from .result import GateResult, RunCheck
from .where import Spot

log = logging.getLogger("loopscope")

MOST: Final = 10  # annotations of one kind that GitHub shows
LARGEST_SUMMARY: Final = 1 << 20  # bytes, of a whole step
COMMANDS: Final = {"error": "error", "warning": "warning", "note": "notice"}


def as_annotations(result: GateResult) -> str:
    """Return the workflow commands that annotate a pull request, most serious first."""
    all_of: dict[str, list[str]] = {severity: [] for severity in reversed(SEVERITIES)}
    for run in result.runs:
        if run.diagnosis is None:
            all_of["error"].append(_command("error", "loopscope: unreadable run", run.error))
            continue
        for finding in run.by_weight:
            all_of[finding.severity].append(_annotation(result, run, finding))
    lines = []
    for severity, commands in all_of.items():
        # The last place says how many more there are.
        shown = commands if len(commands) <= MOST else commands[: MOST - 1]
        lines += shown
        if more := len(commands) - len(shown):
            lines.append(_command(COMMANDS[severity], "loopscope", f"{more} more of this severity: see the summary"))
    count = "1 run" if len(result.runs) == 1 else f"{len(result.runs)} runs"
    lines.append(f"loopscope: {result.verdict}, {count}{result.limits}")
    return "\n".join(lines)


def publish(result: GateResult, environment: Mapping[str, str], report: Path | None = None) -> None:
    """Append the summary and the outputs to the files that GitHub names; a failure to do so is logged.

    Args:
        result: What the gate decided.
        environment: ``os.environ`` of the job.
        report: A report file that the job uploads, for its output ``report``.
    """
    if summary := environment.get("GITHUB_STEP_SUMMARY"):
        written = Path(summary).stat().st_size if Path(summary).exists() else 0
        room = max(LARGEST_SUMMARY - written - 4096, 1000)
        _append(Path(summary), as_markdown(result, room, artifacts_of(environment)))
    if output := environment.get("GITHUB_OUTPUT"):
        lines = [f"verdict={result.verdict}", f"exit-code={result.exit_code}"]
        if report is not None:
            lines.append(f"report={plain(report)}")
        _append(Path(output), "\n".join(lines) + "\n")


def artifacts_of(environment: Mapping[str, str]) -> str:
    """Return the address of what a job of GitHub Actions uploads; empty where the environment does not say it.

    >>> artifacts_of({"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "me/nets", "GITHUB_RUN_ID": "7"})
    'https://github.com/me/nets/actions/runs/7#artifacts'
    >>> artifacts_of({"GITHUB_REPOSITORY": "me/nets"})
    ''
    """
    names = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")
    server, repository, number = (environment.get(name, "") for name in names)
    known = re.fullmatch(r"https?://[\w.:-]+", server) and re.fullmatch(r"[\w.-]+/[\w.-]+", repository)
    return f"{server}/{repository}/actions/runs/{number}#artifacts" if known and number.isdecimal() else ""


def _append(path: Path, text: str) -> None:
    """Append text to a file; the verdict must not depend on it."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        log.warning("loopscope: %s could not be written: %s", path, error)


def _annotation(result: GateResult, run: RunCheck, finding: Finding) -> str:
    """Return the command for a finding, at the line that it is about where there is one."""
    where = result.where(run, finding)
    parts = [f"{run.path}, step {finding.step}: {finding.message.removesuffix('.')}."]
    parts += [f"{where[0].upper()}{where[1:]}."] if where else []
    parts += [f"Try: {finding.remedy}"] if finding.remedy else []
    title = f"loopscope {finding.rule} {finding.name}"
    return _command(COMMANDS[finding.severity], title, " ".join(parts), result.spot(run, finding))


def _command(kind: str, title: str, message: str, spot: Spot | None = None) -> str:
    r"""Return one workflow command, its values escaped as GitHub wants them.

    >>> print(_command("error", "a, b: c", "100 % of\nit", Spot("a b.py", 3)))
    ::error file=a b.py,line=3,title=a%2C b%3A c::100 %25 of\nit
    """
    values = {"title": title} if spot is None else {"file": spot.file, "line": str(spot.line), "title": title}
    words = ",".join(f"{name}={_escaped(value)}" for name, value in values.items())
    return f"::{kind} {words}::{plain(message).replace('%', '%25')}"


def _escaped(value: str) -> str:
    """Return the value of a property of a workflow command."""
    return plain(value).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
