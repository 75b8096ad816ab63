"""When each rule would have fired, had somebody watched, and how long before the loss showed the trouble.

Rules look back only, so that what they say at the end of a run of a step is what they said at that step. What the gate
says of the end itself (a run that is unstable there, evidence that is missing) has no earlier step.

Not covered: a run that recovered: it was unstable for a while, and a rule that held for too short a time never fired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..rules.diagnosis import Diagnosis
from ..rules.findings import Finding


@dataclass(frozen=True, slots=True)
class Alarm:
    """A rule that fired, and its time.

    Attributes:
        finding: The finding.
        words: How long before the loss it came, for a person.
    """

    finding: Finding
    words: str


def alarms(diagnosis: Diagnosis) -> list[Alarm]:
    """Return what fired while the run went on, first step first."""
    rules = {judgement.rule for judgement in diagnosis.judgements}
    fired = [each for each in diagnosis.findings if each.rule in rules and each.state == "fired"]
    return [Alarm(each, lead_words(each)) for each in fired if each.severity != "note"]


def lead_words(finding: Finding) -> str:
    """Say how long before the loss a finding came.

    >>> from loopscope.rules.findings import Finding
    >>> one = Finding("R", "r", "error", 50, 47, 1.1, 1.0, "", "", 1, loss_step=90)
    >>> lead_words(one)
    '40 steps before the loss'
    """
    lead = finding.lead
    if lead is None:
        return "the loss does not show it"
    if not lead:
        return "with the loss"
    steps = "1 step" if abs(lead) == 1 else f"{abs(lead)} steps"
    return f"{steps} before the loss" if lead > 0 else f"{steps} after the loss"


def sentence(fired: Sequence[Alarm]) -> str:
    """Say when the run would have been stopped first."""
    first = next((alarm for alarm in fired if alarm.finding.severity == "error"), None)
    if first is None:
        return "no rule of severity error would have fired"
    return f"{first.finding.rule} would have fired first, at step {first.finding.step}, {first.words}"
