import numpy as np
import pytest
import torch
from loopscope.dynamics.linear.arnoldi import arnoldi

RNG = np.random.default_rng


def test_full_subspace_gives_every_eigenvalue() -> None:
    a = RNG(0).normal(size=(12, 12))
    found = arnoldi(lambda v: a @ v, RNG(1).normal(size=12), steps=12)
    exact = np.linalg.eigvals(a)
    for value in found.values:
        # A complete Krylov space is a similarity; 1e-10 leaves room for eigenvalue conditions of a few hundred.
        assert np.abs(exact - value).min() < 1e-10
    assert found.converged and found.products == 12


def test_residual_is_the_true_backward_error() -> None:
    a = RNG(2).normal(size=(60, 60)) / 8
    found = arnoldi(lambda v: a @ v, RNG(3).normal(size=60), steps=20, restarts=1)
    # The smallest perturbation that makes θ an eigenvalue is σ_min(A − θI); no residual can be below it.
    for value, residual in zip(found.values[:5], found.residuals[:5], strict=True):
        assert np.linalg.svd(a - value * np.eye(60), compute_uv=False)[-1] <= residual * (1 + 1e-9)


def test_a_rotating_pair_is_found_as_a_pair() -> None:
    angle, width = 0.7, 120
    q = np.linalg.qr(RNG(4).normal(size=(width, width)))[0]
    spectrum = np.diag(np.linspace(0.0, 0.8, width))
    spectrum[:2, :2] = 0.99 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    a = q @ spectrum @ q.T
    found = arnoldi(lambda v: a @ v, RNG(5).normal(size=width), tolerance=1e-8)
    assert found.converged
    # Tolerance 1e-8 on a normal matrix bounds the eigenvalue error itself.
    np.testing.assert_allclose(found.values[:2], 0.99 * np.exp([1j * angle, -1j * angle]), atol=1e-8)


def test_too_few_steps_are_reported_unconverged() -> None:
    a = RNG(6).normal(size=(200, 200)) / np.sqrt(200)
    found = arnoldi(lambda v: a @ v, RNG(7).normal(size=200), steps=4, restarts=2)
    assert not found.converged and found.products == 8


def test_invariant_subspaces_and_the_zero_operator_end_early() -> None:
    projector = np.zeros((30, 30))
    projector[0, 0] = 2.0
    found = arnoldi(lambda v: projector @ v, np.ones(30), steps=20)
    assert found.converged and found.values.size <= 3
    assert found.values[0] == pytest.approx(2.0, abs=1e-12)
    assert arnoldi(lambda v: 0 * v, np.ones(30)).values.tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_and_numpy_agree(dtype: torch.dtype) -> None:
    a = torch.tensor(RNG(8).normal(size=(50, 50)) / 7, dtype=dtype)
    start = torch.tensor(RNG(9).normal(size=50), dtype=dtype)
    theirs = arnoldi(lambda v: a @ v, start)
    ours = arnoldi(lambda v: a.numpy() @ v, start.numpy())
    assert theirs.restart.dtype == dtype
    # float32 roundings differ between the two libraries; eigenvalue conditions here are below 100.
    assert abs(theirs.values[0]) == pytest.approx(abs(ours.values[0]), rel=1e-4 if dtype == torch.float32 else 1e-11)


def test_nan_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        arnoldi(lambda v: v * np.nan, np.ones(5))
