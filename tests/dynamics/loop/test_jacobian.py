"""The matrix-free Jacobian against its dense twin."""

import numpy as np
import pytest
import torch
from loopscope.dynamics.loop.attribution import sublayer_gains
from loopscope.dynamics.loop.jacobian import LoopJacobian, jacobian_gap
from loopscope.dynamics.loop.krylov import leading_eigenvalues, random_start
from torch import nn


@pytest.mark.parametrize("kind", ["causal", "gqa", "bidirectional"])
def test_products_with_j_and_its_transpose(loop, dense, state, kind):
    step = loop(2, kind)
    matrix, jacobian = dense(step, state), LoopJacobian(step, state)
    v = torch.randn(state.numel(), dtype=torch.float64)
    # Sums of 96 products in another order, float64.
    assert torch.allclose(jacobian.apply(v).reshape(-1), matrix @ v, atol=1e-11)
    assert torch.allclose(jacobian.transpose(v).reshape(-1), matrix.T @ v, atol=1e-11)


@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_norm_abscissa_and_leading_eigenvalues(loop, dense, state, kind):
    step = loop(2, kind)
    matrix, jacobian = dense(step, state).numpy(), LoopJacobian(step, state)
    sigma = jacobian.norm()
    assert sigma.converged
    # A singular value's error is the square of its residual, which is at most 1e-3.
    assert float(sigma) == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-6)
    abscissa = jacobian.numerical_abscissa()
    assert float(abscissa) == pytest.approx(np.linalg.eigvalsh((matrix + matrix.T) / 2).max(), rel=1e-4)
    radius = jacobian.radius()
    assert radius.converged
    # Non-normal: eigenvalue condition numbers of several hundred times the residual of 1e-6.
    assert float(radius) == pytest.approx(np.abs(np.linalg.eigvals(matrix)).max(), rel=1e-3)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layout", ["view", "flatten", "reshape"])
