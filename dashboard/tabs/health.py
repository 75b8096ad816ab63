"""Health: what the recording cost and lost, and what was judged, what was not, and why."""

from collections import Counter
from typing import Any, Final

from dash import html

from ...rules.findings import Finding, Judgement
from .. import components
from ..panel import Ask
from ..story import Story
from ..text import shown
from . import Tab

SEVERITIES: Final = ("error", "warning", "note")
GROUPS: Final = ("fired", "could not be judged", "held", "not applicable")


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
        html.Section([html.H2("What was judged"), _rules(story)], className="ls-card"),
    ]


def _rules(story: Story | None) -> Any:
    """Return every rule with its verdict, and what it was judged on."""
    if story is None:
        return html.P("The rules are being applied…", className="ls-dim")
    fired = {finding.rule: finding for finding in story.findings}
    rows: list[tuple[Any, ...]] = []
    judgements = sorted(story.judgements, key=lambda one: _place(one, fired.get(one.rule)))
    for judgement in judgements:
        what: Any = "held" if judgement.state == "judged" else f"{judgement.state}: {shown(judgement.reason)}"
        if finding := fired.get(judgement.rule):
            glyph = components.SEVERITY_GLYPHS[finding.severity]
            badge = components.badge(finding.severity, glyph, finding.state)
            what = [badge, " ", components.goto(finding.step, f"{judgement.rule} health")]
        name = html.Span(components.rule(judgement.rule, judgement.name))
        rows.append((name, judgement.severity, what, f"{judgement.steps:,} steps" if judgement.steps else "–"))
    count = Counter(_place(one, fired.get(one.rule)) // len(SEVERITIES) for one in judgements)
    words = ", ".join(f"{count[place]} {said}" for place, said in enumerate(GROUPS) if count[place])
    table = components.rows_table(("rule", "severity", "what became of it", "judged over"), rows)
    return html.Div([html.P(f"{len(rows)} rules: {words}.", className="ls-dim"), table])


def _place(judgement: Judgement, finding: Finding | None) -> int:
    """Return the place of a rule: what fired first, then what lacked something to judge, what held, what cannot apply.

    >>> _place(Judgement("LS001", "a", "error", "judged", 9), None)
    6
    """
    kinds = {"no data": 1, "judged": 2, "not applicable": 3}
    group = 0 if finding is not None else kinds.get(judgement.state, 1)
    severity = finding.severity if finding is not None else judgement.severity
    return len(SEVERITIES) * group + (SEVERITIES.index(severity) if severity in SEVERITIES else 0)


TAB = Tab("health", "Health", 60, ("probe-seconds", "dropped"), words, words_first=True)
