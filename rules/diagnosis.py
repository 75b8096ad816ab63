"""What a recorded run says: three regimes, what the rules say, how it ended, and one sentence.

How the regimes are read at the end of the run: ``regimes.py``. How rules are applied: ``judging.py``. What
every run must have, enough rows and loops and an end that was meant: ``completeness.py``.

Not covered: why an optimiser went where it went. The findings say what happened to the loop first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ..dynamics.regime import Regime
from ..dynamics.trajectory.trajectory_law import TrajectoryLaw
from ..runfile.ending import Ending, ending
from ..runfile.reader import Run
from ..runfile.text import plain
from .completeness import completeness, unjudged, unseen_loop, unstable_end
from .evaluation import evaluated_deeper
from .findings import Finding, Judgement
from .judging import judge
from .lead import ABOUT_THE_LOSS, LossTrouble
from .regimes import RunRegimes, read_regimes
from .risk import Risk
from .rule_files import Rule, load_rules
from .variable_verdicts import VariableVerdict, naming_variables, sentence_of, verdicts_of

Scope = Literal["loop", "loss only"]


@dataclass(frozen=True, slots=True, repr=False)
class Diagnosis:
    """The verdict on a run.

    Attributes:
        regimes: ``lti``, ``loop`` and ``trajectory``, each ``stable``, ``marginal``, ``unstable`` or ``unknown``.
        verdict: The overall regime.
        radius: The last recorded ρ(A̅); NaN when there is none.
        summary: One sentence with the numbers that decide.
        findings: Rules that fired or are pending, and what is missing, first step first.
        judgements: What each rule was judged on.
        ending: How the run ended.
        steps: Recorded steps.
        risk: How likely the run is to be lost, as far as it is recorded, and which signals say so.
        scope: ``loop``, or ``loss only``: a log of another tool, in which no loop was recorded.
        variables: What every variable does from pass to pass, where the loop carries several and that is known.
        by_variable: The same as verdicts: which variable fails, since when, and which rule says so.
    """

    regimes: dict[str, Regime]
    verdict: Regime
    radius: float
    summary: str
    findings: list[Finding]
    judgements: list[Judgement]
    ending: Ending
    steps: int
    risk: Risk
    scope: Scope = "loop"
    variables: dict[str, TrajectoryLaw] = field(default_factory=dict)
    by_variable: tuple[VariableVerdict, ...] = ()

    def __repr__(self) -> str:
        """Show the verdict, the numbers that decide, and every finding, one to a line."""
        lines = [f"{self.verdict} after {self.steps:,} steps: {self.summary}"]
        lines += [f"  {each.rule} {each.name} [{each.severity}] {each.when}: {each.message}" for each in self.findings]
        lines.append(
            f"  {len(self.judgements) - len(self.skipped)} rules judged, {len(self.skipped)} not (.judgements)"
        )
        return "\n".join(map(plain, lines))

    @property
    def evaluated(self) -> bool:
        """Whether there was anything to judge: rows with a loss or with loops. Without, finding LS000 says so."""
        return all(finding.rule != "LS000" for finding in self.findings)

    @property
    def skipped(self) -> list[str]:
        """Ids of the rules that were not judged; ``judgements`` says why."""
        return [each.rule for each in self.judgements if each.state != "judged"]

    @property
    def first_breach(self) -> Finding | None:
        """The earliest finding that is more than a note; of several at one step an error."""
        breaches = [finding for finding in self.findings if finding.severity != "note"]
        return min(breaches, key=lambda each: (each.step, each.severity != "error"), default=None)

    def as_dict(self) -> dict[str, Any]:
        """Return the diagnosis for JSON, under the names of the ``check`` format."""
        return {
            "scope": self.scope,
            "steps": self.steps,
            "ending": asdict(self.ending),
            "regimes": dict(self.regimes),
            "verdict": self.verdict,
            "variables": {each.name: each.as_dict() for each in self.by_variable},
            "summary": self.summary,
            "risk": self.risk.as_dict(),
            "findings": [finding.as_dict() for finding in self.findings],
            "judgements": [judgement.as_dict() for judgement in self.judgements],
            "skipped": self.skipped,
        }


def diagnose(run: Run, rules: Sequence[Rule] | None = None, *, min_steps: int | None = None) -> Diagnosis:
    """Read regimes and findings off a recorded run.

    Args:
        run: An opened run file; of a live one, its rows so far are judged.
        rules: Default: the shipped rules.
        min_steps: Steps that are enough for a verdict; see `completeness`.

    Returns:
        The diagnosis; a run without rows has verdict ``unknown`` and says so.
    """
    end = ending(run)
    about = completeness(run, end, min_steps=min_steps)
    rules = load_rules() if rules is None else rules
    judged = judge(run, rules)
    fired = naming_variables(run, judged.findings)
    unknown: dict[str, Regime] = {"lti": "unknown", "loop": "unknown", "trajectory": "unknown"}
    if any(finding.rule == "LS000" for finding in about):
        said = next(finding.message for finding in about if finding.rule == "LS000")
        seen = RunRegimes(unknown, "unknown", math.nan, f"{said}.")
    elif run.log:
        seen = RunRegimes(unknown, "unknown", math.nan, f"Loss only: {run.log} log, in which the loop was not seen.")
        about += unjudged(judged.judgements)
    else:
        seen = read_regimes(run)
        about += [*unjudged(judged.judgements), *unseen_loop(rules, judged.judgements, seen.verdict)]
        about += evaluated_deeper(run)
    by_variable = verdicts_of(run, seen.variables, fired)
    said = f"{sentence_of(by_variable)} {seen.sentence}".strip()
    about += unstable_end(run, seen.verdict, said, [*about, *fired])
    ranks = [each.message for each in about if each.rule == "LS002" and each.name != "ranks-differ-in-depth"]
    return Diagnosis(
        regimes=seen.regimes,
        verdict=seen.verdict,
        radius=seen.radius,
        summary=" ".join([said, *ranks]),
        findings=sorted(with_leads(run, [*about, *fired]), key=lambda finding: finding.step),
        judgements=judged.judgements,
        ending=end,
        steps=len(run),
        risk=judged.risk,
        scope="loss only" if run.log else "loop",
        variables=seen.variables,
        by_variable=by_variable,
    )


def with_leads(run: Run, findings: Sequence[Finding]) -> list[Finding]:
    """Return findings with the step at which the loss of their run shows the trouble."""
    if all(finding.gap for finding in findings):
        return list(findings)
    trouble = LossTrouble(run)
    return [each if each.gap else replace(each, loss_step=_loss_step(each, trouble)) for each in findings]


def _loss_step(finding: Finding, trouble: LossTrouble) -> int | None:
    """Return when the loss shows the trouble of a finding: with its alarm, where it is about the loss itself."""
    return finding.step if finding.rule in ABOUT_THE_LOSS else trouble.first(finding.since)
