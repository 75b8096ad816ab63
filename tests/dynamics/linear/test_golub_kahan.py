import numpy as np
import pytest
import torch
from loopscope.dynamics.linear.golub_kahan import golub_kahan

RNG = np.random.default_rng


@pytest.mark.parametrize("shape", [(80, 80), (30, 80), (80, 30), (1, 5), (5, 1)])
def test_is_the_largest_singular_value_from_below(shape: tuple[int, int]) -> None:
    a = RNG(0).normal(size=shape)
    exact = float(np.linalg.norm(a, 2))
    ritz = golub_kahan(lambda v: a @ v, lambda u: a.T @ u, RNG(1).normal(size=shape[1]), steps=30)
    assert ritz.value <= exact * (1 + 1e-13)
    # 30 steps from a random start on a random matrix: Lanczos theory gives far better than 1e-6.
    assert ritz.value == pytest.approx(exact, rel=1e-6)


def test_residual_is_that_of_its_vectors() -> None:
    a = RNG(2).normal(size=(50, 40))
    ritz = golub_kahan(lambda v: a @ v, lambda u: a.T @ u, RNG(3).normal(size=40), steps=8)
    left = a @ ritz.right / ritz.value
    assert np.linalg.norm(left) == pytest.approx(1, abs=1e-12)
    assert np.linalg.norm(a.T @ left - ritz.value * ritz.right) == pytest.approx(ritz.residual, rel=1e-9)
    assert ritz.products == 16


def test_zero_rank_one_and_identity() -> None:
    zero = golub_kahan(lambda v: 0 * v, lambda u: 0 * u, np.ones(6))
    assert zero.value == 0.0 and np.isfinite(zero.right).all()
    row = np.ones((3, 4))
    assert golub_kahan(lambda v: row @ v, lambda u: row.T @ u, np.arange(1.0, 5.0)).value == pytest.approx(12**0.5)
    same = golub_kahan(lambda v: v, lambda u: u, np.ones(9))
    assert same.value == pytest.approx(1, abs=1e-14)


def test_runs_on_tensors() -> None:
    a = torch.tensor(RNG(4).normal(size=(40, 40)))
    ritz = golub_kahan(lambda v: a @ v, lambda u: a.T @ u, torch.ones(40, dtype=torch.float64))
    assert isinstance(ritz.right, torch.Tensor)
    assert ritz.value == pytest.approx(float(torch.linalg.matrix_norm(a, 2)), rel=1e-4)


def test_nan_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        golub_kahan(lambda v: v * np.inf, lambda u: u, np.ones(5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distinct", [1, 3])
def test_an_invariant_subspace_ends_the_search_instead_of_inventing_directions(dtype, distinct):
    # Parcae starts like this: the full loop's Jacobian is a multiple of the identity, exhausted by one step.
    values = np.resize(np.linspace(0.4, 0.5, distinct), 6000).astype(dtype)
    start = np.random.default_rng(0).standard_normal(6000).astype(dtype)
    ritz = golub_kahan(lambda v: values * v, lambda u: values * u, start, steps=30)
    assert ritz.value == pytest.approx(float(values.max()), rel=10 * float(np.finfo(dtype).eps))
    assert ritz.residual <= 1e-3 * ritz.value
