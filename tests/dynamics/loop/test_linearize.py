"""The whole linearisation: on closed forms, on our looped models, and where parts of it cannot be computed."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from loopscope.dynamics.estimate import Estimate
from loopscope.dynamics.loop.following import _on, _Sizes, follow
from loopscope.dynamics.loop.jacobian import LoopJacobian
from loopscope.dynamics.loop.linearize import _modes, _run, linearize_loop
from loopscope.dynamics.loop.per_token import token_jacobians, token_spectra
from loopscope.dynamics.trajectory.lyapunov import lyapunov_exponents, token_exponents
from loopscope.models import build
from torch.func import jacrev


def bound(model, tokens):
    """The step of one of our models with e bound, the input, and a first state."""
    seen = {}
    handle = model.injection.register_forward_pre_hook(lambda module, args: seen.update(e=args[1].detach()))
    with torch.no_grad():
        model(tokens, num_loops=1)
    handle.remove()
    rope = model.rope[:, : tokens.shape[1]].to(seen["e"].dtype)
    tables = [None] * model.config.core_layers
    return lambda h: model.loop(h, seen["e"], rope, *tables), seen["e"]


def small(injection, layers=1, **options):
    torch.manual_seed(0)
    return build("demo", injection=injection, core_layers=layers, **options).eval().requires_grad_(False)


TOKENS = torch.arange(12).reshape(2, 6)


@pytest.mark.parametrize("injection", ["addition", "concatenation", "parcae"])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_per_token_spectra_of_our_models_equal_dense_jacobians(injection, layers):
    model = small(injection, layers, width=8, mlp_width=16, norm="pre", state_init="normal").double()
    step, e = bound(model, TOKENS)
    state = torch.randn(e.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    n = state.numel()
    matrix = jacrev(step)(state).reshape(n, n)
    blocks = token_jacobians(step, state)
    whole = matrix.reshape(2, 6, 8, 2, 6, 8)
    exact = torch.stack([torch.stack([whole[b, s, :, b, s] for s in range(6)]) for b in range(2)])
    # Our model turns queries and keys in float32 whatever the weights are, so 24 bits are all there is.
    assert torch.allclose(blocks, exact, atol=1e-5)
    radii = token_spectra(step, state, count=8).radius
    assert np.allclose(radii, np.abs(np.linalg.eigvals(exact.numpy())).max(-1), atol=1e-4)


def test_parcae_at_initialisation_with_silent_blocks_is_its_linear_part():
    model = small("parcae", output_init="zero")
    step, e = bound(model, TOKENS)
    result = linearize_loop(step, torch.zeros_like(e), a_bar=model.injection.a_bar())
    radius = math.sqrt(1 / 5)
    assert result.linear.radius.value == pytest.approx(radius, rel=1e-6)  # float32 parameters
    assert result.linear.certificate == "certified stable"
    # J = rho I exactly; float32 products.
    assert np.allclose(np.abs(result.loop.eigenvalues), radius, rtol=1e-5)
    assert result.loop.norm.value == pytest.approx(radius, rel=1e-5)
    assert result.loop.lyapunov_max == pytest.approx(math.log(radius), rel=1e-5)
    assert result.loop.gap.value == pytest.approx(0, abs=1e-5)
    assert result.regimes == {"lti": "stable", "loop": "stable", "trajectory": "stable"}
    assert [p.kind for p in result.fixed_points] == ["stable node"]
    assert "LTI stable (ρ 0.447, certified)" in result.verdict
    assert "safe depth ≥ 64" in result.verdict


def test_addition_with_silent_blocks_drifts_at_radius_one():
    model = small("addition", output_init="zero")
    step, e = bound(model, TOKENS)
    result = linearize_loop(step, torch.zeros_like(e), a_bar=model.injection.a_bar())
    assert result.linear.radius.value == 1.0
    assert result.loop.radius.value == pytest.approx(1, abs=1e-6)
    assert result.regimes == {"lti": "marginal", "loop": "marginal", "trajectory": "marginal"}
    assert result.fixed_points == []
    assert result.tokens.counts() == {"slider": 12}
    assert "drifts" in result.verdict


def test_an_exploding_loop_is_reported_with_what_can_still_be_had():
    step = lambda h: 1e6 * h + 1  # noqa: E731
    result = linearize_loop(step, torch.ones(1, 4, 3), a_bar=torch.tensor(1e6), starts=[torch.zeros(1, 4, 3)])
    assert result.trajectory.method == "non-finite"
    assert result.loops < 16
    assert result.regime == "unstable"
    assert "is not finite" in result.verdict
    assert "transient" not in result.verdict
    assert "safe depth" in result.skipped


def test_a_loop_that_is_not_causal_falls_back_to_the_whole_operator(loop, state):
    step = loop(1, "bidirectional")
    result = linearize_loop(step, state)
    assert result.loop.spectrum == "whole"
    assert "not causal" in result.skipped["spectrum"]
    last = state
    for _ in range(16):
        last = step(last)
    exact = np.abs(np.linalg.eigvals(jacrev(step)(last).reshape(96, 96).numpy())).max()
    assert result.loop.radius.value == pytest.approx(exact, rel=1e-5)
    assert result.linear is None
    assert "LTI unknown" in result.verdict


class OnlyOnce(torch.autograd.Function):
    """A sine with a derivative but no second one, like a fused kernel."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


