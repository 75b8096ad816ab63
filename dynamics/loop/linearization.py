"""The result of `linearize_loop`: every number about one loop at one checkpoint, its regimes, its verdict, and JSON.

Not covered: computing the numbers (`dynamics.linearize`) and drawing them (the dashboard).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..estimate import Estimate
from ..regime import Regime, Views, lti_regime, rates_disagree
from .parts import FullLoop, LinearPart
from .sheet import Row, rows_of_linear_part, rows_of_loop, sheet

if TYPE_CHECKING:
    from ..trajectory.dependence import InputDependence, StartDependence
    from ..trajectory.dmd import ModeDecomposition
    from ..trajectory.fixed_point import FixedPoint
    from ..trajectory.orbits import TokenMap
    from ..trajectory.safe_depth import SafeDepth
    from ..trajectory.trajectory import TrajectoryLaw
    from .blocks import JacobianBlock

_BULKY = ("left", "vectors", "shapes")
"""Fields that JSON leaves out: vectors of the width of the state."""
__all__ = ["FullLoop", "LinearPart", "Linearization", "to_plain"]


@dataclass(frozen=True, slots=True, repr=False)
class Linearization:
    """Everything measured about one loop.

    Attributes:
        loops: Loops run to reach the state that was linearised.
        linear: The linear part; None without A̅.
        loop: The full loop; None when its Jacobian could not be taken.
        trajectory: Decay law of the steps, mean over tokens.
        tokens: The same for every token, with patterns and periods.
        fixed_points: Those found.
        start: Dependence of the end state on the start; None when not measured, as all below.
        input: Dependence on the input.
        modes: Modes seen in the recorded states.
        depth: Safe depth.
        skipped: What is missing, and why.
        seconds: Time each part took.
        variables: Decay law of the steps of every variable, pass by pass, where the loop carries several.
        blocks: How these act on each other in one pass at the last state: the blocks of the joint Jacobian.
        followed: Loops over which the laws were seen: more than ``loops`` where those did not tell.
    """

    loops: int
    linear: LinearPart | None
    loop: FullLoop | None
    trajectory: TrajectoryLaw
    tokens: TokenMap
    fixed_points: list[FixedPoint]
    start: StartDependence | None
    input: InputDependence | None
    modes: ModeDecomposition | None
    depth: SafeDepth | None
    skipped: dict[str, str]
    seconds: dict[str, float]
    variables: dict[str, TrajectoryLaw] = field(default_factory=dict)
    blocks: list[JacobianBlock] = field(default_factory=list)
    followed: int = 0

    def __repr__(self) -> str:
        """Show the verdict and every number with its bounds, one to a line."""
        return sheet([self.verdict, self.disagreement], self._rows())

    def _rows(self) -> Iterator[Row]:
        """Yield what the sheet shows, in the order in which docs/theory.md explains it."""
        if self.linear is not None:
            yield from rows_of_linear_part(self.linear)
        if self.loop is not None:
            yield from rows_of_loop(self.loop)
        yield from ((f"∂{each.of}/∂{each.by}", str(each).partition(": ")[2]) for each in self.blocks)
        yield "trajectory", self.trajectory.sentence
        yield from ((name, law.sentence) for name, law in self.variables.items())
        for point in self.fixed_points:
            starts = f", from {point.starts} starts" if point.starts > 1 else ""
            yield "fixed point", f"{point.kind}, ρ {point.radius:.3g}, residual {point.residual:.1e}{starts}"
        if self.start is not None:
            yield "start", self._start_words()
        if self.input is not None:
            yield "input", f"changes the end by {self.input.gain:.3g} times its own relative change"
        if self.depth is not None:
            yield "safe depth", self.depth.sentence.removeprefix("safe depth ")
        yield from (("left out", f"{part}: {reason}") for part, reason in self.skipped.items())

    @property
    def views(self) -> Views:
        """What linear part, full loop and trajectory say together, by the rule that `diagnose` uses too."""
        loop = self.loop
        law = replace(self.trajectory, regime="unknown") if self.in_transient else self.trajectory
        return law.beside(
            math.nan if self.linear is None else self.linear.radius.value,
            math.nan if loop is None else loop.log_radius,
            math.nan if loop is None else loop.lyapunov_max,
            steady=loop is not None and loop.steady,
            transient=loop is not None and loop.transient_exponent,
        )

    @property
    def regimes(self) -> dict[str, Regime]:
        """Regimes of the linear part, the full loop and the trajectory; ``unknown`` where not measured."""
        return self.views.regimes

    @property
    def regime(self) -> Regime:
        """The overall regime, see `loopscope.dynamics.overall`."""
        return self.views.verdict

    @property
    def in_transient(self) -> bool:
        """Whether the growth of the steps is no more than a transient of a loop with ρ_J < 1 explains: it grows, but
        how it ends was not seen.

        A drift or an orbit is explained so only where J was seen to be the same over the late loops: elsewhere the
        states change what the loop does. Of an orbit the transient must also still last, for J may be the same all
        around a cycle that attracts.
        """
        kind, loop = self.trajectory.kind, self.loop
        if loop is None or loop.regime != "stable":
            return False
        seen = self.followed or self.loops
        lasts = loop.radius.value**seen if kind == "orbiting" else 1.0
        explains = kind == "exploding" or (kind in ("drifting", "orbiting") and loop.steady)
        return explains and self.trajectory.grown(seen) <= lasts * loop.growth  # NaN where either is not known: False

    @property
    def attracting_cycle(self) -> bool:
        """Whether the states orbit and small differences shrink along the orbit."""
        return self.views.cycle

    @property
    def disagreement(self) -> str:
        """What it means when the three regimes differ; empty when they agree."""
        return self.views.sentence

    @property
    def verdict(self) -> str:
        """One line for a person."""
        parts = [self._linear_words(), self._loop_words()]
        # Where perturbations grow for ever there is no transient to speak of.
        if self.loop and self.loop.radius.value < 1 and not math.isnan(self.loop.growth):
            parts.append(f"transient {self.loop.growth_words}")
        transient = ", as a transient of this loop may" if self.in_transient else ""
        parts.append(self.trajectory.words + self._period_words() + transient)
        parts.append(", ".join(f"{name} {law.words}" for name, law in self.variables.items()))
        if self.depth is not None:
            parts.append(f"safe depth {self.depth.words}")
        return " | ".join(part for part in parts if part)

    def _linear_words(self) -> str:
        """Return the linear part in words."""
        if self.linear is None:
            return "LTI unknown (no A̅)"
        regime, radius = self.regimes["lti"], self.linear.radius
        return f"LTI {regime} (ρ {radius.value:.3f}{_certified_words(radius, regime)})"

    def _loop_words(self) -> str:
        """Return the full loop in words."""
        if self.loop is None:
            return "full loop unknown"
        exponent = "" if math.isnan(self.loop.lyapunov_max) else f", λ₁ {_signed(self.loop.lyapunov_max)}"
        share = self.loop.unstable_share
        where = f" for {100 * share:.0f} % of tokens" if self.regimes["loop"] == "unstable" and 0 < share < 1 else ""
        doubt = "" if self.loop.radius.converged else ", not converged"
        differ = ", which disagree" if self.views.rates_disagree else ""
        differs = rates_disagree(self.loop.log_radius, self.loop.lyapunov_max, at_rest=self.loop.steady)
        if differs and self.loop.transient_exponent:
            differ = ", a transient's"
        return f"full loop {self.regimes['loop']}{where} (ρ_J {self.loop.radius.value:.3g}{doubt}{exponent}{differ})"

    def _period_words(self) -> str:
        """Return the period of an orbit that most tokens share."""
        periods, counts = np.unique(self.tokens.period[self.tokens.pattern == "orbit"], return_counts=True)
        common = int(periods[counts.argmax()]) if self.trajectory.kind == "orbiting" and len(periods) else 0
        period = f" with period {common}" if common else ""
        return period + (": an attracting cycle" if self.attracting_cycle else "")

    def _start_words(self) -> str:
        """Return what became of the distance of different starts."""
        if self.start is None or not self.start.spread[0] > 0:
            return "every run began at the same state"
        rate = f" (distance × {self.start.factor:.3g} per loop)" if not math.isnan(self.start.factor) else ""
        return f"the end {'depends on it' if self.start.depends else 'forgets it'}{rate}"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries; states are left out, NaN and infinities become None."""
        plain: dict[str, Any] = to_plain(self)
        return {"verdict": self.verdict, "regimes": self.regimes, "disagreement": self.disagreement, **plain}

    def to_json(self, *, indent: int | None = None) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)


