"""The regimes that a recorded run ends in, and one sentence with the numbers that decide.

They are read at the end of the run: of the linear part from the last recorded ρ(A̅), of the full loop from its largest
Lyapunov exponent and its Jacobian's radius in the last step in which they were measured, if that is not long ago, of
the trajectory from the decay law of the last pass of the fixed probe batch (or, without one, of the deepest of the last
training steps). Nothing is taken from a name or a setting.

Not covered: rules and what they found (``diagnosis.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dynamics.regime import Regime
from ..dynamics.trajectory.trajectory import classify
from ..dynamics.trajectory.trajectory_law import STATE_GROWS, TrajectoryLaw
from ..runfile.layout import VARIABLE_PASSES
from ..runfile.ratios import STOPPED, halts
from ..runfile.reader import Run
from .depth_law import RECENT, REFERENCE, law_began
from .exits import exits_said
from .expression import Series
from .variable_verdicts import laws_of_passes, lost_law, lost_since
from .variables import per_pass, round_off_of, variables_of

RECENT_STEPS = 50  # training steps looked back on when there is no probe batch
BEFORE_THEM = REFERENCE + RECENT  # by which a change of their depths is seen
LOOP_COLUMNS_READ = ("residual_norm", "step_cosine", "state_norm", "tokens")
SEVERAL_DEPTHS = (
    "In every recent step the sequences ran through different numbers of loops, so that means over tokens are no "
    "trajectory"
)
HALTING = f"On the fixed batch {STOPPED}, so that means over them are no trajectory"
NO_LOOP = "No loop was recorded."
STANDS = 0.95  # part of the measurements since a step in which a number is above its limit, for it to stand there
_BADNESS = ("settling", "unknown", "bounded", "orbiting", "drifting", "undecided", "exploding")
EXPONENT, LOG_RADIUS = "λ", "log ρ(J)"
FULL_LOOP = ("full_loop_seconds", "lyapunov_max", "jacobian_radius")  # the first is there where the others failed, too
ALONE = 10  # steps for which the only measurement of the full loop says something of the weights


@dataclass(frozen=True, slots=True)
class RunRegimes:
    """What a run shows of its loop at its end.

    Attributes:
        regimes: ``lti``, ``loop`` and ``trajectory``, each ``stable``, ``marginal``, ``unstable`` or ``unknown``.
        verdict: The overall regime.
        radius: The last recorded ρ(A̅); NaN when there is none.
        sentence: The numbers that decide, and the disagreement where there is one.
        variables: What every variable does from pass to pass, where the loop carries several and that is known.
    """

    regimes: dict[str, Regime]
    verdict: Regime
    radius: float
    sentence: str
    variables: dict[str, TrajectoryLaw] = field(default_factory=dict)


def read_regimes(run: Run) -> RunRegimes:
    """Return the regimes at the end of a run that has recorded something."""
    radius, rates, law = _last(run, "a_bar_radius"), loop_rates(run), trajectory_law(run)
    laws = variable_laws(run)
    on_passes = joint_law(laws) if VARIABLE_PASSES in run.array_names and measured_long_ago(run) is None else None
    law = on_passes or law
    log_radius, exponent = rates.get(LOG_RADIUS, math.nan), rates.get(EXPONENT, math.nan)
    seen = law.beside(radius, log_radius, exponent)
    said = [f"ρ(A̅) = {radius:.3f}{_crossing(run)}"] if not math.isnan(radius) else []
    if rates:
        disagree = ", which disagree" if seen.rates_disagree else ""
        said.append(f"Full loop {seen.regimes['loop']}: {_in_words(rates)} per loop{disagree}")
    elif (step := measured_long_ago(run)) is not None and (older := rates_at(run)):
        said.append(f"Full loop at step {step:,}, too long ago to count: {_in_words(older)} per loop")
    attracting = "The cycle is an attracting one: small differences shrink along it" if seen.cycle else ""
    recent = recent_rows(run)
    # What the variables do has a sentence of its own, of more passes than training runs.
    of_training = "" if on_passes or (laws and law.kind == "unknown") else law.sentence
    parts = [*said, of_training, attracting, seen.sentence, last_steps_said(run), exits_said(run, recent)]
    sentence = ". ".join(part.rstrip(".") for part in parts if part) + "."
    return RunRegimes(seen.regimes, seen.verdict, radius, sentence, laws)


def trajectory_law(run: Run) -> TrajectoryLaw:
    """Fit the decay law of the steps that the loop takes at the end of the run.

    That of the last pass of the fixed probe batch; without one, of the deepest of the last training steps in which
    every token ran through all loops. Means over different tokens in different loops are no trajectory, and give
    ``unknown``.
    """
    recent = recent_rows(run)
    if not len(run.probe_steps) or is_long_ago(run.probe_steps, run):
        law = _law_of_training({name: run.loops(name, rows=recent) for name in LOOP_COLUMNS_READ}, run)
        return _as_deep_as_trained(law)
    residual, cosine, state, tokens = (run.probe(name)[-1] for name in LOOP_COLUMNS_READ)
    if halts(tokens[None], residual[None, :-1], state[None])[0]:
        return _no_law(HALTING)
    law = _law_of_loops(residual, cosine, state, tokens, run)
    trained = max(np.nanmax(run[name][recent], initial=0) for name in ("depth", "depth_max"))
    deeper = _depths(tokens[None])[0] > trained
    return law if deeper else _as_deep_as_trained(law)


def recent_rows(run: Run) -> slice:
    """Return the rows that tell how a run ends: the last ones, as far as the loop runs to the depths of now."""
    count = len(run)
    first = max(0, count - RECENT_STEPS - BEFORE_THEM)
    began = first + law_began(run["depth"][first:])
    return slice(max(0, count - RECENT_STEPS, began if began > first else 0), count)


def _as_deep_as_trained(law: TrajectoryLaw) -> TrajectoryLaw:
    """Return what is known where nothing ran deeper than training does.

    The last loops are those that the loss asks something of: their steps may grow, as in a model with an embedding for
    every loop, and the state stays where it is. It explodes only where the state grows with them.
    """
    if law.kind != "exploding" or not law.growth_ratio < STATE_GROWS:
        return law
    said = (
        f"Late steps grow by a factor {law.rate:.3f} per loop and the state does not ({law.growth_ratio:.3f}): an "
        "explosion that begins, or what the last loops are trained to do; no pass runs deeper than training"
    )
    return replace(law, kind="undecided", regime="unknown", between=("exploding", "orbiting"), sentence=said)


def _law_of_training(per_loop: Mapping[str, Series], run: Run) -> TrajectoryLaw:
    """Fit the decay law of the deepest of some training steps, given `LOOP_COLUMNS_READ` of them."""
    counts = per_loop["tokens"]
    depths = _depths(counts)
    if not depths.max(initial=0):
        return _no_law(NO_LOOP)
    most, least = np.nanmax(counts, axis=1, initial=0), np.nanmin(counts, axis=1, initial=np.inf)
    whole = np.where((most == least) & (depths > 0), depths, 0)
    if not whole.any():
        return _no_law(SEVERAL_DEPTHS)
    deepest = int(np.argmax(whole))
    residual, cosine, state, tokens = (per_loop[name][deepest] for name in LOOP_COLUMNS_READ)
    return _law_of_loops(residual, cosine, state, tokens, run)


def _law_of_loops(residual: Series, cosine: Series, state: Series, tokens: Series, run: Run) -> TrajectoryLaw:
    """Fit the decay law of one row of loops."""
    loops = int(_depths(tokens[None])[0])
    if loops == 0:
        return _no_law(NO_LOOP)
    return classify(residual[:loops], cosine[:loops], state[: loops + 1], round_off=round_off_of(run))


def _depths(tokens: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the loops that were measured in each row.

    Rows are padded with NaN, but only where no token count is: a state may be NaN itself. A row that counts no token at
    all is of states that could not be read, and says nothing.
    """
    ran = np.maximum(np.count_nonzero(~np.isnan(tokens), axis=1) - 1, 0)
    return np.asarray(np.where((tokens > 0).any(axis=1), ran, 0), np.int64)


