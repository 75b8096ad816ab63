import control
import numpy as np
import pytest
from loopscope.dynamics import LTISystem
from loopscope.dynamics.linear.response import impulse_response, modes, simulate, steady_state_gain, step_response

RNG = np.random.default_rng


def dense_system() -> LTISystem:
    a = RNG(0).normal(size=(5, 5))
    return LTISystem(
        0.9 * a / np.abs(np.linalg.eigvals(a)).max(), RNG(1).normal(size=(5, 2)), RNG(2).normal(size=(3, 5))
    )


def theirs(system: LTISystem) -> control.StateSpace:
    a, b, c = system.dense()
    return control.ss(a, b, c, np.zeros((len(c), b.shape[1])), 1)


def test_gain_agrees_with_python_control() -> None:
    system = dense_system()
    # Two LU solves of one well-conditioned 5 × 5 system.
    np.testing.assert_allclose(steady_state_gain(system), control.dcgain(theirs(system)), rtol=1e-11)


@pytest.mark.parametrize(
    ("ours", "reference"), [(impulse_response, "impulse_response"), (step_response, "step_response")]
)
def test_responses_agree_with_python_control(ours: object, reference: str) -> None:
    system = dense_system()
    loops = np.arange(13)
    expected = getattr(control, ours.__name__)(theirs(system), loops).outputs
    # python-control puts inputs second and time last; both sum the same dozen products.
    np.testing.assert_allclose(np.moveaxis(ours(system, 12), 0, -1), expected, atol=1e-11)


def test_simulation_agrees_with_python_control() -> None:
    system = dense_system()
    inputs, start = RNG(3).normal(size=(10, 2)), RNG(4).normal(size=5)
    states = simulate(system, inputs, 10, start)
    padded = np.vstack([inputs, np.zeros((1, 2))])
    reference = control.forced_response(theirs(system), np.arange(11), padded.T, start)
    np.testing.assert_allclose(states.T, reference.states, atol=1e-12)


def test_a_constant_input_leads_to_the_steady_state() -> None:
    system = dense_system()
    states = simulate(system, [1.0, -2.0], 400)
    # 0.9^400 = 5e-19: what is left of the transient is below round-off.
    np.testing.assert_allclose(system.c_out @ states[-1], steady_state_gain(system) @ [1.0, -2.0], rtol=1e-11)
    np.testing.assert_allclose(step_response(system, 400)[-1], steady_state_gain(system), rtol=1e-10)


def test_diagonal_and_dense_forms_agree() -> None:
    a, b, c = RNG(5).uniform(-0.9, 0.9, 4), RNG(6).normal(size=4), RNG(7).normal(size=4)
    diagonal, dense = LTISystem(a, b, c), LTISystem(np.diag(a), np.diag(b), np.diag(c))
    np.testing.assert_allclose(np.diag(steady_state_gain(diagonal)), steady_state_gain(dense), atol=1e-13)
    for response in (impulse_response, step_response):
        full = response(dense, 6)
        np.testing.assert_allclose(response(diagonal, 6), np.einsum("tii->ti", full), atol=1e-13)
    np.testing.assert_allclose(simulate(diagonal, 1.0, 6), simulate(dense, np.ones(4), 6), atol=1e-13)
    mixed = LTISystem(a, np.diag(b), c)
    np.testing.assert_allclose(impulse_response(mixed, 6), impulse_response(dense, 6), atol=1e-13)
    np.testing.assert_allclose(steady_state_gain(mixed), steady_state_gain(dense), atol=1e-13)


def test_addition_counts_its_inputs() -> None:
    # A̅ = B̅ = I: after t loops the state is h0 + t e, exactly, in small integers.
    assert simulate(LTISystem(1.0, width=2), [1.0, 2.0], 5, 3.0)[-1].tolist() == [8.0, 13.0]


def test_modes_of_a_rotation() -> None:
    angle = 2 * np.pi / 8
    a = 0.5 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    spectrum = modes(LTISystem(a))
    np.testing.assert_allclose(spectrum.time_constants, 1 / np.log(2), rtol=1e-12)
    np.testing.assert_allclose(spectrum.frequencies, [1 / 8, -1 / 8], rtol=1e-12)


def test_time_constants_at_their_limits() -> None:
    spectrum = modes(LTISystem([2.0, 1.0, 0.0]))
    assert spectrum.time_constants[0] == pytest.approx(-1 / np.log(2))
    assert spectrum.time_constants[1] == np.inf and spectrum.time_constants[2] == 0.0


def test_preconditions_are_named() -> None:
    with pytest.raises(ValueError, match=r"steady-state gain exists only .* found ρ\(A̅\) = 1"):
        steady_state_gain(LTISystem(1.0))
    with pytest.raises(ValueError, match="loops must not be negative; found -1"):
        simulate(LTISystem(0.5), 0.0, -1)
    with pytest.raises(ValueError, match="loops must not be negative"):
        impulse_response(LTISystem(0.5), -1)
    with pytest.raises(ValueError, match=r"inputs must fit \(3, 2\)"):
        simulate(LTISystem([0.5, 0.5]), np.ones(3), 3)
