"""Spectral radius and spectral norm of one matrix, computed from scratch.

These are the exact, dense answers (LAPACK), for matrices up to a few thousand wide. Every step of a training run is
served by ``tracker``, proof by ``certificate``, operators that are never formed by ``arnoldi`` and ``golub_kahan``.

Not covered: sparse matrices, and the full loop (``jacobian``).
"""

import numpy as np

from .arrays import ROUNDING, as_float64
from .estimate import Estimate
from .lti import LTISystem


def spectral_radius(a: object) -> Estimate:
    """Does repeated multiplication by this matrix die out? Largest modulus of an eigenvalue; below one it does.

    Cost: O(d) for a number or a diagonal; O(d³) for a matrix: 0.4 s at d = 768 and 0.9 s at d = 1024 on one core.

    Args:
        a: Number, diagonal ``(d,)`` or square matrix ``(d, d)``; numpy or torch, any device; computed in float64 on
            the CPU.

    Returns:
        Estimate, dimensionless; see ``LTISystem.spectral_radius`` for what its bounds and residual mean.

    Raises:
        ValueError: NaN, infinity, or not square.

    Source: Golub and Van Loan, Matrix Computations, sections 7.1-7.5.

    >>> round(spectral_radius([[0.0, 2.0], [-2.0, 0.0]]).value, 12)
    2.0
    """
    return LTISystem(a).spectral_radius()


def spectral_norm(a: object) -> Estimate:
    """How much can one multiplication stretch a vector? Largest singular value; never below the spectral radius.

    Cost: O(d) for a number or a diagonal; O(d³) for a matrix: 0.2 s at d = 768 on one core.

    Args:
        a: Number, diagonal ``(d,)`` or matrix ``(m, n)``; numpy or torch, any device; computed in float64 on the CPU.

    Returns:
        Estimate, in the unit of the entries.

    Raises:
        ValueError: NaN or infinity.

    Source: Golub and Van Loan, Matrix Computations, sections 2.4 and 8.6.

    >>> spectral_norm([[3.0, 0.0, 4.0]]).value
    5.0
    """
    matrix = as_float64(a, "a")
    if matrix.size == 0:
        raise ValueError(f"a must hold at least one entry; found shape {matrix.shape}")
    if matrix.ndim < 2:
        return Estimate.exact(float(np.abs(matrix).max()), "exact, diagonal")
    value = float(np.linalg.norm(matrix, 2))
    # LAPACK's error is a modest multiple of the rounding of the largest singular value; four per row cover it.
    slack = 4 * max(matrix.shape) * ROUNDING
    return Estimate(value, value * (1 - slack), value * (1 + slack), slack, "singular values (LAPACK)", True)
