"""Training depth against evaluation depth: the note about a model that is evaluated deeper than training ever ran.

The loss has asked nothing of the loops beyond, so what the loop does there is all that there is to go by: where a pass
of the fixed batch ran as deep, or deeper than training, the finding says what that pass shows.

Not covered: whether the deeper evaluation is better. Losses at several depths, given to ``probe.step`` as ``loss_at_4``
and ``loss_at_16``, tell.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from ..runfile.layout import EVALUATED
from ..runfile.reader import Run
from .findings import Finding
from .regimes import recent_rows, trajectory_law
from .variable_verdicts import UNSETTLED

_SETTLES: Final = (
    "nothing to do where more loops are meant to help; a loss at both depths (loss_at_4=…, loss_at_16=… to probe.step) "
    "tells whether they do"
)
_UNSETTLED: Final = (
    "evaluate at a depth that training runs, or train at depths up to that of the evaluation; a loss at both depths "
    "(loss_at_4=…, loss_at_16=… to probe.step) tells what the further loops cost"
)


class Evaluated(NamedTuple):
    """An evaluation.

    Args:
        step: The step of the row that it is recorded in; of one after the last row, that row's.
        most: The most loops that one of its forwards ran.
    """

    step: int
    most: float


def evaluations(run: Run) -> list[Evaluated]:
    """Return the evaluations of a run of which the depth was counted, in their order."""
    seen = [Evaluated(event.step, event.value) for event in run.events if event.kind == EVALUATED]
    if "eval_depth_max" in run.names:
        most = run["eval_depth_max"]
        rows = np.flatnonzero(np.isfinite(most))
        seen += [Evaluated(int(step), float(loops)) for step, loops in zip(run["step"][rows], most[rows], strict=True)]
    return sorted(each for each in seen if math.isfinite(each.most))


def evaluated_deeper(run: Run) -> list[Finding]:
    """Return the note that a model was evaluated deeper than any recorded step of its training ran; else nothing."""
    trained = _deepest_of_training(run)
    deeper = [each for each in evaluations(run) if each.most > trained] if trained else []
    if not deeper:
        return []
    first, most = deeper[0].step, max(each.most for each in deeper)
    law, deep = trajectory_law(run), _deepest_pass(run)
    if law.kind == "unknown" or deep <= trained:
        shown = "no pass was recorded that runs deeper than training, so what the loop does there is not known"
        remedy = _UNSETTLED
    else:
        beyond = "" if deep >= most else f"; beyond {deep} loops nothing is recorded"
        does = f"is {law.words}" if law.kind == "undecided" else law.words
        shown = f"on the fixed batch, {deep} loops deep, the state {does}{beyond}"
        remedy = _UNSETTLED if law.kind in (*UNSETTLED, "undecided") else _SETTLES
    depth = run["depth"][recent_rows(run)]
    usual = f"{np.nanmean(depth):.3g} loops on average" if np.isfinite(depth).any() else "its loop"
    message = (
        f"the model is evaluated at {most:g} loops, where training ran {usual} in the end and never more than "
        f"{trained:g}: {shown}"
    )
    return [Finding("LS007", "evaluated-deeper", "note", first, first, most, trained, message, remedy, len(deeper))]


def _deepest_of_training(run: Run) -> float:
    """Return the most loops of any recorded step; 0 where none was recorded."""
    return float(max(np.nanmax(run[name], initial=0) for name in ("depth", "depth_max")))


def _deepest_pass(run: Run) -> int:
    """Return how many loops the last pass of the fixed batch ran; 0 without one."""
    return int(np.count_nonzero(~np.isnan(run.probe("tokens")[-1]))) - 1 if len(run.probe_steps) else 0
