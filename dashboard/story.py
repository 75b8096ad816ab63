"""What happened to a run, as a person tells it: is it stable, since when, why, when did the loss show it, what to do.

The regimes, the verdict and the findings are those of `rules.diagnosis`; here they get an order and words. One moment
counts as *since*: the step from which on the number that decides has stood on the wrong side, as `check` says it.

Not covered: what a regime is (`dynamics.regime`), how it is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..dynamics.regime import LTI_TOLERANCE
from ..rules.diagnosis import Diagnosis
from ..rules.findings import Finding, Judgement, Outcome, outcome, serious
from ..rules.lead import loss_shows
from ..rules.regimes import stands_since
from ..rules.risk import Risk
from ..rules.variable_verdicts import VariableVerdict
from ..runfile.reader import Run
from .rule_choice import BUILT_IN
from .settings import Settings

MARGINAL_ADVICE: Final = "Fine at the depth of training; do not expect more loops at test time to help."
NAMED: Final = 3
"""Findings that the sentence about the gate names; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Story:
    """A run in words.

    Attributes:
        verdict: ``stable``, ``marginal``, ``unstable`` or ``unknown``.
        sentence: Verdict, since when, why, and when the loss showed it.
        advice: What to do; empty where there is nothing.
        since: Step since which the verdict holds; None where nothing happened.
        loss_step: Step at which the loss showed it; None where it has not, or where nothing happened.
        regimes: The three regimes behind the verdict.
        findings: Rules that fired, in the order in which what they tell of began.
        judgements: What each rule was judged on, or why it was not.
        detail: The numbers that decide, in the words of the diagnosis.
        gate: ``pass``, ``fail`` or ``error``: what `loopscope check` says of the run.
        gate_sentence: The same in one sentence, with the findings that decide it.
        risk: How likely the run is to be lost, and what speaks for it.
        rules: By whose rules it is judged: the built-in ones, or those of a file, with its path.
        variables: What each variable of the loop does, those that fail first; empty where the loop carries one tensor.
    """

    verdict: str
    sentence: str
    advice: str
    since: int | None
    loss_step: int | None
    regimes: dict[str, str]
    findings: tuple[Finding, ...]
    judgements: tuple[Judgement, ...]
    detail: str
    gate: Outcome
    gate_sentence: str
    risk: Risk
    rules: str
    variables: tuple[VariableVerdict, ...] = ()

    @property
    def failing(self) -> str:
        """Which variables fail or failed, what they do and since when, in a few words; empty where none does."""
        return ", ".join(one.brief for one in self.variables if one.fails or one.failed)

    @property
    def agree(self) -> bool:
        """Whether all regimes that are known are the same."""
        return len({regime for regime in self.regimes.values() if regime != "unknown"}) <= 1

    @property
    def first_alert(self) -> Finding | None:
        """The error or warning that alarmed first; of several at one step an error."""
        alerts = [finding for finding in self.findings if finding.severity != "note"]
        return min(alerts, key=lambda each: (each.step, each.severity != "error", each.since), default=None)

    def lead(self, finding: Finding) -> int | None:
        """Return how many steps before the loss showed it a finding's alarm came; negative after it."""
        return None if self.loss_step is None else self.loss_step - finding.step


def tell(run: Run, diagnosis: Diagnosis, settings: Settings, rules: str = BUILT_IN) -> Story:
    """Put a diagnosis into words.

    Args:
        run: The run that was diagnosed.
        diagnosis: What the rules say of it.
        settings: What it was started with.
        rules: By whose rules it was diagnosed, in words.
    """
    since, why = _cause(run, diagnosis)
    shows = loss_shows(run, since, diagnosis.findings) if since is not None else None
    sentence, advice = _words(run, diagnosis, settings, since, why, shows)
    if diagnosis.verdict in ("stable", "marginal") and outcome(diagnosis.findings) == "fail":
        advice = "Do not count on it: each error says what to try."
    return Story(
        verdict=diagnosis.verdict,
        sentence=sentence,
        advice=advice,
        since=since,
        loss_step=shows,
        regimes=dict(diagnosis.regimes),
        findings=tuple(sorted(diagnosis.findings, key=lambda finding: (finding.since, finding.step))),
        judgements=tuple(diagnosis.judgements),
        detail=diagnosis.summary,
        gate=outcome(diagnosis.findings),
        gate_sentence=_gate_words(diagnosis.findings),
        risk=diagnosis.risk,
        rules=rules,
        variables=diagnosis.by_variable,
    )


