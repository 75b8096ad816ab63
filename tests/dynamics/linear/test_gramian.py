import control
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.dynamics import LTISystem
from loopscope.dynamics.linear.gramian import (
    controllability_gramian,
    h2_norm,
    hankel_singular_values,
    observability_gramian,
)
from scipy.linalg import solve_discrete_lyapunov

RNG = np.random.default_rng


def dense_system(width: int = 6, radius: float = 0.95, seed: int = 0) -> LTISystem:
    a = RNG(seed).normal(size=(width, width))
    a *= radius / np.abs(np.linalg.eigvals(a)).max()
    return LTISystem(a, RNG(seed + 1).normal(size=(width, 2)), RNG(seed + 2).normal(size=(3, width)))


@given(st.integers(0, 10_000), st.integers(1, 8), st.sampled_from([0.1, 0.9, 0.999]))
@settings(max_examples=60, deadline=None)
def test_gramians_solve_their_equations(seed: int, width: int, radius: float) -> None:
    system = dense_system(width, radius, seed)
    a, b, c = system.dense()
    reach, show = controllability_gramian(system), observability_gramian(system)
    # Residual of the Stein equation relative to its largest term: a few dozen products, each d roundings.
    assert np.abs(a @ reach @ a.T + b @ b.T - reach).max() <= 1e-11 * np.abs(reach).max()
    assert np.abs(a.T @ show @ a + c.T @ c - show).max() <= 1e-11 * np.abs(show).max()
    assert np.linalg.eigvalsh(reach)[0] >= -1e-12 * np.abs(reach).max()


def test_gramians_agree_with_scipy_and_python_control() -> None:
    system = dense_system()
    a, b, c = system.dense()
    # Time constant 20 loops: the equation's condition is about 1e3, so 1e-11 leaves two digits of room.
    np.testing.assert_allclose(controllability_gramian(system), solve_discrete_lyapunov(a, b @ b.T), rtol=1e-10)
    np.testing.assert_allclose(observability_gramian(system), control.dlyap(a.T, c.T @ c), rtol=1e-10)


def test_h2_norm_agrees_with_python_control_and_with_its_definition() -> None:
    system = dense_system()
    a, b, c = system.dense()
    assert h2_norm(system) == pytest.approx(control.system_norm(control.ss(a, b, c, np.zeros((3, 2)), 1), 2), rel=1e-9)
    energy, power = 0.0, b
    for _ in range(2000):
        energy, power = energy + float(np.sum((c @ power) ** 2)), a @ power
    assert h2_norm(system) == pytest.approx(energy**0.5, rel=1e-10)


def test_hankel_values_are_roots_of_the_product() -> None:
    system = dense_system()
    product = controllability_gramian(system) @ observability_gramian(system)
    expected = np.sort(np.sqrt(np.abs(np.linalg.eigvals(product))))[::-1]
    # The product squares the range: its small eigenvalues are only good to the root of round-off.
    np.testing.assert_allclose(hankel_singular_values(system), expected, rtol=1e-6, atol=1e-7 * expected[0])


def test_structured_forms_agree_with_the_dense_one() -> None:
    a, b, c = RNG(5).uniform(-0.9, 0.9, 4), RNG(6).normal(size=4), RNG(7).normal(size=4)
    dense = LTISystem(np.diag(a), np.diag(b), np.diag(c))
    for system in (
        LTISystem(a, b, c),
        LTISystem(a, np.diag(b), c),
        LTISystem(a, b, np.diag(c)),
        LTISystem(np.diag(a), b, c),
    ):
        for gramian in (controllability_gramian, observability_gramian):
            energy = gramian(system)
            np.testing.assert_allclose(np.diag(energy) if energy.ndim == 1 else energy, gramian(dense), atol=1e-12)
        assert h2_norm(system) == pytest.approx(h2_norm(dense), rel=1e-12)
        np.testing.assert_allclose(hankel_singular_values(system), hankel_singular_values(dense), rtol=1e-7)


def test_parcae_at_initialisation_in_closed_form() -> None:
    # a² = 1/5, so every channel sums to 1/(1 − 1/5) = 5/4 per unit of input.
    system = LTISystem(np.full(16, 5**-0.5))
    np.testing.assert_allclose(controllability_gramian(system), 1.25, rtol=1e-14)
    assert h2_norm(system) == pytest.approx((16 * 1.25) ** 0.5)


@pytest.mark.parametrize("measure", [controllability_gramian, observability_gramian, hankel_singular_values, h2_norm])
@pytest.mark.parametrize("a", [1.0, [0.5, -1.2], [[0.0, 2.0], [1.0, 0.0]]])
def test_unstable_systems_are_refused(measure: object, a: object) -> None:
    with pytest.raises(ValueError, match=r"exists only for a stable system, ρ\(A̅\) < 1; found"):
        measure(LTISystem(a))  # type: ignore[operator]
