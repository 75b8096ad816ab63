"""What a probe wrote while the run trained, beside what the rules of today say of the recording.

A probe that judges while it trains writes the rules that fire as events, under their id or a kind of their own. What
the recording says today may differ: the rules may have changed since, or see more. What only the probe raised is a note
today, whatever it was then: `loopscope check` does not count it, and nobody has to act on it.

Not covered: how either is drawn (`panels`) or listed (`alerts`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..rules.findings import Finding, Judgement
from ..runfile.layout import Event, Severity

CONFIRMED = "raised while the run trained"
NOT_CONFIRMED = (
    "raised while the run trained, as {severity}; judged by today's rules the whole recording does not show it"
)


class LiveEvent(NamedTuple):
    """One event, and the rule of today that it is about.

    Attributes:
        event: As it was written.
        rule: Id of the rule; empty where it is about none.
        name: Name of the rule, or the kind of the event.
        finding: What that rule says of the recording; None where it says nothing.
    """

    event: Event
    rule: str
    name: str
    finding: Finding | None

    @property
    def told(self) -> bool:
        """Whether a finding says the same of the same step."""
        return self.finding is not None and self.finding.step == self.event.step

    @property
    def overruled(self) -> bool:
        """Whether it was raised by a rule that says nothing of the recording today."""
        return bool(self.rule) and self.finding is None

    @property
    def severity(self) -> Severity:
        """How much it matters today."""
        return "note" if self.overruled else self.event.severity

    @property
    def message(self) -> str:
        """What was written, without the name of its rule, and whether the rules of today say so too."""
        said = self.event.message.removeprefix(f"{self.name}: ")
        if not self.rule:
            return said
        severity = {"error": "an error", "warning": "a warning"}.get(self.event.severity, "a note")
        return f"{NOT_CONFIRMED.format(severity=severity) if self.overruled else CONFIRMED}: {said}"


def recorded_live(
    events: Iterable[Event], findings: Iterable[Finding], judgements: Iterable[Judgement]
) -> list[LiveEvent]:
    """Return the events of a run, each with the rule that it is about.

    Args:
        events: Of the run.
        findings: What the rules of today say of it.
        judgements: Of the same rules, those without a finding too.
    """
    fired = {finding.rule: finding for finding in findings}
    rules = {(one.rule, one.name) for one in judgements} | {(one.rule, one.name) for one in fired.values()}
    by_kind = {kind: rule for rule in rules for kind in (rule[0], rule[1].replace("-", "_"))}
    paired = []
    for event in events:
        rule, name = by_kind.get(event.kind, ("", event.kind))
        paired.append(LiveEvent(event, rule, name, fired.get(rule)))
    return paired
