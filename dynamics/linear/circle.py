"""Global maxima of spectral functions over a circle or an angle, by level sets rather than by grids.

To know that nothing on the circle exceeds a level, ask at which angles the function equals the level: those are
eigenvalues, on the unit circle, of a pencil of twice the size. No such angle: the level is an upper bound. Otherwise
the function is higher somewhere between neighbouring angles, and the midpoints give the next level.

Not covered: widths beyond a few hundred in comfort; a pencil of size 2d costs a few hundred d³ operations for each
level.
"""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

# Relative height above the best value at which the level is put; the accuracy of every maximum found here.
LEVEL: Final = 1e-7
# Tangential crossings are double eigenvalues, which rounding moves off the circle by about its square root. An angle
# taken in by mistake only costs an evaluation.
NEAR_CIRCLE: Final = 1e-4


class Peak(NamedTuple):
    """Largest value found, its angle in radians, an upper bound of all values, and whether that is tight."""

    value: float
    angle: float
    upper: float
    converged: bool


def highest(
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    crossings: Callable[[float], NDArray[np.float64]],
    starts: NDArray[np.float64],
) -> Peak:
    """Maximise a periodic function, given its values at angles and the angles at which it crosses a level."""
    heights = value(starts)
    best, angle = float(heights.max()), float(starts[heights.argmax()])
    for _ in range(30):
        level = best * (1 + LEVEL)
        angles = np.sort(np.mod(crossings(level), 2 * math.pi))
        if angles.size == 0:
            return Peak(best, angle, level, True)
        following = np.append(angles[1:], angles[0] + 2 * math.pi)
        middles = (angles + following) / 2
        heights = value(middles)
        if heights.max() <= level:
            # Crossings without anything above them are touching or spurious ones: the level holds.
            return Peak(max(best, float(heights.max())), angle, level, True)
        best, angle = float(heights.max()), float(middles[heights.argmax()] % (2 * math.pi))
    return Peak(best, angle, math.inf, False)


def resolvent_peak(a: Matrix, b: Matrix, c: Matrix, radius: float) -> Peak:
    """Return largest σ_max(C (zI − A)⁻¹ B) over the circle |z| = radius, which must not pass through an eigenvalue."""
    from scipy.linalg import eigvals

    width, identity = len(a), np.eye(len(a))
    inputs, outputs = b @ b.T, c.T @ c
    whole = b.shape == c.shape == a.shape and np.array_equal(b, identity) and np.array_equal(c, identity)

    def value(angles: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the response at each angle, one factorisation each."""
        shifted = (radius * np.exp(1j * angle) * identity - a for angle in angles)
        if whole:
            return np.array([1 / np.linalg.svd(s, compute_uv=False)[-1] for s in shifted])
        return np.array([np.linalg.norm(c @ np.linalg.solve(s, b), 2) for s in shifted])

    def crossings(level: float) -> NDArray[np.float64]:
        """Return the angles at which some singular value of the response equals the level."""
        zero = np.zeros((width, width))
        left = np.block([[a, inputs / level], [zero, radius * identity]])
        right = np.block([[radius * identity, zero], [outputs / level, a.T]])
        return on_circle(np.asarray(eigvals(left, right)))

    return highest(value, crossings, starting_angles(np.linalg.eigvals(a).astype(np.complex128)))


def on_circle(values: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Return the angles of the values that lie on the unit circle, up to rounding."""
    finite = values[np.isfinite(values)]
    return np.asarray(np.angle(finite[np.abs(np.abs(finite) - 1) < NEAR_CIRCLE]), dtype=np.float64)


def starting_angles(eigenvalues: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Angles likely to be near a maximum: a coarse half circle (real matrices are symmetric), leading eigenvalues."""
    leading = eigenvalues[np.argsort(-np.abs(eigenvalues))[:8]]
    return np.concatenate([np.linspace(0, math.pi, 9), np.abs(np.angle(leading))])
