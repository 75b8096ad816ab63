"""Growth before decay: how large powers of A̅ become although the spectral radius says that they die out.

Eigenvector condition numbers and departures from normality do not predict this growth; powers and resolvents do.

Not covered: growth of the full loop (``lyapunov``), and widths beyond a few hundred in comfort for the Kreiss
constant and the numerical radius (see ``circle``); the peak itself is computed at model width.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..arrays import ROUNDING
from ..estimate import Estimate
from .certificate import certify_radius
from .circle import highest, on_circle, resolvent_peak, starting_angles
from .lti import LTISystem, Matrix
from .norm_bound import norm_bound
from .spectrum import sigma_max

# Powers past the horizon are squared this often at most: 2^40 times the horizon is for ever.
SQUARINGS: Final = 40


@dataclass(frozen=True, slots=True)
class PeakGrowth:
    """Largest growth of any state over any number of loops.

    Attributes:
        growth: max over t >= 0 of ‖A̅^t‖₂, dimensionless (at least 1, the value at t = 0); infinite where ρ > 1 is
            beyond doubt. ``lower`` is attained; ``upper`` is infinite where no end of the growth was seen.
        loop: The t at which ``growth.value`` is reached; -1 where the growth has no end.
        rising: Whether the largest power was the last one tried, so that ``growth`` is only "at least".
    """

    growth: Estimate
    loop: int
    rising: bool = False


def peak_growth(system: LTISystem, horizon: int = 1000) -> PeakGrowth:
    """How far can a state be thrown before the linear part brings it back? max over t of ‖A̅^t‖₂, and when.

    Powers are multiplied up until one has a norm below one: from there on every power is a product of smaller ones,
    so the largest seen is proven to be the largest of all. If none falls below one within the horizon, the last power
    is squared on until one does, which encloses the maximum. A matrix that stretches nothing (σ_max <= 1 up to
    rounding: rotations, permutations) has the peak 1. Cost: O(d) for diagonal A̅, else one product per loop, and a
    norm only where the cheaper Frobenius norm leaves room for a new maximum.

    Args:
        system: The linear part; only A̅ matters.
        horizon: Loops after which powers are no longer tried one by one, at least 1.

    Returns:
        PeakGrowth, dimensionless. Converged when the maximum is proven; otherwise ``growth.lower`` was attained, and
        ``rising`` tells that the last power tried was the largest.

    Raises:
        ValueError: ``horizon`` below 1.

    Source: Trefethen and Embree, Spectra and Pseudospectra (2005), chapter 16; submultiplicativity of the norm.

    >>> peak = peak_growth(LTISystem([[0.5, 10.0], [0.0, 0.5]]))
    >>> round(peak.growth.value, 2), peak.loop, peak_growth(LTISystem([0.9])).growth.value
    (10.02, 1, 1.0)
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1; found {horizon}")
    if grows_for_ever(system):
        return PeakGrowth(Estimate(math.inf, math.inf, math.inf, 0.0, "unbounded: ρ > 1", True), -1)
    if system.a_bar.ndim < 2:
        return PeakGrowth(Estimate.exact(1.0, "exact, diagonal"), 0)
    if stretches_nothing(system.a_bar):
        return PeakGrowth(Estimate(1.0, 1.0, 1.0, 0.0, "σ_max <= 1 up to rounding", True), 0)
    best, loop, power = 1.0, 0, np.eye(system.width)
    for t in range(1, horizon + 1):
        power = power @ system.a_bar
        if not _in_range(power):
            return PeakGrowth(Estimate(best, best, math.inf, math.nan, f"powers up to t = {t - 1}", False), loop, True)
        if 1 <= norm_bound(power) <= best:
            continue
        size = sigma_max(power)
        if size > best:
            best, loop = size, t
        if size < 1:
            method = f"powers up to the first below one, t = {t}"
            return PeakGrowth(Estimate(best, best, best, 0.0, method, True), loop)
    return _enclosed(power, horizon, best, loop)


