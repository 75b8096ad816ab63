"""What judging a run gives: findings, and of each rule what it was judged on.

Not covered: how they come about (``judging``, ``completeness``), how they are shown (``gate``, ``dashboard``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ..runfile.layout import Severity
from .pages import page_name

JudgementState = Literal["judged", "not applicable", "no data"]
Outcome = Literal["pass", "fail", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to tell of a run: a rule that fired, one that is about to, or evidence that is missing.

    Attributes:
        rule: Id of the rule.
        name: Its name.
        severity: How much it matters. A pending one is at most a warning.
        step: Step at which it fired first; of a pending one, the last step.
        since: Step at which the condition began to hold.
        value: Left side of the rule's first comparison at ``step``; NaN where there is none.
        threshold: Right side of it.
        message: What is the matter, with the numbers.
        remedy: What to try.
        episodes: How many times it fired.
        state: ``fired``, or ``pending``: the condition holds at the last row and has not held for long enough.
        held: Steps for which the condition had held at ``step``.
        hold: Steps for which it must hold.
        gap: Whether it tells of something that should have been judged and was not: exit code 5 of the gate, not 1.
        loss_step: First step from ``since`` on at which the loss shows that something is wrong (`lead`); None where it
            does not, and of a gap.
        variable: The variable of the loop that it is about, where the loop carries several; empty where it is about
            all of them together, or about something else.
    """

    rule: str
    name: str
    severity: Severity
    step: int
    since: int
    value: float
    threshold: float
    message: str
    remedy: str
    episodes: int
    state: Literal["fired", "pending"] = "fired"
    held: int = 0
    hold: int = 0
    gap: bool = False
    loss_step: int | None = None
    variable: str = ""

    @property
    def lead(self) -> int | None:
        """Steps by which it came before the loss showed the trouble, negative after it; None where it shows none."""
        return None if self.loss_step is None else self.loss_step - self.step

    @property
    def when(self) -> str:
        """The step at which it fired first, and how often it did.

        >>> Finding("LS016", "depth-changed", "note", 31, 31, 1.0, 0.0, "", "", episodes=3).when
        'step 31, 3 times'
        """
        return f"step {self.step}" + (f", {self.episodes} times" if self.episodes > 1 else "")

    def as_dict(self) -> dict[str, Any]:
        """Return the finding for JSON; a number that is not finite becomes ``None``."""
        said = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}
        return said | {"lead": self.lead, "page": page_name(self.rule) or None}


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one rule was judged on.

    Attributes:
        rule: Id of the rule.
        name: Its name.
        severity: Its severity.
        state: ``judged``; ``not applicable``, where the run has nothing of the kind; ``no data``, where it should have
            been judged, to the end of the run, and was not.
        steps: Rows at which its condition could be decided.
        reason: Why it was not judged; where it was, what it was judged against, if that is more than its condition.
    """

    rule: str
    name: str
    severity: Severity
    state: JudgementState
    steps: int
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the judgement for JSON."""
        return asdict(self)


def serious(findings: Iterable[Finding], fail_on: Severity = "error") -> list[Finding]:
    """Return the findings whose severity fails a run.

    Args:
        findings: Of one run.
        fail_on: Least severity that fails it.
    """
    severities = get_args(Severity)
    return [one for one in findings if severities.index(one.severity) >= severities.index(fail_on)]


def outcome(findings: Iterable[Finding], fail_on: Severity = "error") -> Outcome:
    """Return what the gate says of a run with these findings, in a word.

    A rule that fired is a verdict, ``fail``, whatever else is missing. Without one, evidence that is missing is a
    failure of its own, ``error``.

    Args:
        findings: Of one run.
        fail_on: Least severity that fails it.
    """
    failing = serious(findings, fail_on)
    if any(not finding.gap for finding in failing):
        return "fail"
    return "error" if failing else "pass"


def capitalised(text: str) -> str:
    """Return a sentence with a capital first, unless it begins with a symbol or a name from code.

    >>> [capitalised(text) for text in ("the loss rises", "z_H: it orbits", "ρ(A̅) = 1.2")]
    ['The loss rises', 'z_H: it orbits', 'ρ(A̅) = 1.2']
    """
    return text[:1].upper() + text[1:] if re.match(r"[a-z][a-z'-]*,?(\s|$)", text) else text
