"""Proof of stability: bounds on the spectral radius that hold whatever rounding did, without an eigenvalue solver.

Repeated squaring gives the powers A^k, k = 1, 2, 4, …; for every k, (|tr A^k| / d)^(1/k) <= ρ(A) <= ‖A^k‖^(1/k).
Alongside each power runs a bound of its distance from the exact one, so the result is an enclosure in float64
arithmetic (round to nearest, conventional matrix products in any order of summation).

Not covered: float32, where rounding swallows everything after about k = 16 (inputs of any precision are widened
first, which is exact); parameter uncertainty; the full loop. The lower bound stays 0 where all those traces vanish,
as for a cyclic shift of seven states: the answer is then a valid, wide interval.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..arrays import ROUNDING, as_float64, require_square
from ..estimate import Estimate
from .norm_bound import UNDERFLOW, frobenius_bound, norm_bound

Verdict = Literal["certified stable", "certified marginal", "certified unstable", "undecided"]

# Width of the enclosure, relative to its value, below which more products are not worth their cost.
NARROW: Final = 1e-4
# 2^20 loops: one more squaring could not move a bound by a relative 1e-5 even at d = 10^4.
SQUARINGS: Final = 20


def certify_radius(a: object) -> Estimate:
    r"""Is this matrix proven stable? Encloses ρ(A) between traces and norms of its powers, rounding errors included.

    Args:
        a: Number, diagonal ``(d,)`` or square matrix ``(d, d)``; numpy or torch, any device and precision, magnitudes
            from 1e-150 to 1e150 and beyond.

    Returns:
        Estimate, dimensionless: ``lower <= ρ(A) <= upper`` is proven; ``value`` is a best guess between them;
        ``residual`` is the relative width (infinite when the lower bound is 0); ``converged`` tells that the width is
        at most 1 % or the bounds lie on one side of one. :func:`verdict` puts it in words.

    Raises:
        ValueError: NaN or infinity, or not square.

    Cost: one product of d × d matrices per squaring, usually 10 to 16 (about half a second at d = 1024 on one core),
    and O(d²) more.

    Source: Gelfand's formula; the trace bound |tr A^k| <= d ρ^k; rounding of products after Higham, Accuracy and
    Stability of Numerical Algorithms (2002), section 3.5.

    >>> rho = certify_radius([[0.9, 100.0], [0.0, 0.8]])
    >>> rho.lower <= 0.9 <= rho.upper, verdict(rho)
    (True, 'certified stable')
    """
    matrix = as_float64(a, "a")
    if matrix.ndim < 2:
        if matrix.size == 0:
            raise ValueError(f"a must hold at least one entry; found shape {matrix.shape}")
        return Estimate.exact(float(np.abs(matrix).max()), "exact, diagonal")
    require_square(matrix, "a")
    if not matrix.any():
        return Estimate.exact(0.0, "exact, zero")
    return _enclose(matrix)


def verdict(estimate: Estimate) -> Verdict:
    """Put the bounds of a spectral radius in words.

    Args:
        estimate: What :func:`certify_radius` returned, or any Estimate of a spectral radius.

    Returns:
        ``"certified stable"`` when the upper bound is below 1, ``"certified unstable"`` when the lower one is above,
        ``"certified marginal"`` when both equal 1, else ``"undecided"``.

    Source: ρ(A) < 1 is necessary and sufficient for A^t to die out.

    >>> verdict(certify_radius([1.0, 0.5])), verdict(certify_radius([[0.5, 1.0], [1.0, 0.5]]))
    ('certified marginal', 'certified unstable')
    """
    if estimate.upper < 1.0:
        return "certified stable"
    if estimate.lower > 1.0:
        return "certified unstable"
    return "certified marginal" if estimate.lower == estimate.upper == 1.0 else "undecided"


@dataclass(frozen=True, slots=True)
class _Power:
    """A^k = 2^exponent · P, ‖P − matrix‖_F <= error; frobenius and norm bound ‖matrix‖_F and ‖matrix‖₂ from above."""

    matrix: NDArray[np.float64]
    k: int
    exponent: int
    error: float
    frobenius: float
    norm: float


def _enclose(matrix: NDArray[np.float64]) -> Estimate:
    """Square until the enclosure is narrow or rounding has swallowed the signal."""
    width = matrix.shape[0]
    power = _balanced(matrix)
    recent: deque[_Power] = deque(maxlen=4)
    lower, upper, guess = 0.0, math.inf, math.nan
    for squarings in range(SQUARINGS + 1):
        power = _squared(power) if squarings else power
        recent.appendleft(power)
        upper = min(upper, _root(power.norm + power.error, power.exponent, power.k, up=True))
        lower = max(lower, _trace_bound(power), *(_pair_bound(power, other) for other in recent))
        if len(recent) > 1 and power.norm > 0:
            half = recent[1]
            growth = math.log2(power.norm / half.norm) + power.exponent - half.exponent
            guess = _exp2(growth / half.k)
        if upper <= lower * (1 + NARROW) or power.error > power.frobenius:
            break
    residual = upper / lower - 1 if lower > 0 else math.inf
    value = min(max(guess, lower), upper) if not math.isnan(guess) else upper
    decided = upper < 1 or lower > 1 or residual <= 0.01
    return Estimate(value, lower, upper, residual, f"repeated squaring to k = {power.k}, d = {width}, float64", decided)


def _balanced(matrix: NDArray[np.float64]) -> _Power:
    """Return the matrix itself, or a diagonal similarity of it by powers of two where that makes it smaller."""
    plain = _measured(matrix, 1, 0, 0.0)
    magnitude = np.abs(plain.matrix)
    right, left = np.ones(len(matrix)), np.ones(len(matrix))
    for _ in range(20):
        # A trace of the last vector keeps every entry positive where the matrix has zero rows.
        right, left = magnitude @ right + 1e-9 * right, left @ magnitude + 1e-9 * left
        right, left = right / right.max() + 1e-100, left / left.max() + 1e-100
    # sqrt(right / left) of the Perron vectors of |A| minimises the norm. Powers of two make the similarity exact, the
    # limits keep entries from overflowing, and what underflows is far below the error granted to _measured.
    exponents = np.clip(np.rint(np.log2(right / left) / 2), -200, 200).astype(np.int64)
    similar = np.ldexp(plain.matrix, exponents[None, :] - exponents[:, None])
    scaled = _measured(similar, 1, plain.exponent, plain.error + len(matrix) * UNDERFLOW)
    smaller = _ldexp(scaled.frobenius, scaled.exponent - plain.exponent) < plain.frobenius
    return scaled if smaller else plain


def _squared(power: _Power) -> _Power:
    """Return the next power, and how far it may be from the exact one."""
    width = power.matrix.shape[0]
    product = power.matrix @ power.matrix
    # |fl(MM) − MM| <= γ |M||M| entry by entry, and ‖|M||M|‖_F <= ‖M‖_F². The error of P enters as MΔ + ΔM + ΔΔ.
    gamma = width * ROUNDING / (1 - width * ROUNDING)
    rounding = gamma * power.frobenius**2 + width * UNDERFLOW
    error = (2 * power.norm + power.error) * power.error + rounding
    return _measured(product, 2 * power.k, 2 * power.exponent, error * (1 + 8 * ROUNDING))


def _measured(matrix: NDArray[np.float64], k: int, exponent: int, error: float) -> _Power:
    """Scale by a power of two, which is exact, so that entries are at most one; then bound the norms from above."""
    width = matrix.shape[0]
    largest = float(np.abs(matrix).max())
    shift = math.frexp(largest)[1] if largest > 0 else 0
    scaled = np.ldexp(matrix, -shift)
    # Scaling can lose entries to underflow; ldexp of the error bound may itself round, so it is raised a little.
    error = _ldexp(error, -shift) * (1 + 4 * ROUNDING) + width * UNDERFLOW
    return _Power(scaled, k, exponent + shift, error, frobenius_bound(scaled), norm_bound(scaled))


def _trace_bound(power: _Power) -> float:
    """Return a lower bound of ρ from the trace of one power."""
    width = power.matrix.shape[0]
    slack = math.sqrt(width) * (power.error + width * ROUNDING * power.frobenius)
    trace = abs(float(np.trace(power.matrix))) - slack * (1 + 8 * ROUNDING)
    return _root(trace / width * (1 - 4 * ROUNDING), power.exponent, power.k, up=False)


def _pair_bound(one: _Power, other: _Power) -> float:
    """Return a lower bound of ρ from the trace of the product of two powers, which needs no product of matrices."""
    width = one.matrix.shape[0]
    unformed = one.frobenius * other.error + other.frobenius * one.error + one.error * other.error
    summation = (width**2 + 8) * ROUNDING * one.frobenius * other.frobenius + width**2 * UNDERFLOW
    trace = abs(float(np.einsum("ij,ji->", one.matrix, other.matrix)))
    bound = (trace - (unformed + summation) * (1 + 8 * ROUNDING)) / width
    return _root(bound * (1 - 4 * ROUNDING), one.exponent + other.exponent, one.k + other.k, up=False)


def _root(value: float, exponent: int, k: int, *, up: bool) -> float:
    """Return (value · 2^exponent)^(1/k), rounded outwards; 0 for a value that is not positive."""
    if not value > 0:
        return 0.0
    logarithm = math.log2(value)
    root = (logarithm + exponent) / k
    # Logarithm, sum, quotient and power each round once; all four errors are relative to the sizes below.
    slack = 8 * ROUNDING * ((abs(logarithm) + abs(exponent)) / k + abs(root) + 1)
    return _exp2(root) * (1 + slack) + 5e-324 if up else max(_exp2(root) * (1 - slack) - 5e-324, 0.0)


def _exp2(value: float) -> float:
    """Return 2^value, infinite instead of an error when it is too large."""
    return math.exp2(value) if value < 1024 else math.inf


def _ldexp(value: float, shift: int) -> float:
    """Return value · 2^shift, infinite instead of an error when it is too large."""
    try:
        return math.ldexp(value, shift)
    except OverflowError:
        return math.inf
