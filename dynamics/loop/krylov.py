"""Eigenvalues of many operators at once that exist only as products: batched Arnoldi with eigenvectors.

Everything is batched over a leading axis of independent operators (one per token), so that one product serves all of
them; a single operator is a batch of one. The Arnoldi steps themselves are those of ``linear.arnoldi``.

Legend: N operators, D dimension of each, m steps, k values wanted.

Not covered: eigenvalues inside the spectrum (Arnoldi sees the outer ones), and any proof that the eigenvalue seen is
the *leading* one: a small residual proves an eigenvalue only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..linear.arnoldi import extend, precision, ritz
from ..shown import Shown

__all__ = ["LeadingEigenvalues", "leading_eigenvalues", "random_start"]

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, repr=False)
class LeadingEigenvalues(Shown):
    """The outer eigenvalues of N operators.

    Attributes:
        values: ``(N, k)`` complex128, largest modulus first; zeros beyond the dimension of an invariant subspace.
        residual: ``(N, k)``, ``‖A v - λ v‖ / |λ_1|`` with ``‖v‖ = 1``, at least the rounding of a product: the
            backward error relative to the radius.
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
        """Largest modulus seen, ``(N,)``: a lower-bound style estimate of each spectral radius."""
        return np.asarray(np.abs(self.values[:, 0]), np.float64)


def random_start(count: int, width: int, like: Tensor, seed: int = 0) -> Tensor:
    """Return unit start vectors ``(count, width)``, drawn from a generator of their own: no global one is touched.

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
    """Return the largest eigenvalues of many operators at once, by Arnoldi without restarts.

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
    >>> leading = leading_eigenvalues(lambda v: v @ a, random_start(1, 3, a), count=2)
    >>> leading.values[0].real.round(6).tolist()
    [3.0, 2.0]
    """
    limit = min(limit, start.shape[1])
    basis = (start / torch.linalg.vector_norm(start, dim=-1, keepdim=True))[:, None]
    hessenberg = start.new_zeros(len(start), 1, 0)
    while True:
        known = hessenberg.shape[2]
        more = min(steps, limit - known)
        basis = torch.nn.functional.pad(basis, (0, 0, 0, more))
        hessenberg = torch.nn.functional.pad(hessenberg, (0, more, 0, more))
        extend(_finite(apply), basis, hessenberg, known, known + more)
        leading = _leading(basis, hessenberg, min(count, limit), tol)
        if leading.converged.all() or leading.products >= limit:
            return leading


def _finite(apply: Apply) -> Apply:
    """Return the same products, or an error as soon as one is not finite."""

    def checked(vectors: Tensor) -> Tensor:
        images = apply(vectors)
        if not torch.isfinite(images).all():
            raise FloatingPointError("a product of the Arnoldi iteration is not finite")
        return images

    return checked


def _leading(basis: Tensor, hessenberg: Tensor, count: int, tol: float) -> LeadingEigenvalues:
    """Return the Ritz pairs of largest modulus with their residuals, the vectors carried back to the full space."""
    h = hessenberg.double().cpu().numpy()
    steps = h.shape[2]
    values, vectors, residuals = ritz(h, precision(basis))
    values, vectors = values[:, :count], vectors[:, :, :count]
    scale = np.maximum(np.abs(values[:, :1]), np.finfo(np.float64).tiny)
    # The zero operator has the eigenvalue 0 exactly; nothing is relative to it.
    residual = np.where(np.abs(values[:, :1]) > 0, residuals[:, :count] / scale, 0.0)
    full = np.einsum("njd,njk->nkd", basis[:, :steps].double().cpu().numpy(), vectors)
    full = full / np.maximum(np.linalg.norm(full, axis=2, keepdims=True), np.finfo(np.float64).tiny)
    return LeadingEigenvalues(values, residual, full, residual[:, 0] <= tol, steps)
