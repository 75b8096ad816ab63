r"""From continuous parameters to per-loop matrices: h' = Δ(A h + B e) stepped once per loop.

A is a number, a diagonal ``(d,)`` or a matrix ``(d, d)``; B likewise or ``(d, m)``; Δ is a number or one step size
per channel ``(d,)`` and scales the rows of A and B. Every rule returns the pair (A̅, B̅) in the simplest structure that
holds it.

Not covered: step sizes or parameters that change along the loop; those make the system time-varying.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_float64, require_square
from .spectrum import sigma_max

Matrix = NDArray[np.float64]


class Discretized(NamedTuple):
    """Per-loop matrices (A̅, B̅) of one discretisation rule, each 0-d, ``(d,)`` or 2-d."""

    a_bar: Matrix
    b_bar: Matrix


def zoh(a: object, delta: object, b: object = 1.0) -> Discretized:
    r"""Discretise by zero-order hold: exact for an input that is constant over a loop, as the injected e is.

    A̅ = exp(ΔA), B̅ = ∫₀¹ exp(sΔA) ds ΔB, which is (ΔA)⁻¹(exp(ΔA) − I)ΔB where ΔA is invertible and ΔB where it is zero.

    Args:
        a: Continuous A: number, ``(d,)`` or ``(d, d)``.
        delta: Step size Δ: number or ``(d,)``.
        b: Continuous B: number, ``(d,)`` or ``(d, m)``.

    Returns:
        (A̅, B̅), dimensionless. Cost O(d) for diagonal A, O((d + m)³) for dense.

    Raises:
        ValueError: Non-finite entries or shapes that do not fit.

    Source: Van Loan, IEEE Trans. Automatic Control 23 (1978) 395-404 (block exponential for the dense case).

    >>> import math
    >>> a_bar, b_bar = zoh(-1.0, math.log(2.0))
    >>> round(float(a_bar), 12), round(float(b_bar), 12)
    (0.5, 0.5)
    """
    scaled_a, scaled_b = _scaled(a, delta, b)
    if scaled_a.ndim < 2:
        return Discretized(np.exp(scaled_a), _times(_average_exponential(scaled_a), scaled_b))
    from scipy.linalg import expm

    width = scaled_a.shape[0]
    columns = _times(np.eye(width), scaled_b)
    block = np.zeros((width + columns.shape[1],) * 2)
    block[:width, :width], block[:width, width:] = scaled_a, columns
    whole = np.asarray(expm(block), dtype=np.float64)
    return Discretized(whole[:width, :width], whole[:width, width:])


def euler(a: object, delta: object, b: object = 1.0) -> Discretized:
    """Discretise by forward Euler: A̅ = I + ΔA, B̅ = ΔB. First order; unstable for a decay rate with Δ|a| > 2.

    Args:
        a: Continuous A: number, ``(d,)`` or ``(d, d)``.
        delta: Step size Δ: number or ``(d,)``.
        b: Continuous B: number, ``(d,)`` or ``(d, m)``.

    Returns:
        (A̅, B̅), dimensionless. Cost: one pass over the entries.

    Raises:
        ValueError: Non-finite entries or shapes that do not fit.

    Source: Hairer, Norsett and Wanner, Solving ODEs I, section I.7.

    >>> [float(m) for m in euler(-0.5, 0.5)]
    [0.75, 0.5]
    """
    scaled_a, scaled_b = _scaled(a, delta, b)
    return Discretized(_plus_identity(scaled_a), scaled_b)


def bilinear(a: object, delta: object, b: object = 1.0) -> Discretized:
    """Discretise by the trapezoidal rule (Tustin): A̅ = (I − ΔA/2)⁻¹(I + ΔA/2), B̅ = (I − ΔA/2)⁻¹ΔB.

    Second order, and stable exactly when the continuous system is.

    Args:
        a: Continuous A: number, ``(d,)`` or ``(d, d)``.
        delta: Step size Δ: number or ``(d,)``.
        b: Continuous B: number, ``(d,)`` or ``(d, m)``.

    Returns:
        (A̅, B̅), dimensionless. Cost O(d) for diagonal A, one O(d³) solve for dense.

    Raises:
        ValueError: Non-finite entries, shapes that do not fit, or an eigenvalue of ΔA equal to 2.

    Source: Tustin, Journal of the IEE 94 (1947) 130-142.

    >>> [round(float(m), 12) for m in bilinear(-1.0, 2.0 / 3.0)]
    [0.5, 0.5]
    """
    scaled_a, scaled_b = _scaled(a, delta, b)
    ahead, behind = _plus_identity(scaled_a / 2), _plus_identity(-scaled_a / 2)
    singular = "bilinear is undefined: ΔA has the eigenvalue 2, where I − ΔA/2 is singular"
    if behind.ndim < 2:
        if not behind.all():
            raise ValueError(singular)
        return Discretized(ahead / behind, _times(1 / behind, scaled_b))
    try:
        both = np.linalg.solve(behind, np.hstack([ahead, _times(np.eye(len(behind)), scaled_b)]))
    except np.linalg.LinAlgError as error:
        raise ValueError(singular) from error
    whole = both.astype(np.float64)
    return Discretized(whole[:, : len(behind)], whole[:, len(behind) :])


def mixture(a: object, delta: object, b: object = 1.0) -> Discretized:
    """Discretise by Parcae's rule: zero-order hold for A̅ and Euler for B̅, so A̅ = exp(ΔA), B̅ = ΔB.

    Args:
        a: Continuous A: number, ``(d,)`` or ``(d, d)``.
        delta: Step size Δ: number or ``(d,)``.
        b: Continuous B: number, ``(d,)`` or ``(d, m)``.

    Returns:
        (A̅, B̅), dimensionless. Cost as for :func:`zoh`.

    Raises:
        ValueError: Non-finite entries or shapes that do not fit.

    Source: arXiv 2604.12946 (the diagonal injection).

    >>> import math
    >>> round(float(mixture(-1.0, -math.log(math.sqrt(1 / 5))).a_bar), 3)
    0.447
    """
    return Discretized(zoh(a, delta, 0.0).a_bar, _scaled(a, delta, b)[1])


def discretization_error(a: object, delta: object, b: object = 1.0) -> dict[str, tuple[float, float]]:
    r"""Return how far each rule is from the exact zero-order hold: ‖A̅ − A̅_zoh‖₂ and ‖B̅ − B̅_zoh‖₂.

    Args:
        a: Continuous A: number, ``(d,)`` or ``(d, d)``.
        delta: Step size Δ: number or ``(d,)``.
        b: Continuous B: number, ``(d,)`` or ``(d, m)``.

    Returns:
        ``{"euler": (a_error, b_error), "bilinear": ..., "mixture": ...}``, dimensionless spectral norms.

    Raises:
        ValueError: As for :func:`bilinear`.

    Source: definition; to leading order Euler's A̅ error is ‖ΔA‖²/2 and its B̅ error ‖ΔA ΔB‖/2.

    >>> errors = discretization_error(-1.0, 0.01)
    >>> errors["mixture"][0], round(errors["mixture"][1] / 0.01**2, 2)
    (0.0, 0.5)
    """
    exact = zoh(a, delta, b)
    rules = {"euler": euler, "bilinear": bilinear, "mixture": mixture}
    return {
        name: (_distance(system.a_bar, exact.a_bar), _distance(system.b_bar, exact.b_bar))
        for name, rule in rules.items()
        for system in (rule(a, delta, b),)
    }


def _scaled(a: object, delta: object, b: object) -> tuple[Matrix, Matrix]:
    """Check the three and return (ΔA, ΔB), rows scaled by Δ."""
    continuous, step, inputs = as_float64(a, "a"), as_float64(delta, "delta"), as_float64(b, "b")
    if step.ndim == 2:
        raise ValueError(f"delta must be a number or one step per channel; found shape {step.shape}")
    if continuous.ndim == 2:
        require_square(continuous, "a")
    shown = {name: m.shape[0] for name, m in (("a", continuous), ("delta", step), ("b", inputs)) if m.ndim}
    if len(set(shown.values())) > 1:
        sizes = ", ".join(f"{name} {size}" for name, size in shown.items())
        raise ValueError(f"a, delta and b must share one width; found {sizes}")
    return _times(step, continuous), _times(step, inputs)


def _times(left: Matrix, right: Matrix) -> Matrix:
    """Return the product of two matrices in structured form: numbers and diagonals stay so where possible."""
    if left.ndim == 2:
        return left @ right if right.ndim == 2 else left * right
    return left[:, None] * right if left.ndim == 1 and right.ndim == 2 else np.asarray(left * right)


def _plus_identity(matrix: Matrix) -> Matrix:
    """Add the identity in structured form."""
    return matrix + np.eye(len(matrix)) if matrix.ndim == 2 else np.asarray(matrix + 1.0)


def _average_exponential(x: Matrix) -> Matrix:
    """Return the mean of exp(sx) over 0 <= s <= 1, which is (exp(x) − 1)/x and 1 at zero, without cancellation."""
    zero = x == 0
    return np.where(zero, 1.0, np.expm1(x) / np.where(zero, 1.0, x))


def _distance(left: Matrix, right: Matrix) -> float:
    """Return the spectral norm of the difference of two structured matrices."""
    if max(left.ndim, right.ndim) < 2:
        return float(np.abs(left - right).max())
    size = next(m for m in (left, right) if m.ndim == 2).shape
    full = [m if m.ndim == 2 else np.diag(np.broadcast_to(m, (size[0],))) for m in (left, right)]
    return sigma_max(full[0] - full[1])
