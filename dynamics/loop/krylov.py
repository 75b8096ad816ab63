"""Eigenvalues of many operators at once that exist only as products: batched Arnoldi with eigenvectors.

Everything is batched over a leading axis of independent operators (one per token), so that one product serves all of
them; a single operator is a batch of one.

Legend: N operators, D dimension of each, m steps, k values wanted.

Not covered: eigenvalues inside the spectrum (Arnoldi finds the outer ones), and any proof that the eigenvalue found is
the *leading* one: a small residual proves an eigenvalue only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["LeadingEigenvalues", "leading_eigenvalues", "random_start"]

Apply = Callable[[Tensor], Tensor]


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

    >>> bool(torch.allclose(random_start(2, 3, torch.zeros(1)).norm(dim=1), torch.ones(2)))
    True
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(count, width, generator=generator, dtype=torch.float64)
    unit: Tensor = start / torch.linalg.vector_norm(start, dim=-1, keepdim=True)
    return unit.to(like.device, like.dtype)


def leading_eigenvalues(
    apply: Apply, start: Tensor, *, count: int = 6, steps: int = 40, limit: int = 160, tol: float = 1e-6
) -> LeadingEigenvalues:
    """Largest eigenvalues of many operators at once, by Arnoldi without restarts.

    Builds an orthonormal Krylov basis (twice-applied Gram-Schmidt), looks at the eigenvalues of the projection after
    every ``steps`` products, and goes on until all operators meet ``tol`` or ``limit`` is reached: the same products
    spent on restarts would throw away what the basis knows. Each product serves all N operators. Arithmetic O(N D m²)
    and memory N D m for m products; lower ``limit`` where a long batch does not fit.

    Args:
        apply: ``(N, D) -> (N, D)``, linear, each row by its own operator.
        start: ``(N, D)``, real, non-zero rows.
        count: Eigenvalues wanted per operator.
        steps: Products between two looks.
        limit: Products allowed; never more than D.
        tol: Wanted relative residual of the leading eigenvalue.

    Returns:
        Values with residuals and vectors; ``converged`` is False for operators that did not meet ``tol``.

    Raises:
        FloatingPointError: A product was not finite.

    Source: Arnoldi, Quart. Appl. Math. 9 (1951) 17-29; Saad, Numerical Methods for Large Eigenvalue Problems (2011),
    ch. 6.

    >>> a = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    >>> found = leading_eigenvalues(lambda v: v @ a, random_start(1, 3, a), count=2)
    >>> found.values[0].real.round(6).tolist()
    [3.0, 2.0]
    """
    limit = min(limit, start.shape[1])
    basis = (start / torch.linalg.vector_norm(start, dim=-1, keepdim=True))[:, None]
    hessenberg = start.new_zeros(len(start), 1, 0)
    while True:
        basis, hessenberg = _extended(apply, basis, hessenberg, min(steps, limit - hessenberg.shape[2]))
        found = _ritz(basis, hessenberg, min(count, limit), tol)
        if found.converged.all() or found.products >= limit:
            return found


def _extended(apply: Apply, basis: Tensor, hessenberg: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Basis ``(N, m + 1, D)`` and Hessenberg ``(N, m + 1, m)``, further steps on; where nothing new is left, zeros."""
    n, known, width = basis.shape
    basis = torch.cat([basis, basis.new_zeros(n, steps, width)], dim=1)
    hessenberg = torch.nn.functional.pad(hessenberg, (0, steps, 0, steps))
    eps = torch.finfo(basis.dtype).eps
    for j in range(known - 1, known - 1 + steps):
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


def _ritz(basis: Tensor, hessenberg: Tensor, count: int, tol: float) -> LeadingEigenvalues:
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
    return LeadingEigenvalues(values, residual, full, residual[:, 0] <= tol, steps)
