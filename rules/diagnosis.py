"""What a recorded run says: three regimes, the rules that fired, and one sentence.

How the regimes are read at the end of the run: ``regimes.py``. Of a run of several ranks, it is also said which of
them are not in it.

Not covered: why an optimiser went where it went. The findings say what happened to the loop first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dynamics.regime import Regime
from ..runfile.layout import Event
from ..runfile.ranks.companions import RANK_EVENTS
from ..runfile.reader import Run
from .regimes import read_regimes
from .rules import Finding, Rule, evaluate, load_rules


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The verdict on a run.

    Args:
        regimes: ``lti``, ``loop`` and ``trajectory``, each ``stable``, ``marginal``, ``unstable`` or ``unknown``.
        verdict: The worst known regime.
        radius: The last recorded ρ(A̅); NaN when there is none.
        summary: One sentence with the numbers that decide.
        findings: Rules that fired, first step first.
        skipped: Rules that could not be evaluated for want of a series.
        steps: Recorded steps.
        evaluated: Whether there was anything to judge: rows with a loss or with loops. Without, finding LS000 says so.
    """

    regimes: dict[str, Regime]
    verdict: Regime
    radius: float
    summary: str
    findings: list[Finding]
    skipped: list[str]
    steps: int
    evaluated: bool

    @property
    def first_breach(self) -> Finding | None:
        """The earliest finding that is more than a note."""
        return next((finding for finding in self.findings if finding.severity != "note"), None)

    def as_dict(self) -> dict[str, Any]:
        """The diagnosis for JSON, under the names of the ``check`` format."""
        return {
            "steps": self.steps,
            "regimes": dict(self.regimes),
            "verdict": self.verdict,
            "summary": self.summary,
            "findings": [finding.as_dict() for finding in self.findings],
            "skipped": list(self.skipped),
        }


def diagnose(run: Run, rules: Sequence[Rule] | None = None) -> Diagnosis:
    """Reads regimes and findings off a recorded run.

    Args:
        run: An opened run file.
        rules: Default: the shipped rules.

    Returns:
        The diagnosis; a run without rows has verdict ``unknown`` and says so.
    """
    ranks = [_of_a_rank(event) for event in run.events if event.kind in RANK_EVENTS]
    if (missing := _missing(run)) is not None:
        unknown: dict[str, Regime] = {"lti": "unknown", "loop": "unknown", "trajectory": "unknown"}
        return Diagnosis(
            unknown, "unknown", math.nan, missing.message, [missing, *ranks], [], len(run), evaluated=False
        )
    seen = read_regimes(run)
    findings, skipped = evaluate(run, load_rules() if rules is None else rules)
    return Diagnosis(
        regimes=seen.regimes,
        verdict=seen.verdict,
        radius=seen.radius,
        summary=" ".join([seen.sentence, *(_sentence(f.message) for f in ranks)]),
        findings=sorted([*ranks, *findings], key=lambda finding: finding.step),
        skipped=skipped,
        steps=len(run),
        evaluated=True,
    )


def _missing(run: Run) -> Finding | None:
    """The finding of a run in which there is nothing to judge; such a run never passes."""
    if len(run) and (np.isfinite(run["loss"]).any() or (run["nonfinite"] > 0).any() or (run["depth"] > 0).any()):
        return None
    message = "no step was recorded" if not len(run) else "rows were recorded, but neither a loss nor a single loop"
    return Finding(
        rule="LS000",
        name="no-data",
        severity="error",
        step=int(run["step"][-1]) if len(run) else 0,
        since=0,
        value=float(len(run)),
        threshold=1.0,
        message=f"{message}, so nothing can be said.",
        remedy="check that probe.step() is called after every optimizer step and that the model runs in training mode",
        episodes=1,
    )


def _of_a_rank(event: Event) -> Finding:
    """The finding that a rank of the run is not in it, or not to its end."""
    return Finding(
        rule="LS002",
        name=event.kind.replace("_", "-"),
        severity=event.severity,
        step=event.step,
        since=event.step,
        value=math.nan,
        threshold=math.nan,
        message=_sentence(event.message),
        remedy="",
        episodes=1,
    )


def _sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
