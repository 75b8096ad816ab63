"""The loops of one step: of training, of the fixed batch, of one variable, and the laws fitted to them.

Not covered: the laws themselves (`dynamics.trajectory`).
"""

import math

import numpy as np

from ..dynamics.trajectory.trajectory import classify
from ..rules.variables import is_measured
from ..runfile.layout import VARIABLE_PASSES
from .loop_figures import Law, Profile
from .opened import OpenRun


def profile_at(held: OpenRun, step: float | None) -> Profile | None:
    """Return the loops of one training step, cut to the loops that ran."""
    if step is None:
        return None
    row = int(np.searchsorted(held.run["step"], step))
    rows = slice(row, row + 1)
    state, residual = held.run.loops("state_norm", rows)[0], held.run.loops("residual_norm", rows)[0]
    return Profile(step, state, residual[:-1]) if len(state) else None


def probe_at(held: OpenRun, step: float | None) -> Profile | None:
    """Return the last pass of the fixed batch at or before a step."""
    if step is None:
        return None
    steps, state = held.probe("state_norm")
    row = int(np.searchsorted(steps, step, side="right")) - 1
    if row < 0:
        return None
    ran = int(np.sum(~np.isnan(held.run.probe("tokens")[row])))
    residual = held.probe("residual_norm").values[row, : max(ran - 1, 0)]
    return Profile(float(steps[row]), state[row, :ran], residual)


def passes_at(held: OpenRun, step: float | None, variable: str) -> Profile | None:
    """Return the passes of a variable on the fixed batch, as they were measured last at or before a step."""
    known = held.array_at(VARIABLE_PASSES, step) if variable else None
    if known is None or not is_measured(known[1], len(held.run.variables)):
        return None
    own = known[1][held.run.variables.index(variable)].astype(np.float64)
    return Profile(known[0], own[:, 0], own[:-1, 1])


def fitted_laws(held: OpenRun, step: float | None, variable: str = "") -> list[Law]:
    """Return the law that the late steps of a pass follow, and its rival; nothing where there is none.

    Both are drawn through the middle of the late loops, with the rate or the exponent that the analysis fitted.
    """
    one = passes_at(held, step, variable) or probe_at(held, step) or profile_at(held, step)
    if one is None or len(one.residual) < 4 or not np.isfinite(one.residual).all():
        return []
    law = classify(one.residual, None, one.state if len(one.state) == len(one.residual) + 1 else None)
    start = len(one.residual) // 2
    loops = np.arange(start, len(one.residual))
    late = one.residual[start:]
    if not np.all(late > 0):
        return []
    centre = float(np.exp(np.mean(np.log(late))))
    laws = []
    if math.isfinite(law.rate) and law.rate > 0:
        values = centre * law.rate ** (loops - loops.mean())
        laws.append(Law(f"×{law.rate:.3g} per loop", start, values, law.method == "geometric"))
    if math.isfinite(law.exponent):
        powers = (loops + 1.0) ** law.exponent
        values = centre * powers / np.exp(np.mean(np.log(powers)))
        laws.append(Law(f"t<sup>{law.exponent:.2g}</sup>", start, values, law.method == "power"))
    return laws
