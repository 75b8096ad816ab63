"""Leading eigenvalues from products with a vector only: restarted Arnoldi with one start vector.

Shapes: n dimension of the operator, m steps (dimension of the subspace). Works on numpy vectors and on torch tensors
of any device; on a GPU the small Hessenberg matrix is fetched once per restart and nothing else waits for the device.

Not covered: proof that the eigenvalue found is the leading one. A small residual proves that an eigenvalue of a
nearby matrix was found, not that none larger exists (2.5e-11 residual at 17 % error was seen); exact refreshes and
certificates answer that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_numpy

# A numpy array or a torch tensor: both offer the few operations used here.
Vector = Any


@dataclass(frozen=True, slots=True)
class RitzValues:
    """Approximate eigenvalues of one operator, largest modulus first.

    Attributes:
        values: Ritz values ``(m,)``, complex128.
        residuals: ‖A y − θ y‖₂ of the unit Ritz vectors y, ``(m,)``: each θ is an eigenvalue of a matrix that close
            to A.
        restart: Unit vector ``(n,)`` rich in the leading Ritz vectors, to start the next run from.
        products: Products with the operator that were spent.
        converged: Whether the leading residual met the tolerance.
    """

    values: NDArray[np.complex128]
    residuals: NDArray[np.float64]
    restart: Vector
    products: int
    converged: bool


def arnoldi(
    apply: Callable[[Vector], Vector],
    start: Vector,
    *,
    steps: int = 64,
    restarts: int = 2,
    tolerance: float = 1e-3,
    wanted: int = 8,
) -> RitzValues:
    r"""Eigenvalues of largest modulus of a linear operator given by its products with a vector.

    Builds an orthonormal basis V of span{v, Av, …, A^{m-1}v} with A V = V H + h v' eᵀ and takes the eigenvalues of H.
    Where the leading residual exceeds ``tolerance`` times its value, starts again from the sum of the real and
    imaginary parts of the ``wanted`` leading Ritz vectors. Costs at most ``steps * restarts`` products and O(steps²
    n) for each restart.

    Args:
        apply: Product A @ v for a vector of the start's shape, dtype and device; linear.
        start: Start vector ``(n,)``, float32 or float64, not zero; random, or the ``restart`` of an earlier run.
        steps: Dimension m of the subspace, at most n is used.
        restarts: Largest number of subspaces built.
        tolerance: Wanted leading residual relative to the leading value.
        wanted: Number of Ritz vectors kept in the restart vector.

    Returns:
        RitzValues; ``converged`` False means only that the tolerance was not met.

    Raises:
        FloatingPointError: A product held NaN or infinity.

    Source: Saad, Numerical Methods for Large Eigenvalue Problems, chapter 6 (Arnoldi, explicit restarts).

    >>> scale = np.array([0.5, -0.9, 0.1, 0.3])
    >>> found = arnoldi(lambda v: scale * v, np.ones(4), steps=4)
    >>> float(found.values[0].real.round(12)), found.converged
    (-0.9, True)
    """
    size = min(steps, start.shape[0])
    products = 0
    for _ in range(max(restarts, 1)):
        # What is not finite is reported by _ritz, once, as an error.
        with np.errstate(over="ignore", invalid="ignore"):
            basis, hessenberg = _krylov(apply, start, size)
        products += size
        found = _ritz(basis, hessenberg, wanted, products, tolerance)
        if found.converged:
            break
        start = found.restart
    return found


def empty(like: Vector, *shape: int) -> Vector:
    """Zero array of the same kind, dtype and device as ``like``."""
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_zeros(shape)


def norm(vector: Vector) -> Vector:
    """Euclidean norm as a scalar of the same kind, left on its device."""
    return (vector @ vector) ** 0.5


def _krylov(apply: Callable[[Vector], Vector], start: Vector, size: int) -> tuple[Vector, Vector]:
    """Arnoldi process, Gram-Schmidt twice; basis rows (size + 1, n) and transposed Hessenberg (size, size + 1)."""
    basis, coefficients = empty(start, size + 1, start.shape[0]), empty(start, size, size + 1)
    # An exact breakdown gives a zero vector rather than 0/0; _ritz cuts the subspace there.
    tiny = float(np.finfo(np.float32).tiny)
    basis[0] = start / norm(start)
    for j in range(size):
        image = apply(basis[j])
        known = basis[: j + 1]
        first = known @ image
        image = image - first @ known
        second = known @ image
        image = image - second @ known
        length = norm(image)
        coefficients[j, : j + 1] = first + second
        coefficients[j, j + 1] = length
        basis[j + 1] = image / (length + tiny)
    return basis, coefficients


def _ritz(basis: Vector, coefficients: Vector, wanted: int, products: int, tolerance: float) -> RitzValues:
    """Eigenvalues of the projected operator, their residuals, and the next start vector."""
    full = as_numpy(coefficients).astype(np.float64).T
    if not np.isfinite(full).all():
        raise FloatingPointError("a product with the operator held NaN or infinity")
    unit = float(np.finfo(as_numpy(coefficients).dtype).eps)
    below = np.abs(np.diag(full[1:]))
    # Where the next basis vector is rounding noise the subspace is invariant and complete.
    noise = np.flatnonzero(below <= 10 * unit * float(np.linalg.norm(full)))
    size = int(noise[0]) + 1 if noise.size else full.shape[1]
    values, vectors = np.linalg.eig(full[:size, :size])
    order = np.argsort(-np.abs(values), kind="stable")
    values, vectors = values[order].astype(np.complex128), vectors[:, order]
    residuals = below[size - 1] * np.abs(vectors[-1])
    kept = vectors[:, :wanted].sum(axis=1)
    mixed = np.asarray(kept.real + kept.imag)
    if isinstance(basis, np.ndarray):
        weights: Vector = mixed.astype(basis.dtype)
    else:
        weights = basis.new_tensor(mixed)
    restart = weights @ basis[:size]
    leading = bool(residuals[0] <= tolerance * abs(values[0]))
    return RitzValues(values, residuals, restart / norm(restart), products, leading)
