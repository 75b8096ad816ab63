import subprocess
import sys

import control
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.dynamics import LTISystem
from loopscope.dynamics.linear.spectrum import radius_bounds

RNG = np.random.default_rng


def test_nothing_here_imports_torch_or_scipy() -> None:
    code = (
        "import sys, loopscope.dynamics as d\n"
        "d.LTISystem([0.5]).regime(); d.zoh(-1.0, 0.5); d.lti_regime(1.0); d.Estimate\n"
        "assert not {'torch', 'scipy'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_is_an_attribute_error() -> None:
    import loopscope.dynamics as dynamics

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dynamics.nothing
    assert "LTISystem" in dir(dynamics)


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor, list])
@pytest.mark.parametrize(("value", "structure", "width"), [([0.5, -0.9], "diagonal", 2), ([[0.5]], "dense", 1)])
def test_any_origin_gives_the_same_system(convert: object, value: object, structure: str, width: int) -> None:
    system = LTISystem(convert(value))  # type: ignore[operator]
    assert (system.structure, system.width, system.a_bar.dtype) == (structure, width, np.float64)


def test_parameters_with_gradients_and_bfloat16_are_read() -> None:
    learned = torch.nn.Parameter(torch.tensor([0.25, 0.5]))
    assert LTISystem(learned).spectral_radius().value == 0.5
    # bfloat16 holds 0.5 exactly, so widening must give it back exactly.
    assert LTISystem(torch.tensor(0.5, dtype=torch.bfloat16)).spectral_radius().value == 0.5


def test_poles_agree_with_python_control() -> None:
    a = RNG(0).normal(size=(7, 7)) / 3
    theirs = control.ss(a, np.eye(7), np.eye(7), 0, 1).poles()
    ours = LTISystem(a).eigenvalues()
    # Both are LAPACK on the same matrix; order differs, round-off is about 1e-15.
    for pole in theirs:
        assert np.abs(ours - pole).min() < 1e-12
    assert (np.diff(np.abs(ours)) <= 1e-12).all(), "largest modulus first"


def test_conjugate_pairs_stay_together() -> None:
    angles = np.linspace(0.1, 3.0, 6)
    blocks = [0.9 * np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) for t in angles]
    a = np.zeros((12, 12))
    for i, block in enumerate(blocks):
        a[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = block
    values = LTISystem(a).eigenvalues()
    np.testing.assert_allclose(values[0::2], values[1::2].conj(), atol=1e-12)


def test_parcae_at_initialisation() -> None:
    a_bar = torch.exp(torch.full((768,), float(np.log(np.sqrt(1 / 5)))))
    system = LTISystem(a_bar)
    for value in (system.spectral_radius().value, system.spectral_norm().value, system.rms_gain()):
        # float32 parameters: one rounding of log and exp each.
        assert value == pytest.approx(5**-0.5, rel=2e-7)
    assert system.regime() == "stable"


def test_addition_is_exactly_marginal() -> None:
    system = LTISystem(torch.eye(4))
    assert system.spectral_radius().value == 1.0
    assert LTISystem(1.0, width=4).eigenvalues().tolist() == [1, 1, 1, 1]
    assert system.regime() == LTISystem(1.0).regime() == "marginal"


def test_jordan_block_has_small_radius_and_large_norm() -> None:
    system = LTISystem(np.diag([0.5] * 6) + np.diag([10.0] * 5, 1))
    assert system.spectral_norm().value > 9
    assert system.spectral_radius().value < 0.6
    assert system.spectral_norm().lower <= system.spectral_norm().value <= system.spectral_norm().upper


@given(st.integers(1, 8), st.integers(0, 10_000), st.sampled_from([1e-150, 1.0, 1e150]))
@settings(max_examples=150, deadline=None)
def test_radius_norm_and_gain_keep_their_order(width: int, seed: int, scale: float) -> None:
    a = scale * RNG(seed).normal(size=(width, width))
    system = LTISystem(a)
    radius, norm = system.spectral_radius(), system.spectral_norm()
    # 1e-12: both come out of LAPACK with errors of a few units of round-off times d <= 8.
    assert radius.value <= norm.value * (1 + 1e-12)
    assert system.rms_gain() <= norm.value * (1 + 1e-12)
    assert radius.lower <= radius.value <= radius.upper
    lower, upper = radius_bounds(a)
    assert lower <= radius.value * (1 + 1e-12) and radius.value <= upper * (1 + 1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0, np.nan], [0.0, 1.0]],), r"a_bar must be finite; found 1 .* first at index \(0, 1\)"),
        ((np.inf,), "a_bar must be finite"),
        ((np.ones((2, 3)),), r"a_bar must be a square matrix; found shape \(2, 3\)"),
        ((np.ones((2, 2, 2)),), "at most 2 dimensions"),
        (([1j],), "real numbers; found dtype complex128"),
        ((np.ones(2), np.ones(3)), "one state width of at least 1; found a_bar 2, b_bar 3"),
        ((np.ones(0),), "at least 1"),
    ],
)
def test_what_cannot_be_a_system_is_named(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LTISystem(*arguments)


def test_width_is_taken_from_any_matrix() -> None:
    assert LTISystem(0.5, np.ones((3, 2))).width == 3
    assert LTISystem(0.5, None, np.ones((2, 4))).width == 4
    assert (LTISystem(0.5, np.ones((3, 2))).inputs, LTISystem(0.5, None, np.ones((2, 4))).outputs) == (2, 2)


def test_scaled_identity_diagonal_and_dense_forms_agree() -> None:
    forms = [LTISystem(-0.7, width=3), LTISystem([-0.7] * 3), LTISystem(-0.7 * np.eye(3))]
    assert {f.spectral_radius().value for f in forms} == {0.7}
    assert {round(f.spectral_norm().value, 15) for f in forms} == {0.7}
    assert {round(f.rms_gain(), 15) for f in forms} == {0.7}
    for form in forms[1:]:
        np.testing.assert_array_equal(form.eigenvalues(), forms[0].eigenvalues())
