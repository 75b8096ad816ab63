"""The regimes that a recorded run ends in, and one sentence with the numbers that decide.

They are read at the end of the run: of the linear part from the last recorded ρ(A̅), of the full loop from its largest
Lyapunov exponent and its Jacobian's radius in the last step in which they were measured, of the trajectory from the
decay law of the last pass of the fixed probe batch (or, without one, of the deepest of the last training steps).
Nothing is taken from a name or a setting.

Not covered: rules and what they found (``diagnosis.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dynamics.regime import Regime, disagreement, loop_regime, lti_regime, worst
from ..dynamics.trajectory.trajectory import TrajectoryLaw, classify
from ..runfile.reader import Run

RECENT_STEPS = 50  # training steps looked back on when there is no probe batch


@dataclass(frozen=True, slots=True)
class RunRegimes:
    """What a run shows of its loop at its end.

    Attributes:
        regimes: ``lti``, ``loop`` and ``trajectory``, each ``stable``, ``marginal``, ``unstable`` or ``unknown``.
        verdict: The overall regime.
        radius: The last recorded ρ(A̅); NaN when there is none.
        sentence: The numbers that decide, and the disagreement where there is one.
    """

    regimes: dict[str, Regime]
    verdict: Regime
    radius: float
    sentence: str


def read_regimes(run: Run) -> RunRegimes:
    """Return the regimes at the end of a run that has recorded something."""
    radius, rates, law = _last(run, "a_bar_radius"), loop_rates(run), trajectory_law(run)
    regimes: dict[str, Regime] = {
        "lti": lti_regime(radius),
        "loop": _full_loop_regime(rates),
        "trajectory": law.regime,
    }
    return RunRegimes(regimes, worst(*regimes.values()), radius, _summary(regimes, radius, rates, law, run))


def trajectory_law(run: Run) -> TrajectoryLaw:
    """Decay law of the steps that the loop takes at the end of the run."""
    if len(run.probe_steps):
        residual, cosine, state = (run.probe(name)[-1] for name in ("residual_norm", "step_cosine", "state_norm"))
    else:
        recent = slice(max(0, len(run) - RECENT_STEPS), len(run))
        per_loop = {name: run.loops(name, rows=recent) for name in ("residual_norm", "step_cosine", "state_norm")}
        deepest = int(np.argmax(np.isfinite(per_loop["state_norm"]).sum(axis=1)))
        residual, cosine, state = (values[deepest] for values in per_loop.values())
    loops = _depth(state)
    if loops == 0:
        nan = math.nan
        return TrajectoryLaw("unknown", "unknown", nan, nan, nan, nan, nan, nan, "none", "No loop was recorded.")
    return classify(residual[:loops], cosine[:loops], state[: loops + 1])


def _depth(state_norm: NDArray[np.floating[Any]]) -> int:
    """Loops that ran: the row is padded with NaN, but an exploding state may end in NaN of its own."""
    recorded = np.flatnonzero(np.isfinite(state_norm))
    return int(recorded[-1]) if len(recorded) else 0


def loop_rates(run: Run) -> dict[str, float]:
    """Growth rates of perturbations of the full loop where it was measured last, nats per loop, by what they are.

    The largest Lyapunov exponent over the late loops and the logarithm of the Jacobian's radius at the last one, as far
    as they were had. Nothing when that measurement failed: an older one would say nothing of the end.
    """
    tried, _ = _series(run, "full_loop_seconds")
    last = {}
    for name in ("lyapunov_max", "jacobian_radius"):
        steps, values = _series(run, name)
        if len(steps) and (not len(tried) or steps[-1] == tried[-1]):
            last[name] = float(values[-1])
    found = {"λ": last["lyapunov_max"]} if "lyapunov_max" in last else {}
    if (radius := last.get("jacobian_radius")) is not None:
        found["log ρ(J)"] = math.log(radius) if radius > 0 else -math.inf
    return found


def _full_loop_regime(rates: Mapping[str, float]) -> Regime:
    """The regime all rates agree on, else marginal.

    Neither is the rate for ever: over a few loops a transient passes for an exponent, and the state may move on from
    where the radius was taken. A loop that drifts, as addition does, shows the first of the two.
    """
    regimes = {loop_regime(rate) for rate in rates.values()}
    return "unknown" if not regimes else regimes.pop() if len(regimes) == 1 else "marginal"


def _series(run: Run, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps and values of a series; empty when the file does not have it."""
    try:
        return run.series(name)
    except KeyError:
        return np.empty(0, dtype=np.int64), np.empty(0)


def _last(run: Run, name: str) -> float:
    """The last recorded value of a series; NaN when it was never recorded."""
    _, values = _series(run, name)
    return float(values[-1]) if len(values) else math.nan


def _summary(
    regimes: dict[str, Regime], radius: float, rates: Mapping[str, float], law: TrajectoryLaw, run: Run
) -> str:
    """One sentence with the numbers that decide, and the disagreement where there is one."""
    said = [f"ρ(A̅) = {radius:.3f}{_crossing(run)}"] if not math.isnan(radius) else []
    if rates:
        shown = ", ".join(f"{name} {rate:+.2f}" for name, rate in rates.items())
        said.append(f"Full loop {regimes['loop']}: {shown} per loop")
    conflict = disagreement(regimes["lti"], regimes["loop"], regimes["trajectory"])
    return ". ".join(part.rstrip(".") for part in [*said, law.sentence, conflict] if part) + "."


def _crossing(run: Run) -> str:
    """Since when ρ(A̅) has been above 1 without a break, for an A̅ that is learned."""
    steps, radius = run.series("a_bar_radius")
    below = np.flatnonzero(radius <= 1.0)
    if not run.info.get("a_bar_learned") or radius[-1] <= 1.0:
        return ""
    first = 0 if not len(below) else int(below[-1]) + 1
    return f", above 1 since step {int(steps[first])}"
