"""Fixed points of maps whose fixed points are known, and of small transformer loops."""

import numpy as np
import pytest
import torch
from loopscope.dynamics.trajectory.fixed_point import classify_multipliers, find_fixed_point, fixed_points
from loopscope.dynamics.trajectory.lyapunov import token_exponents


@pytest.mark.parametrize("method", ["plain", "anderson", "newton"])
def test_every_method_finds_the_rest_state_of_a_contracting_loop(loop, state, method):
    step = loop(2)
    point = find_fixed_point(step, state, method=method)
    assert point.converged
    assert point.method == method
    assert (
        float((step(point.state) - point.state).norm() / point.state.norm()) < 1e-10
    )  # the tolerance is 1e-11 per sequence


def test_anderson_needs_fewer_loops_than_running_on():
    decay = torch.linspace(0.5, 0.995, 20, dtype=torch.float64)
    start = torch.zeros(1, 20, dtype=torch.float64)
    plain = find_fixed_point(lambda h: decay * h + 1, start, method="plain", max_calls=10_000)
    mixed = find_fixed_point(lambda h: decay * h + 1, start, method="anderson", max_calls=10_000)
    assert plain.converged and mixed.converged
    assert mixed.calls < plain.calls / 3


def test_newton_finds_unstable_points_and_they_are_called_unstable():
    a = torch.diag(torch.tensor([1.5, 0.4], dtype=torch.float64))
    step = lambda h: h @ a.T + 1.0  # noqa: E731
    points = fixed_points(step, [torch.zeros(1, 1, 2, dtype=torch.float64)], methods=("newton",))
    assert [p.kind for p in points] == ["saddle"]
    assert torch.allclose(points[0].state, torch.tensor([[[-2.0, 1 / 0.6]]], dtype=torch.float64), atol=1e-9)
    assert points[0].radius == pytest.approx(1.5)


def test_a_loop_without_a_fixed_point_yields_none():
    starts = [torch.zeros(1, 1, 2)]
    # In float32 a drift stands still once the step is below the round-off of the state; that is no rest.
    assert fixed_points(lambda h: h + 1, starts, methods=("plain", "anderson", "newton")) == []
    assert not find_fixed_point(lambda h: 1e30 * h + 1, starts[0]).converged


def test_starts_that_lead_to_the_same_point_are_counted_once(loop, state):
    points = fixed_points(loop(1), [state, 2 * state, torch.zeros_like(state)])
    assert [p.starts for p in points] == [3]
    assert (points[0].spectrum, points[0].converged) == ("per token", True)
    assert points[0].kind.startswith("stable")


def test_a_loop_that_is_not_causal_is_classified_from_the_whole_operator(loop, state):
    points = fixed_points(loop(1, "bidirectional"), [state])
    assert [p.spectrum for p in points] == ["whole"]


@pytest.mark.parametrize(
    ("multipliers", "kind", "near"),
    [
        ([0.5, 0.1], "stable node", ()),
        ([0.3 + 0.4j, 0.3 - 0.4j], "stable focus", ()),
        ([1.2, 0.5], "saddle", ()),
        ([1.1j, -1.1j, 0.5], "saddle focus", ()),
        ([1.3, 1.2], "unstable node", ()),
        ([0.98, 0.1], "stable node", ("fold",)),
        ([-0.97, 0.1], "stable node", ("flip",)),
        ([0.99 * np.exp(1j), 0.99 * np.exp(-1j)], "stable focus", ("Neimark-Sacker",)),
        ([1.0, 0.2], "non-hyperbolic", ("fold",)),
    ],
)
def test_kinds_by_their_multipliers(multipliers, kind, near):
    assert classify_multipliers(np.array(multipliers, complex)) == (kind, near)


def test_incomplete_multipliers_do_not_claim_a_source():
    assert classify_multipliers(np.array([1.3 + 0j, 1.2]), complete=False)[0] == "unstable"


def test_bifurcations_of_the_logistic_map_are_announced_where_they_are():
    for r, near in ((2.98, ("flip",)), (2.0, ()), (1.04, ("fold",))):
        point = fixed_points(
            lambda h, r=r: r * h * (1 - h), [torch.full((1, 1, 1), 0.4, dtype=torch.float64)], methods=("newton",)
        )
        nontrivial = [p for p in point if abs(float(p.state)) > 1e-6]
        assert [p.near for p in nontrivial] == [near], r  # multiplier 2 - r


def test_at_every_point_found_the_exponent_is_the_log_of_the_radius(loop, state):
    for layers in (1, 3):
        step = loop(layers)
        for point in fixed_points(step, [state, -state], tol=1e-13):
            exponents = token_exponents(step, point.state, count=2, iterations=250, warmup=150)
            token = np.unravel_index(np.argmax(exponents.asymptotic[..., 0]), exponents.asymptotic.shape[:2])
            pair = np.isclose(abs(point.multipliers[0]), abs(point.multipliers[1]), rtol=1e-9)
            largest = exponents.asymptotic[token].mean() if pair else exponents.asymptotic[token][0]
            assert largest == pytest.approx(np.log(point.radius), abs=1e-6)


