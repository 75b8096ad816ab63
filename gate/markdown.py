"""The gate's result as Markdown, for a pull request or a job's summary: the verdict first, then each run.

All text that comes from files and names is escaped for Markdown and HTML, and no ``@name`` or ``#1`` calls anybody.

Not covered: pictures; `loopscope report` makes a page with figures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Final

from ..rules.diagnosis import Diagnosis
from ..rules.findings import Finding
from ..runfile.text import plain
from .compare import Comparison
from .replay import alarms, sentence
from .result import GateResult, RunCheck

SYMBOLS: Final = {"pass": "✅", "fail": "❌", "error": "⚠️"}
SEVERITY_SYMBOLS: Final = {"error": "▲", "warning": "◆", "note": "·"}
LARGEST: Final = 900_000  # characters; GitHub takes a summary up to 1 MiB
MOST_FINDINGS: Final = 50  # shown of one run


def as_markdown(result: GateResult, largest: int = LARGEST, artifacts: str = "") -> str:
    """Return the result as Markdown.

    Args:
        result: What the gate decided.
        largest: Bytes at most; what does not fit is counted in the last line, the runs that failed come first.
        artifacts: Address of what the job uploads; empty without.
    """
    order = sorted(result.runs, key=lambda run: run.verdict(result.fail_on) == "pass")  # stable: else as given
    lines = [*_head(result, order), ""]
    if artifacts:
        lines += [f"[Runs and reports that this job uploads]({artifacts})", ""]
    size = sum(len(line.encode()) + 1 for line in lines)
    for number, run in enumerate(order):
        part = [*_of_run(run, result), ""]
        size += sum(len(line.encode()) + 1 for line in part)
        if size > largest - 200:
            lines.append(f"*{len(order) - number} more runs are left out of this report; the JSON format has all.*")
            break
        lines += part
    return "\n".join(lines).rstrip() + "\n"


def escape(text: object) -> str:
    r"""Return text that Markdown and HTML show as it is.

    >>> print(escape("<b>*x*</b> | @you #1 [a](http://b)"))
    &lt;b&gt;\*x\*&lt;/b&gt; \| &#64;you &#35;1 \[a\](http&#58;//b)
    """
    shown = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*_\[\]|~])", r"\\\1", shown)
    shown = re.sub(r"@(?=\w)", "&#64;", re.sub(r"(?<!&)#(?=\w)", "&#35;", shown))
    return re.sub(r"\b(https?|ftp|www)([:.])", lambda m: f"{m[1]}&#{ord(m[2])};", shown)


def _head(result: GateResult, order: Sequence[RunCheck]) -> Iterator[str]:
    """Yield the verdict and a table of the runs in an order."""
    yield f"## {SYMBOLS[result.verdict]} loopscope: {result.verdict} ({result.counted}){result.limits}"
    yield ""
    yield "| | run | verdict | steps | ρ(A̅) | loss | why |"
    yield "|---|---|---|---:|---:|---|---|"
    for run in order[:MOST_FINDINGS]:
        yield _row(run, result)
    if len(result.runs) > MOST_FINDINGS:
        yield f"\n*and {len(result.runs) - MOST_FINDINGS} more runs*"
    yield "\n*ρ(A̅) is the largest eigenvalue of the loop's linear part: above 1 the state grows in every loop."
    yield "`loopscope rules LS020` explains a rule, `loopscope dash RUN` shows a run.*"
    if result.comparison is not None:
        yield from _of_comparison(result.comparison)


def _row(run: RunCheck, result: GateResult) -> str:
    """Return the row of one run."""
    symbol = SYMBOLS[run.verdict(result.fail_on)]
    if run.diagnosis is None:
        return f"| {symbol} | {escape(run.path)} | unreadable | | | | {escape(run.error)} |"
    diagnosis = run.diagnosis
    first = "no error, no warning"
    if run.reason is not None:
        first = f"{run.reason.rule} {escape(run.reason.name)}, step {run.reason.step}"
    radius = "" if math.isnan(diagnosis.radius) else f"{diagnosis.radius:.4g}"
    trend = f"`{run.trends['loss']}`" if run.trends.get("loss", "").strip() else ""
    verdict = f"{diagnosis.verdict}{run.limits}"
    return f"| {symbol} | {escape(run.path)} | {verdict} | {diagnosis.steps} | {radius} | {trend} | {first} |"


def _of_run(run: RunCheck, result: GateResult) -> Iterator[str]:
    """Yield what is known of one run."""
    word = run.verdict(result.fail_on)
    yield f"### {SYMBOLS[word]} {escape(run.path)}"
    if run.diagnosis is None:
        yield f"> {escape(run.error)}"
        return
    diagnosis = run.diagnosis
    yield f"> {escape(diagnosis.summary)}"
    for name, trend in run.trends.items():
        if trend.strip():
            yield f"\n{escape(name)}: `{trend}`"
    yield ""
    if result.replay:
        yield from _of_replay(diagnosis)
    for finding in run.by_weight[:MOST_FINDINGS]:
        yield from _of_finding(finding, result.where(run, finding))
    if len(diagnosis.findings) > MOST_FINDINGS:
        yield f"- *and {len(diagnosis.findings) - MOST_FINDINGS} more findings*"
    for each in diagnosis.judgements:
        if each.state == "judged" and each.reason:
            yield f"- judged: {each.rule} ({escape(each.reason)})"
    unjudged: dict[str, list[str]] = {}
    for each in diagnosis.judgements:
        if each.state == "no data":
            unjudged.setdefault(each.reason, []).append(each.rule)
    for reason, rules in unjudged.items():
        yield f"- not judged: {escape(', '.join(rules))} ({escape(reason)})"


def _of_finding(finding: Finding, where: str) -> Iterator[str]:
    """Yield the lines of one finding."""
    pending = f" *(pending, {finding.held} of {finding.hold} steps)*" if finding.state == "pending" else ""
    head = f"{SEVERITY_SYMBOLS[finding.severity]} **{finding.rule} {escape(finding.name)}** [{finding.severity}]"
    yield f"- {head} {finding.when}{pending}: {escape(finding.message)}"
    if where:
        yield f"  <br>where: {escape(where)}"
    if finding.remedy:
        yield f"  <br>try: {escape(finding.remedy)}"


def _of_replay(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield when each rule would have fired, and how long before the loss."""
    fired = alarms(diagnosis)
    yield f"**Replay:** {escape(sentence(fired))}"
    yield ""
    if fired:
        yield "| fires at | holds since | rule | severity | loss shows it | lead |"
        yield "|---:|---:|---|---|---:|---|"
        for each in fired[:MOST_FINDINGS]:
            one = each.finding
            shows = "" if one.loss_step is None else one.loss_step
            name = f"{one.rule} {escape(one.name)}"
            yield f"| {one.step} | {one.since} | {name} | {one.severity} | {shows} | {each.words} |"
        yield ""


def _of_comparison(comparison: Comparison) -> Iterator[str]:
    """Yield the runs side by side."""
    yield f"\n### Compared\n\n> {escape(comparison.sentence)}\n"
    runs = [escape(path.name) for path in comparison.runs[:MOST_FINDINGS]]
    for head, rows in (("at the end", _levels(comparison)), ("setting", comparison.settings.items())):
        body = [
            f"| {escape(name)} | {' | '.join(escape(v) for v in values[:MOST_FINDINGS])} |" for name, values in rows
        ]
        if body:
            yield f"| {head} | {' | '.join(runs)} |"
            yield f"|---|{'---|' * len(runs)}"
            yield from body
            yield ""


def _levels(comparison: Comparison) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the cells of each quantity, marked where a run is odd."""
    for row in comparison.rows:
        pairs = zip(row.values, row.scores, strict=True)
        yield (
            row.name,
            tuple(
                "" if math.isnan(value) else f"{value:.4g}{' ◆' if abs(score) > 1 else ''}" for value, score in pairs
            ),
        )