def _words(
    run: Run, diagnosis: Diagnosis, settings: Settings, since: int | None, why: str, shows: int | None
) -> tuple[str, str]:
    """Return the sentence and the advice."""
    verdict = diagnosis.verdict
    if verdict == "unknown":
        return f"Nothing to judge: {diagnosis.summary.rstrip('.')}.", ""
    if verdict == "stable":
        return f"Stable so far: {why}." if run.state == "live" else f"Stable: {why}.", ""
    if verdict == "marginal":
        return f"Marginal{_since(since)}: {why}.", MARGINAL_ADVICE
    why = f"{_failing_words(diagnosis.by_variable)}{why}"
    loss = _loss_words(run, since, shows)
    if _held(run, diagnosis.regimes) and diagnosis.regimes["lti"] == "unstable":
        return f"Unstable injection{_since(since)}: {why}; {loss}.", "Only the norms of the blocks keep it together."
    return f"Unstable{_since(since)}: {why}; {loss}.", _advice(run, diagnosis, settings)


def _failing_words(variables: Sequence[VariableVerdict]) -> str:
    """Name the variables that fail and those that do not, to begin a sentence with; empty where none fails.

    >>> fails = VariableVerdict("z_L", "exploding", "unstable", "explodes")
    >>> _failing_words([fails, VariableVerdict("z_H", "settling", "stable", "settles geometrically")])
    'z_L fails, z_H does not; '
    """
    failing = [one.name for one in variables if one.fails]
    if not failing:
        return ""
    others = [one.name for one in variables if not one.fails]
    rest = f", {' and '.join(others)} {'does' if len(others) == 1 else 'do'} not" if others else ""
    return f"{' and '.join(failing)} {'fails' if len(failing) == 1 else 'fail'}{rest}; "


def _gate_words(findings: Sequence[Finding]) -> str:
    """Say what the gate says of a run with these findings, and because of which."""
    said = outcome(findings)
    if said == "pass":
        return "The gate passes: no error."
    deciding = [finding for finding in serious(findings) if finding.gap is (said == "error")]
    deciding.sort(key=lambda finding: (finding.step, finding.since))
    # The step of the alarm, as in the list of findings: only the verdict has a "since", which lies before it.
    when = (f" (alarm at step {each.step:,})" if said == "fail" else "" for each in deciding)
    of = (f" of {each.variable}" if each.variable else "" for each in deciding)
    named = [
        f"{each.rule} {each.name}{whose}{words}" for each, whose, words in zip(deciding[:NAMED], of, when, strict=False)
    ]
    more = f" and {len(deciding) - NAMED} more" if len(deciding) > NAMED else ""
    head = "The gate fails" if said == "fail" else "The gate cannot judge it"
    return f"{head}: {', '.join(named)}{more}."


def _since(step: int | None) -> str:
    """Say since when."""
    return "" if step is None else " from the start" if step == 0 else f" since step {step:,}"


def _cause(run: Run, diagnosis: Diagnosis) -> tuple[int | None, str]:
    """Return since when the deciding number has stood where it stands, and what it does."""
    regimes, verdict = diagnosis.regimes, diagnosis.verdict
    held = regimes["lti"] == "unstable" and _held(run, regimes)
    if regimes["lti"] == verdict == "unstable" and not held:
        return _crossed(run, "a_bar_radius", 1.0), f"the injection amplifies the state {diagnosis.radius:.3g}× per loop"
    if verdict == "unstable" and any(one.fails for one in diagnosis.by_variable):
        return _cause_of_variables(diagnosis)
    if regimes["trajectory"] == verdict == "unstable":
        ratio = _last(run, "residual_ratio")
        whose, what = ("the joint step", "the joint state") if diagnosis.by_variable else ("its step", "the state")
        grows = f"each loop multiplies {whose} by {ratio:.3g}" if math.isfinite(ratio) else f"{what} explodes"
        where = "on the fixed batch" if len(run.probe_steps) else "in the forward of training"
        return _crossed(run, "residual_ratio", 1.0), f"{where} {grows}"
    if regimes["loop"] == verdict == "unstable":
        factor = math.exp(min(_last(run, "lyapunov_max"), 700.0))
        inside = " although the injection alone contracts" if regimes["lti"] == "stable" else ""
        return _crossed(run, "lyapunov_max", 0.0), f"small differences grow {factor:.3g}× per loop{inside}"
    if held:
        why = f"ρ(A̅) = {diagnosis.radius:.3g} alone would explode, yet the blocks hold the state"
        return _crossed(run, "a_bar_radius", 1.0), why
    if verdict == "marginal":
        return None, _marginal_cause(run, diagnosis)
    return None, _stable_cause(run, diagnosis)


