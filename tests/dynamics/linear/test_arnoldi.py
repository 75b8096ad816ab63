import numpy as np
import pytest
import torch
from loopscope.dynamics.linear.arnoldi import arnoldi

RNG = np.random.default_rng


def test_full_subspace_gives_every_eigenvalue() -> None:
    a = RNG(0).normal(size=(12, 12))
    leading = arnoldi(lambda v: a @ v, RNG(1).normal(size=12), steps=12)
    exact = np.linalg.eigvals(a)
    for value in leading.values:
        # A complete Krylov space is a similarity; 1e-10 leaves room for eigenvalue conditions of a few hundred.
        assert np.abs(exact - value).min() < 1e-10
    assert leading.converged and leading.products == 12


def test_residual_is_the_true_backward_error() -> None:
    a = RNG(2).normal(size=(60, 60)) / 8
    leading = arnoldi(lambda v: a @ v, RNG(3).normal(size=60), steps=20, restarts=1)
    # The smallest perturbation that makes θ an eigenvalue is σ_min(A − θI); no residual can be below it.
    for value, residual in zip(leading.values[:5], leading.residuals[:5], strict=True):
        assert np.linalg.svd(a - value * np.eye(60), compute_uv=False)[-1] <= residual * (1 + 1e-9)


def test_a_rotating_pair_is_found_as_a_pair() -> None:
    angle, width = 0.7, 120
    q = np.linalg.qr(RNG(4).normal(size=(width, width)))[0]
    spectrum = np.diag(np.linspace(0.0, 0.8, width))
    spectrum[:2, :2] = 0.99 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    a = q @ spectrum @ q.T
    leading = arnoldi(lambda v: a @ v, RNG(5).normal(size=width), tolerance=1e-8)
    assert leading.converged
    # Tolerance 1e-8 on a normal matrix bounds the eigenvalue error itself.
    np.testing.assert_allclose(leading.values[:2], 0.99 * np.exp([1j * angle, -1j * angle]), atol=1e-8)


def test_too_few_steps_are_reported_unconverged() -> None:
    a = RNG(6).normal(size=(200, 200)) / np.sqrt(200)
    leading = arnoldi(lambda v: a @ v, RNG(7).normal(size=200), steps=4, restarts=2)
    # The second subspace keeps one vector of the first and the direction that follows.
    assert not leading.converged and leading.products == 7


def test_invariant_subspaces_and_the_zero_operator_end_early() -> None:
    projector = np.zeros((30, 30))
    projector[0, 0] = 2.0
    leading = arnoldi(lambda v: projector @ v, np.ones(30), steps=20)
    assert leading.converged and leading.values.size <= 3
    assert leading.values[0] == pytest.approx(2.0, abs=1e-12)
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


def near_identity(kind: str, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """0.7 I and a small change of it, as an injection initialised to a multiple of the identity has."""
    rng, a = RNG(10), 0.7 * np.eye(width)
    if kind == "one entry":
        a[0, 0] += 0.024
    elif kind == "rank one":
        u = rng.normal(size=width) / np.sqrt(width)
        a += 0.036 * np.outer(u, u) / (u @ u)
    elif kind == "noise":
        a += 1e-7 * rng.normal(size=(width, width))
    elif kind == "block rotations":
        for i in range(0, width - 1, 2):
            angle, size = 1 + i / width, 0.7 * (1 - 1e-4 * i / width)
            c, s = size * np.cos(angle), size * np.sin(angle)
            a[i : i + 2, i : i + 2] = [[c, -s], [s, c]]
    elif kind == "two values":
        a[: width // 2] *= 0.5
    return a


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["identity", "one entry", "rank one", "noise", "block rotations", "two values"])
def test_breakdown_near_a_multiple_of_the_identity_costs_no_eigenvalue(kind: str, dtype: type) -> None:
    a = near_identity(kind, 700).astype(dtype)
    exact = float(np.abs(np.linalg.eigvals(a)).max())
    leading = arnoldi(lambda v: a @ v, RNG(11).normal(size=700).astype(dtype))
    # 4e-5: an eigenvector that a random vector holds to 1/√700 shows as long as its share is above 16 roundings.
    assert abs(leading.values[0]) == pytest.approx(exact, rel=4e-5)
    assert leading.residuals[0] >= np.finfo(dtype).eps * 0.1, "no product is more exact than its rounding"


def test_a_thick_restart_keeps_the_arnoldi_relation() -> None:
    a = RNG(12).normal(size=(300, 300)) / np.sqrt(300)
    one = arnoldi(lambda v: a @ v, RNG(13).normal(size=300), steps=40, restarts=1)
    several = arnoldi(lambda v: a @ v, RNG(13).normal(size=300), steps=40, restarts=30, tolerance=1e-10)
    exact = np.abs(np.linalg.eigvals(a)).max()
    assert several.converged and several.products < 40 + 29 * 31
    assert abs(several.values[0]) == pytest.approx(exact, rel=1e-8)
    assert abs(abs(one.values[0]) - exact) > abs(abs(several.values[0]) - exact)
    for value, residual in zip(several.values[:5], several.residuals[:5], strict=True):
        assert np.linalg.svd(a - value * np.eye(300), compute_uv=False)[-1] <= residual * (1 + 1e-6) + 1e-13


@pytest.mark.parametrize("coupling", [0.0, 1.0, 100.0])
def test_the_condition_tells_how_far_a_residual_reaches(coupling: float) -> None:
    a = np.diag(np.linspace(0.1, 0.9, 30)) + coupling * np.diag(np.ones(29), 1)
    leading = arnoldi(lambda v: a @ v, RNG(14).normal(size=30), steps=30)
    values, vectors = np.linalg.eig(a)
    exact = np.linalg.norm(np.linalg.inv(vectors)[np.argmax(np.abs(values))])
    if coupling < 100:
        # The complete space is a similarity; conditions above 1e10 are themselves only known to a factor.
        assert leading.condition == pytest.approx(exact, rel=1e-2 if coupling == 0.0 else 10)
    else:
        assert leading.condition > 1e6
