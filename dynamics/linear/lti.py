"""The linear part of the loop, h[t+1] = A̅ h[t] + B̅ e with read-out C_out h, as a discrete time-invariant system.

Shapes: d state width, m input width, p output width. A̅ acts as ``A̅ @ h`` on a column h. Each of A̅, B̅, C_out is a
number (that multiple of the identity), a vector (a diagonal), or a matrix; the structure is kept and used everywhere.

This file holds the system and its spectrum. What follows from it lives beside it: ``response`` (modes, gain,
simulation), ``transient`` (growth before decay), ``pseudospectrum``, ``hinfinity``, ``gramian``.

Not covered: the blocks R̅ of the loop. ρ(A̅) < 1 is necessary and not sufficient for a stable loop; see ``jacobian``.
Matrices too large for exact dense methods are tracked in ``tracker`` instead.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_float64, require_square
from ..estimate import Estimate
from ..regime import LTI_TOLERANCE, Regime, lti_regime
from .spectrum import sorted_eigenvalues, spectral_norm, spectral_radius

Structure = Literal["scaled identity", "diagonal", "dense"]
Matrix = NDArray[np.float64]


class LTISystem:
    r"""Linear time-invariant system h[t+1] = A̅ h[t] + B̅ e, y = C_out h, in float64 whatever is given.

    Args:
        a_bar: A̅: a number (that multiple of the identity), a vector ``(d,)`` (diagonal) or a matrix ``(d, d)``; numpy
            array, torch tensor on any device, or lists; real and finite.
        b_bar: B̅: a number, a vector ``(d,)`` (diagonal) or a matrix ``(d, m)``. None is the identity: input added to
            the state.
        c_out: C_out: a number, a vector ``(d,)`` (diagonal) or a matrix ``(p, d)``. None is the identity: the state
            itself is read.
        width: State width d; needed only when none of the three shows it, and then 1 unless given.

    Attributes:
        a_bar: A̅ as float64 array of 0, 1 or 2 dimensions.
        b_bar: B̅ likewise (0-d one when not given).
        c_out: C_out likewise (0-d one when not given).
        width: State width d.
        structure: ``"scaled identity"``, ``"diagonal"`` or ``"dense"``, of A̅.

    Raises:
        ValueError: Entries that are not finite or not real, or shapes that do not fit (the message names the matrix
            and its shape).

    Source: h[t+1] = A̅ h[t] + B̅ e of arXiv 2604.12946; Kailath, Linear Systems (1980).

    >>> system = LTISystem([0.9, -0.5])
    >>> system.structure, system.width, system.regime()
    ('diagonal', 2, 'stable')
    >>> LTISystem([[0.0, 1.0], [-1.0, 0.0]]).eigenvalues().tolist()
    [1j, -1j]
    """

    def __init__(
        self, a_bar: object, b_bar: object | None = None, c_out: object | None = None, *, width: int | None = None
    ) -> None:
        self.a_bar: Matrix = as_float64(a_bar, "a_bar")
        self.b_bar: Matrix = as_float64(1.0 if b_bar is None else b_bar, "b_bar")
        self.c_out: Matrix = as_float64(1.0 if c_out is None else c_out, "c_out")
        self.width: int = self._common_width(width)
        kinds: tuple[Structure, ...] = ("scaled identity", "diagonal", "dense")
        self.structure: Structure = kinds[self.a_bar.ndim]

    def __repr__(self) -> str:
        """Show structure and widths."""
        return f"LTISystem({self.structure}, width={self.width}, inputs={self.inputs}, outputs={self.outputs})"

    @property
    def inputs(self) -> int:
        """Input width m: columns of B̅."""
        return self.b_bar.shape[1] if self.b_bar.ndim == 2 else self.width

    @property
    def outputs(self) -> int:
        """Output width p: rows of C_out."""
        return self.c_out.shape[0] if self.c_out.ndim == 2 else self.width

    @property
    def is_diagonal(self) -> bool:
        """Whether A̅, B̅ and C_out are all diagonal, so that every channel is a system of its own."""
        return max(self.a_bar.ndim, self.b_bar.ndim, self.c_out.ndim) < 2

    def diagonals(self) -> tuple[Matrix, Matrix, Matrix]:
        """Return the diagonals of A̅, B̅, C_out as ``(d,)`` vectors; ValueError when one of the three is dense."""
        if not self.is_diagonal:
            raise ValueError("diagonals() needs a_bar, b_bar and c_out all diagonal; use dense()")
        a, b, c = (np.broadcast_to(m, (self.width,)) for m in (self.a_bar, self.b_bar, self.c_out))
        return a, b, c

    def dense(self) -> tuple[Matrix, Matrix, Matrix]:
        """Return A̅ ``(d, d)``, B̅ ``(d, m)``, C_out ``(p, d)`` as full matrices."""
        a, b, c = (
            m if m.ndim == 2 else np.diag(np.broadcast_to(m, (self.width,)))
            for m in (self.a_bar, self.b_bar, self.c_out)
        )
        return a, b, c

    def eigenvalues(self) -> NDArray[np.complex128]:
        """Return the eigenvalues of A̅, largest modulus first; of a conjugate pair the one above the real axis first.

        Cost: O(d log d) for diagonal A̅, LAPACK's O(d³) for dense (about 0.3 s at d = 768 on one core).

        Returns:
            Array ``(d,)``, dimensionless multipliers per loop.

        Source: Golub and Van Loan, Matrix Computations, chapter 7 (LAPACK ``dgeev``).

        >>> LTISystem(0.5, width=3).eigenvalues().real.tolist()
        [0.5, 0.5, 0.5]
        """
        return sorted_eigenvalues(self.a_bar, self.width)

    def spectral_radius(self) -> Estimate:
        """Return the largest modulus of an eigenvalue of A̅, which decides the asymptotic stability of the linear part.

        Cost: O(d) for diagonal A̅; O(d³) for dense. For proven bounds of a dense A̅ use ``certify_radius``.

        Returns:
            Estimate, dimensionless. For dense A̅ the value has the backward error ``residual`` (it is exact for a
            matrix that close to A̅), which for a defective A̅ can mean a much larger error of the value; its bounds are
            |tr A̅|/d and norms.

        Source: Golub and Van Loan, Matrix Computations, sections 7.1-7.5.

        >>> LTISystem([0.9, -0.95]).spectral_radius().value
        0.95
        """
        return spectral_radius(self.a_bar)

    def spectral_norm(self) -> Estimate:
        """Return the largest singular value of A̅: the most that one loop of it can stretch a state. At least ρ(A̅).

        Cost: O(d) for diagonal A̅; O(d³) for dense.

        Returns:
            Estimate, dimensionless; dense bounds allow d roundings, which LAPACK's bidiagonal QR stays well within.

        Source: Golub and Van Loan, Matrix Computations, sections 2.4 and 8.6.

        >>> LTISystem([[0.0, 2.0], [0.0, 0.0]]).spectral_norm().value
        2.0
        """
        return spectral_norm(self.a_bar)

    def rms_gain(self) -> float:
        """Return root mean square singular value ‖A̅‖_F/√d: the average stretch of a random state. It bounds no ρ(A̅).

        Returns:
            Number, dimensionless.

        Source: E‖A̅x‖² = ‖A̅‖_F² for x with independent unit-variance entries.

        >>> round(LTISystem([3.0, 4.0]).rms_gain() ** 2, 12)
        12.5
        """
        # Scaled by the largest entry so that neither 1e200 nor 1e-200 over- or underflows when squared.
        largest = float(np.abs(self.a_bar).max())
        if largest == 0.0:
            return 0.0
        count = self.width if self.a_bar.ndim else 1
        return largest * math.sqrt(float(np.sum((self.a_bar / largest) ** 2)) / count)

    def regime(self, tol: float = LTI_TOLERANCE) -> Regime:
        """Return stable, marginal or unstable, from ρ(A̅) with half width ``tol`` of the marginal band.

        Returns:
            The regime of the linear part alone.

        Source: see ``loopscope.dynamics.regime.lti_regime``.

        >>> LTISystem(1.0).regime()
        'marginal'
        """
        return lti_regime(self.spectral_radius().value, tol)

    def _common_width(self, width: int | None) -> int:
        """Find the one state width that everything given agrees on."""
        if self.a_bar.ndim == 2:
            require_square(self.a_bar, "a_bar")
        shown = {"a_bar": self.a_bar.shape[0]} if self.a_bar.ndim else {}
        if self.b_bar.ndim:
            shown["b_bar"] = self.b_bar.shape[0]
        if self.c_out.ndim:
            shown["c_out"] = self.c_out.shape[-1]
        if width is not None:
            shown["width"] = width
        if len(set(shown.values())) > 1 or min(shown.values(), default=1) < 1:
            sizes = ", ".join(f"{name} {size}" for name, size in shown.items())
            raise ValueError(f"a_bar, b_bar and c_out must share one state width of at least 1; found {sizes}")
        return next(iter(shown.values()), 1)


def require_stable(system: LTISystem, what: str) -> float:
    """Return ρ(A̅) if it is below one; raise a ValueError that names the quantity which needs that otherwise."""
    radius = system.spectral_radius().value
    if radius >= 1.0:
        raise ValueError(f"{what} exists only for a stable system, ρ(A̅) < 1; found ρ(A̅) = {radius:.6g}")
    return radius
