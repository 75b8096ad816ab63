"""The modes of a loop read from its recorded states alone: whitened dynamic mode decomposition.

Fits the linear map that best carries ``h[t]`` to ``h[t+1]`` over all tokens and loops in a whitened basis of the data,
takes its eigenvalues, and gives each mode a residual that says how well the mode alone predicts, so that artefacts of
the fit can be left out. The share of modes close to the unit circle is the near-unit spectral mass.

Numpy only. Legend: M snapshots, D width, r rank.

Not covered: nonlinear observables (the residual shows where a linear map is not enough); statistical errors of the
eigenvalues; that an observed mode is one of the loop rather than of the data (few snapshots fit anything: keep M well
above r).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..shown import Shown

__all__ = ["ModeDecomposition", "decompose"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, repr=False)
class ModeDecomposition(Shown):
    """Modes of the linear map fitted to snapshot pairs, largest modulus first.

    Attributes:
        eigenvalues: ``(r,)`` complex128, dimensionless, per loop.
        residuals: ``(r,)``, root mean square error of each mode's own prediction relative to the mode, 0 (exact)
            upwards.
        shapes: ``(D, r)`` complex128, unit norm, in the coordinates of the state.
        rank: Directions of the data that were kept.
        energy: Share of the data's variance they hold.
    """

    eigenvalues: NDArray[np.complex128]
    residuals: Floats
    shapes: NDArray[np.complex128]
    rank: int
    energy: float

    def trusted(self, max_residual: float = 0.1) -> NDArray[np.complex128]:
        """Return the eigenvalues of the modes that predict themselves within ``max_residual``."""
        return self.eigenvalues[self.residuals <= max_residual]

    def near_unit_mass(self, width: float = 0.05, max_residual: float = np.inf) -> float:
        """Return the share of (trusted) eigenvalues with ``| |λ| - 1 | <= width``; NaN when none is trusted.

        >>> ModeDecomposition(np.array([1.02 + 0j, 0.5]), np.zeros(2), np.eye(2) + 0j, 2, 1.0).near_unit_mass()
        0.5
        """
        values = self.trusted(max_residual)
        return float(np.mean(np.abs(np.abs(values) - 1) <= width)) if len(values) else float("nan")


def decompose(
    before: ArrayLike, after: ArrayLike, *, rank: int | None = None, energy: float = 0.9999, noise: float = 0.0
) -> ModeDecomposition:
    r"""Return the eigenvalues and modes of the linear map behind snapshot pairs.

    With ``X = U Σ Vᴴ`` (columns are snapshots) the whitened pairs are ``Vᴴ`` and ``Σ⁻¹ Uᴴ Y``; the map between them has
    the eigenvalues of ``Uᵀ Y V Σ⁻¹``. A mode's residual is ``‖Zᵀ w - λ V w‖ / ‖V w‖`` for its left eigenvector
    w: how far the mode's own coordinate is from being multiplied by λ at every loop. Costs O(M D min(M, D)).

    Args:
        before: ``(M, D)``, states ``h[t]`` (any mixture of tokens and loops), real.
        after: ``(M, D)``, their successors ``h[t+1]``.
        rank: Directions kept; default: as many as hold ``energy`` of the variance of ``before``.
        energy: That share.
        noise: Root of the summed squares of the errors in ``before``; a direction of the data that is not ten times as
            large is left out, because whitening would blow its noise up into a mode.

    Returns:
        Modes with residuals. Subtract a fixed point or the mean first if the map is affine.

    Raises:
        ValueError: Shapes differ, or a value is not finite, or all states are zero.

    Source: Tu et al., J. Comput. Dyn. 1 (2014) 391; residuals: Colbrook & Townsend, Commun. Pure Appl. Math. 77 (2024)
    221; whitening and near-unit mass as a sign of divergence: arXiv 2602.22988.

    >>> a = np.array([[0.9, 0.2], [0.0, 0.5]])
    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> modes = decompose(x, x @ a.T)
    >>> modes.eigenvalues.real.round(6).tolist(), bool(modes.residuals.max() < 1e-12)
    ([0.9, 0.5], True)
    """
    x, y = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"before, after: expected equal shapes (M, D), found {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("before, after: expected finite snapshots")
    u, sigma, vh = np.linalg.svd(x.T, full_matrices=False)
    power = np.cumsum(sigma**2)
    if power[-1] == 0:
        raise ValueError("before: all snapshots are zero")
    # Directions below round-off of the largest carry no information whatever the energy asked for.
    usable = int((sigma > max(sigma[0] * max(x.shape) * np.finfo(np.float64).eps, 10 * noise)).sum())
    keep = int(np.searchsorted(power, energy * power[-1]) + 1) if rank is None else rank
    r = max(1, min(keep, usable))
    u, sigma, v = u[:, :r], sigma[:r], vh[:r].T
    target = (u.T @ y.T) / sigma[:, None]
    values, left = np.linalg.eig((target @ v).T)
    order = np.argsort(-np.abs(values))
    values, left = values[order].astype(np.complex128), left[:, order].astype(np.complex128)
    # Row vector w of the whitened map: its coordinate w·x should be λ times itself one loop later.
    residuals = np.linalg.norm(target.T @ left - values[None] * (v @ left), axis=0)
    residuals /= np.maximum(np.linalg.norm(v @ left, axis=0), np.finfo(np.float64).tiny)
    shapes = u @ (sigma[:, None] * np.linalg.pinv(left).T)
    shapes /= np.maximum(np.linalg.norm(shapes, axis=0), np.finfo(np.float64).tiny)
    return ModeDecomposition(values, residuals, shapes, r, float(power[r - 1] / power[-1]))
