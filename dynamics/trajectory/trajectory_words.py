"""The verdict on a trajectory in one sentence for a person, with its numbers.

Not covered: the decision (`trajectory`). Every number in a sentence is one that the decision rests on, so that no
sentence can contradict itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .trajectory import TrajectoryLaw

SEEN_GROWTH = 1.005
"""Factor per loop from which on the growth of the state is worth a word."""


def sentence_of(
    law: TrajectoryLaw, loops: int, cosine: float, laws: tuple[str, str], bad_loop: int, fewest: int
) -> str:
    """Return the sentence.

    Args:
        law: The verdict.
        loops: Loops that were run.
        cosine: Mean cosine of successive late steps; NaN where not known.
        laws: What the two laws of an undecided loop are, in a few characters each.
        bad_loop: First loop whose state is not finite.
        fewest: Loops below which nothing is said.
    """
    share = f" ({100 * law.last_relative_step:.2g} % of the state)" if math.isfinite(law.last_relative_step) else ""
    end = f"; the last of {loops} is {law.last_step:.3g}{share}."
    if law.method == "non-finite":
        return f"The loop explodes: the state is not finite from loop {bad_loop} of {loops} on."
    if law.kind == "unknown":
        return f"{loops} loops are too few to tell how the steps change; at least {fewest} are needed."
    if law.kind == "undecided":
        return _undecided(law, laws, end)
    if law.method == "round-off":
        shrank = f" after shrinking by a factor {law.rate:.3f} per loop" if 0 < law.rate < 1 else ""
        return f"The loop has settled: its steps are down to round-off{shrank}{end}"
    if law.kind == "settling" and law.method == "power":
        return f"The loop settles slowly: late steps shrink like t^{law.exponent:.2f}{end}"
    if law.kind == "settling":
        return f"The loop settles: late steps shrink by a factor {law.rate:.3f} per loop{end}"
    if law.kind == "exploding":
        grows = law.growth_ratio > SEEN_GROWTH
        state = f" and the state norm by {law.growth_ratio:.3f}" if grows else ""
        return f"The loop explodes: late steps grow by a factor {law.rate:.3f} per loop{state}{end}"
    return _lasting(law, cosine) + end


def _lasting(law: TrajectoryLaw, cosine: float) -> str:
    """A loop whose steps neither add up nor grow geometrically."""
    verb = "drifts" if law.kind == "drifting" else "stays in bounds without settling (an orbit)"
    turn = f" with cosine {cosine:.2f} from one to the next" if math.isfinite(cosine) else ""
    if law.method == "power" and law.exponent < -0.1:
        how = f"late steps shrink too slowly to add up, like t^{law.exponent:.2f}"
    elif law.method == "power" and law.exponent > 0.1:
        how = f"late steps grow, but only like t^{law.exponent:.2f}"
    elif law.method == "power":
        how = f"late steps keep their size (like t^{law.exponent:.2f})"
    else:
        how = f"late steps keep their size (factor {law.rate:.3f} per loop)"
    return f"The loop {verb}: {how}{turn}"


def _undecided(law: TrajectoryLaw, laws: tuple[str, str], end: str) -> str:
    """Two kinds that the loops cannot tell apart, and what would."""
    if law.between == ("drifting", "orbiting"):
        pair = f"drifting and orbiting (steps {laws[0]})"
    else:
        first, second = (f"{kind} (steps {words})" for kind, words in zip(law.between, laws, strict=True))
        pair = f"{first} and {second}"
    more = f"about {law.more_loops} more loops would tell" if law.more_loops else "the type of the states would tell"
    return f"The loop is undecided between {pair}: {more}{end}"
