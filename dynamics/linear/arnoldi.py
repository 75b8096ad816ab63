"""Leading eigenvalues from products with vectors only: the Arnoldi process, for one operator or many at once.

Shapes: N operators, D dimension of each, m steps (dimension of the subspace). Works on numpy arrays and on torch
tensors of any device. :func:`arnoldi` follows one operator with restarts; ``loop.krylov`` lets one long subspace grow
for each of many. Both stand on :func:`extend` and :func:`ritz`.

Not covered: proof that the eigenvalue seen is the leading one. A small residual proves that an eigenvalue of a nearby
matrix was seen, not that none larger exists (2.5e-11 residual at 17 % error was met); exact refreshes and certificates
answer that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_numpy
from ..shown import Shown

# A numpy array or a torch tensor: both offer the few operations used here.
Vector = Any
Floats = NDArray[np.float64]
Complexes = NDArray[np.complex128]

# Rounding of a product and of its orthogonalisation, in units of the dtype's, below which a new direction is noise.
BREAKDOWN: Final = 16
# Sixteenths of the subspace that a restart carries over: 16 to 24 of 64 vectors, where their moduli have a gap.
FEWEST, MOST = 4, 6
# Leading Ritz vectors mixed into the start vector of the next matrix.
MIXED: Final = 8


@dataclass(frozen=True, slots=True, repr=False)
class RitzValues(Shown):
    """Approximate eigenvalues of one operator, largest modulus first.

    Attributes:
        values: Ritz values ``(m,)``, complex128.
        residuals: ‖A y − θ y‖₂ of the unit Ritz vectors y, ``(m,)``, at least the rounding of one product: each θ is
            an eigenvalue of a matrix that close to A.
        condition: Condition number of the leading Ritz value in the subspace, at least 1: its error is about this
            times its residual.
        restart: Unit vector ``(D,)`` rich in the leading Ritz vectors, to start the next run from.
        products: Products with the operator that were spent.
        complete: Whether the subspace became invariant before it was full: what the start vector lacks was not seen.
        converged: Whether the leading residual met the tolerance.
    """

    values: Complexes
    residuals: Floats
    condition: float
    restart: Vector
    products: int
    complete: bool
    converged: bool


def arnoldi(
    apply: Callable[[Vector], Vector],
    start: Vector,
    *,
    steps: int = 64,
    restarts: int = 4,
    tolerance: float = 1e-3,
) -> RitzValues:
    r"""Return the eigenvalues of largest modulus of a linear operator given by its products with a vector.

    Builds an orthonormal basis V of span{v, Av, …, A^{m-1}v} with A V = V H + h v' eᵀ and takes the eigenvalues of H.
    While the leading residual exceeds ``tolerance`` times its value, goes on from the span of about 20 leading Ritz
    vectors (thick restart). Costs ``steps`` products, about ``steps - 20`` for each restart, and O(steps² D) each.

    Args:
        apply: Product A @ v for a vector of the start's shape, dtype and device; linear.
        start: Start vector ``(D,)``, float32 or float64, not zero; random, or the ``restart`` of an earlier run.
        steps: Dimension m of the subspace, at most D is used.
        restarts: Largest number of subspaces built.
        tolerance: Wanted leading residual relative to the leading value.

    Returns:
        RitzValues; ``converged`` False means only that the tolerance was not met.

    Raises:
        FloatingPointError: A product held NaN or infinity.

    Source: Saad, Numerical Methods for Large Eigenvalue Problems, chapter 6; Stewart, SIAM J. Matrix Anal. Appl. 23
    (2001) 601-614 (restart by an invariant subspace of H).

    >>> scale = np.array([0.5, -0.9, 0.1, 0.3])
    >>> seen = arnoldi(lambda v: scale * v, np.ones(4), steps=4)
    >>> float(seen.values[0].real.round(12)), seen.converged
    (-0.9, True)
    """
    size = min(steps, start.shape[0])
    unit = precision(start)
    basis, hessenberg = empty(start, 1, size + 1, start.shape[0]), empty(start, 1, size + 1, size)
    basis[0, 0] = start / norm(start)
    known, products = 0, 0
    for cycle in range(max(restarts, 1)):
        # What is not finite is reported below, once, as an error.
        with np.errstate(over="ignore", invalid="ignore"):
            extend(lambda v: apply(v[0])[None], basis, hessenberg, known, size)
        products += size - known
        h = as_numpy(hessenberg)[0].astype(np.float64)
        if not np.isfinite(h).all():
            raise FloatingPointError("a product with the operator held NaN or infinity")
        ended = known + np.flatnonzero(np.diag(h[1:])[known:] == 0)
        complete = ended.size > 0
        used = int(ended[0]) + 1 if complete else size
        values, vectors, residuals = (x[0] for x in ritz(h[None, : used + 1, :used], unit))
        converged = bool(residuals[0] <= tolerance * abs(values[0]))
        if converged or complete or size < 4 or size == start.shape[0] or cycle == restarts - 1:
            break
        known = _restarted(basis, hessenberg, h, values, vectors)
    mixed = vectors[:, :MIXED].sum(axis=1)
    restart = _like(basis, mixed.real + mixed.imag) @ basis[0, :used]
    return RitzValues(
        values, residuals, _condition(vectors), restart / norm(restart), products, complete and used < size, converged
    )


def extend(apply: Callable[[Vector], Vector], basis: Vector, hessenberg: Vector, first: int, last: int) -> None:
    """Take Arnoldi steps ``first`` to ``last`` in place: A V = V H, the rows of ``basis`` are V, Gram-Schmidt twice.

    Where only rounding is left of a new direction, the subspace is invariant: the direction and everything after it
    stay zero. Rounding is judged against that product alone; scaled up to unit length it would be taken for part of
    the operator, and so it would when judged against a norm that other rounding has inflated.

    Args:
        apply: ``(N, D) -> (N, D)``, linear, each row by its own operator.
        basis: ``(N, m + 1, D)`` with orthonormal rows 0 to ``first``, zeros after them.
        hessenberg: ``(N, m + 1, m)`` with columns 0 to ``first - 1``, zeros after them.
        first: Steps known.
        last: Steps wanted, at most m.

    >>> basis, hessenberg = np.eye(3)[None, :, :].copy(), np.zeros((1, 3, 2))
    >>> extend(lambda v: 2 * v, basis, hessenberg, 0, 2)                      # invariant at once
    >>> hessenberg[0].tolist()
    [[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """
    least = BREAKDOWN * precision(basis)
    tiny = float(np.finfo(np.float32).tiny)
    for j in range(first, last):
        image = apply(basis[:, j])
        before = (image * image).sum(-1) ** 0.5
        rows = basis[:, : j + 1]
        for _ in range(2):
            overlap = (rows @ image[..., None])[..., 0]
            image = image - (overlap[:, None] @ rows)[:, 0]
            hessenberg[:, : j + 1, j] += overlap
        length = (image * image).sum(-1) ** 0.5
        # Infinite and NaN lengths count as alive, so that they reach the caller's check.
        alive = ~(length <= least * before)
        hessenberg[:, j + 1, j] = length * alive
        basis[:, j + 1] = image * (alive / (length + tiny))[:, None]
        if isinstance(basis, np.ndarray) and not alive.any():
            return


def ritz(hessenberg: Floats, unit: float) -> tuple[Complexes, Complexes, Floats]:
    """Return the Ritz values, their vectors in the basis, and their residuals, largest modulus first.

    Args:
        hessenberg: ``(N, m + 1, m)``, finite.
        unit: Rounding unit of the products: no residual is below this times ‖H‖.

    Returns:
        Values ``(N, m)``, unit vectors as columns ``(N, m, m)``, residuals ``(N, m)`` in the unit of the operator.

    >>> values, _, residuals = ritz(np.array([[[0.5, 0.0], [0.0, -2.0], [0.0, 0.0]]]), 1e-16)
    >>> values[0].real.tolist(), bool(residuals.max() < 1e-15)
    ([-2.0, 0.5], True)
    """
    steps = hessenberg.shape[2]
    square = hessenberg[:, :steps]
    values, vectors = np.linalg.eig(square)
    order = np.argsort(-np.abs(values), axis=1, kind="stable")
    values = np.take_along_axis(values, order, 1).astype(np.complex128)
    vectors = np.take_along_axis(vectors, order[:, None, :], 2).astype(np.complex128)
    residuals = np.abs(hessenberg[:, steps, steps - 1])[:, None] * np.abs(vectors[:, -1, :])
    floor = unit * np.linalg.norm(square, axis=(1, 2)) / np.sqrt(steps)
    return values, vectors, np.maximum(residuals, floor[:, None])


def precision(like: Vector) -> float:
    """Return the rounding unit of an array's or tensor's dtype."""
    return float(np.finfo(as_numpy(like[:0]).dtype).eps)


def empty(like: Vector, *shape: int) -> Vector:
    """Zero array of the same kind, dtype and device as ``like``."""
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_zeros(shape)


def norm(vector: Vector) -> Vector:
    """Return the euclidean norm as a scalar of the same kind, left on its device."""
    return (vector @ vector) ** 0.5


def _restarted(basis: Vector, hessenberg: Vector, h: Floats, values: Complexes, vectors: Complexes) -> int:
    """Shrink the subspace, in place, to the span of the leading Ritz vectors; return its dimension.

    That span is invariant under H, so A V = V H + v' bᵀ holds again with the rows mixed and b turned likewise.
    """
    size = h.shape[1]
    sizes = np.abs(values)
    counts = np.arange(max(size * FEWEST // 16, 1), size * MOST // 16 + 1)
    count = int(counts[np.argmax(sizes[counts - 1] - sizes[counts])])
    count += bool(values[count - 1].imag) and bool(values[count] == values[count - 1].conjugate())
    # Real and imaginary parts of conjugate pairs span the same plane twice: the rank is the count.
    both = np.hstack([vectors[:, :count].real, vectors[:, :count].imag])
    turn = np.linalg.svd(both, full_matrices=False)[0][:, :count]
    kept, last = _like(basis, turn.T) @ basis[0, :size], basis[0, size] * 1
    basis[0], hessenberg[0] = 0, 0
    basis[0, :count], basis[0, count] = kept, last
    hessenberg[0, :count, :count] = _like(basis, turn.T @ h[:size] @ turn)
    hessenberg[0, count, :count] = _like(basis, h[size, size - 1] * turn[-1])
    return count


def _condition(vectors: Complexes) -> float:
    """Condition number of the first eigenvalue, given unit eigenvectors as columns: the norm of its dual vector."""
    first = np.zeros(len(vectors))
    first[0] = 1.0
    try:
        dual = np.linalg.solve(vectors.conj().T, first)
    except np.linalg.LinAlgError:
        return float("inf")
    return max(float(np.linalg.norm(dual)), 1.0)


def _like(basis: Vector, weights: Floats) -> Vector:
    """Return the real weights in the kind, dtype and device of the basis."""
    return weights.astype(basis.dtype) if isinstance(basis, np.ndarray) else basis.new_tensor(weights)
