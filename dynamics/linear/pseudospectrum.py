"""Where the eigenvalues of A̅ can be moved by a small change of it: what decides how far "stable" is from "unstable".

The ε-pseudospectrum is the set of z with σ_min(zI − A̅) <= ε: all eigenvalues of all matrices within ε of A̅.

Not covered: structured perturbations (changes of single entries), and widths beyond a few hundred in comfort.
"""

import math

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_float64
from ..estimate import Estimate
from .circle import NEAR_CIRCLE, on_circle
from .lti import LTISystem, Matrix


def pseudospectral_radius(system: LTISystem, epsilon: float) -> Estimate:
    """How large can ρ become if A̅ changes by at most ε in spectral norm?

    Cost: O(d) for diagonal A̅ (then ρ + ε, as for every normal matrix), else a few eigenproblems of size 2d per step,
    usually three to five steps (0.05 s at d = 50, 2.5 s at d = 200).

    Args:
        system: The linear part; only A̅ matters.
        epsilon: Size ε >= 0 of the change, in the unit of A̅.

    Returns:
        Estimate, dimensionless; ``lower`` is ρ + ε, which some change always attains. Converged when the last circular
        search saw nothing outside ``upper``. Unconverged, with an infinite upper bound, when the search lost the
        boundary, as it does for ε below the rounding of the matrix.

    Raises:
        ValueError: Negative or non-finite ε.

    Source: criss-cross iteration of Mengi and Overton, IMA Journal of Numerical Analysis 25 (2005) 648-669.

    >>> pseudospectral_radius(LTISystem([0.5, -0.9]), 0.05).value
    0.9500000000000001
    """
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be a finite number of at least 0; found {epsilon}")
    radius = system.spectral_radius()
    if epsilon == 0 or system.a_bar.ndim < 2:
        return Estimate(
            radius.value + epsilon, radius.lower + epsilon, radius.upper + epsilon, 0.0, radius.method, True
        )
    a = system.a_bar
    angles = np.array([np.angle(system.eigenvalues()[0])])
    # Moving the leading eigenvalue outwards by ε along its own vector is one such change, so this much is attained.
    attained = radius.value + epsilon
    best = attained
    for _ in range(50):
        outermost = max(_outermost(a, epsilon, angle) for angle in angles)
        if outermost < best * (1 - 1e-6):
            # The search along the ray lost the boundary that is known to be there.
            return Estimate(best, attained, math.inf, math.nan, "criss-cross, no crossing seen", False)
        if outermost <= best * (1 + 1e-12) and best > attained:
            return Estimate(best, attained, best * (1 + 1e-6), math.nan, "criss-cross", True)
        best = max(best, outermost)
        angles = _outside(a, epsilon, best * (1 + 1e-9))
        if angles.size == 0:
            return Estimate(best, attained, best * (1 + 1e-6), math.nan, "criss-cross", True)
    return Estimate(best, attained, math.inf, math.nan, "criss-cross", False)


def pseudospectrum_on_grid(system: LTISystem, real: object, imaginary: object) -> Matrix:
    """Return the landscape whose contours are the pseudospectra: σ_min(zI − A̅) on a grid of the complex plane.

    Cost: O(d) a point for diagonal A̅, else one singular value decomposition a point (1 ms at d = 50, 0.3 s at d = 768).

    Args:
        system: The linear part; only A̅ matters.
        real: Real parts ``(n,)``.
        imaginary: Imaginary parts ``(m,)``.

    Returns:
        ``(m, n)``, in the unit of A̅; the contour at height ε bounds the ε-pseudospectrum.

    Raises:
        ValueError: Non-finite grid or one that is not a vector.

    Source: Trefethen and Embree, Spectra and Pseudospectra (2005), chapter 39.

    >>> pseudospectrum_on_grid(LTISystem([0.5]), [0.5, 1.0], [0.0]).tolist()
    [[0.0, 0.5]]
    """
    x, y = as_float64(real, "real"), as_float64(imaginary, "imaginary")
    if x.ndim != 1 or y.ndim != 1:
        raise ValueError(f"real and imaginary must be vectors; found shapes {x.shape} and {y.shape}")
    points = x[None, :] + 1j * y[:, None]
    if system.a_bar.ndim < 2:
        diagonal = np.atleast_1d(system.a_bar)
        return np.asarray(np.abs(points[..., None] - diagonal).min(-1), dtype=np.float64)
    heights = np.empty(points.shape)
    # A real matrix looks the same above and below the axis: rows with opposite imaginary parts are computed once.
    known: dict[float, NDArray[np.float64]] = {}
    for row, height in enumerate(np.abs(y)):
        if height not in known:
            shifted = ((xx + 1j * height) * np.eye(system.width) - system.a_bar for xx in x)
            known[height] = np.array([np.linalg.svd(s, compute_uv=False)[-1] for s in shifted])
        heights[row] = known[height]
    return heights


def _outermost(a: Matrix, epsilon: float, angle: float) -> float:
    """Return the largest r with σ_min(r e^{iθ}I − A) = ε: a real eigenvalue of a matrix of twice the size."""
    turned = np.exp(-1j * angle) * a
    identity = epsilon * np.eye(len(a))
    values = np.linalg.eigvals(np.block([[turned, identity], [identity, turned.conj().T]]))
    real = values.real[np.abs(values.imag) <= NEAR_CIRCLE * (1 + np.abs(values))]
    # Only points that really lie in the pseudospectrum count; 1e-6 allows for the rounding of a tangential crossing.
    for r in np.sort(real)[::-1]:
        shifted = r * np.eye(len(a)) - turned
        if r > 0 and np.linalg.svd(shifted, compute_uv=False)[-1] <= epsilon * (1 + 1e-6):
            return float(r)
    return 0.0


def _outside(a: Matrix, epsilon: float, radius: float) -> NDArray[np.float64]:
    """Return the middles of the arcs of the circle that lie inside the pseudospectrum."""
    from scipy.linalg import eigvals

    width, identity = len(a), np.eye(len(a))
    zero = np.zeros((width, width))
    left = np.block([[a, epsilon * identity], [zero, radius * identity]])
    right = np.block([[radius * identity, zero], [epsilon * identity, a.T]])
    angles = np.sort(np.mod(on_circle(np.asarray(eigvals(left, right))), 2 * math.pi))
    if angles.size == 0:
        return angles
    middles = (angles + np.append(angles[1:], angles[0] + 2 * math.pi)) / 2
    points = radius * np.exp(1j * middles)
    inside = [np.linalg.svd(z * identity - a, compute_uv=False)[-1] < epsilon for z in points]
    return np.asarray(middles[np.array(inside)], dtype=np.float64)