def test_without_second_derivatives_the_rest_is_still_measured():
    result = linearize_loop(lambda h: 0.5 * OnlyOnce.apply(h) + 1, torch.zeros(1, 3, 4))
    assert result.loop.radius.converged
    assert result.loop.norm is None
    assert "second derivatives" in result.skipped["norm"]
    assert result.verdict.startswith("LTI unknown")


def test_one_operation_without_second_derivative_on_a_side_branch_is_seen():
    with pytest.raises(NotImplementedError, match="disagree"):
        LoopJacobian(lambda h: 0.5 * h + 0.2 * OnlyOnce.apply(h), torch.zeros(1, 3, 4)).apply(torch.ones(1, 3, 4))


def test_shares_of_growth_by_sublayer_add_up_to_the_radius():
    model = small("concatenation", 2)
    step, e = bound(model, TOKENS)
    layers = {"injection": model.injection, "block 0": model.core[0], "block 1": model.core[1]}
    result = linearize_loop(step, torch.zeros_like(e), sublayers=layers)
    assert [g.name for g in result.loop.sublayers] == list(layers)
    # Exact per token; float32 and an eigenvector from a dense solver.
    assert sum(g.log_gain for g in result.loop.sublayers) == pytest.approx(math.log(result.loop.radius.value), abs=1e-3)


def test_budget_progress_json_and_missing_inputs():
    seen = []
    decay = torch.tensor([0.5, 0.2])
    result = linearize_loop(
        lambda h: decay * h + 1, torch.zeros(1, 3, 2), progress=lambda part, share: seen.append((part, share))
    )
    assert seen[-1] == ("done", 1.0)
    assert [share for _, share in seen] == sorted(share for _, share in seen)
    assert result.skipped["input dependence"] == "step_of and e was not given"
    plain = json.loads(result.to_json())
    assert plain["regimes"] == result.regimes
    assert plain["verdict"] == result.verdict
    assert np.allclose(plain["loop"]["eigenvalues"], [[[[0.5, 0], [0.2, 0]]] * 3])
    late = linearize_loop(lambda h: decay * h + 1, torch.zeros(1, 3, 2), budget=0.0)
    assert "budget" in late.skipped["spectrum"]
    assert "budget" in late.skipped["fixed points"]


def test_answers_decide_the_safe_depth_where_they_can_be_read():
    # The state moves by 1 per loop; the answer is token 0 until the first coordinate passes 30.5.
    step = lambda h: h + torch.tensor([1.0, 0.0]) + 0.0 * h.sin()  # noqa: E731
    read = lambda h: torch.stack([30.5 - h[..., 0], torch.zeros_like(h[..., 0])], -1)  # noqa: E731
    result = linearize_loop(step, torch.zeros(1, 2, 2), read_out=read)
    assert result.depth.depth == 30
    assert result.verdict.endswith("safe depth 30")


