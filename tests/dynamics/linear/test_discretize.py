import control
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.dynamics import bilinear, discretization_error, euler, mixture, zoh

A = np.array([[-1.0, 2.0], [0.0, -3.0]])
B = np.array([[1.0], [0.5]])


@pytest.mark.parametrize(("rule", "name"), [(zoh, "zoh"), (euler, "euler"), (bilinear, "bilinear")])
def test_rules_agree_with_python_control(rule: object, name: str) -> None:
    theirs = control.c2d(control.ss(A, B, np.eye(2), 0), 0.3, name)
    ours = rule(A, 0.3, B)  # type: ignore[operator]
    # Two implementations of the same O(1) sized formulas: a few roundings apart.
    np.testing.assert_allclose(ours.a_bar, theirs.A, atol=1e-14)
    # scipy's bilinear rule moves part of B into the feed-through, so only the others share B̅.
    if name != "bilinear":
        np.testing.assert_allclose(ours.b_bar, theirs.B, atol=1e-14)


def test_zoh_is_exact_for_a_constant_input() -> None:
    # Integrate the ODE with many Euler steps as an independent, slow twin.
    h, e, steps = np.array([1.0, -2.0]), np.array([0.7]), 200_000
    state = h.copy()
    for _ in range(steps):
        state = state + (0.3 / steps) * (A @ state + B @ e)
    a_bar, b_bar = zoh(A, 0.3, B)
    # Euler's error here is about |A|² · 0.3² / steps = 1e-5.
    np.testing.assert_allclose(a_bar @ h + b_bar @ e, state, atol=2e-5)


@pytest.mark.parametrize("rule", [zoh, euler, bilinear, mixture])
def test_structured_forms_equal_the_dense_one(rule: object) -> None:
    a, delta = np.array([-1.0, -0.2, 0.0]), np.array([0.5, 1.0, 2.0])
    b = np.arange(6.0).reshape(3, 2)
    diagonal = rule(a, delta, b)  # type: ignore[operator]
    dense = rule(np.diag(a), delta, b)  # type: ignore[operator]
    np.testing.assert_allclose(np.diag(diagonal.a_bar), dense.a_bar, atol=1e-15)
    np.testing.assert_allclose(diagonal.b_bar, dense.b_bar, atol=1e-14)


def test_step_sizes_scale_rows_of_a_dense_matrix() -> None:
    delta = np.array([0.1, 2.0])
    np.testing.assert_allclose(euler(A, delta).a_bar, np.eye(2) + np.diag(delta) @ A)
    np.testing.assert_allclose(euler(A, delta).b_bar, delta)


def test_mixture_is_zoh_for_a_and_euler_for_b() -> None:
    system = mixture(A, 0.3, B)
    np.testing.assert_array_equal(system.a_bar, zoh(A, 0.3).a_bar)
    np.testing.assert_array_equal(system.b_bar, euler(A, 0.3, B).b_bar)


@given(st.floats(-5.0, -1e-6), st.floats(1e-6, 10.0))
@settings(max_examples=200, deadline=None)
def test_decaying_channels_stay_stable_under_zoh_and_bilinear(a: float, delta: float) -> None:
    # Rates and steps of at least 1e-6 keep the decay, 1e-12, above the spacing of floats next to 1.
    assert 0 <= zoh(a, delta).a_bar < 1
    assert abs(bilinear(a, delta).a_bar) < 1


def test_errors_have_their_orders() -> None:
    coarse, fine = (discretization_error(A, step, B) for step in (1e-2, 5e-3))
    # Local errors: Δ² for Euler's A̅ and for ΔB, Δ³ for bilinear; halving Δ shows the order to within the next term.
    assert coarse["euler"][0] / fine["euler"][0] == pytest.approx(4, rel=0.03)
    assert coarse["bilinear"][0] / fine["bilinear"][0] == pytest.approx(8, rel=0.05)
    assert coarse["mixture"][0] == 0.0
    assert coarse["mixture"][1] / fine["mixture"][1] == pytest.approx(4, rel=0.03)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="share one width; found a 2, b 3"):
        zoh(A, 0.1, np.ones(3))
    with pytest.raises(ValueError, match="delta must be a number or one step per channel"):
        zoh(A, np.eye(2))
    for a in (np.array([2.0]), np.array([[2.0]])):
        with pytest.raises(ValueError, match="eigenvalue 2"):
            bilinear(a, 1.0)
