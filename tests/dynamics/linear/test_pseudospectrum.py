import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.dynamics import LTISystem
from loopscope.dynamics.linear.pseudospectrum import pseudospectral_radius, pseudospectrum_on_grid

RNG = np.random.default_rng


@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([1e-4, 1e-2, 0.3]))
@settings(max_examples=40, deadline=None)
def test_no_perturbation_exceeds_it_and_a_dense_grid_reaches_it(seed: int, width: int, epsilon: float) -> None:
    a = RNG(seed).normal(size=(width, width))
    radius = pseudospectral_radius(LTISystem(a), epsilon)
    assert radius.converged
    rng = RNG(seed + 1)
    for _ in range(20):
        u, v = rng.normal(size=(2, width))
        change = epsilon * np.outer(u, v) / (np.linalg.norm(u) * np.linalg.norm(v))
        # 1e-6: ill-conditioned eigenvalues of the perturbed matrix carry rounding errors of their own.
        assert np.abs(np.linalg.eigvals(a + change)).max() <= radius.upper * (1 + 1e-6)
    # Just outside the radius no point of a dense grid of angles lies in the pseudospectrum.
    points = radius.value * (1 + 1e-6) * np.exp(1j * np.linspace(0, np.pi, 400))
    heights = [np.linalg.svd(z * np.eye(width) - a, compute_uv=False)[-1] for z in points]
    assert min(heights) >= epsilon * (1 - 1e-6)


def test_normal_matrices_move_by_exactly_epsilon() -> None:
    q = np.linalg.qr(RNG(0).normal(size=(8, 8)))[0]
    a = q @ np.diag(np.linspace(-0.9, 0.6, 8)) @ q.T
    assert pseudospectral_radius(LTISystem(a), 0.1).value == pytest.approx(1.0, rel=1e-9)
    assert pseudospectral_radius(LTISystem(0.9, width=3), 0.1).value == pytest.approx(1.0)
    assert pseudospectral_radius(LTISystem(a), 0.0).value == pytest.approx(0.9, rel=1e-12)


def test_jordan_block_in_closed_form() -> None:
    # For [[0, 1], [0, 0]]: σ_min(zI − A) = ε at |z|² = ε² + ε, from σ₁σ₂ = |z|² and σ₁² + σ₂² = 2|z|² + 1.
    for epsilon in (1e-6, 1e-3, 0.5):
        radius = pseudospectral_radius(LTISystem([[0.0, 1.0], [0.0, 0.0]]), epsilon)
        assert radius.value == pytest.approx((epsilon**2 + epsilon) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 1e-1])
def test_strongly_non_normal_matrix(epsilon: float) -> None:
    # The Grcar matrix, whose pseudospectra bulge far beyond its eigenvalues.
    a = (np.eye(30) - np.diag(np.ones(29), -1) + sum(np.diag(np.ones(30 - k), k) for k in (1, 2, 3))) / 3
    radius = pseudospectral_radius(LTISystem(a), epsilon)
    for scale, compare in ((1 + 1e-5, np.greater), (1 - 1e-3, np.less)):
        points = radius.value * scale * np.exp(1j * np.linspace(0, np.pi, 800))
        lowest = min(np.linalg.svd(z * np.eye(30) - a, compute_uv=False)[-1] for z in points)
        # Just outside nothing is within ε; a thousandth inside, wider than the grid is coarse, something is.
        assert compare(lowest, epsilon), scale


def test_grid_is_the_smallest_singular_value() -> None:
    a = RNG(1).normal(size=(5, 5))
    x, y = np.linspace(-2, 2, 5), np.linspace(-1, 1, 5)
    smallest = pseudospectrum_on_grid(LTISystem(a), x, y)
    for i, yy in enumerate(y):
        for j, xx in enumerate(x):
            exact = np.linalg.svd((xx + 1j * yy) * np.eye(5) - a, compute_uv=False)[-1]
            assert smallest[i, j] == pytest.approx(exact, abs=1e-14)
    d = np.array([0.5, -0.2])
    np.testing.assert_allclose(
        pseudospectrum_on_grid(LTISystem(d), x, y), pseudospectrum_on_grid(LTISystem(np.diag(d)), x, y), atol=1e-14
    )


def test_wrong_arguments_are_named() -> None:
    for epsilon in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="epsilon must be a finite number"):
            pseudospectral_radius(LTISystem(0.5), epsilon)
    with pytest.raises(ValueError, match="must be vectors"):
        pseudospectrum_on_grid(LTISystem(0.5), 0.5, [0.0])


@pytest.mark.parametrize("name", ["cycle", "Jordan"])
def test_a_search_that_sees_no_crossing_is_unconverged(name: str) -> None:
    a = {
        "cycle": np.roll(np.eye(7), 1, 0),
        "Jordan": 0.9 * np.eye(6) + np.diag(np.ones(5), 1),
    }[name]
    radius = pseudospectral_radius(LTISystem(a), 1e-14)  # below the rounding of the matrix of twice the size
    assert not radius.converged and radius.upper == np.inf
    assert radius.value == radius.lower >= np.abs(np.linalg.eigvals(a)).max()


@pytest.mark.parametrize("epsilon", [1e-8, 1e-3, 0.5])
def test_never_below_what_one_eigenvalue_can_be_moved(epsilon: float) -> None:
    for a in (np.roll(np.eye(5), 1, 0), np.eye(4), -np.eye(3), np.diag([0.5, 0.5, 0.1])):
        radius = pseudospectral_radius(LTISystem(a), epsilon)
        assert radius.value == pytest.approx(np.abs(np.linalg.eigvals(a)).max() + epsilon, rel=1e-9)
        assert radius.lower <= radius.value <= radius.upper
