import control
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.dynamics import LTISystem
from loopscope.dynamics.linear.hinfinity import h_infinity_norm

RNG = np.random.default_rng


def random_system(seed: int, width: int, radius: float) -> LTISystem:
    a = RNG(seed).normal(size=(width, width))
    a *= radius / np.abs(np.linalg.eigvals(a)).max()
    return LTISystem(a, RNG(seed + 1).normal(size=(width, 2)), RNG(seed + 2).normal(size=(3, width)))


@given(st.integers(0, 10_000), st.integers(1, 7), st.sampled_from([0.3, 0.9, 0.99]))
@settings(max_examples=40, deadline=None)
def test_is_above_every_frequency_and_attained(seed: int, width: int, radius: float) -> None:
    system = random_system(seed, width, radius)
    a, b, c = system.dense()
    norm = h_infinity_norm(system)
    angles = np.linspace(0, np.pi, 1000)
    gains = [np.linalg.norm(c @ np.linalg.solve(np.exp(1j * t) * np.eye(width) - a, b), 2) for t in angles]
    assert norm.converged
    assert max(gains) <= norm.upper * (1 + 1e-12)
    # A grid of 3e-3 rad misses a peak of half width 1 − ρ by at most (3e-3 / 2)² / (2 (1 − ρ)²) = 1.2 % at ρ = 0.99.
    assert norm.value <= max(gains) * 1.02


def test_agrees_with_python_control() -> None:
    for seed in range(3):
        system = random_system(seed, 5, 0.9)
        # Without slycot their method needs as many inputs as outputs.
        square = LTISystem(system.a_bar, system.b_bar, system.c_out[:2])
        theirs = control.system_norm(control.ss(*square.dense(), np.zeros((2, 2)), 1), "inf", tol=1e-8)
        # Their bisection stops at 1e-8 relative.
        assert h_infinity_norm(square).value == pytest.approx(theirs, rel=1e-6)


def test_diagonal_and_normal_systems_in_closed_form() -> None:
    a = np.array([0.5, -0.9, 0.2])
    assert h_infinity_norm(LTISystem(a)).value == pytest.approx(10.0)
    q = np.linalg.qr(RNG(0).normal(size=(3, 3)))[0]
    assert h_infinity_norm(LTISystem(q @ np.diag(a) @ q.T)).value == pytest.approx(10.0, rel=1e-7)


def test_no_output_means_no_gain_and_unstable_is_refused() -> None:
    assert h_infinity_norm(LTISystem(0.5 * np.eye(2), np.zeros((2, 1)))).value == 0.0
    with pytest.raises(ValueError, match="H-infinity norm exists only for a stable system"):
        h_infinity_norm(LTISystem(np.eye(2)))
