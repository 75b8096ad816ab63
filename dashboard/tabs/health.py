"""Health: what the recording cost and lost, and what was judged, what was not, and why."""

from typing import Any

import numpy as np
from dash import html

from ...rules.rules import load_rules
from .. import components
from ..panels import Ask
from ..text import shown
from . import Tab


def words(ask: Ask) -> list[Any]:
    """Return how the run ended, and every rule with what became of it."""
    held, run = ask.held, ask.held.run
    end = held.ending()
    facts = [f"{len(run):,} steps recorded", f"state: {end.state}" + (f", {shown(end.reason)}" if end.reason else "")]
    if end.lost_from is not None:
        facts.append(f"the loop was not recorded from step {end.lost_from:,} on: {shown(end.lost_reason)}")
    if run.generation:
        facts.append(f"resumed {run.generation} times")
    if len(run.ranks) > 1:
        facts.append(f"{len(run.ranks)} ranks: {', '.join(map(str, run.ranks))}")
    story = held.story(wait=False)
    return [
        html.Section([html.H2("The recording"), html.Ul([html.Li(fact) for fact in facts])], className="ls-card"),
        html.Section([html.H2("What was judged"), _rules(ask, story)], className="ls-card"),
    ]


def _rules(ask: Ask, story: Any) -> Any:
    """Return every rule with its verdict, and what it was judged on."""
    if story is None:
        return html.P("The rules are being applied…", className="ls-dim")
    fired = {finding.rule: finding for finding in story.findings}
    run = ask.held.run
    rows = []
    for rule in load_rules():
        names = sorted(rule.expr.names - {"loss_zscore", "a_bar_learned"})
        counts = {name: int(np.sum(~np.isnan(run[name]))) if name in run.names else 0 for name in names}
        missing = [name for name, count in counts.items() if not count]
        if rule.id in fired:
            finding = fired[rule.id]
            what: Any = [components.badge(finding.severity, components.SEVERITY_GLYPHS[finding.severity], "fired"), " ",
                         components.goto(finding.step, f"{rule.id} health")]  # fmt: skip
        elif rule.id in story.skipped or missing:
            what = f"not judged: no {', '.join(missing) or 'data'}"
        else:
            what = "held"
        on = ", ".join(f"{name}: {count:,} steps" for name, count in counts.items())
        rows.append((f"{rule.id} {rule.name}", rule.severity, what, on))
    return components.rows_table(("rule", "severity", "what became of it", "judged on"), rows)


TAB = Tab("health", "Health", 60, ("probe-seconds", "dropped"), words, words_first=True)
