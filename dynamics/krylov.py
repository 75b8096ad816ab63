"""Eigenvalues of many operators at once that exist only as products: batched Arnoldi with eigenvectors.

Everything is batched over a leading axis of independent operators (one per token), so that one product serves all of
them; a single operator is a batch of one.

Legend: N operators, D dimension of each, m steps, k values wanted.

Not covered: eigenvalues inside the spectrum (Arnoldi finds the outer ones), and any proof that the eigenvalue found is
the *leading* one: a small residual proves an eigenvalue only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["LeadingEigenvalues", "leading_eigenvalues", "random_start"]

Apply = Callable[[Tensor], Tensor]
RESTART_VECTORS = 6
"""A restart keeps this many Ritz vectors, so that neighbours of the leading eigenvalue do not have to be found
again."""


@dataclass(frozen=True, slots=True)
class LeadingEigenvalues:
    """The outer eigenvalues of N operators.

    Attributes:
        values: ``(N, k)`` complex128, largest modulus first; zeros beyond the dimension of an invariant subspace.
        residual: ``(N, k)``, ``‖A v - λ v‖ / |λ_1|`` with ``‖v‖ = 1``: the backward error relative to the radius.
        vectors: ``(N, k, D)`` complex128, the unit eigenvectors.
        converged: ``(N,)``, whether the leading value met the tolerance.
        products: How many products with the operators were used.
    """

    values: NDArray[np.complex128]
    residual: NDArray[np.float64]
    vectors: NDArray[np.complex128]
    converged: NDArray[np.bool_]
    products: int

    @property
    def radius(self) -> NDArray[np.float64]:
        """Largest modulus found, ``(N,)``: a lower-bound style estimate of each spectral radius."""
        return np.asarray(np.abs(self.values[:, 0]), np.float64)


def random_start(count: int, width: int, like: Tensor, seed: int = 0) -> Tensor:
    """Unit start vectors ``(count, width)`` from a generator of their own, so that no global random state is
    touched.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(count, width, generator=generator, dtype=torch.float64)
    unit: Tensor = start / torch.linalg.vector_norm(start, dim=-1, keepdim=True)
    return unit.to(like.device, like.dtype)


def leading_eigenvalues(
    apply: Apply, start: Tensor, *, count: int = 6, steps: int = 40, restarts: int = 3, tol: float = 1e-6
) -> LeadingEigenvalues:
    """Largest eigenvalues of many operators at once, by restarted Arnoldi.

    Builds an orthonormal Krylov basis (twice-applied Gram-Schmidt) and takes the eigenvalues of the projection. Where
    the leading residual is above ``tol`` it restarts from the sum of the real and imaginary parts of the leading Ritz
    vectors. Cost: at most ``steps * (restarts + 1)`` products, each serving all N operators, and O(N D steps²)
    arithmetic. Memory N D steps.

    Args:
        apply: ``(N, D) -> (N, D)``, linear, each row by its own operator.
        start: ``(N, D)``, real, non-zero rows.
        count: Eigenvalues wanted per operator.
        steps: Krylov dimension, at most D.
        restarts: Further rounds allowed.
        tol: Wanted relative residual of the leading eigenvalue.

    Returns:
        Values with residuals and vectors; ``converged`` is False for operators that did not meet ``tol``.

    Raises:
        FloatingPointError: A product was not finite.

    Source: Arnoldi, Quart. Appl. Math. 9 (1951); restart as in Saad, Numerical Methods for Large Eigenvalue Problems
    (2011), ch. 6.

    >>> a = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    >>> found = leading_eigenvalues(lambda v: v @ a, random_start(1, 3, a), count=2)
    >>> found.values[0].real.round(6).tolist()
    [3.0, 2.0]
    """
    steps = min(steps, start.shape[1])
    products = 0
    for attempt in range(restarts + 1):
        basis, hessenberg = _arnoldi(apply, start, steps)
        products += steps
        found = _ritz(basis, hessenberg, min(max(count, RESTART_VECTORS), steps), tol, products)
        if found.converged.all() or steps == start.shape[1] or attempt == restarts:
            break
        combined = (found.vectors.real + found.vectors.imag).sum(axis=1)
        start = torch.as_tensor(combined, dtype=start.dtype, device=start.device)
    return replace(
        found,
        values=found.values[:, :count],
        residual=found.residual[:, :count],
        vectors=found.vectors[:, :count],
    )


def _arnoldi(apply: Apply, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Orthonormal basis ``(N, m + 1, D)`` and Hessenberg ``(N, m + 1, m)``; a basis that cannot be extended goes on
    with zeros.
    """
    n, width = start.shape
    basis = start.new_zeros(n, steps + 1, width)
    hessenberg = start.new_zeros(n, steps + 1, steps)
    basis[:, 0] = start / torch.linalg.vector_norm(start, dim=-1, keepdim=True)
    eps = torch.finfo(start.dtype).eps
    for j in range(steps):
        w = apply(basis[:, j])
        if not torch.isfinite(w).all():
            raise FloatingPointError(f"product {j} of the Arnoldi iteration is not finite")
        size = torch.linalg.vector_norm(w, dim=-1)
        for _ in range(2):
            overlap = torch.einsum("njd,nd->nj", basis[:, : j + 1], w)
            w = w - torch.einsum("nj,njd->nd", overlap, basis[:, : j + 1])
            hessenberg[:, : j + 1, j] += overlap
        norm = torch.linalg.vector_norm(w, dim=-1)
        # What is left after orthogonalising is rounding once it is this small: the subspace is invariant.
        alive = norm > 10 * eps * size
        hessenberg[:, j + 1, j] = torch.where(alive, norm, 0.0)
        basis[:, j + 1] = torch.where(alive[:, None], w / torch.where(alive, norm, 1.0)[:, None], 0.0)
    return basis, hessenberg


def _ritz(basis: Tensor, hessenberg: Tensor, count: int, tol: float, products: int) -> LeadingEigenvalues:
    """Ritz pairs of largest modulus with their residuals."""
    h = hessenberg.double().cpu().numpy()
    steps = h.shape[2]
    values, vectors = np.linalg.eig(h[:, :steps])
    order = np.argsort(-np.abs(values), axis=1)[:, :count]
    values = np.take_along_axis(values, order, 1).astype(np.complex128)
    vectors = np.take_along_axis(vectors, order[:, None, :], 2)
    scale = np.maximum(np.abs(values[:, :1]), np.finfo(np.float64).tiny)
    residual = np.abs(h[:, steps, steps - 1])[:, None] * np.abs(vectors[:, -1, :]) / scale
    full = np.einsum("njd,njk->nkd", basis[:, :steps].double().cpu().numpy(), vectors)
    full = full / np.maximum(np.linalg.norm(full, axis=2, keepdims=True), np.finfo(np.float64).tiny)
    return LeadingEigenvalues(values, residual, full, residual[:, 0] <= tol, products)
