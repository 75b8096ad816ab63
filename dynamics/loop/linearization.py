"""The result of `linearize_loop`: every number about one loop at one checkpoint, its regimes, its verdict, and JSON.

Not covered: computing the numbers (`dynamics.linearize`) and drawing them (the dashboard).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..estimate import Estimate
from ..regime import LYAPUNOV_TOLERANCE, Regime, Views, full_loop_regime, lti_regime, rates_disagree
from ..shown import Shown
from .sheet import sheet

if TYPE_CHECKING:
    from ..linear.transient import PeakGrowth
    from ..trajectory.dependence import InputDependence, StartDependence
    from ..trajectory.dmd import ModeDecomposition
    from ..trajectory.fixed_point import FixedPoint
    from ..trajectory.orbits import TokenMap
    from ..trajectory.safe_depth import SafeDepth
    from ..trajectory.trajectory import TrajectoryLaw
    from .attribution import SublayerGain
    from .blocks import JacobianBlock

_BULKY = ("left", "vectors", "shapes")
"""Fields that JSON leaves out: vectors of the width of the state."""
Structure = Literal["per token", "whole"]
"""What eigenvalues and exponents are of: every token's own Jacobian, or the whole operator."""
__all__ = ["FullLoop", "LinearPart", "Linearization", "to_plain"]


@dataclass(frozen=True, slots=True)
class LinearPart:
    """The loop without its blocks, ``h[t+1] = A̅ h[t] + B̅ e``.

    Attributes:
        radius: ρ(A̅) with proven bounds.
        certificate: ``certified stable``, ``certified unstable``, ``certified marginal`` or ``undecided``.
        norm: σ_max(A̅).
        peak_growth: ``max_t ‖A̅^t‖₂``.
        input_norm: σ_max(B̅); None when B̅ was not given.
        read_out_norm: σ_max(C_out); None when C_out was not given.
    """

    radius: Estimate
    certificate: str
    norm: Estimate
    peak_growth: Estimate
    input_norm: Estimate | None
    read_out_norm: Estimate | None


@dataclass(frozen=True, slots=True, repr=False)
class FullLoop(Shown):
    """The Jacobian of the whole loop at the last state visited, and along the way there.

    Attributes:
        eigenvalues: Leading ones: ``(B, S, k)`` per token, or ``(k,)`` of the whole operator; complex128; empty when
            not measured.
        spectrum: What eigenvalues and exponents are of: ``per token`` (exact, causal loops) or ``whole``.
        radius: ρ_J, the largest modulus.
        lyapunov_max: λ₁ over the late loops, nats per loop, the largest over tokens; NaN when not measured.
        lyapunov_error: Its standard error; NaN when there were too few loops to tell.
        frozen_max: λ₁ over as many loops with the Jacobian held at the last state, measured where λ₁ is above ``log
            ρ_J``: a transient that passes for an exponent passes for one there too. NaN when not measured.
        steady: Whether J was seen to be the same over the late loops: ρ_J is then the rate for ever.
        exponents: Exponents, largest first: ``(B, S, k)`` per token, ``(k,)`` of the whole loop; None when not
            measured.
        norm: σ_max(J), one loop; None when not measured, as all below.
        left: Left eigenvector of the leading eigenvalue of each token, ``(B, S, D)``.
        c_out_gain: Mean over tokens of ‖C_out h_T‖ / ‖h_T‖; NaN without a C_out.
        abscissa: Largest eigenvalue of the symmetric part of J.
        transient: ``‖J^t‖₂`` for some t.
        peak: The largest ``‖J^t‖₂`` over all t, or what was attained of it.
        gap: ``σ_max(J - A̅) / σ_max(A̅)``.
        sublayers: Shares of ``log ρ_J`` by sublayer, of the token with the largest radius.
    """

    eigenvalues: NDArray[np.complex128]
    spectrum: Structure
    radius: Estimate
    lyapunov_max: float
    lyapunov_error: float
    exponents: NDArray[np.float64] | None
    norm: Estimate | None
    frozen_max: float = math.nan
    steady: bool = False
    left: NDArray[np.complex128] | None = None
    c_out_gain: float = math.nan
    abscissa: Estimate | None = None
    transient: dict[int, Estimate] = field(default_factory=dict)
    peak: PeakGrowth | None = None
    gap: Estimate | None = None
    sublayers: list[SublayerGain] = field(default_factory=list)

    @property
    def radii(self) -> NDArray[np.float64] | None:
        """Spectral radius of every token's own Jacobian ``(B, S)``; None where not per token or not converged."""
        if self.spectrum != "per token" or not self.radius.converged:
            return None
        return np.asarray(np.abs(self.eigenvalues[..., 0]), np.float64)

    @property
    def log_radius(self) -> float:
        """``log ρ_J``, nats per loop; NaN where ρ_J did not converge."""
        if not self.radius.converged:
            return math.nan
        return math.log(self.radius.value) if self.radius.value > 0 else -math.inf

    @property
    def transient_exponent(self) -> bool:
        """Whether λ₁ is above ``log ρ_J`` < 0 only because the loop is not normal: that of J held fixed is, too."""
        return self.log_radius < 0 and self.lyapunov_max <= self.frozen_max + LYAPUNOV_TOLERANCE

    @property
    def regime(self) -> Regime:
        """From ``log ρ_J`` and λ₁: ``marginal`` where the two disagree, that of ρ_J where λ₁ is a transient's."""
        return full_loop_regime(
            self.log_radius, self.lyapunov_max, transient=self.transient_exponent, at_rest=self.steady
        )

    @property
    def rates_disagree(self) -> bool:
        """Whether ``log ρ_J`` and λ₁ are in different regimes, and no transient explains it."""
        differ = rates_disagree(self.log_radius, self.lyapunov_max, at_rest=self.steady)
        return differ and not self.transient_exponent

    @property
    def unstable_share(self) -> float:
        """Share of the tokens whose own radius and exponent (as far as it was measured) are both in the unstable
        regime; NaN where tokens were not told apart.
        """
        if self.spectrum != "per token" or not self.eigenvalues.size:
            return math.nan
        with np.errstate(divide="ignore"):
            rates = np.log(np.abs(self.eigenvalues[..., 0]))
        if self.exponents is not None:
            rates = np.minimum(rates, self.exponents[..., 0])
        return float(np.mean(rates > LYAPUNOV_TOLERANCE))

    @property
    def growth(self) -> float:
        """Largest growth of any perturbation over any number of loops that was tried, at least 1; NaN when not
        measured.
        """
        tried = [estimate.value for estimate in self.transient.values()]
        if self.peak is not None:
            tried.append(self.peak.growth.value)
        return max([1.0, *tried]) if tried else math.nan

    @property
    def growth_words(self) -> str:
        """`growth` as a factor; "at least" where it was not all that there may be, and whether it was still rising."""
        if self.peak is not None and self.peak.growth.converged:
            return f"×{self.growth:.3g}"
        rising = f", still rising at loop {self.peak.loop}" if self.peak is not None and self.peak.rising else ""
        return f"at least ×{self.growth:.3g}{rising}"


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

    def __repr__(self) -> str:
        """Show the verdict and every number with its bounds, one to a line."""
        return sheet(self)

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

        A drift is explained so only where J was seen to be the same over the late loops: elsewhere the states change
        what the loop does.
        """
        kind, loop = self.trajectory.kind, self.loop
        if loop is None or loop.regime != "stable" or not (kind == "exploding" or (kind == "drifting" and loop.steady)):
            return False
        return self.trajectory.grown(self.loops) <= loop.growth  # NaN where either is not known: False

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