def variable_laws(run: Run) -> dict[str, TrajectoryLaw]:
    """Fit the decay law of the steps that every variable takes from pass to pass, where the loop carries several.

    A state that is not finite at the end has exploded, whatever was measured before. Else the laws are those of the
    last measurement of the full loop; where one variable is not finite from a pass on, the others are judged before it.
    Without a measurement they are those of the deepest of the last training steps, where no variable is updated more
    than once in a pass. Of what an inner loop does from pass to pass training steps tell nothing: its updates do not
    vanish where the passes settle.
    """
    names = variables_of(run)
    lost = {name: lost_law(name) for name in names if lost_since(run, name) is not None}
    return _measured_laws(run, names) | lost


def joint_law(laws: Mapping[str, TrajectoryLaw]) -> TrajectoryLaw | None:
    """Return the law of all variables together: that of the one that is farthest from settling; None without any.

    The joint state settles where all of them do, and explodes where one does.

    >>> from loopscope.dynamics import classify
    >>> laws = {"z_H": classify([0.5**t for t in range(12)]), "z_L": classify([1.5**t for t in range(12)])}
    >>> joint_law(laws).kind
    'exploding'
    """
    worst = max(laws.values(), key=lambda law: _BADNESS.index("bounded" if law.bounded else law.kind), default=None)
    return None if worst is None or worst.kind == "unknown" else worst


