"""Exponents: closed forms, the determinant identity, invariance, and agreement with the Jacobian at rest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loopscope.dynamics.loop.per_token import CausalityError, token_jacobians, token_spectra
from loopscope.dynamics.trajectory.fixed_point import find_fixed_point
from loopscope.dynamics.trajectory.lyapunov import LyapunovSpectrum, lyapunov_exponents, token_exponents


def random_map(seed, size=4):
    """A smooth nonlinear map with dense Jacobians, and its derivative."""
    w = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return lambda h: torch.tanh(w @ h) + 0.1 * h


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_rates_of_all_directions_add_up_to_log_det_at_every_loop(seed):
    step, state = random_map(seed), torch.ones(4, dtype=torch.float64)
    exponents = lyapunov_exponents(step, state, count=4, iterations=12)
    h = state
    for rates in exponents.rates:
        log_det = torch.linalg.slogdet(torch.func.jacrev(step)(h))[1]
        assert rates.sum() == pytest.approx(float(log_det), abs=1e-9)  # QR of 4 x 4 in float64, |log det| < 1e2
        h = step(h)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_turning_the_coordinates_changes_no_exponent(seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))[0]
    mixed = torch.randn(3, 3, dtype=torch.float64, generator=generator) * 0.2 + torch.eye(3, dtype=torch.float64)
    a = mixed @ torch.diag(torch.tensor([0.95, 0.5, 0.1], dtype=torch.float64)) @ torch.linalg.inv(mixed)
    start = torch.ones(3, dtype=torch.float64)
    plain = lyapunov_exponents(lambda h: a @ h, start, count=3, iterations=30, warmup=80)
    turned = lyapunov_exponents(lambda h: q @ (a @ (q.T @ h)), start, count=3, iterations=30, warmup=80)
    # The directions align like (0.5 / 0.95)^80 < 1e-22; what is left is round-off.
    assert np.allclose(plain.exponents, turned.exponents, atol=1e-9)
    assert np.allclose(plain.exponents, np.log([0.95, 0.5, 0.1]), atol=1e-9)


def test_logistic_map_in_full_chaos_has_log_two():
    exponents = lyapunov_exponents(
        lambda h: 4 * h * (1 - h), torch.full((1,), 0.3, dtype=torch.float64), iterations=4000
    )
    value, error = exponents.largest()
    assert abs(value - np.log(2)) < 4 * error  # batch means: four standard errors
    assert 0 < error < 0.02


def test_a_direction_sent_to_zero_is_minus_infinity():
    step = lambda h: h * torch.tensor([0.5, 0.0], dtype=torch.float64)  # noqa: E731
    assert lyapunov_exponents(step, torch.ones(2, dtype=torch.float64), count=2, iterations=5).exponents[1] == -np.inf


@pytest.mark.parametrize("injection", ["parcae", "concatenation"])
@pytest.mark.parametrize("layers", [1, 2])
def test_at_rest_the_largest_exponent_is_the_log_of_the_radius(loop, state, injection, layers):
    step = loop(layers, injection=injection)
    search = find_fixed_point(step, state, tol=1e-13)
    assert search.converged
    spectra = token_spectra(step, search.state, count=2)
    exponents = token_exponents(step, search.state, count=2, iterations=250, warmup=150)
    assert spectra.radius.max() < 1  # the contracting case
    # Complex pairs share one modulus: the mean of the two exponents is free of their rotation.
    sizes = np.abs(spectra.eigenvalues)
    paired = np.isclose(sizes[..., 0], sizes[..., 1], rtol=1e-9)
    largest = np.where(paired, exponents.asymptotic.mean(-1), exponents.asymptotic[..., 0])
    assert np.allclose(largest, np.log(spectra.radius), atol=1e-6)


def test_per_token_exponents_follow_the_product_of_their_blocks(loop, state):
    step = loop(1)
    exponents = token_exponents(step, state, count=8, iterations=6)
    product, h = torch.eye(8, dtype=torch.float64).expand(2, 6, 8, 8), state
    for _ in range(6):
        product = token_jacobians(step, h) @ product
        h = step(h)
    volume = torch.linalg.slogdet(product)[1].numpy() / 6
    assert np.allclose(exponents.exponents.sum(-1), volume, atol=1e-9)  # log |det|, float64
    top = torch.linalg.svdvals(product)[..., 0].log().numpy() / 6
    assert (exponents.exponents[..., 0] <= top + 1e-9).all()  # no direction grows more than the largest singular value


def test_standard_error_covers_independent_rates_and_is_missing_for_few():
    rates = np.random.default_rng(0).normal(size=(400, 500))
    error = LyapunovSpectrum(rates, 0).standard_error
    assert error.mean() == pytest.approx(1 / 20, rel=0.05)  # 20 batches: 16 % per entry, over 500 entries
    assert np.isnan(LyapunovSpectrum(rates[:8], 0).standard_error).all()


def test_wrong_requests_and_runaway_loops_are_reported(loop, state):
    with pytest.raises(ValueError, match="count: expected 1 to 8, found 9"):
        token_exponents(loop(1), state, count=9, iterations=2)
    with pytest.raises(ValueError, match="iterations"):
        lyapunov_exponents(loop(1), state, iterations=0)
    with pytest.raises(CausalityError):
        token_exponents(loop(1, "bidirectional"), state, iterations=2)
    with pytest.raises(FloatingPointError, match="loop 2 of 4"):
        lyapunov_exponents(lambda h: 1e30 * h, torch.full((2,), 1e5), iterations=4)
