import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.dynamics.linear.spectrum import spectral_norm, spectral_radius
from scipy.sparse.linalg import eigs

RNG = np.random.default_rng


def test_agrees_with_arpack_and_torch() -> None:
    a = RNG(0).normal(size=(150, 150)) / 12
    value = spectral_radius(a).value
    # k = 6 with a wide subspace: k = 1 can stop on the wrong eigenvalue of the edge.
    arpack = np.abs(eigs(a, k=6, ncv=60, return_eigenvectors=False)).max()
    # Three solvers on one well-conditioned problem: condition times round-off is about 1e-13.
    assert value == pytest.approx(arpack, rel=1e-10)
    assert value == pytest.approx(float(torch.linalg.eigvals(torch.tensor(a)).abs().max()), rel=1e-10)
    assert spectral_norm(a).value == pytest.approx(float(torch.linalg.matrix_norm(torch.tensor(a), 2)), rel=1e-12)


def test_norm_of_a_rectangle() -> None:
    a = RNG(1).normal(size=(3, 7))
    assert spectral_norm(a).value == pytest.approx(np.sqrt(np.linalg.eigvalsh(a @ a.T)[-1]), rel=1e-12)


@given(st.integers(1, 9), st.integers(0, 10_000), st.sampled_from([1e-150, 1.0, 1e150]))
@settings(max_examples=200, deadline=None)
def test_radius_never_exceeds_norm(width: int, seed: int, scale: float) -> None:
    a = scale * RNG(seed).normal(size=(width, width))
    # 1e-12 covers the rounding of two O(d³) computations at d <= 9; they are equal for 1 × 1.
    assert spectral_radius(a).value <= spectral_norm(a).upper * (1 + 1e-12)


def test_normal_matrices_have_equal_radius_and_norm() -> None:
    q = np.linalg.qr(RNG(2).normal(size=(20, 20)))[0]
    symmetric = q @ np.diag(np.linspace(-0.9, 0.5, 20)) @ q.T
    assert spectral_radius(symmetric).value == pytest.approx(spectral_norm(symmetric).value, rel=1e-12)


@pytest.mark.parametrize("measure", [spectral_radius, spectral_norm])
def test_nan_and_emptiness_are_errors(measure: object) -> None:
    for bad in ([[np.nan]], [[np.inf, 1.0], [0.0, 1.0]], np.ones((0, 0))):
        with pytest.raises(ValueError, match="must"):
            measure(bad)  # type: ignore[operator]