def test_a_model_may_rely_on_the_layout_that_fused_attention_has(causal, layout):
    torch.manual_seed(0)
    mix = nn.Linear(16, 48)

    def step(h):
        query, key, value = (part.view(2, 6, 4, 4).transpose(1, 2) for part in mix(h).chunk(3, -1))
        out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(1, 2)
        joined = {"view": lambda: out.view(2, 6, 16), "flatten": lambda: out.view(12, 16).view(2, 6, 16)}
        return 0.5 * joined.get(layout, lambda: out.reshape(2, 6, 16))()

    state, v = torch.randn(2, 6, 16), torch.randn(2 * 6 * 16)
    matrix = torch.autograd.functional.jacobian(step, state).reshape(v.numel(), v.numel())
    jacobian = LoopJacobian(step, state)
    torch.testing.assert_close(jacobian.apply(v).reshape(-1), matrix @ v, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(jacobian.transpose(v).reshape(-1), matrix.T @ v, atol=1e-5, rtol=1e-4)


def test_a_rotating_pair_is_not_reported_as_a_real_eigenvalue():
    angle = 1.0
    turn = 0.9 * torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = torch.block_diag(turn, 0.5 * torch.eye(8, dtype=torch.float64))
    leading = LoopJacobian(lambda h: matrix @ h, torch.ones(10, dtype=torch.float64)).eigenvalues(2)
    assert np.allclose(np.abs(leading.values[0]), 0.9)  # invariant subspace of dimension 3, found exactly
    assert np.allclose(np.abs(np.angle(leading.values[0])), angle)


def test_jordan_block_has_small_radius_and_large_norm():
    size = 12
    matrix = 0.5 * torch.eye(size, dtype=torch.float64) + 10 * torch.diag(torch.ones(size - 1, dtype=torch.float64), 1)
    jacobian = LoopJacobian(lambda h: matrix @ h, torch.ones(size, dtype=torch.float64))
    assert float(jacobian.norm()) == pytest.approx(np.linalg.norm(matrix.numpy(), 2), rel=1e-6)
    # A full Jordan block: perturbing by eps moves eigenvalues by 10 * (eps / 10) ** (1/12), about 0.4.
    assert float(jacobian.radius()) == pytest.approx(0.5, abs=0.5)


def test_residual_says_when_arnoldi_has_not_converged():
    # Ginibre matrix: the edge of its disc has no gap, ten steps cannot resolve it.
    matrix = torch.randn(300, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / 300**0.5
    leading = leading_eigenvalues(lambda v: v @ matrix, random_start(1, 300, matrix), count=1, steps=10, limit=10)
    assert not leading.converged[0]
    assert leading.residual[0, 0] > 1e-3


def test_batched_krylov_serves_each_operator_by_itself():
    matrices = torch.randn(5, 30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    leading = leading_eigenvalues(
        lambda v: torch.einsum("nij,nj->ni", matrices, v), random_start(5, 30, matrices), count=3, steps=30
    )
    exact = np.abs(np.linalg.eigvals(matrices.numpy())).max(1)
    assert np.allclose(leading.radius, exact, rtol=1e-9)  # full Krylov space, well-conditioned edge


def test_norms_of_powers_show_the_transient(loop, dense, state):
    step = loop(2)
    matrix = dense(step, state).numpy()
    for power, norm in LoopJacobian(step, state).transient().items():
        exact = np.linalg.norm(np.linalg.matrix_power(matrix, power), 2)
        assert float(norm) == pytest.approx(exact, rel=1e-2), power  # eight steps without a gap
        assert float(norm) <= exact * (1 + 1e-9)  # always a lower bound


def chain(own, before):
    """Each token keeps a share of itself and takes one of the token before it."""
    return lambda h: own * h + before * torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)


def largest_power(matrix, until=800):
    """The largest norm of a power, and which."""
    power, best = np.eye(len(matrix)), (1.0, 0)
    for t in range(1, until):
        power = power @ matrix
        best = max(best, (float(np.linalg.norm(power, 2)), t))
    return best


TRANSIENTS = {
    "late": (chain(0.9, 0.15), (1, 12, 2)),  # t = 96
    "middle": (chain(0.6, 0.5), (2, 8, 2)),
    "first loop": (chain(0.1, 7.0), (1, 2, 3)),
    "none": (chain(0.5, 0.1), (1, 6, 2)),
    "alternating": (lambda h: -chain(0.8, 0.3)(h), (1, 10, 1)),
}


@pytest.mark.parametrize("formed", [True, False])
@pytest.mark.parametrize("name", TRANSIENTS)
def test_the_largest_power_is_that_of_the_dense_jacobian(name, formed, monkeypatch):
    step, shape = TRANSIENTS[name]
    jacobian = LoopJacobian(step, torch.zeros(shape, dtype=torch.float64))
    exact, at = largest_power(jacobian.dense())
    if not formed:
        monkeypatch.setattr("loopscope.dynamics.loop.jacobian.DENSE_SIZE", 0)
    peak = jacobian.peak_growth()
    assert peak.growth.converged == formed and not peak.rising
    if formed:
        assert peak.growth.value == pytest.approx(exact, rel=1e-9) and peak.loop == at
    else:
        # One perturbation, aligned by three steps at powers of two: not the best one for the loop of the peak.
        assert 0.5 * exact <= peak.growth.lower <= exact * (1 + 1e-9), (peak, exact, at)
        assert peak.growth.upper == np.inf


def test_growth_that_outlasts_the_products_is_still_rising(monkeypatch):
    monkeypatch.setattr("loopscope.dynamics.loop.jacobian.DENSE_SIZE", 0)
    calls = []
    jacobian = LoopJacobian(chain(0.9, 0.2), torch.zeros(1, 32, 4, dtype=torch.float64))  # peak at t = 303
    known = jacobian.transient()
    for kind in ("_apply_flat", "_transpose_flat"):
        product = getattr(jacobian, kind)
        monkeypatch.setattr(jacobian, kind, lambda v, product=product: calls.append(1) or product(v))
    peak = jacobian.peak_growth(known, products=100)
    assert len(calls) <= 100
    assert peak.rising and not peak.growth.converged and peak.growth.value > known[8].value
    # One that ends within the products is not rising, however early the perturbation that is carried dies out.
    short = LoopJacobian(chain(0.1, 30.0), torch.zeros(1, 5, 4, dtype=torch.float64))
    assert not short.peak_growth().rising


def test_gap_between_the_loop_and_its_linear_part(state):
    a = torch.diag(torch.linspace(0.1, 0.8, 8, dtype=torch.float64))
    extra = 0.3 * torch.eye(8, dtype=torch.float64)
    for form in (a, torch.diag(a)):
        gap = jacobian_gap(LoopJacobian(lambda h: h @ (a + extra).T, state), form)
        assert float(gap) == pytest.approx(0.3 / 0.8, rel=1e-9)
    assert float(jacobian_gap(LoopJacobian(lambda h: h @ a, state), a)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match=r"a_bar: expected \(\), \(8,\)"):
        jacobian_gap(LoopJacobian(lambda h: h @ a, state), torch.ones(3))


def test_bad_steps_are_named():
    h = torch.ones(1, 2, 3)
    with pytest.raises(ValueError, match="bfloat16"):
        LoopJacobian(lambda h: h, h.bfloat16())
    with pytest.raises(ValueError, match="expected to return shape"):
        LoopJacobian(lambda h: h[..., :2], h)
    with pytest.raises(ValueError, match="does not depend"):
        LoopJacobian(lambda h: h.detach(), h)
    with pytest.raises(FloatingPointError, match="not finite"):
        LoopJacobian(lambda h: h / 0, h)


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 6).double(), nn.Linear(6, 6).double()

    def forward(self, h):
        return torch.tanh(self.b(torch.tanh(self.a(h))))


def test_shares_of_growth_add_up_to_the_log_of_the_eigenvalue():
    chain, h = Chain(), torch.randn(1, 1, 6, dtype=torch.float64)
    leading = LoopJacobian(chain, h).eigenvalues(1)
    left = torch.from_numpy(leading.vectors[0, 0])
    gains = sublayer_gains(chain, h, {"a": chain.a, "b": chain.b}, left)
    assert [g.name for g in gains] == ["a", "b", "rest"]
    assert sum(g.log_gain for g in gains) == pytest.approx(np.log(leading.radius[0]), abs=1e-9)  # telescopes exactly


def test_branches_are_refused_as_sublayers():
    class Residual(Chain):
        def forward(self, h):
            return h + self.a(h)

    layer = Residual()
    with pytest.raises(ValueError, match="goes past"):
        sublayer_gains(layer, torch.ones(1, 1, 6).double(), {"a": layer.a}, torch.ones(1, 1, 6))
    with pytest.raises(ValueError, match="did not run"):
        sublayer_gains(
            lambda h: layer.a(h), torch.ones(1, 1, 6).double(), {"a": layer.a, "b": layer.b}, torch.ones(1, 1, 6)
        )