def _enclosed(power: Matrix, horizon: int, best: float, loop: int) -> PeakGrowth:
    """Return the peak, given A̅^horizon and the largest norm up to there: square on until a power falls below one."""
    squares, sizes = [power], [norm_bound(power)]
    while sizes[-1] >= 1 and len(squares) <= SQUARINGS:
        squares.append(squares[-1] @ squares[-1])
        if not _in_range(squares[-1]):
            break
        sizes.append(norm_bound(squares[-1]))
    if sizes[-1] >= 1:
        method = f"powers up to t = {horizon}"
        return PeakGrowth(Estimate(best, best, math.inf, math.nan, method, False), loop, loop == horizon)
    # Every power is A̅^r, r < horizon, times some of the squares: at most best times their norms above one.
    upper = best * math.prod(sizes[:-1])
    best, loop = max((best, loop), _climbed(squares, horizon))
    method = f"powers up to t = {horizon}, squares up to t = {horizon << (len(squares) - 1)}"
    return PeakGrowth(Estimate(best, best, max(upper, best), math.nan, method, False), loop)


def _in_range(power: Matrix) -> bool:
    """Return whether its entries can be squared and added; a matrix of ρ < 1 can pass that range and come back."""
    return bool(np.abs(power).max() < 1e140)


def _climbed(squares: list[Matrix], horizon: int) -> tuple[float, int]:
    """Largest norm met, and its t, when bisecting around the largest square for the place where powers stop growing.

    A smooth rise and fall, as that of slowly decaying modes, has its maximum there; nothing is proven.
    """
    norms = [sigma_max(square) for square in squares if _in_range(square)]
    at = int(np.argmax(norms))
    start = max(at - 1, 0)
    power, t, best = squares[start], horizon << start, (norms[at], horizon << at)
    for j in range(at, -1, -1):
        middle = power @ squares[j]
        later = middle @ squares[0]
        size, after = sigma_max(middle), sigma_max(later)
        best = max(best, (size, t + (horizon << j)), (after, t + (horizon << j) + horizon))
        if after >= size:
            power, t = middle, t + (horizon << j)
    return best


def grows_for_ever(system: LTISystem) -> bool:
    """Return whether ρ(A̅) > 1 is beyond doubt: proven by traces, or farther above one than rounding moves ρ.

    An eigenvalue computed as 1 + 2e-16 (a rotation) or 1 + 1e-8 (a Jordan block of ones) proves no growth.

    Source: first-order error of an eigenvalue, condition number times backward error; Golub and Van Loan, section 7.2.

    >>> grows_for_ever(LTISystem([[0.0, -1.0], [1.0, 0.0]])), grows_for_ever(LTISystem([[0.0, -1.1], [1.1, 0.0]]))
    (False, True)
    """
    radius = system.spectral_radius()
    if radius.value <= 1:
        return False
    if system.a_bar.ndim < 2:
        return True
    from scipy.linalg import eig

    # The stubs of scipy know the plain call only, which returns two arrays.
    three: Any = eig(system.a_bar, left=True, right=True)
    values, left, right = three
    at = int(np.argmax(np.abs(values)))
    cosine = abs(np.vdot(left[:, at], right[:, at]))
    backward = 10 * system.width * ROUNDING * float(np.linalg.norm(system.a_bar))
    if (radius.value - 1) * cosine > backward:
        return True
    return certify_radius(system.a_bar).lower > 1


def stretches_nothing(a: Matrix) -> bool:
    """Return whether no vector becomes longer, up to rounding: then no power stretches either."""
    return sigma_max(a) <= 1 + 4 * len(a) * ROUNDING


