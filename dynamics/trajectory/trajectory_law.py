"""The verdict on a trajectory: its numbers, and one sentence for a person.

Not covered: the decision (`trajectory`). Every number in a sentence is one that the decision rests on, so that no
sentence can contradict itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..regime import Regime, Views, views

Kind = Literal["settling", "drifting", "orbiting", "exploding", "undecided", "unknown"]
SEEN_GROWTH = 1.005
"""Factor per loop from which on the growth of the state is worth a word."""
STATE_GROWS = 1.05
"""The same from which on a state grows with its steps, as in the rule LS030; below, steps that grow explode nothing."""


@dataclass(frozen=True, slots=True)
class TrajectoryLaw:
    """The law that one series of steps follows, and the verdict it implies.

    Attributes:
        kind: ``settling``, ``drifting``, ``orbiting``, ``exploding``, ``undecided`` or ``unknown`` (too few loops).
        regime: ``stable``, ``marginal``, ``marginal``, ``unstable``, ``unknown`` or ``unknown``, in that order;
            ``marginal`` when undecided between drifting and orbiting.
        residual_ratio: Geometric mean of ``‖Δ[t+1]‖ / ‖Δ[t]‖`` over the late loops; 0 when steps vanish at once; NaN
            when unknown.
        growth_ratio: The same for ``‖h‖``; NaN without state norms.
        rate: Factor per loop of the fitted geometric law (robuster than the ratio of the window's ends).
        exponent: ``p`` of the fitted power law, steps ~ t^p (negative when they shrink).
        last_step: ``‖h[T] - h[T-1]‖``.
        last_relative_step: The same divided by ``‖h[T]‖``; NaN without state norms.
        method: The law the verdict rests on: ``geometric``, ``power``, ``constant``, ``round-off``, ``non-finite`` or
            ``none``.
        between: The two kinds it is undecided between, the likelier one first; empty when it is decided.
        more_loops: About how many more loops would tell them apart; 0 when decided or when more loops would not.
        sentence: The verdict for a person, with its numbers.
    """

    kind: Kind
    regime: Regime
    residual_ratio: float
    growth_ratio: float
    rate: float
    exponent: float
    last_step: float
    last_relative_step: float
    method: str
    sentence: str
    between: tuple[str, ...] = ()
    more_loops: int = 0

    @property
    def settled(self) -> bool:
        """Whether the steps shrink geometrically or are down to round-off: the states come to a rest."""
        return self.kind == "settling" and self.method in ("geometric", "round-off")

    @property
    def bounded(self) -> bool:
        """Whether it is undecided, but explodes by neither of its two laws."""
        return self.kind == "undecided" and "exploding" not in self.between

    @property
    def drift_rate(self) -> float:
        """Rate at which the norm of a drifting state grows, nats per loop; 0 where it does not drift or grow."""
        return math.log(self.growth_ratio) if self.kind == "drifting" and self.growth_ratio > 1 else 0.0

    @property
    def words(self) -> str:
        """The verdict in two or three words: what the state does."""
        if self.kind == "settling":
            how = {"geometric": "geometrically", "power": "slowly", "round-off": "to round-off"}.get(self.method, "")
            return f"settles {how}".strip()
        if self.kind == "undecided":
            return f"undecided between {' and '.join(self.between)}"
        if self.method == "non-finite":
            return "is not finite"
        return {"drifting": "drifts", "orbiting": "orbits", "exploding": "explodes"}.get(self.kind, "too few loops")

    def grown(self, loops: int) -> float:
        """Return by which factor the steps grow over the first loops by this law; 1 where they keep their size."""
        if self.method in ("geometric", "power"):
            return float(self.rate**loops if self.method == "geometric" else loops**self.exponent)
        return 1.0 if self.method == "constant" else math.nan

    def beside(
        self, radius: float, log_radius: float, exponent: float, *, steady: bool = False, transient: bool = False
    ) -> Views:
        """Return what this law says together with the linear part and the full loop: the one way to a verdict.

        Args:
            radius: ρ(A̅); NaN when it is not known, as the two rates.
            log_radius: ``log ρ(J)`` at the last state, nats per loop.
            exponent: λ₁ over the late loops, nats per loop.
            steady: As in `loopscope.dynamics.regime.views`.
            transient: Likewise.

        >>> from loopscope.dynamics.trajectory.trajectory import classify
        >>> law = classify([0.5**t for t in range(12)])
        >>> law.beside(1.3, -0.4, -0.5).verdict
        'stable'
        """
        return views(
            radius,
            log_radius,
            exponent,
            self.regime,
            orbits=self.kind == "orbiting",
            settled=self.settled,
            bounded=self.bounded,
            steady=steady,
            transient=transient,
            drift=self.drift_rate,
        )


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
        fewest: Loops below which there is no sentence.
    """
    share = f" ({100 * law.last_relative_step:.2g} % of the state)" if math.isfinite(law.last_relative_step) else ""
    end = f"; the last of {loops} is {law.last_step:.3g}{share}."
    if law.method == "non-finite":
        return f"The loop explodes: the state is not finite from loop {bad_loop} of {loops} on."
    if law.kind == "unknown":
        few = "1 loop is" if loops == 1 else f"{loops} loops are"
        return f"{few} too few to tell how the steps change; at least {fewest} are needed."
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
    """Return the law of a loop whose steps neither add up nor grow geometrically."""
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
    """Name the two kinds that the loops cannot tell apart, and what would."""
    if law.between == ("drifting", "orbiting"):
        pair = f"drifting and orbiting (steps {laws[0]})"
    else:
        first, second = (f"{kind} (steps {words})" for kind, words in zip(law.between, laws, strict=True))
        pair = f"{first} and {second}"
    more = f"about {law.more_loops} more loops would tell" if law.more_loops else "the type of the states would tell"
    return f"The loop is undecided between {pair}: {more}{end}"
