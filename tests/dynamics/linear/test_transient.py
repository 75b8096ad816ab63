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
    peak = peak_growth(LTISystem(a))
    norms, power = [1.0], np.eye(5)
    for _ in range(300):
        power = power @ a
        norms.append(float(np.linalg.norm(power, 2)))
    assert peak.growth.converged
    # The same products in the same order: equal up to the rounding of the norm.
    assert peak.growth.value == pytest.approx(max(norms), rel=1e-12)
    assert peak.loop == int(np.argmax(norms))


def test_normal_and_unstable_matrices() -> None:
    symmetric = np.array([[0.3, 0.4], [0.4, -0.3]])
    assert (peak_growth(LTISystem(symmetric)).growth.value, peak_growth(LTISystem(symmetric)).loop) == (1.0, 0)
    for growth in (peak_growth(LTISystem(1.1)).growth, peak_growth(LTISystem([[1.1, 0.0], [0.0, 0.2]])).growth):
        assert growth.value == np.inf
    assert kreiss_constant(LTISystem([1.1, 0.2])).value == np.inf


def test_endless_plateau_is_reported_unconverged() -> None:
    # ρ = 1 with a Jordan block: ‖A^t‖ grows like t for ever, and no horizon can prove a maximum.
    peak = peak_growth(LTISystem([[1.0, 1.0], [0.0, 1.0]]), horizon=20)
    assert not peak.growth.converged and peak.growth.upper == np.inf
    assert peak.growth.value == pytest.approx(20.05, abs=0.01) and peak.loop == 20
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        peak_growth(LTISystem(0.5), horizon=0)


@given(st.integers(0, 10_000), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_numerical_radius_is_between_its_bounds_and_above_a_grid(seed: int, width: int) -> None:
    a = RNG(seed).normal(size=(width, width))
    reach = numerical_radius(LTISystem(a))
    turns = (np.exp(1j * angle) * a for angle in np.linspace(0, np.pi, 200))
    grid = max(float(np.linalg.eigvalsh((m + m.conj().T) / 2)[-1]) for m in turns)
    norm, radius = float(np.linalg.norm(a, 2)), float(np.abs(np.linalg.eigvals(a)).max())
    assert reach.converged
    # The function has slope at most ‖A‖ and is flat at its top: half a grid step of 8e-3 costs at most 1e-5 · 5 ‖A‖.
    assert grid <= reach.upper * (1 + 1e-12) and reach.value <= grid + 1e-4 * norm
    assert max(radius, norm / 2) <= reach.value * (1 + 1e-6) and reach.value <= norm * (1 + 1e-12)


def test_numerical_radius_of_a_shift_in_closed_form() -> None:
    # The n × n shift has numerical radius cos(π / (n + 1)).
    for width in (2, 3, 6):
        radius = numerical_radius(LTISystem(np.diag(np.ones(width - 1), 1))).value
        assert radius == pytest.approx(np.cos(np.pi / (width + 1)), rel=1e-7)
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


def hadamard(order: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Orthogonal, with entries of one modulus."""
    h = np.ones((1, 1))
    for _ in range(order):
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(len(h))


NORM_KEEPING = {
    "7-cycle": np.roll(np.eye(7), 1, 0),
    "Hadamard": hadamard(3),
    "reflection": np.eye(5) - 0.4 * np.ones((5, 5)),
    "one": np.ones((1, 1)),
    "rotation of the plane": np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]]),
    "zero": np.zeros((3, 3)),
    **{f"dense, seed {seed}": np.linalg.qr(RNG(seed).normal(size=(20, 20)))[0] for seed in range(12)},
}


@pytest.mark.parametrize("name", NORM_KEEPING)
def test_what_stretches_nothing_has_peak_and_kreiss_constant_one(name: str) -> None:
    # LAPACK gives such matrices ρ = 1 + 2e-16, which is no growth.
    system = LTISystem(NORM_KEEPING[name])
    assert (peak_growth(system).growth.value, peak_growth(system).loop) == (1.0, 0)
    assert kreiss_constant(system).value == 1.0


@pytest.mark.parametrize("excess", [1e-12, 1e-6, 0.1])
def test_a_little_above_one_is_for_ever_where_the_eigenvalue_is_sure(excess: float) -> None:
    turn = np.linalg.qr(RNG(3).normal(size=(15, 15)))[0]
    assert peak_growth(LTISystem((1 + excess) * turn)).growth.value == np.inf
    # The same eigenvalues in a Jordan block look like one by their computed value.
    jordan = np.eye(8) + np.diag(np.ones(7), 1)
    similar = np.linalg.qr(RNG(4).normal(size=(8, 8)))[0]
    peak = peak_growth(LTISystem(similar @ jordan @ similar.T), horizon=30)
    assert np.isfinite(peak.growth.lower) and not peak.growth.converged


def test_a_long_chain_peaks_where_it_does() -> None:
    # h_i <- 0.9 h_i + 0.2 h_(i-1) over 32 places: 2.1e8 at t = 303 although ρ = 0.9.
    peak = peak_growth(LTISystem(0.9 * np.eye(32) + 0.2 * np.diag(np.ones(31), -1)))
    assert peak.growth.converged and peak.loop == 303
    assert peak.growth.value == pytest.approx(2.1472e8, rel=1e-3)


def test_a_peak_beyond_the_horizon_is_enclosed() -> None:
    # (a^t − b^t) / (a − b) is largest at t = log(log b / log a) / log(a / b) = 6931, where it is about 2500.
    a, b = 0.9999, 0.9998
    peak = peak_growth(LTISystem([[a, 1.0], [0.0, b]]))
    assert peak.growth.lower <= 2500.1 <= peak.growth.upper < np.inf
    assert peak.growth.value == pytest.approx(2500, rel=0.01) and abs(peak.loop - 6931) < 1000
    assert not peak.growth.converged


def test_a_similar_rotation_is_bounded_and_its_peak_is_not_claimed() -> None:
    scale = np.diag(10 ** np.linspace(0, 3, 12))
    a = scale @ np.linalg.qr(RNG(5).normal(size=(12, 12)))[0] @ np.linalg.inv(scale)
    peak = peak_growth(LTISystem(a), horizon=200)
    assert 1 < peak.growth.value <= 1000 and not peak.growth.converged
    assert kreiss_constant(LTISystem(a)).value <= 1000


def test_powers_that_overflow_end_the_search_with_what_was_seen() -> None:
    peak = peak_growth(LTISystem(np.triu(1e60 * np.ones((8, 8)), 1) + 0.5 * np.eye(8)))
    assert 1e60 < peak.growth.value < np.inf and peak.growth.upper == np.inf and not peak.growth.converged
