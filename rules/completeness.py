"""What is judged of every run, without a rule: whether there was enough to judge, and whether the verdict is unstable.

A recording that says too little is never a pass. Each way of being blind is a finding with ``gap`` set: no rows, no
loops, a probe that was lost, rows that were dropped, an end that came too early, rules without data.

Not covered: damage of the file, which the reader refuses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from ..dynamics.regime import Regime
from ..runfile.ending import STEPS_MISSING, Ending
from ..runfile.layout import Event, Severity
from ..runfile.ranks.companions import RANK_EVENTS
from ..runfile.reader import Run
from .findings import Finding, Judgement, capitalised
from .rule_files import Rule
from .series import OF_THE_LOOP, SHORTEST_PAUSE

FEWEST_STEPS: Final = 20
"""Rows that a run must have for a verdict, unless the caller gives a number: rules are about tens of steps."""
MOST_DROPPED: Final = 0.1
"""Part of the steps that may be missing, dropped or never recorded, before the recording says too little."""


def completeness(run: Run, end: Ending, *, min_steps: int | None = None) -> list[Finding]:
    """Return what is missing of a run, as findings.

    Args:
        run: An opened run.
        end: How it ended.
        min_steps: Steps that are enough, `FEWEST_STEPS` by default. Where they are given, an interrupted run that has
            them is complete enough to be judged.
    """
    rows = len(run)
    gaps = [_of_a_rank(event) for event in run.events if event.kind in RANK_EVENTS]
    gaps += _of_its_end(end, rows, min_steps) if rows else []
    if end.lost_from is not None:
        lost = f"the probe was lost at step {end.lost_from}, the loop was not recorded from there on"
        said = f"{lost}: {end.lost_reason}" if end.lost_reason else lost
        gaps.append(gap("LS004", "probe-lost", said, "look at the training's log from that step on", end.lost_from))
    if not rows or not (np.isfinite(run["loss"]).any() or (run["nonfinite"] > 0).any() or (run["depth"] > 0).any()):
        said = "rows were recorded, but neither a loss nor a single loop" if rows else "no step was recorded"
        return [*gaps, gap("LS000", "no-data", f"{said}, so nothing can be said", _CALL_STEP, end.last_step or 0)]
    gaps += [*_of_loops(run, end), *_of_depths(run), *_of_dropped_rows(run), *_of_missing_steps(run)]
    return [*gaps, *_of_what_was_off(run)]


def unjudged(judgements: Sequence[Judgement]) -> list[Finding]:
    """Return one finding for each severity of the rules that should have been judged and were not."""
    gaps = []
    for severity in ("error", "warning", "note"):
        without = [each for each in judgements if each.state == "no data" and each.severity == severity]
        if without:
            reasons: dict[str, list[str]] = {}
            for each in without:
                reasons.setdefault(each.reason, []).append(each.rule)
            said = "; ".join(f"{', '.join(rules)}: {reason}" for reason, rules in reasons.items())
            gaps.append(gap("LS004", "not-judged", f"rules without data: {said}", _RECORD, 0, severity))
    if not any(each.state == "judged" for each in judgements):
        gaps.append(gap("LS004", "not-judged", "no rule could be judged on this run", _RECORD, 0))
    return gaps


def unseen_loop(rules: Sequence[Rule], judgements: Sequence[Judgement], verdict: Regime) -> list[Finding]:
    """Return that nothing is known about the loop: no rule that reads it was judged, and no regime could be read.

    A run of which only the loss was judged is one whose loop nobody watched.

    Args:
        rules: The rules.
        judgements: What each was judged on.
        verdict: The overall regime of the run.
    """
    judged = {each.rule for each in judgements if each.state == "judged"}
    reading = [rule for rule in rules if rule.expr.names & OF_THE_LOOP]
    if verdict != "unknown" or any(rule.id in judged for rule in reading):
        return []
    why = sorted({each.reason for each in judgements if each.rule in {rule.id for rule in reading} and each.reason})
    said = "no rule about the loop could be judged, and its steps tell nothing about where it goes"
    return [gap("LS004", "loop-not-judged", f"{said} ({'; '.join(why)})" if why else said, _SEE_THE_LOOP, 0)]


def unstable_end(run: Run, verdict: Regime, said: str, findings: Sequence[Finding]) -> list[Finding]:
    """Return the finding of a run whose verdict is unstable and of which no rule says so."""
    if verdict != "unstable" or any(each.severity == "error" and not each.gap for each in findings):
        return []
    step = int(run["step"][-1])
    return [
        Finding(
            rule="LS005",
            name="ends-unstable",
            severity="error",
            step=step,
            since=step,
            value=math.nan,
            threshold=math.nan,
            message=f"the run is unstable where its recording ends: {said}",
            remedy="lower the learning rate, or constrain the injection (ρ(A̅) < 1); `loopscope dash` shows since when",
            episodes=1,
        )
    ]


def gap(rule: str, name: str, message: str, remedy: str, step: int, severity: Severity = "error") -> Finding:
    """Return the finding of something that should have been judged and was not."""
    nan = math.nan
    return Finding(rule, name, severity, step, step, nan, nan, message, remedy, 1, gap=True)


def sentence(text: str) -> str:
    """Return the text with a capital and a full stop."""
    return f"{capitalised(text).rstrip('.')}."


_OFF: Final = {
    "a_bar_unchecked": "compare ρ(A̅) with `loopscope linearize`, which measures what the injection does",
    "rules_off": "what fired is judged here all the same; the training's log has the traceback, please report it",
    "spikes_off": "what fired is judged here all the same; the training's log has the traceback, please report it",
    "flights_off": "the training's log has the traceback, please report it",
}
"""What to do where an event of this kind says that a part of the recording was off, or could not look."""
_CALL_STEP: Final = (
    "check that probe.step() is called after every optimizer step and that the model runs in training mode"
)
_SEE_THE_LOOP: Final = (
    "let `loopscope describe` say what is missing: a depth that can be set, or eight loops that no chance decides, "
    "give a fixed batch, the preset inspect measures the full loop, LoopSite(a_bar=...) names a linear part; or write "
    "a rule over last_residual_norm"
)
_RECORD: Final = "record what they read, or switch them off by name in the rule file"
_ATTACH: Final = (
    "record the loop too: probe = loopscope.attach(model, 'run.h5') before training, and probe.step(loss=loss) after "
    "every optimizer step; or loopscope smoke, which changes no code"
)
_TRAINING_MODE: Final = (
    "check that the model is in training mode, that it is the one that the probe is attached to, and that its loop was "
    "found (loopscope describe)"
)


_MARK: Final = (
    "the probe waited for a loop that it could be sure of: loopscope.describe(model, batch) shows the calls it saw and "
    "the lines at which h = loopscope.mark(h, 'h') makes the loop seen; the log of the training shows them too"
)


def _of_its_end(end: Ending, rows: int, min_steps: int | None) -> list[Finding]:
    """Return that a run is not finished, or shorter than asked for."""
    step = end.last_step or 0
    if rows < (min_steps or FEWEST_STEPS):
        whose = f"the {min_steps} that were asked for" if min_steps else f"the {FEWEST_STEPS} that a verdict needs"
        said = f"{'1 step was' if rows == 1 else f'{rows} steps were'} recorded, fewer than {whose}"
        why = {"finished": "", "live": "; the run is still live"}.get(end.state, f"; interrupted: {end.reason}")
        return [
            gap(
                "LS003",
                "too-few-steps",
                said + why,
                "let the training run on, or say with --min-steps that so many are enough",
                step,
            )
        ]
    if end.state == "live":
        said = f"the run is live; it was judged as far as it has come, step {step}"
        return [_note(said, "run-live", "check it again when it has ended", step)]
    if end.state == "interrupted":
        said = f"the run was interrupted after step {step}: {end.reason}"
        if min_steps is not None:
            return [_note(said, "run-interrupted", "", step)]
        remedy = "train to the end, or say with --min-steps how many steps are enough for a verdict"
        return [gap("LS003", "run-interrupted", said, remedy, step)]
    return []


def _note(message: str, name: str, remedy: str, step: int) -> Finding:
    """Return a warning about how the run ended."""
    return Finding("LS003", name, "warning", step, step, math.nan, math.nan, message, remedy, 1)


def _of_loops(run: Run, end: Ending) -> list[Finding]:
    """Return that no loop was recorded, or none any more long before the end."""
    depth, steps = run["depth"], run["step"]
    if run.log:
        said = f"loss only: this is a log ({run.log}) without a loop, so the loop was not judged"
        nan, step = math.nan, int(steps[-1])
        return [Finding("LS090", "loop-not-seen", "note", step, step, nan, nan, said, _ATTACH, 1)]
    watched = np.flatnonzero(depth > 0)
    if not len(watched):
        awaited = any(event.kind == "loop_awaited" for event in run.events)
        remedy = _MARK if awaited else _TRAINING_MODE
        return [gap("LS004", "no-loops", "no loop was recorded in any step", remedy, int(steps[-1]))]
    # A probe that waited for a loop has judged what there was to judge: none ran before.
    waited = any(event.kind == "loop_awaited" for event in run.events)
    first, last = int(watched[0]) if waited else 0, int(watched[-1])
    pauses = np.diff(watched, prepend=first - 1)
    if end.lost_from is None and len(steps) - 1 - last > max(SHORTEST_PAUSE, 3 * int(pauses.max())):
        said = f"no loop was recorded after step {steps[last]:.0f} of {steps[-1]:.0f}"
        return [gap("LS004", "loops-end", said, _TRAINING_MODE, int(steps[last]))]
    if 2 * len(watched) < len(steps) - first and pauses.max() > SHORTEST_PAUSE:
        said = f"loops were recorded in {len(watched)} of {len(steps) - first} steps only"
        return [gap("LS004", "few-loops", said, _TRAINING_MODE, int(steps[-1]))]
    if first > SHORTEST_PAUSE:
        said = f"the loop is recorded from step {steps[first]:.0f} on; no forward showed one before"
        at, nan = int(steps[first]), math.nan
        return [Finding("LS004", "loop-begins-late", "note", at, at, nan, nan, said, _MARK, 1)]
    return []


def _of_depths(run: Run) -> list[Finding]:
    """Return that ranks ran other depths than each other in one step."""
    steps, ranks = run["step"], run.ranks
    if len(ranks) < 2:
        return []
    depths = np.full((len(ranks), len(steps)), np.nan)
    for row, rank in zip(depths, ranks.values(), strict=True):
        at = np.searchsorted(steps, rank["step"])
        known = at < len(steps)
        row[at[known]] = rank["depth"][known]
    differ = np.fmin.reduce(depths) < np.fmax.reduce(depths)
    if not differ.any():
        return []
    first = int(np.argmax(differ))
    shown = ", ".join(f"rank {n} {depth:g}" for n, depth in zip(ranks, depths[:4, first], strict=False))
    more = ", …" if len(ranks) > 4 else ""
    count = int(np.count_nonzero(differ))
    said = (
        f"ranks ran different depths in {count} of {len(steps)} steps, first at step {steps[first]:.0f}: {shown}{more}"
    )
    remedy = "nothing to do where every rank samples its own depth; otherwise give all ranks the same one"
    at_step, nan = int(steps[first]), math.nan
    return [Finding("LS002", "ranks-differ-in-depth", "note", at_step, at_step, nan, nan, said, remedy, 1)]


def _of_dropped_rows(run: Run) -> list[Finding]:
    """Return that the recorder could not keep up and dropped rows."""
    dropped = float(np.nanmax(run["rows_dropped"], initial=0.0))
    if not dropped > 0:
        return []
    part = dropped / (dropped + len(run))
    said = f"{dropped:.0f} rows were dropped, {part:.0%} of the run, because the disk or the processor was too slow"
    step, remedy = int(run["step"][-1]), "record to a faster disk, or fewer rows"
    if part > MOST_DROPPED:
        return [gap("LS004", "rows-dropped", said, remedy, step)]
    return [Finding("LS004", "rows-dropped", "warning", step, step, dropped, math.nan, said, remedy, 1)]


def _of_missing_steps(run: Run) -> list[Finding]:
    """Return that training went on later than the file ended, or than it began."""
    remedy = "judge the steps that are not there by another recording, if there is one"
    told = [event for event in run.events if event.kind == STEPS_MISSING and event.severity != "note"]
    missing = sum(event.value for event in told)
    first = min([float(run["step"][0]), *(event.step - event.value for event in told)])
    if told and missing > MOST_DROPPED * (float(run["step"][-1]) + 1 - first):
        said = f"{missing:.0f} of the run's steps are in no row; {told[-1].message}"
        return [gap("LS004", "steps-missing", said, remedy, told[-1].step)]
    return [
        Finding("LS004", "steps-missing", "warning", e.step, e.step, e.value, math.nan, sentence(e.message), remedy, 1)
        for e in told
    ]


def _of_what_was_off(run: Run) -> list[Finding]:
    """Return what was not looked at while the run was recorded, as its events say."""
    return [
        Finding("LS004", e.kind.replace("_", "-"), "note", e.step, e.step, math.nan, math.nan, sentence(e.message),
                _OFF[e.kind], 1)
        for e in run.events
        if e.kind in _OFF
    ]  # fmt: skip


def _of_a_rank(event: Event) -> Finding:
    """Return the finding that a rank of the run is not in it, or not to its end."""
    name, nan = event.kind.replace("_", "-"), math.nan
    return Finding("LS002", name, event.severity, event.step, event.step, nan, nan, sentence(event.message), "", 1)