def _certified_words(radius: Estimate, regime: Regime) -> str:
    """Return what the proven bounds of ρ prove: the regime, or only on which side of 1 it is, or nothing.

    >>> _certified_words(Estimate(0.5, 0.4, 0.6, 0.0, "", True), "stable")
    ', certified'
    >>> _certified_words(Estimate(0.985, 0.98, 0.995, 0.0, "", True), "stable")
    ', certified < 1'
    """
    if {lti_regime(radius.lower), lti_regime(radius.upper)} == {regime}:
        return ", certified"
    if radius.upper < 1:
        return ", certified < 1"
    return ", certified > 1" if radius.lower > 1 else ""


def _signed(value: float) -> str:
    """Return a number with a real minus sign."""
    return f"{value:.2f}".replace("-", "−")


def to_plain(value: Any) -> Any:
    """Return dataclasses, arrays and complex numbers as JSON holds them: complex as [re, im], NaN and infinity as None.

    Tensors (states) are left out of dataclasses.

    >>> to_plain({"a": np.array([1.0, np.nan]), "b": 1 + 2j})
    {'a': [1.0, None], 'b': [1.0, 2.0]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in fields(value))
        return {name: to_plain(item) for name, item in pairs if not _is_tensor(item) and name not in _BULKY}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, complex):
        return [to_plain(value.real), to_plain(value.imag)]
    if isinstance(value, np.generic):
        return to_plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_tensor(value: object) -> bool:
    """Return whether this is a torch tensor, without importing torch."""
    return type(value).__module__.split(".")[0] == "torch"
