"""How the variables of a loop act on each other: the blocks of the joint Jacobian, with their norms and radii.

A loop that carries z_H and z_L has the joint Jacobian J with the blocks ∂z_H/∂z_H, ∂z_H/∂z_L, ∂z_L/∂z_H and ∂z_L/∂z_L,
of one pass. The radius of a block on the diagonal says what a variable does while the others stand still; a joint
radius well above all of them comes from the way round, through the other variables.

Legend: n numbers in the joint state, V variables.

Not covered: blocks between tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from ..estimate import Estimate
from ..linear.golub_kahan import golub_kahan
from .jacobian import DENSE_SIZE, LoopJacobian
from .krylov import leading_eigenvalues, random_start

Product = Callable[[Tensor], Tensor]
__all__ = ["JacobianBlock", "jacobian_blocks"]

STEPS: Final = 20
"""Golub-Kahan steps for the norm of a block, each one product with J and one with its transpose."""
TOLERANCE: Final = 0.03
"""Relative residual of a singular value, whose own error is of second order in it."""
RADIUS_TOLERANCE: Final = 1e-4
RADIUS_PRODUCTS: Final = 80


@dataclass(frozen=True, slots=True)
class JacobianBlock:
    """What a small change of one variable does to another one in one pass: ∂(``of``)/∂(``by``).

    Attributes:
        of: The variable after the pass.
        by: The variable before it.
        norm: σ_max of the block, dimensionless: the largest change of ``of`` by a change of ``by`` of length 1.
        radius: Spectral radius of a block on the diagonal (``of`` is ``by``); None elsewhere.
    """

    of: str
    by: str
    norm: Estimate
    radius: Estimate | None = None

    def __str__(self) -> str:
        radius = "" if self.radius is None else f", ρ {self.radius.value:.3g}{_doubt(self.radius)}"
        return f"∂{self.of}/∂{self.by}: σ {self.norm.value:.3g}{_doubt(self.norm)}{radius}"


def jacobian_blocks(jacobian: LoopJacobian, channels: Mapping[str, slice]) -> list[JacobianBlock]:
    """How strongly does every variable of a loop act on every other one in one pass?

    Costs, in backward passes of one pass of the loop: n up to `DENSE_SIZE` numbers in the state, where all is exact;
    beyond that at most 40 for each of the V² norms and 80 for each of the V radii.

    Args:
        jacobian: Of the joint state, ``(B, S, D)``.
        channels: Which of the D channels each variable has.

    Returns:
        V² blocks, row by row. A norm from products is a lower bound with its relative residual; a radius from products
        has no bounds.

    Source: `golub_kahan` and `leading_eigenvalues` name theirs.

    >>> a = torch.tensor([[0.5, 2.0], [0.0, 0.25]])
    >>> joint = LoopJacobian(lambda h: h @ a.T, torch.ones(1, 1, 2))
    >>> for block in jacobian_blocks(joint, {"z_H": slice(0, 1), "z_L": slice(1, 2)}):
    ...     print(block)
    ∂z_H/∂z_H: σ 0.5, ρ 0.5
    ∂z_H/∂z_L: σ 2
    ∂z_L/∂z_H: σ 0
    ∂z_L/∂z_L: σ 0.25, ρ 0.25
    """
    places = torch.arange(jacobian.size, device=jacobian.state.device).reshape(jacobian.state.shape)
    at = {name: places[..., own].reshape(-1) for name, own in channels.items()}
    pairs = [(of, by) for of in at for by in at]
    if jacobian.size <= DENSE_SIZE:
        return _exact(jacobian, at, pairs)
    return [JacobianBlock(of, by, _norm(jacobian, at[of], at[by]), _radius(jacobian, at[of]) if of == by else None)
            for of, by in pairs]  # fmt: skip


def _exact(jacobian: LoopJacobian, at: Mapping[str, Tensor], pairs: list[tuple[str, str]]) -> list[JacobianBlock]:
    """Return the blocks of a Jacobian that is formed as a whole."""
    whole, rows = jacobian.dense(), {name: own.cpu().numpy() for name, own in at.items()}
    blocks = []
    for of, by in pairs:
        block = whole[np.ix_(rows[of], rows[by])]
        norm = Estimate.exact(float(np.linalg.norm(block, 2)), "exact")
        radius = Estimate.exact(float(np.abs(np.linalg.eigvals(block)).max()), "exact") if of == by else None
        blocks.append(JacobianBlock(of, by, norm, radius))
    return blocks


def _norm(jacobian: LoopJacobian, of: Tensor, by: Tensor) -> Estimate:
    """Return σ_max of a block from products with J and its transpose."""
    size = jacobian.size
    forward, backward = _between(jacobian.apply, size, of, by), _between(jacobian.transpose, size, by, of)
    start = random_start(1, len(by), jacobian.state)[0]
    if not float(torch.linalg.vector_norm(forward(start))) > 0:
        return Estimate(0.0, 0.0, math.inf, 0.0, "a random change has no effect", True)
    ritz = golub_kahan(forward, backward, start, steps=STEPS)
    residual = ritz.residual / ritz.value if ritz.value > 0 else 0.0
    return Estimate(ritz.value, ritz.value, math.inf, residual, "Golub-Kahan", residual <= TOLERANCE)


def _radius(jacobian: LoopJacobian, own: Tensor) -> Estimate:
    """Return the spectral radius of a block on the diagonal, by Arnoldi on its transpose."""
    backward = _between(jacobian.transpose, jacobian.size, own, own)
    start = random_start(1, len(own), jacobian.state)
    if not float(torch.linalg.vector_norm(backward(start[0]))) > 0:
        return Estimate(0.0, 0.0, math.inf, 0.0, "a random change has no effect", True)
    leading = leading_eigenvalues(lambda v: backward(v[0])[None], start, count=1, limit=RADIUS_PRODUCTS,
                                  tol=RADIUS_TOLERANCE)  # fmt: skip
    value, residual = float(leading.radius[0]), float(leading.residual[0, 0])
    return Estimate(value, 0.0, math.inf, residual, "Arnoldi on the transpose", bool(leading.converged[0]))


def _between(
    product: Callable[[Tensor], Tensor], size: int, rows: Tensor, columns: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return the product with the part of a matrix of this size that these rows and columns have in common."""

    def part(vector: Tensor) -> Tensor:
        return product(vector.new_zeros(size).index_copy(0, columns, vector)).reshape(-1)[rows]

    return part


def _doubt(estimate: Estimate) -> str:
    """Return that a number did not converge."""
    return "" if estimate.converged else " (not converged)"
