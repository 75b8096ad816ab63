"""The per-token spectrum against the dense Jacobian of the same step."""

import numpy as np
import pytest
import torch
from loopscope.dynamics.loop import own_token, per_token
from loopscope.dynamics.loop.per_token import (
    CausalityError,
    TokenJacobian,
    check_causality,
    token_jacobians,
    token_spectra,
)
from torch import nn
from torch.nn import functional

# float64 blocks of size 8 with entries of order 1: a few hundred operations each.
ROUND_OFF = 1e-12


def dense_blocks(step, state, dense):
    b, s, d = state.shape
    matrix = dense(step, state).reshape(b, s, d, b, s, d)
    return torch.stack([torch.stack([matrix[i, j, :, i, j] for j in range(s)]) for i in range(b)])


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("injection", ["addition", "concatenation", "parcae"])
def test_blocks_and_spectrum_equal_the_dense_jacobian(loop, dense, state, layers, injection):
    step = loop(layers, injection=injection)
    blocks = dense_blocks(step, state, dense)
    assert torch.allclose(token_jacobians(step, state), blocks, atol=ROUND_OFF * 100, rtol=ROUND_OFF)
    spectra = token_spectra(step, state, count=8)
    for i, j in np.ndindex(2, 6):
        exact = np.linalg.eigvals(blocks[i, j].numpy())
        # Two runs of a dense eigen-solver on matrices that differ by round-off, condition up to 1e3 here.
        assert np.allclose(np.sort_complex(spectra.eigenvalues[i, j]), np.sort_complex(exact), atol=1e-9), (i, j)
    everything = np.linalg.eigvals(dense(step, state).numpy())
    # The dense eigenvalues of the non-normal whole are less exact than ours; the radius agrees to their accuracy.
    assert spectra.radius.max() == pytest.approx(np.abs(everything).max(), rel=1e-6)


@pytest.mark.parametrize("kind", ["gqa", "bool-mask", "float-mask", "eager"])
def test_every_way_to_write_causal_attention(loop, dense, state, kind):
    step = loop(2, kind)
    jacobian = TokenJacobian(step, state)
    assert jacobian.coupled == (kind == "eager")
    blocks = token_jacobians(step, state)
    assert torch.allclose(blocks, dense_blocks(step, state, dense), atol=ROUND_OFF * 100, rtol=ROUND_OFF)
    assert torch.equal(jacobian.next_state, step(state))


@pytest.mark.parametrize("kind", ["bidirectional", "prefix"])
def test_loops_that_are_not_causal_are_refused(loop, state, kind):
    with pytest.raises(CausalityError, match="not causal"):
        token_spectra(loop(1, kind), state)


def test_sequence_wide_norms_and_batch_coupling_are_refused(state):
    with pytest.raises(CausalityError, match="depends on token"):
        token_spectra(lambda h: h / h.norm(dim=1, keepdim=True), state)
    with pytest.raises(CausalityError, match="depends on sequence"):
        token_spectra(lambda h: h - h.mean(dim=0, keepdim=True), state)
    check_causality(lambda h: h.cumsum(1), state)


def test_a_lookahead_of_one_position_anywhere_is_seen(state):
    for position in range(5):

        def peek(h, at=position):
            ahead = torch.zeros_like(h)
            ahead[:, at] = 1e-9 * h[:, at + 1]
            return h + ahead

        with pytest.raises(CausalityError, match=f"token {position} or an earlier one depends on token {position + 1}"):
            check_causality(peek, state)


def test_keys_of_another_length_get_the_sweep_and_fixed_keys_do_not_need_it(state, dense):
    memory = torch.randn(2, 1, 4, 8, dtype=torch.float64)

    def to_memory(h):
        return functional.scaled_dot_product_attention(h[:, None], memory, memory)[:, 0]

    assert token_spectra(to_memory, state).converged.all()

    def padded(h):
        keys = torch.cat([h[:, :1], h], 1)[:, None]
        mask = torch.ones(6, 7, dtype=torch.bool).tril(1)
        return functional.scaled_dot_product_attention(h[:, None], keys, keys, attn_mask=mask)[:, 0]

    assert TokenJacobian(padded, state).coupled
    assert torch.allclose(token_jacobians(padded, state), dense_blocks(padded, state, dense), atol=1e-12)


def test_dropout_is_refused(state):
    def noisy(h):
        return functional.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None], None, 0.5, True)[:, 0]

    with pytest.raises(ValueError, match=r"dropout is 0\.5"):
        TokenJacobian(noisy, state, check=False)