def test_measuring_changes_nothing():
    model = small("parcae")
    step, e = bound(model, TOKENS)
    before = {name: p.clone() for name, p in model.named_parameters()}
    rng = torch.get_rng_state()
    linearize_loop(step, torch.zeros_like(e), sublayers={"injection": model.injection, "block": model.core[0]})
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_an_attracting_orbit_is_stable_as_a_loop_and_still_an_orbit():
    # The logistic map at 3.2: period 2, multiplier of the orbit f'(x1) f'(x2) = 0.16.
    result = linearize_loop(lambda h: 3.2 * h * (1 - h), torch.full((1, 2, 3), 0.3, dtype=torch.float64), loops=64)
    assert result.regimes == {"lti": "unknown", "loop": "stable", "trajectory": "marginal"}
    assert result.loop.lyapunov_max == pytest.approx(math.log(0.16) / 2, abs=0.02)  # 33 loops, half a period over
    assert "orbits with period 2" in result.verdict
    assert [p.near for p in result.fixed_points] == [()]
    assert result.fixed_points[0].kind.startswith("unstable")  # 1 - 1/3.2, multiplier -1.2


def flip(h):
    """Rest at 0 with multiplier −1.4; attracts a cycle of two states."""
    return -1.4 * torch.tanh(h)


def fifths(h):
    """Turns by a fifth and pulls the size towards 1, so that every state ends on a cycle of five."""
    turn, size = 2 * math.pi / 5, h.norm(dim=-1, keepdim=True)
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=h.dtype)
    along = 0.2 * torch.sin(5 * torch.atan2(h[..., 1:], h[..., :1]))  # pulls the angle to multiples of a fifth
    shift = torch.cat([-h[..., 1:], h[..., :1]], -1) * along / 5
    return (h - shift) @ rotation.T * (1 - 0.4 * (size - 1))


@pytest.mark.parametrize(
    ("step", "period", "width"),
    [(lambda h: 3.5 * h * (1 - h), 4, 1), (flip, 2, 3), (fifths, 5, 2)],
    ids=["4", "2", "5"],
)
def test_cycles_that_attract_are_no_disagreement(step, period, width):
    start = torch.full((1, 1, width), 0.3, dtype=torch.float64) + 0.1 * torch.arange(width)
    result = linearize_loop(step, start, loops=60)
    assert f"orbits with period {period}: an attracting cycle" in result.verdict, result.verdict
    assert result.loop.lyapunov_max < -0.05 and result.disagreement == ""


@pytest.mark.parametrize(
    "step", [lambda h: 1.05 * h, lambda h: -1.1 * h, lambda h: 3.9 * h * (1 - h)], ids=["growth", "flips", "chaos"]
)
@pytest.mark.parametrize("loops", [64, 80])
def test_a_loop_that_does_not_settle_is_safe_as_far_as_it_was_run_and_no_further(step, loops):
    start = torch.full((1, 2, 2), 0.4, dtype=torch.float64)
    depth = linearize_loop(step, start, loops=loops).depth
    assert depth.depth in (loops, loops + 1) and "≥" not in depth.words  # a change of 5 % is tolerated


def test_a_branch_named_as_a_sublayer_costs_only_that_part():
    model = small("parcae")
    step, e = bound(model, TOKENS)
    result = linearize_loop(step, torch.zeros_like(e), sublayers={"attention": model.core[0].attention})
    assert "goes past it" in result.skipped["sublayers"]
    assert result.loop.sublayers == []
    assert result.loop.radius.converged


