"""Largest singular value from products with A and Aᵀ only: Golub-Kahan-Lanczos bidiagonalisation.

Works on numpy arrays and on torch tensors of any device; on a GPU the small bidiagonal matrix is fetched once per run.

Not covered: interior and smallest singular values, and proof that the value found is the largest: it is always a
lower bound.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..arrays import as_numpy
from ..shown import Shown
from .arnoldi import Vector, empty, norm

# Rounding of a product and of its orthogonalisation, in units of the dtype's, below which a new direction is noise.
BREAKDOWN = 16


@dataclass(frozen=True, slots=True, repr=False)
class RitzSingular(Shown):
    """Approximate largest singular value of one operator.

    Attributes:
        value: Largest Ritz value: a lower bound of σ_max up to rounding.
        residual: ‖Aᵀu − σv‖₂ for the unit Ritz vectors; some singular value lies within it.
        right: Unit right Ritz vector ``(n,)``, to start the next run from.
        products: Products with A and Aᵀ together.
    """

    value: float
    residual: float
    right: Vector
    products: int


def golub_kahan(
    apply: Callable[[Vector], Vector], apply_transpose: Callable[[Vector], Vector], start: Vector, *, steps: int = 20
) -> RitzSingular:
    r"""Return the largest singular value of a linear operator, given its products and those of its transpose.

    Builds orthonormal U, V with A V = U B, B upper bidiagonal, and takes the largest singular value of B. Costs ``2 *
    steps`` products and O(steps² n).

    Args:
        apply: Product A @ v, ``(n,)`` to ``(m,)``, linear.
        apply_transpose: Product Aᵀ @ u, ``(m,)`` to ``(n,)``.
        start: Start vector ``(n,)``, float32 or float64, not zero; random, or the ``right`` of an earlier run.
        steps: Dimension of the subspace, at most n is used.

    Returns:
        RitzSingular, in the unit of A.

    Raises:
        FloatingPointError: A product held NaN or infinity.

    Source: Golub and Kahan, SIAM J. Numerical Analysis 2 (1965) 205-224.

    >>> scale = np.array([0.5, -2.0, 0.1])
    >>> round(golub_kahan(lambda v: scale * v, lambda u: scale * u, np.ones(3)).value, 12)
    2.0
    """
    # What is not finite is reported by _largest, once, as an error.
    with np.errstate(over="ignore", invalid="ignore"):
        return _largest(*_bidiagonal(apply, apply_transpose, start, min(steps, start.shape[0])))


def _bidiagonal(
    apply: Callable[[Vector], Vector], apply_transpose: Callable[[Vector], Vector], start: Vector, size: int
) -> tuple[Vector, Vector, Vector]:
    """Return the fully orthogonalised Lanczos bidiagonalisation: diagonal and upper diagonal of B, rows of Vᵀ."""
    right = empty(start, size + 1, start.shape[0])
    right[0] = start / norm(start)
    image = apply(right[0])
    left = empty(start, size, image.shape[0])
    diagonal, above = empty(start, size), empty(start, size)
    for j in range(size):
        diagonal[j], left[j] = _next(image, left[:j])
        above[j], right[j + 1] = _next(apply_transpose(left[j]), right[: j + 1])
        if j + 1 < size:
            image = apply(right[j + 1])
    return diagonal, above, right


def _next(vector: Vector, rows: Vector) -> tuple[Vector, Vector]:
    """Return the length and direction of what orthonormal rows leave of a vector; zeros where that is rounding.

    The subspace is invariant then. Rounding scaled up to unit length would be orthogonal to nothing, and its Ritz
    values could exceed the norm; with zeros the rest of the matrix stays empty, without waiting for a device.
    """
    rest = _orthogonal(vector, rows)
    length = norm(rest)
    real = length > BREAKDOWN * float(np.finfo(as_numpy(vector[:0]).dtype).eps) * norm(vector)
    return length * real, rest * (real / (length + float(np.finfo(np.float32).tiny)))


def _orthogonal(vector: Vector, rows: Vector) -> Vector:
    """Remove the components along orthonormal rows, twice, so that rounding leaves none."""
    if rows.shape[0] == 0:
        return vector
    vector = vector - (rows @ vector) @ rows
    return vector - (rows @ vector) @ rows


def _largest(diagonal: Vector, above: Vector, right: Vector) -> RitzSingular:
    """Return the largest singular triple of the bidiagonal matrix, carried back to the full space."""
    alpha, beta = as_numpy(diagonal).astype(np.float64), as_numpy(above).astype(np.float64)
    if not (np.isfinite(alpha).all() and np.isfinite(beta).all()):
        raise FloatingPointError("a product with the operator held NaN or infinity")
    size = alpha.size
    u, s, vt = np.linalg.svd(np.diag(alpha) + np.diag(beta[:-1], 1))
    if isinstance(right, np.ndarray):
        weights: Vector = vt[0].astype(right.dtype)
    else:
        weights = right.new_tensor(vt[0])
    vector = weights @ right[:size]
    length = norm(vector)
    # A zero operator leaves nothing to normalise by; its start vector is as good as any.
    vector = vector / length if float(length) > 0 else right[0]
    return RitzSingular(float(s[0]), float(beta[-1] * abs(u[-1, 0])), vector, 2 * size)