def test_batched_arnoldi_agrees_with_the_formed_blocks(loop, monkeypatch):
    step = loop(2, width=64)
    state = torch.randn(2, 6, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exact = token_spectra(step, state, count=2)
    monkeypatch.setattr(per_token, "DENSE_WIDTH", 8)
    spectra = token_spectra(step, state, count=2, tol=1e-8)
    assert (exact.method, spectra.method) == ("exact", "Arnoldi")
    assert spectra.converged.all()
    # The residual tolerance of 1e-8 times an eigenvalue condition of at most 100 for these blocks.
    assert np.allclose(spectra.radius, exact.radius, rtol=1e-6)
    blocks = token_jacobians(step, state).numpy()
    for i, j in np.ndindex(2, 6):
        w = spectra.left[i, j]
        assert np.linalg.norm(blocks[i, j].T @ w - spectra.eigenvalues[i, j, 0] * w) < 1e-6


def test_long_sequences_are_chunked_without_a_trace(loop, state, monkeypatch):
    step = loop(1, "float-mask")
    whole = token_jacobians(step, state)
    monkeypatch.setattr(own_token, "CHUNK", 4)
    assert torch.allclose(token_jacobians(step, state), whole, atol=1e-14)  # same sums in another order


def test_float32_is_accurate_to_its_round_off(loop, state):
    step = loop(2)
    exact = token_spectra(step, state).radius
    single = token_spectra(lambda h: step(h.double()).float(), state.float()).radius
    assert np.allclose(single, exact, rtol=1e-4)  # 24 bits, conditioning as above


@pytest.mark.parametrize("norm_first", [True, False])
def test_torch_own_transformer_layers_need_no_sweep(dense, state, norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first, dtype=torch.float64).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    step = lambda h: layer(h, src_mask=mask, is_causal=True)  # noqa: E731
    jacobian = TokenJacobian(step, state)
    assert not jacobian.coupled
    exact = dense_blocks(step, state, dense)
    assert torch.allclose(token_jacobians(step, state), exact, atol=ROUND_OFF * 100, rtol=ROUND_OFF)
    assert functional.scaled_dot_product_attention is own_token._FUSED  # put back


def heads_inside(width, heads, gain=2.0):
    """Attention over the heads of one token: the second-last axis is not the tokens."""
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(width, width, generator=g, dtype=torch.float64) * 0.5 for _ in range(3)]

    def step(h):
        b, s, d = h.shape
        q, k, v = ((h @ w).view(b, s, heads, d // heads) for w in weights)
        return 0.2 * h + gain * functional.scaled_dot_product_attention(q, k, v).reshape(b, s, d)

    return step


def slots_inside(width):
    """Each token holds slots that attend to each other, once before and once after attention over tokens."""

    inside = heads_inside(width, 4, 0.5)

    def step(h):
        h = inside(h)
        h = h + functional.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None], is_causal=True)[:, 0]
        return inside(h)

    return step


def sinks(h):
    """A first key that is no token's, built from the state of the first token."""
    keys = torch.cat([h[:, :1].tanh(), h], 1)[:, None]
    mask = torch.ones(h.shape[1], h.shape[1] + 1, dtype=torch.bool).tril(1)
    return functional.scaled_dot_product_attention(h[:, None], keys, keys, attn_mask=mask)[:, 0]


def input_beside_state(h):
    """Keys of ``[e; h]`` with e fixed: all e are seen, and the states up to the own one."""
    size = h.shape[1]
    e = torch.linspace(-1, 1, h.numel(), dtype=h.dtype).reshape(h.shape)
    keys = torch.cat([e, h], 1)[:, None]
    mask = torch.cat([torch.ones(size, size, dtype=torch.bool), torch.ones(size, size, dtype=torch.bool).tril()], 1)
    return functional.scaled_dot_product_attention(h[:, None], keys, keys, attn_mask=mask)[:, 0]


def summaries(at):
    """Some tokens read their neighbours, written out by hand."""

    def step(h):
        add = torch.zeros_like(h)
        for position in at:
            add[:, position] = h[:, max(position - 3, 0) : position + 1].tanh().sum(1)
        return 0.5 * h + add

    return step


def shifted(h):
    """A token shift, as in RWKV: each token sees the one before it."""
    before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
    return (0.5 * h + 0.4 * before).tanh()


def running_norm(h):
    """A norm over all tokens so far."""
    return h / (h.pow(2).cumsum(1).mean(-1, keepdim=True) + 1).sqrt()


STRUCTURES = {
    "heads inside, as many as tokens": (heads_inside(8, 4), 4, False),
    "heads inside, fewer": (heads_inside(8, 2), 5, False),
    "slots before and after attention": (slots_inside(8), 4, False),
    "sink": (sinks, 5, True),
    "keys of [e; h]": (input_beside_state, 6, True),
    "summaries at 3": (summaries([3]), 12, True),
    "summaries at 1": (summaries([1]), 31, True),
    "summaries at the odd ones": (summaries([7, 11]), 16, True),
    "token shift": (shifted, 7, True),
    "norm over tokens so far": (running_norm, 6, True),
    "no mixing": (lambda h: (h * 0.3).sin(), 9, False),
    "one token": (heads_inside(8, 4), 1, False),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_blocks_are_exact_whatever_mixes_the_tokens(name, dense):
    step, positions, coupled = STRUCTURES[name]
    state = torch.randn(2, positions, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    jacobian = TokenJacobian(step, state)
    assert jacobian.coupled == coupled
    exact = dense_blocks(step, state, dense)
    assert torch.allclose(token_jacobians(step, state), exact, atol=ROUND_OFF * 100, rtol=ROUND_OFF)
    radii = np.abs(np.linalg.eigvals(exact.numpy())).max(-1)
    assert np.allclose(token_spectra(step, state).radius, radii, atol=1e-9)
    again = TokenJacobian(step, 1.1 * state, check=False, structure=jacobian.structure)
    assert torch.equal(again.next_state, step(1.1 * state))


@pytest.mark.parametrize("noise", ["dropout", "routing", "additive"])
def test_random_steps_are_refused(state, noise):
    def step(h):
        if noise == "dropout":
            return functional.dropout(h, 0.1, training=True)
        if noise == "routing":
            return h * torch.randint(0, 2, h.shape[:2])[..., None]
        return h + 1e-3 * torch.randn_like(h)

    with pytest.raises(ValueError, match="two runs from one state differ"):
        token_spectra(step, state)


def test_expert_choice_across_sequences_is_refused(state):
    def routed(h):
        gate = h.sum(-1, keepdim=True).flatten(0, 1).softmax(0).reshape(*h.shape[:2], 1)
        return h * gate

    with pytest.raises(CausalityError):
        token_spectra(routed, state)