def test_wrong_states_are_named():
    with pytest.raises(ValueError, match="finite"):
        linearize_loop(lambda h: h, torch.full((1, 2, 3), torch.nan))
    with pytest.raises(ValueError, match=r"\(B, S, D\)"):
        linearize_loop(lambda h: h, torch.ones(2, 3))
    with pytest.raises(ValueError, match="bfloat16"):
        linearize_loop(lambda h: h, torch.ones(1, 2, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="loops"):
        linearize_loop(lambda h: h, torch.ones(1, 2, 3), loops=0)


def test_a_fully_marginal_rotation_has_unit_norms():
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    jacobian = LoopJacobian(lambda h: h @ turn.T, torch.ones(1, 3, 4, dtype=torch.float64))
    assert all(float(e) == pytest.approx(1, abs=1e-9) for e in jacobian.transient().values())


def test_a_transient_longer_than_the_loops_tried_is_in_the_verdict():
    def chain(h):
        return 0.9 * h + 0.2 * torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)

    # Every token alone has ρ = 0.9; twenty of them in a row carry a perturbation up to 10^4 times its size.
    short = linearize_loop(chain, torch.zeros(1, 20, 2, dtype=torch.float64))
    exact = 0.9 * np.eye(20) + 0.2 * np.diag(np.ones(19), -1)
    largest = max(np.linalg.norm(np.linalg.matrix_power(exact, t), 2) for t in range(0, 400, 2))
    assert short.loop.peak.growth.value == pytest.approx(largest, rel=1e-2)
    assert f"transient ×{short.loop.growth:.3g} |" in short.verdict and short.loop.growth > 1e3
    long = linearize_loop(chain, torch.zeros(1, 100, 4, dtype=torch.float64))  # too many numbers for all powers
    assert "transient at least ×" in long.verdict and "still rising at loop" in long.verdict


@pytest.mark.parametrize("fastest", [0.1, 0.5])
@pytest.mark.parametrize("turned", [False, True])
def test_modes_of_a_settled_loop_are_the_same_in_both_precisions(fastest, turned):
    # All multipliers are far inside the circle; steps at the level of rounding would look like modes on it.
    g = torch.Generator().manual_seed(3)
    a = torch.diag(torch.linspace(fastest, 0.7, 8, dtype=torch.float64))
    if turned:
        basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=g))[0]
        a = basis @ a @ basis.T
    e = torch.randn(2, 6, 8, dtype=torch.float64, generator=g)
    for dtype, loops in ((torch.float32, 24), (torch.float64, 24), (torch.float32, 60), (torch.float64, 60)):
        matrix, given = a.to(dtype), e.to(dtype)
        states = _run(lambda h, a=matrix, e=given: h @ a.T + e, torch.zeros_like(given), loops)
        if (dtype, loops) == (torch.float32, 60):  # 0.7^30 is below what float32 can tell from rounding
            with pytest.raises(FloatingPointError, match="vanished"):
                _modes(states)
            continue
        modes = _modes(states)
        assert modes.near_unit_mass(0.2) == 0, (dtype, loops, np.abs(modes.eigenvalues))
        assert np.abs(modes.eigenvalues[0]) == pytest.approx(0.7, abs=0.01), (dtype, loops)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.6, "LTI stable (ρ 0.600, certified)"),
        (1.0, "LTI marginal (ρ 1.000, certified)"),
        (0.9999, "LTI marginal (ρ 1.000, certified)"),
        (1.2, "LTI unstable (ρ 1.200, certified)"),
    ],
)
def test_certified_is_said_of_what_is_proven(value, words):
    a_bar = torch.tensor([value, -0.3], dtype=torch.float64)
    result = linearize_loop(lambda h: a_bar * h, torch.ones(1, 2, 2, dtype=torch.float64), a_bar=a_bar, loops=4)
    assert result.verdict.startswith(words)
    # Bounds that leave the band, or that reach over 1, prove less than the regime.
    for lower, upper, said in ((0.5, 0.995, "certified < 1"), (1.001, 2.0, "certified > 1"), (0.5, 1.5, None)):
        wide = replace(result.linear.radius, lower=lower, upper=upper)
        verdict = replace(result, linear=replace(result.linear, radius=wide)).verdict.split(" | ")[0]
        assert verdict.endswith(f"{said})") if said else "certified" not in verdict


def shear(size, rate, coupling):
    return torch.tensor(rate * np.eye(size) + coupling * np.diag(np.ones(size - 1), 1))


