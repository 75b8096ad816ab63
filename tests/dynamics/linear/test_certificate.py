import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.dynamics.estimate import Estimate
from loopscope.dynamics.linear.certificate import certify_radius, verdict
from numpy.typing import NDArray

RNG = np.random.default_rng


def unimodular(rng: np.random.Generator, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """An integer matrix and its integer inverse: similar matrices have eigenvalues known without rounding."""
    forward, inverse = np.eye(width), np.eye(width)
    for _ in range(2 * width):
        i, j = rng.integers(0, width, 2)
        if i != j:
            step = float(rng.integers(-2, 3))
            forward[i] += step * forward[j]
            inverse[:, j] -= step * inverse[:, i]
    return forward, inverse


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from([-498, -40, 0, 40, 498]))
@settings(max_examples=1500, deadline=None)
def test_encloses_radii_known_without_rounding(seed: int, width: int, exponent: int) -> None:
    rng = RNG(seed)
    # A triangle of eighths with ones above the diagonal at random: exactly representable all the way, Jordan blocks and
    # near-defective matrices included. Scaling by 2^±498 (1e±150) is exact too.
    eighths = rng.integers(-12, 13, width) / 8
    jordan = np.diag(eighths) + np.diag(rng.integers(0, 2, width - 1).astype(float), 1)
    forward, inverse = unimodular(rng, width)
    a = forward @ jordan @ inverse
    exact = float(np.abs(eighths).max())
    # All intermediate numbers are multiples of 1/8 below 2^50, so the products above were exact.
    assert np.abs(a).max() * 8 < 2**50
    bounds = certify_radius(np.ldexp(a, exponent))
    assert bounds.lower <= math.ldexp(exact, exponent) <= bounds.upper, (seed, bounds, exact)
    assert bounds.lower <= bounds.value <= bounds.upper


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(0.0, 3.2))
@settings(max_examples=500, deadline=None)
def test_encloses_rotating_pairs(seed: int, power: int, angle: float) -> None:
    c, s = math.cos(angle), math.sin(angle)
    a = (1 + 2.0**-power) * np.array([[c, -s], [s, c]])
    # ρ² = det for a pair; its rounding error is two units of round-off of numbers near one.
    exact = math.sqrt(a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0])
    bounds = certify_radius(a)
    assert bounds.lower <= exact * (1 + 4e-16) and exact * (1 - 4e-16) <= bounds.upper
    assert bounds.upper <= bounds.lower * 1.01


@pytest.mark.parametrize("seed", range(40))
def test_encloses_what_lapack_finds_and_is_narrow(seed: int) -> None:
    width = int(RNG(seed).integers(2, 80))
    a = RNG(seed).normal(size=(width, width)) / math.sqrt(width)
    exact = float(np.abs(np.linalg.eigvals(a)).max())
    bounds = certify_radius(a)
    # Random matrices have eigenvalue condition numbers of order d: 80 · 80 · 1e-16 is far below 1e-11.
    assert bounds.lower <= exact * (1 + 1e-11) and exact * (1 - 1e-11) <= bounds.upper
    assert bounds.upper <= bounds.lower * 1.001 and bounds.converged
    assert abs(bounds.value / exact - 1) < 1e-3


def test_agrees_with_mpmath_where_float64_eigenvalues_fail() -> None:
    import mpmath

    # A full similarity of one Jordan block of size 8: LAPACK is off by about eps^(1/8) = 1 %.
    forward, inverse = unimodular(RNG(3), 8)
    a = forward @ (np.diag([0.75] * 8) + np.diag([1.0] * 7, 1)) @ inverse
    with mpmath.workdps(300):
        exact = max(abs(complex(value)) for value in mpmath.eig(mpmath.matrix(a.tolist()), left=False, right=False))
    assert abs(exact - 0.75) < 1e-12
    assert abs(float(np.abs(np.linalg.eigvals(a)).max()) - 0.75) > 1e-4, "LAPACK alone would mislead here"
    bounds = certify_radius(a)
    assert bounds.lower <= exact <= bounds.upper


@pytest.mark.parametrize(("radius", "words"), [(1.0158, "certified unstable"), (0.9833, "certified stable")])
def test_decides_close_to_one_at_model_width(radius: float, words: str) -> None:
    a = RNG(1).normal(size=(384, 384))
    a *= radius / np.abs(np.linalg.eigvals(a)).max()
    bounds = certify_radius(torch.tensor(a))
    assert verdict(bounds) == words
    # 0.5 %: what d^(1/k) leaves at the power where the rounding bound has used up float64.
    assert bounds.residual < 5e-3


def test_highly_non_normal_triangle_is_balanced_first() -> None:
    bounds = certify_radius([[0.9, 1e5], [0.0, 0.8]])
    assert verdict(bounds) == "certified stable" and bounds.residual < 1e-3


def test_special_matrices() -> None:
    assert certify_radius(np.zeros((5, 5))) == Estimate.exact(0.0, "exact, zero")
    assert certify_radius(-0.5).value == certify_radius([0.1, -0.5]).value == 0.5
    one = certify_radius([[-3.0]])
    assert one.lower <= 3.0 <= one.upper and one.upper - one.lower < 1e-13
    nilpotent = certify_radius([[0.0, 1.0], [0.0, 0.0]])
    assert nilpotent.lower == 0.0 and nilpotent.upper < 1e-7
    smallest = certify_radius([[5e-324, 0.0], [0.0, 0.0]])
    assert smallest.lower <= 5e-324 <= smallest.upper < 1e-300
    huge = certify_radius([[1e308, 0.0], [1e308, 1e300]])
    assert huge.lower <= 1e308 <= huge.upper
    # All eigenvalues on the circle and all available traces zero: only the interval is certain.
    shift = certify_radius(np.roll(np.eye(7), 1, axis=0))
    assert shift.lower == 0.0 and shift.upper == pytest.approx(1.0, abs=1e-6)
    assert verdict(shift) == "undecided" and not shift.converged


def test_identity_is_never_certified_to_either_side() -> None:
    assert verdict(certify_radius(1.0)) == verdict(certify_radius(np.ones(4))) == "certified marginal"
    dense = certify_radius(np.eye(30))
    assert dense.lower <= 1.0 <= dense.upper and verdict(dense) == "undecided"


def test_float32_parameters_are_widened_not_rounded() -> None:
    a = (RNG(5).normal(size=(20, 20)) / 4).astype(np.float32)
    assert certify_radius(a) == certify_radius(a.astype(np.float64)) == certify_radius(torch.tensor(a))


def test_a_missing_number_proves_nothing() -> None:
    assert verdict(Estimate.missing("not run")) == "undecided"


@pytest.mark.parametrize("bad", [[[math.nan, 0.0], [0.0, 1.0]], [math.inf], np.ones((2, 3)), np.ones(0)])
def test_what_cannot_be_certified_is_an_error(bad: object) -> None:
    with pytest.raises(ValueError, match="a must"):
        certify_radius(bad)
