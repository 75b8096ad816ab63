import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.dynamics import LTISystem
from loopscope.dynamics.linear.norm_bound import norm_bound
from loopscope.dynamics.linear.transient import kreiss_constant, numerical_radius, peak_growth

RNG = np.random.default_rng


def sheared(seed: int, width: int, radius: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Triangular with given spectral radius and strong coupling: far from normal."""
    a = np.diag(RNG(seed).uniform(-radius, radius, width)) + 2 * np.triu(RNG(seed + 1).normal(size=(width, width)), 1)
    a[0, 0] = radius
    return a


@given(st.integers(0, 10_000), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_norm_bound_is_above_and_close(seed: int, width: int) -> None:
    a = RNG(seed).normal(size=(width, width))
    exact = float(np.linalg.norm(a, 2))
    # Above up to LAPACK's own rounding; within 10 % because the first or second trial factor succeeds.
    assert exact * (1 - 1e-13) <= norm_bound(a) <= exact * 1.11


@pytest.mark.parametrize("seed", range(6))
def test_peak_is_the_largest_power_norm(seed: int) -> None:
    a = sheared(seed, 5, 0.8)
    found = peak_growth(LTISystem(a))
    norms, power = [1.0], np.eye(5)
    for _ in range(300):
        power = power @ a
        norms.append(float(np.linalg.norm(power, 2)))
    assert found.growth.converged
    # The same products in the same order: equal up to the rounding of the norm.
    assert found.growth.value == pytest.approx(max(norms), rel=1e-12)
    assert found.loop == int(np.argmax(norms))


def test_normal_and_unstable_matrices() -> None:
    symmetric = np.array([[0.3, 0.4], [0.4, -0.3]])
    assert (peak_growth(LTISystem(symmetric)).growth.value, peak_growth(LTISystem(symmetric)).loop) == (1.0, 0)
    for growth in (peak_growth(LTISystem(1.1)).growth, peak_growth(LTISystem([[1.1, 0.0], [0.0, 0.2]])).growth):
        assert growth.value == np.inf
    assert kreiss_constant(LTISystem([1.1, 0.2])).value == np.inf


def test_endless_plateau_is_reported_unconverged() -> None:
    # ρ = 1 with a Jordan block: ‖A^t‖ grows like t for ever, and no horizon can prove a maximum.
    found = peak_growth(LTISystem([[1.0, 1.0], [0.0, 1.0]]), horizon=20)
    assert not found.growth.converged and found.growth.upper == np.inf
    assert found.growth.value == pytest.approx(20.05, abs=0.01) and found.loop == 20
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        peak_growth(LTISystem(0.5), horizon=0)


@given(st.integers(0, 10_000), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_numerical_radius_is_between_its_bounds_and_above_a_grid(seed: int, width: int) -> None:
    a = RNG(seed).normal(size=(width, width))
    found = numerical_radius(LTISystem(a))
    turns = (np.exp(1j * angle) * a for angle in np.linspace(0, np.pi, 200))
    grid = max(float(np.linalg.eigvalsh((m + m.conj().T) / 2)[-1]) for m in turns)
    norm, radius = float(np.linalg.norm(a, 2)), float(np.abs(np.linalg.eigvals(a)).max())
    assert found.converged
    # The function has slope at most ‖A‖ and is flat at its top: half a grid step of 8e-3 costs at most 1e-5 · 5 ‖A‖.
    assert grid <= found.upper * (1 + 1e-12) and found.value <= grid + 1e-4 * norm
    assert max(radius, norm / 2) <= found.value * (1 + 1e-6) and found.value <= norm * (1 + 1e-12)


def test_numerical_radius_of_a_shift_in_closed_form() -> None:
    # The n × n shift has numerical radius cos(π / (n + 1)).
    for width in (2, 3, 6):
        found = numerical_radius(LTISystem(np.diag(np.ones(width - 1), 1))).value
        assert found == pytest.approx(np.cos(np.pi / (width + 1)), rel=1e-7)
    assert numerical_radius(LTISystem(np.zeros((2, 2)))).value == 0.0
    assert numerical_radius(LTISystem([0.5, -0.9])).value == 0.9


@pytest.mark.parametrize("seed", range(4))
def test_kreiss_constant_keeps_the_matrix_theorem(seed: int) -> None:
    width = 4
    a = sheared(seed, width, 0.9)
    system = LTISystem(a)
    kreiss, peak = kreiss_constant(system), peak_growth(system).growth.value
    # K <= max ‖A^t‖ <= e d K; the search stops at 1e-4 of log distance, flat at the top.
    assert kreiss.value <= peak * (1 + 1e-9) and peak <= np.e * width * kreiss.value
    assert kreiss.lower <= kreiss.value <= kreiss.upper
    rng = RNG(seed)
    for _ in range(300):
        z = (1 + 10 ** rng.uniform(-3, 1)) * np.exp(1j * rng.uniform(0, np.pi))
        gain = (abs(z) - 1) / np.linalg.svd(z * np.eye(width) - a, compute_uv=False)[-1]
        assert gain <= kreiss.value * (1 + 1e-6)


def test_kreiss_constant_of_normal_matrices_is_one() -> None:
    assert kreiss_constant(LTISystem([0.9, -0.3])).value == 1.0
    q = np.linalg.qr(RNG(0).normal(size=(4, 4)))[0]
    # Attained only in the limit of far circles, where rounding leaves a few units in the last places.
    assert kreiss_constant(LTISystem(q @ np.diag([0.9, 0.5, -0.2, 0.1]) @ q.T)).value == pytest.approx(1, abs=1e-9)


def test_non_normality_measures_do_not_replace_the_peak() -> None:
    # Two matrices with one eigenvalue; only the powers tell them apart.
    calm, wild = (peak_growth(LTISystem([[0.5, s], [0.0, 0.5]])).growth.value for s in (0.4, 40.0))
    assert calm == 1.0 and wild > 40