@pytest.mark.parametrize(("size", "rate", "coupling"), [(5, 0.85, 1.0), (3, -0.9, 1.0), (6, 0.6, 2.0), (12, 0.3, 3.0)])
def test_a_stable_loop_whose_exponent_is_a_transient_is_stable(size, rate, coupling):
    a = shear(size, rate, coupling)
    found = linearize_loop(lambda h: h @ a.T + 1, torch.ones(1, 2, size, dtype=torch.float64))
    assert found.loop.lyapunov_max > found.loop.log_radius + 0.05, "else the case is none"
    assert found.loop.transient_exponent and not found.loop.rates_disagree
    assert (found.regimes["loop"], found.regime) == ("stable", "stable"), found.verdict
    assert "a transient's" in found.verdict and "disagree" not in found.disagreement


@pytest.mark.parametrize(
    ("size", "rate", "regime"),
    [(2, 0.985, "stable"), (2, -0.98, "stable"), (6, 0.97, "stable"), (2, 0.995, "marginal"), (3, 1.03, "unstable")],
)
def test_a_jacobian_that_does_not_change_is_judged_like_a_matrix(size, rate, regime):
    # Within 0.05 of 1, where a rate taken over some loops says nothing; most of these grow for more loops than are run.
    a = shear(size, rate, 1.0)
    found = linearize_loop(lambda h: h @ a.T + 1, torch.ones(1, 2, size, dtype=torch.float64))
    assert found.loop.steady and found.loop.regime == regime, found.verdict
    assert found.regime == regime, found.verdict