def _measured_laws(run: Run, names: Sequence[str]) -> dict[str, TrajectoryLaw]:
    """Return the laws of the last passes that were measured, or of training steps."""
    if names and VARIABLE_PASSES in run.array_names:
        _, (*_, measured) = run.arrays(VARIABLE_PASSES, slice(-1, None))
        if laws := laws_of_passes(run, measured):
            return laws
    recent = recent_rows(run)
    laws = {}
    for name in names:
        if np.nanmax(run.loops("inner", recent, variable=name), initial=0) > 1:
            return {}
        laws[name] = _law_of_training({which: per_pass(run, name, which, recent) for which in LOOP_COLUMNS_READ}, run)
    return laws


def last_steps_said(run: Run) -> str:
    """Return how far each variable still moves in the last recorded step.

    The size is that of its last update beside its norm, means over tokens; the variable that moves most comes first.
    Empty for a loop of one tensor.
    """
    moves: dict[str, float] = {}
    rows = recent_rows(run)
    for name in variables_of(run):
        names = ("state_norm", "residual_norm", "tokens")
        state, step, tokens = (run.loops(which, rows, variable=name) for which in names)
        for row in range(len(state) - 1, -1, -1):
            last = int(np.count_nonzero(~np.isnan(tokens[row]))) - 1
            if last > 0:
                finite = bool(np.isfinite(state[row, last]) and np.isfinite(step[row, last - 1]))
                moves[name] = float(step[row, last - 1] / state[row, last]) if finite and state[row, last] else math.inf
                break
    order = sorted(moves, key=moves.__getitem__, reverse=True)
    said = [f"{name} {f'{moves[name]:.2g}' if moves[name] < math.inf else 'is not finite'}" for name in order]
    return f"Last step beside the norm, by variable: {', '.join(said)}" if said else ""


def _no_law(sentence: str) -> TrajectoryLaw:
    """Return a trajectory of which nothing is known, and why."""
    nan = math.nan
    return TrajectoryLaw("unknown", "unknown", nan, nan, nan, nan, nan, nan, "none", sentence)


