"""How strongly inputs reach the state and the state reaches the read-out, summed over all loops.

A Gramian of a system whose A̅ is diagonal has a closed form; a dense one is summed by repeated squaring, which only
ever adds positive terms.

Not covered: unstable systems, whose sums diverge (an error here), and Gramians over a finite number of loops.
"""

import math

import numpy as np

from .lti import LTISystem, Matrix, require_stable


def controllability_gramian(system: LTISystem) -> Matrix:
    """Which states can inputs of unit energy reach? W = Σ_t A̅^t B̅ B̅ᵀ (A̅ᵀ)^t.

    Directions with large xᵀWx are easily reached, those with 0 never. Cost: O(d) for a diagonal system, O(d²) for
    diagonal A̅ with dense B̅, else about 3·log2(time constant) products of d × d matrices.

    Args:
        system: The linear part, stable.

    Returns:
        ``(d,)`` (a diagonal) where A̅ and B̅ are diagonal, else ``(d, d)``, symmetric positive semidefinite.

    Raises:
        ValueError: ρ(A̅) >= 1.

    Source: Zhou, Doyle and Glover, Robust and Optimal Control (1996), section 21.4; squared Smith iteration of Penzl
    (2000).

    >>> controllability_gramian(LTISystem([0.5, 0.0])).tolist()
    [1.3333333333333333, 1.0]
    """
    require_stable(system, "the controllability Gramian")
    return _gramian(system.a_bar, system.b_bar, system.width)


def observability_gramian(system: LTISystem) -> Matrix:
    """Which states show in the read-out? W = Σ_t (A̅ᵀ)^t C_outᵀ C_out A̅^t; xᵀWx is the output energy a start x leaves.

    Cost: as for :func:`controllability_gramian`.

    Args:
        system: The linear part, stable.

    Returns:
        ``(d,)`` (a diagonal) where A̅ and C_out are diagonal, else ``(d, d)``, symmetric positive semidefinite.

    Raises:
        ValueError: ρ(A̅) >= 1.

    Source: Zhou, Doyle and Glover, Robust and Optimal Control (1996), section 21.4.

    >>> observability_gramian(LTISystem([0.5, 0.0], 1.0, [[1.0, 1.0]])).round(12).tolist()
    [[1.333333333333, 1.0], [1.0, 1.0]]
    """
    require_stable(system, "the observability Gramian")
    return _gramian(system.a_bar.T, system.c_out.T, system.width)


def hankel_singular_values(system: LTISystem) -> Matrix:
    """How many directions of the state matter from input to read-out? Square roots of the eigenvalues of W_c W_o.

    A value near zero belongs to a direction that could be left out. Cost: two Gramians and O(d³).

    Args:
        system: The linear part, stable.

    Returns:
        ``(d,)``, largest first, in output per input.

    Raises:
        ValueError: ρ(A̅) >= 1.

    Source: Glover, International Journal of Control 39 (1984) 1115-1193.

    >>> hankel_singular_values(LTISystem([0.0, 0.5])).round(12).tolist()
    [1.333333333333, 1.0]
    """
    reach, show = controllability_gramian(system), observability_gramian(system)
    if system.is_diagonal:
        return np.sort(np.sqrt(reach * show))[::-1]
    factors = [_square_root(np.diag(w) if w.ndim == 1 else w) for w in (show, reach)]
    return np.asarray(np.linalg.svd(factors[0].T @ factors[1], compute_uv=False), dtype=np.float64)


def h2_norm(system: LTISystem) -> float:
    """How loud is the read-out when every loop gets fresh unit noise? Root of the summed squared impulse response.

    Cost: one Gramian.

    Args:
        system: The linear part, stable.

    Returns:
        ‖C_out (zI − A̅)⁻¹ B̅‖₂, output per input.

    Raises:
        ValueError: ρ(A̅) >= 1: the sum diverges.

    Source: Zhou, Doyle and Glover, Robust and Optimal Control (1996), section 21.5.

    >>> round(h2_norm(LTISystem([0.6])), 12)
    1.25
    """
    require_stable(system, "the H2 norm")
    reach = controllability_gramian(system)
    if reach.ndim == 1:
        energy = (system.c_out**2 * reach).sum() if system.c_out.ndim < 2 else ((system.c_out**2) @ reach).sum()
    elif system.c_out.ndim == 2:
        energy = np.einsum("ij,jk,ik->", system.c_out, reach, system.c_out, optimize=True)
    else:
        energy = (system.c_out**2 * np.diag(reach)).sum()
    return math.sqrt(float(energy))


def _gramian(a: Matrix, b: Matrix, width: int) -> Matrix:
    """Return Σ_t A^t B Bᵀ (Aᵀ)^t in the simplest structure that holds it."""
    if a.ndim < 2:
        diagonal = np.broadcast_to(a, (width,))
        if b.ndim < 2:
            return np.broadcast_to(b, (width,)) ** 2 / (1 - diagonal**2)
        return (b @ b.T) / (1 - np.outer(diagonal, diagonal))
    power = a
    total = b @ b.T if b.ndim == 2 else np.diag(np.broadcast_to(b, (width,)) ** 2)
    # After j rounds the sum holds 2^j terms; 64 rounds outlast every ρ < 1 that float64 can tell from 1.
    for _ in range(64):
        added = power @ total @ power.T
        total = total + added
        if np.abs(added).max() <= 1e-17 * np.abs(total).max():
            break
        power = power @ power
    return (total + total.T) / 2


def _square_root(w: Matrix) -> Matrix:
    """Return a factor F with F Fᵀ = W for a positive semidefinite W, rounding below zero removed."""
    values, vectors = np.linalg.eigh(w)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0.0, None)), dtype=np.float64)