def _cause_of_variables(diagnosis: Diagnosis) -> tuple[int | None, str]:
    """Return since when a variable fails, the first one, and what it does."""
    failing = [one for one in diagnosis.by_variable if one.fails]
    first, law = failing[0], diagnosis.variables[failing[0].name]
    since = min((one.since for one in failing if one.since is not None), default=None)
    if not math.isfinite(law.residual_ratio):
        return since, f"the state of {first.name} is not finite"
    return since, f"each pass multiplies the step of {first.name} by {law.residual_ratio:.3g}"


def _held(run: Run, regimes: Mapping[str, str]) -> bool:
    """Say whether the steps of the loop shrink although its injection amplifies."""
    shrinks = "stable" in (regimes["trajectory"], regimes["loop"])
    return regimes["trajectory"] != "unstable" and (shrinks or _last(run, "residual_ratio") < 1 - LTI_TOLERANCE)


def _marginal_cause(run: Run, diagnosis: Diagnosis) -> str:
    """Say what keeps a loop at the edge."""
    radius = diagnosis.radius
    if not run.info.get("a_bar_learned") and abs(radius - 1) <= LTI_TOLERANCE:
        return "the injection keeps ρ(A̅) = 1 by design, so the state drifts with depth"
    if diagnosis.regimes["trajectory"] == "marginal":
        return "the steps of the loop keep their size, so more loops do not settle it"
    if diagnosis.regimes["lti"] == "marginal":
        return f"ρ(A̅) = {radius:.3f} is at the edge"
    return "the full loop neither forgets nor amplifies a small difference for certain"


def _stable_cause(run: Run, diagnosis: Diagnosis) -> str:
    """Say what makes a loop stable."""
    ratio = _last(run, "residual_ratio")
    if math.isfinite(ratio):
        shrinks = f"each loop shrinks its step to {ratio:.2g} of the one before"
        return shrinks + (f", ρ(A̅) = {diagnosis.radius:.2f}" if math.isfinite(diagnosis.radius) else "")
    return f"ρ(A̅) = {diagnosis.radius:.2f}" if math.isfinite(diagnosis.radius) else "the loop settles"


def _loss_words(run: Run, since: int | None, shows: int | None) -> str:
    """Say when the loss showed it."""
    if not np.isfinite(run["loss"]).any():
        return "no loss was recorded to compare with"
    if shows is None:
        return "the loss does not show it" + (" yet" if run.state == "live" else "")
    return f"the loss showed it {shows - (since or 0):,} steps later" if shows != since else "the loss shows it too"


def _advice(run: Run, diagnosis: Diagnosis, settings: Settings) -> str:
    """Say what to do about an unstable run."""
    blocks = diagnosis.regimes["lti"] != "unstable"
    failing = [one.name for one in diagnosis.by_variable if one.fails]
    if blocks and failing:
        other = f"lower the learning rate, or normalise {' and '.join(failing)} in every pass"
    elif blocks:
        other = "lower the learning rate or use sandwich norm"
    elif settings.injection == "parcae":
        other = "lower the learning rate"
    else:
        other = "use Parcae or a lower learning rate"
    return f"Stop, or {other}." if run.state == "live" else f"{other[0].upper()}{other[1:]}."


def _last(run: Run, name: str) -> float:
    """Return the last recorded value of a number; NaN without any."""
    try:
        _, values = run.series(name)
    except KeyError:
        return math.nan
    return float(values[-1]) if len(values) else math.nan


def _crossed(run: Run, name: str, limit: float) -> int | None:
    """Return the step since which a number has stood above a limit; None when it does not."""
    try:
        since = stands_since(*run.series(name), limit)
    except KeyError:
        return None
    return None if since is None else since[0]


def _failing_cells(story: Story) -> dict[str, object]:
    """Return the cells about the variables that fail; the address is that of the first one."""
    first = next((one for one in story.variables if one.fails or one.failed), None)
    if first is None:
        return {"variable": ""}
    rule = "" if first.finding is None else f"{first.finding.rule} {first.finding.name}"
    return {"variable": story.failing, "variable_name": first.name, "variable_step": first.since, "variable_rule": rule}


def as_json(story: Story) -> dict[str, object]:
    """Return the part of a story that the table of runs keeps over restarts."""
    first = story.first_alert
    return {
        "verdict": story.verdict,
        "sentence": f"{story.sentence} {story.advice}".strip(),
        "gate": story.gate,
        "gate_sentence": story.gate_sentence,
        "rules": story.rules,
        "since": story.since,
        "regimes": story.regimes,
        "agree": story.agree,
        **_failing_cells(story),
        "alert": None if first is None else f"{first.name} at step {first.step:,}",
        "alert_step": None if first is None else first.step,
    }