def numerical_radius(system: LTISystem) -> Estimate:
    """Return the largest |xᴴA̅x| of a unit vector: between ρ and σ_max, at least σ_max/2, and ‖A̅^t‖ <= 2w^t.

    Below one it rules out growth beyond twofold at any loop. Cost: O(d) for diagonal A̅, else a few pencils of size 2d.

    Args:
        system: The linear part; only A̅ matters.

    Returns:
        Estimate, dimensionless: the value is attained, no angle exceeds the upper bound.

    Source: level sets of Mengi and Overton, IMA Journal of Numerical Analysis 25 (2005) 648-669; Berger's inequality.

    >>> round(numerical_radius(LTISystem([[0.0, 1.0], [0.0, 0.0]])).value, 6)
    0.5
    """
    if system.a_bar.ndim < 2:
        return system.spectral_radius()
    from scipy.linalg import eigvals

    a, width = system.a_bar, system.width
    if not a.any():
        return Estimate.exact(0.0, "exact, zero")
    zero, identity = np.zeros((width, width)), np.eye(width)

    def value(angles: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the largest eigenvalue of the Hermitian part of the turned matrix."""
        turned = (np.exp(1j * angle) * a for angle in angles)
        return np.array([np.linalg.eigvalsh((m + m.conj().T) / 2)[-1] for m in turned])

    def crossings(level: float) -> NDArray[np.float64]:
        """Return the angles where z²A − 2·level·z + Aᵀ is singular on the unit circle."""
        left = np.block([[zero, identity], [-a.T, 2 * level * identity]])
        right = np.block([[identity, zero], [zero, a]])
        return on_circle(np.asarray(eigvals(left, right)))

    peak = highest(value, crossings, starting_angles(system.eigenvalues()))
    return Estimate(peak.value, peak.value, peak.upper, math.nan, "level sets over the angle", peak.converged)


def kreiss_constant(system: LTISystem) -> Estimate:
    """Bound transient growth from below by the resolvent: sup over |z| > 1 of (|z| − 1)·‖(zI − A̅)⁻¹‖₂.

    K <= max_t ‖A̅^t‖ <= e·d·K. One for every normal matrix with ρ <= 1 (rotations included), infinite for ρ > 1.
    Cost: about 30 searches on
    circles, each a few pencils of size 2d (1 s at d = 50).

    Args:
        system: The linear part; only A̅ matters.

    Returns:
        Estimate, dimensionless. The value is attained, so it is a lower bound; the search over |z| is a grid refined
        around its best circle, so a higher maximum elsewhere is possible, and the upper bound is the peak growth
        itself.

    Source: Kreiss matrix theorem; Trefethen and Embree, Spectra and Pseudospectra (2005), chapter 18.

    >>> kreiss_constant(LTISystem([0.9, 0.1])).value
    1.0
    """
    if grows_for_ever(system):
        return Estimate(math.inf, math.inf, math.inf, 0.0, "unbounded: ρ > 1", True)
    if system.a_bar.ndim < 2:
        return Estimate.exact(1.0, "exact, diagonal")
    if stretches_nothing(system.a_bar):
        return Estimate.exact(1.0, "σ_max <= 1 up to rounding")
    a, identity = system.a_bar, np.eye(system.width)
    # From far outside, where the product tends to one, to a hair outside the circle.
    logs = np.linspace(math.log(10 * (1 + sigma_max(a))), math.log(1e-6), 24)
    rough = np.array([_on_circle(a, identity, log) for log in logs])
    best = int(rough.argmax())
    from scipy.optimize import minimize_scalar

    bracket = (logs[min(best + 1, len(logs) - 1)], logs[max(best - 1, 0)])
    refined = minimize_scalar(
        lambda log: -_on_circle(a, identity, log), bounds=bracket, method="bounded", options={"xatol": 1e-4}
    )
    value = max(float(rough.max()), -float(refined.fun), 1.0)
    upper = max(peak_growth(system).growth.upper, value)
    # Highest on the last circle: it may rise further towards the unit circle, as for a Jordan block of ones.
    settled = bool(refined.success) and best < len(logs) - 1
    return Estimate(value, value, upper, math.nan, "circles, refined around the best", settled)


def _on_circle(a: Matrix, identity: Matrix, log_distance: float) -> float:
    """Return (|z| − 1) times the largest resolvent norm on one circle."""
    distance = math.exp(log_distance)
    return distance * resolvent_peak(a, identity, identity, 1 + distance).value