def test_it_holds_at_unstable_points_too():
    # e -> saddle: each channel has a pitchfork's unstable point at zero, with its own rate; mixed in turned
    # coordinates.
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    rates = torch.tensor([1.7, 1.2, 0.6, -0.3], dtype=torch.float64)

    def step(h):
        return (torch.tanh(h @ turn * rates)) @ turn.T

    start = 0.01 * torch.ones(1, 2, 4, dtype=torch.float64)
    (point,) = fixed_points(step, [start], methods=("newton",), tol=1e-13)
    assert point.kind == "saddle"

    def pinned(h):
        """The same derivative, without moving off the unstable point."""
        moved = step(h)
        return point.state + moved - moved.detach()

    exponents = token_exponents(pinned, point.state, iterations=100, warmup=150)
    assert exponents.asymptotic.max() == pytest.approx(np.log(point.radius), abs=1e-6)  # aligned like (1.2 / 1.7)^150


def contraction(kind, dtype):
    """A linear loop with one fixed point, slow or at zero."""
    g = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=g, dtype=torch.float64))[0]
    e = torch.randn(1, 1, 32, generator=g, dtype=torch.float64).to(dtype)
    values = torch.linspace(0.699, 0.999, 32, dtype=torch.float64)
    if kind == "rest at zero":
        e = torch.zeros_like(e)
    elif kind == "negative":
        values = -values
    elif kind == "shear":
        turn = torch.eye(32, dtype=torch.float64)
    a = turn @ torch.diag(values) @ turn.T
    if kind == "shear":
        a = a + 0.02 * torch.diag(torch.ones(31, dtype=torch.float64), 1)
    a = a.to(dtype)
    return lambda h: h @ a.T + e


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["slow", "rest at zero", "negative", "shear"])
def test_one_rest_point_is_one_fixed_point_however_slowly_it_is_reached(kind, dtype):
    g = torch.Generator().manual_seed(1)
    starts = [torch.randn(1, 8, 32, generator=g, dtype=torch.float64).to(dtype) * k for k in (1, 20, 200)]
    points = fixed_points(contraction(kind, dtype), starts, max_calls=250)
    assert [p.starts for p in points] in ([3], [2], [1]), [(p.kind, p.starts, p.residual) for p in points]


def test_a_spiral_to_zero_is_one_point():
    c, s = 0.97 * np.cos(1), 0.97 * np.sin(1)
    a = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    starts = [torch.tensor([[x]], dtype=torch.float64) for x in ([1.0, 0.0], [0.3, 0.8], [1e-3, -5.0])]
    assert [(p.kind, p.starts) for p in fixed_points(lambda h: h @ a.T, starts)] == [("stable focus", 3)]


@pytest.mark.parametrize("apart", [1e-1, 1e-2, 1e-3])
def test_two_points_near_a_fold_stay_two(apart):
    # h + (apart² − h²) has rest points at ± apart with multipliers 1 ∓ 2 apart.
    starts = [torch.full((1, 1, 1), x, dtype=torch.float64) for x in (1.1 * apart, -1.02 * apart)]
    points = fixed_points(lambda h: h + apart**2 - h**2, starts, methods=("newton",))
    assert sorted(round(float(p.state) / apart, 3) for p in points) == [-1.0, 1.0]


@pytest.mark.parametrize("start", [1e4, 1e5, 3e6])
@pytest.mark.parametrize("push", [1.0, -0.3])
def test_a_drift_from_a_large_state_does_not_rest(start, push):
    # The steps are a small part of the state from the first one on, and exact or nearly so in float32.
    h = torch.full((1, 2, 4), start)
    step = lambda h: h + push  # noqa: E731
    if float((step(h) - h).abs().max()) > 0:
        assert fixed_points(step, [h], methods=("plain", "anderson", "newton")) == []
        if start < 1e6:  # else ten units of rounding, which one step alone cannot tell from rest
            assert not any(find_fixed_point(step, h, method=m).converged for m in ("plain", "anderson", "newton"))


def test_a_drift_after_a_jump_does_not_rest():
    def step(h):
        return 1e6 + 0.5 * (h - 1e6) + torch.tensor([0.0, 0.0, 0.0, 0.5]) * (h - 1e6) + torch.tensor([0.0, 0, 0, 2.0])

    assert fixed_points(step, [torch.zeros(1, 1, 4)], max_calls=200) == []


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_a_point_on_a_line_of_rest_points_rests(size):
    # Half of the channels keep what they have, which is a multiplier of 1; the others settle.
    rates = torch.tensor([1.0, 1.0, 0.6, 0.3])
    rest = size * torch.tensor([0.0, 0.0, 1.0, -1.0])
    points = fixed_points(lambda h: rest + rates * (h - rest), [torch.full((1, 1, 4), size)])
    assert [(p.kind, p.starts) for p in points] == [("non-hyperbolic", 1)]


def test_a_start_at_rest_is_at_rest():
    rest = torch.full((1, 1, 3), 1e5)
    for method in ("plain", "anderson", "newton"):
        assert find_fixed_point(lambda h: rest + 0.9 * (h - rest), rest, method=method).converged
