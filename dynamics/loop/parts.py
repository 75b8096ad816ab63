"""The two parts of a linearised loop: the linear one, and the loop as a whole with its Jacobian.

Not covered: the verdict over both and the trajectory (`linearization`), and computing them (`linearize`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..estimate import Estimate
from ..regime import LYAPUNOV_TOLERANCE, Regime, full_loop_regime, rates_disagree
from ..shown import Shown

if TYPE_CHECKING:
    from ..linear.transient import PeakGrowth
    from .attribution import SublayerGain

Structure = Literal["per token", "whole"]
"""What eigenvalues and exponents are of: every token's own Jacobian, or the whole operator."""


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