def loop_rates(run: Run) -> dict[str, float]:
    """Return the full loop's growth rates of perturbations at the end of a run, as `rates_at`; empty if too old."""
    return rates_at(run) if measured_long_ago(run) is None else {}


def measured_long_ago(run: Run) -> int | None:
    """Return the step of the last measurement of the full loop where it says nothing of the end of the run; else None.

    Measurements come at intervals, which grow. One that is older than twice the longest of them, or the only one and
    older than `ALONE` steps, is of other weights: that of step 0 is of those that nobody has trained.
    """
    steps = next((steps for name in FULL_LOOP if len(steps := _series(run, name)[0])), None)
    return int(steps[-1]) if steps is not None and is_long_ago(steps, run) else None


def is_long_ago(steps: NDArray[np.int64], run: Run) -> bool:
    """Return whether a measurement at these steps says nothing of the end of a run, as `measured_long_ago` has it."""
    usual = 2 * int(np.diff(steps).max()) if len(steps) > 1 else ALONE
    return bool(run["step"][-1] - steps[-1] > usual)


def rates_at(run: Run) -> dict[str, float]:
    """Return the full loop's growth rates of perturbations, as measured last, nats per loop, by what they are.

    The largest Lyapunov exponent over the late loops and the logarithm of the Jacobian's radius at the last one, as far
    as they were had. Nothing when that measurement failed: an older one would say nothing of the end.
    """
    tried, _ = _series(run, "full_loop_seconds")
    last = {}
    for name in ("lyapunov_max", "jacobian_radius"):
        steps, values = _series(run, name)
        if len(steps) and (not len(tried) or steps[-1] == tried[-1]):
            last[name] = float(values[-1])
    rates = {EXPONENT: last["lyapunov_max"]} if "lyapunov_max" in last else {}
    if (radius := last.get("jacobian_radius")) is not None:
        rates[LOG_RADIUS] = math.log(radius) if radius > 0 else -math.inf
    return rates


def _in_words(rates: Mapping[str, float]) -> str:
    """Return growth rates as they stand in a sentence."""
    return ", ".join(f"{name} {rate:+.2f}" for name, rate in rates.items())


def _series(run: Run, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return step and values of a series; empty when the file does not have it."""
    try:
        return run.series(name)
    except KeyError:
        return np.empty(0, dtype=np.int64), np.empty(0)


def _last(run: Run, name: str) -> float:
    """Return the last recorded value of a series; NaN when it was never recorded."""
    _, values = _series(run, name)
    return float(values[-1]) if len(values) else math.nan


def _crossing(run: Run) -> str:
    """Return since when ρ(A̅) has stood above 1, for an A̅ that is learned."""
    since = stands_since(*run.series("a_bar_radius"), 1.0) if run.info.get("a_bar_learned") else None
    if since is None:
        return ""
    first, below = since
    return f", above 1 since step {first}" + (f" but for {below} step{'s' * (below > 1)}" if below else "")


def stands_since(steps: NDArray[np.int64], values: NDArray[np.float64], limit: float) -> tuple[int, int] | None:
    """Return since when a number has stood above a limit, and how often it has not since then; None where it does not.

    Near its limit a number goes to and fro. From the step that is returned on it was above in at least `STANDS` of the
    measurements, and at no earlier step that can be said.

    >>> stands_since(np.arange(8), np.array([2.0, 0, 0, 2, 2, 2, 2, 2]), 1.0)
    (3, 0)
    >>> stands_since(np.arange(42), np.array([0.0, 2.0, 0.0, *[2.0] * 39]), 1.0)
    (1, 1)
    """
    above = values > limit
    if not len(above) or not above[-1]:
        return None
    share = np.cumsum(above[::-1])[::-1] / np.arange(len(above), 0, -1)
    first = int(np.argmax(above & (share >= STANDS)))
    return int(steps[first]), int(np.count_nonzero(~above[first:]))