def test_a_jacobian_near_one_that_moves_with_the_state_stays_marginal():
    def drift(h):  # leads away by less and less, as a state that is normalised before it is read
        return h + h / h.norm(dim=-1, keepdim=True) + 1e-2 * h.roll(1, -1) / h.norm(dim=-1, keepdim=True) ** 0.5

    start = 4 * torch.randn(1, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = linearize_loop(drift, start)
    assert not found.loop.steady and 0 < found.loop.log_radius < 0.05
    assert (found.loop.regime, found.regime, found.in_transient) == ("marginal", "marginal", False), found.verdict


@pytest.mark.parametrize("size", [0.5, 1.0, 2.0])
def test_a_constant_drift_is_marginal_although_its_jacobian_is_above_one(size):
    # The state grows by one step a loop, so that h / ‖h‖ turns a perturbation by ever less: ρ(J) = 1 + 1/t, above the
    # band at the depth that is run.
    start = size * torch.randn(1, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = linearize_loop(lambda h: h + h / h.norm(dim=-1, keepdim=True), start, loops=14)
    assert found.loop.log_radius > 0.05 and found.trajectory.kind == "drifting"
    assert found.regimes["loop"] == found.regime == "marginal", found.verdict


def test_a_slow_contraction_that_settles_is_stable_where_its_rest_is_seen():
    # J changes along the way here; the states that settle show that what is left of it is a contraction.
    def slow(h):
        return h - 0.03 * torch.tanh(h) - 0.5 * h**3 / (1 + h**2)

    found = linearize_loop(slow, torch.full((1, 2, 4), 1.5, dtype=torch.float64), loops=96)
    assert not found.loop.steady and found.trajectory.settled
    assert -0.05 < found.loop.log_radius < -0.01 and found.regime == "stable", found.verdict


@pytest.mark.parametrize("loops", range(12, 18))
def test_growth_along_the_way_is_no_transient_of_the_last_jacobian(loops):
    # Chaos: at some of its states the map contracts. One number has no transient, so that the exponent is the path's.
    start = torch.full((1, 1, 1), 0.4, dtype=torch.float64)
    found = linearize_loop(lambda h: 3.9 * h * (1 - h), start, loops=loops)
    assert found.loop.lyapunov_max > 0.2
    assert not found.loop.transient_exponent
    assert found.loop.rates_disagree == (found.loop.log_radius <= 0.05)


def test_exponents_of_a_frozen_jacobian_are_those_of_the_matrix():
    a = shear(4, 0.5, 0.2)
    state = torch.ones(1, 3, 4, dtype=torch.float64)
    kept = token_exponents(lambda h: torch.tanh(h @ a.T), 0 * state, iterations=200, warmup=50, frozen=True)
    assert kept.exponents.max() == pytest.approx(np.log(0.5), abs=0.05)  # Jordan block of 4: off by 3 log t / t
    whole = lyapunov_exponents(lambda h: torch.tanh(h @ a.T), 0 * state, iterations=200, warmup=50, frozen=True)
    assert whole.exponents[0] == pytest.approx(np.log(0.5), abs=0.05)


def test_a_loop_whose_first_steps_do_not_tell_is_followed_further():
    """Narrow ellipses around a large mean, all of them orbits: by their first loops some explode and some settle."""
    draw = np.random.default_rng(5)  # others than those of the table in `following`
    first, further = [], []
    for angle, narrow, phase in draw.uniform([0.03, 0.03, 0], [0.5, 0.9, 6.28], (40, 3)).tolist():
        axes = torch.tensor([1.0, narrow], dtype=torch.float64)
        cos, sin = math.cos(angle), math.sin(angle)
        matrix = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)

        def turn(h, axes=axes, matrix=matrix):
            return torch.cat([h[..., :1], (h[..., 1:] / axes) @ matrix.T * axes], -1)

        states = _run(turn, torch.tensor([[[10.0, math.cos(phase), narrow * math.sin(phase)]]]).double(), 16)
        first.append(_Sizes.of(states).law(2.0**-52).kind)
        law, _, seen = follow(turn, states, {})
        further.append(law.kind)
        assert seen == (128 if first[-1] in ("undecided", "exploding") else 16)
    assert first.count("exploding") >= 3 and further.count("exploding") == 0
    assert further.count("settling") <= first.count("settling") + 1
    assert further.count("orbiting") >= 30 > 5 > first.count("orbiting")


def test_an_orbit_with_the_same_jacobian_all_around_is_no_transient():
    found = linearize_loop(lambda h: -torch.tanh(2 * h), torch.full((1, 2, 3), 0.3, dtype=torch.float64))
    assert found.trajectory.kind == "orbiting" and found.loop.steady and not found.in_transient, found.verdict
    assert found.attracting_cycle


def test_following_in_pieces_is_following_at_once():
    step = lambda h: 0.97 * h.roll(1, -1) + 0.1  # noqa: E731
    start = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first = _run(step, start, 6)
    sizes, last = _Sizes.of(first), first[-2:]
    for _ in range(3):
        last, chunk = _on(step, last, 6)
        sizes = sizes.and_then(_Sizes.of(chunk))
    for ours, whole in zip(sizes, _Sizes.of(_run(step, start, 24)), strict=True):
        assert ours.shape == whole.shape and np.allclose(ours, whole, rtol=1e-12)


def test_growing_steps_in_a_state_that_stays_are_no_explosion_yet():
    def step(h):  # leaves a large state by a tiny perturbation that grows for longer than is looked at
        return torch.cat([h[..., :1], h[..., 1:] * 1.02], -1)

    start = torch.tensor([[[1e2, 1e-7]]], dtype=torch.float64)
    found = linearize_loop(step, start, loops=8)
    assert found.trajectory.kind == "undecided" and "an explosion that begins, or an orbit" in found.trajectory.sentence
    assert found.trajectory.regime == "unknown" and found.followed == 64


@pytest.mark.parametrize(
    ("radius", "exponent", "followed", "on_the_way"),
    [
        (2.85, 0.22, 128, True),  # as TRM of 15 steps at pass 16; at rest its dense Jacobian has 0.89
        (2.85, 0.22, 16, False),  # nothing was seen behind it
        (1.06, 0.06, 48, False),  # grows too slowly to have shown itself
        (0.9, -0.1, 128, False),
    ],
)
def test_a_loop_that_is_linearised_before_its_rest_is_not_called_unstable(radius, exponent, followed, on_the_way):
    rests = linearize_loop(lambda h: 0.5 * h, torch.ones(1, 2, 3, dtype=torch.float64))
    measured = replace(rests.loop, radius=Estimate.exact(radius, "test"), lyapunov_max=exponent, steady=False)
    found = replace(rests, loop=measured, followed=followed)
    assert found.on_the_way == on_the_way
    if on_the_way:
        assert found.regime == "stable" and "num_loops=128" in found.disagreement and "unstable" not in found.verdict
    elif radius > 1.1:
        assert "unstable" in found.verdict and "num_loops" not in found.disagreement
