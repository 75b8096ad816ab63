"""What the tap records equals what one computes from the states themselves."""

import numpy as np
import pytest
import torch
from loopscope.loops.find import find_site
from loopscope.probes.measure.sums import LoopSums, loop_means
from loopscope.probes.measure.tap import LoopTap
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Sums over 128 tokens of float32 norms against float64: a few times 2^-24 each, summed with cancellation-free terms.
RELATIVE = 2e-6


def tapped(model, capacity=256, site=None):
    errors = []
    buffer = LoopSums(capacity, torch.device("cpu"))
    tap = LoopTap(model, site or find_site(model), buffer, lambda kind, message, error: errors.append((kind, message)))
    return tap, buffer, errors


def rows(buffer: LoopSums) -> tuple[np.ndarray, np.ndarray]:
    return buffer.device_rows()["sums"].numpy(), buffer.counts


def direct(forwards: list[list[Tensor]]) -> np.ndarray:
    """The same means from stored float64 states, with plain loops over tokens' norms."""
    depth = max(len(states) for states in forwards)
    out = np.full((depth, 4), np.nan)
    for t in range(depth):
        states = [f[t] for f in forwards if t < len(f)]
        out[t, 0] = torch.cat([s.norm(dim=-1).flatten() for s in states]).mean()
        out[t, 3] = sum(s[..., 0].numel() for s in states)
        steps, cosines = [], []
        for f in forwards:
            if t + 1 < len(f):
                step = f[t + 1][: len(f[t])] - f[t]
                steps.append(step.norm(dim=-1).flatten())
                if t > 0:
                    before = f[t][: len(f[t - 1])] - f[t - 1]
                    cosines.append(torch.cosine_similarity(step[: len(before)], before, dim=-1).flatten())
        if steps:
            out[t, 1] = torch.cat(steps).mean()
        if cosines:
            out[t, 2] = torch.cat(cosines).mean()
    return out


@pytest.mark.parametrize("injection", ["addition", "concatenation", "parcae"])
@pytest.mark.parametrize("depths", [[5], [3, 7], [1]], ids=["one forward", "two micro-batches", "a single loop"])
def test_norms_equal_direct_computation(injection, depths, demo_model, tokens, recorded_states):
    model = demo_model(injection)
    states = recorded_states(model)
    _tap, buffer, errors = tapped(model)
    for depth in depths:
        model(tokens, num_loops=depth)
    means, once = loop_means(*rows(buffer))
    assert not errors
    np.testing.assert_allclose(means, direct(states.forwards), rtol=RELATIVE, atol=2e-6)  # atol: cosines near 0
    assert once["depth"] == np.mean(depths)
    assert (once["depth_min"], once["depth_max"]) == (min(depths), max(depths))
    e = states.inputs[0]
    assert once["input_norm"] == pytest.approx(np.mean([i.norm(dim=-1).mean() for i in states.inputs]), rel=RELATIVE)
    b_bar = model.injection.b_bar().detach().double()
    injected = [i @ b_bar.T if b_bar.ndim == 2 else b_bar * i for i in states.inputs]
    assert once["injection_norm"] == pytest.approx(np.mean([i.norm(dim=-1).mean() for i in injected]), rel=RELATIVE)
    assert e.shape[-1] == 32


def test_sequences_of_different_depth_are_measured_where_they_run(demo_model, tokens, recorded_states):
    model = demo_model("parcae")
    states = recorded_states(model)
    _tap, buffer, errors = tapped(model)
    depths = torch.tensor([2, 6, 3, 6])
    model(tokens, num_loops=depths)
    means, once = loop_means(*rows(buffer))
    assert not errors
    np.testing.assert_allclose(means, direct(states.forwards), rtol=RELATIVE, atol=2e-6)
    # Sequences of depth d run the last d loops: 2 of 4 sequences in loops 0-2, 3 in loop 3, all from loop 4 on.
    assert (means[:, 3] / 32).tolist() == [2, 2, 2, 3, 4, 4, 4]
    assert (once["depth"], once["depth_min"], once["depth_max"]) == (depths.float().mean(), 2, 6)


@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non-reentrant"])
def test_recomputation_is_not_recorded(checkpointing, demo_model, tokens):
    model = demo_model("concatenation", activation_checkpointing=checkpointing)
    _tap, buffer, errors = tapped(model)
    model(tokens, num_loops=6).logsumexp(-1).mean().backward()
    assert not errors
    assert buffer.cursor == 7


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_a_model_that_is_checkpointed_as_a_whole_is_recorded_once(reentrant, demo_model, tokens):
    model, scale = (
        demo_model(),
        torch.ones((), requires_grad=True),
    )  # a reentrant checkpoint wants an input with gradient
    _tap, buffer, errors = tapped(model)
    output = checkpoint(lambda x, s: s * model(x, num_loops=5), tokens, scale, use_reentrant=reentrant)
    output.logsumexp(-1).mean().backward()
    assert scale.grad is not None and next(model.parameters()).grad is not None  # it ran again
    assert not errors
    assert buffer.cursor == 6


def test_evaluation_is_not_recorded(demo_model, tokens):
    model = demo_model()
    _tap, buffer, _ = tapped(model)
    with torch.no_grad():
        model.eval()(tokens, num_loops=3)
    assert buffer.cursor == 0
    model.train()(tokens, num_loops=3)
    assert buffer.cursor == 4


def test_rows_beyond_the_buffer_are_counted(demo_model, tokens):
    model = demo_model()
    _tap, buffer, errors = tapped(model, capacity=4)
    model(tokens, num_loops=6)
    assert not errors
    assert buffer.cursor == 7  # 3 rows more than fit


def test_bf16_autocast_is_measured_in_float32(demo_model, tokens, recorded_states):
    model = demo_model("concatenation")
    states = recorded_states(model)
    _tap, buffer, errors = tapped(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens, num_loops=4)
    means, once = loop_means(*rows(buffer))
    assert not errors
    np.testing.assert_allclose(means, direct(states.forwards), rtol=RELATIVE, atol=2e-6)
    b_bar = model.injection.b_bar().detach().double()
    expected = (states.inputs[0] @ b_bar.T).norm(dim=-1).mean()
    assert once["injection_norm"] == pytest.approx(float(expected), rel=RELATIVE)


@pytest.mark.parametrize("how", ["body", "whole"])
def test_compiled_models_record_the_same(how, demo_model, tokens, recorded_states):
    plain = demo_model("parcae")
    states = recorded_states(plain)
    plain(tokens, num_loops=4)
    torch._dynamo.reset()
    model = demo_model("parcae")
    _tap, buffer, errors = tapped(model)
    if how == "body":
        model.compile_loop()
        run = model
    else:
        run = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    plain_states = recorded_states(plain)
    for _ in range(2):
        run(tokens, num_loops=4, initial_state=states.forwards[0][0].float())
        plain(tokens, num_loops=4, initial_state=states.forwards[0][0].float())
    means, once = loop_means(*rows(buffer))
    assert not errors
    assert buffer.cursor == 10
    expected = direct(plain_states.forwards)
    # Compiled kernels order float32 additions differently; four loops of one block amplify that a little.
    np.testing.assert_allclose(means, expected, rtol=2e-5, atol=2e-5)
    assert once["depth"] == 4


def test_removal_leaves_no_hook_behind(demo_model):
    model = demo_model()
    before = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    tap, _, _ = tapped(model)
    tap.remove()
    tap.remove()
    assert {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()} == before


def test_a_state_that_cannot_be_read_is_missing_and_the_rest_is_recorded(demo_model, tokens, monkeypatch):
    model = demo_model()
    _tap, buffer, errors = tapped(model)
    honest, calls = buffer.add, []
    monkeypatch.setattr(buffer, "add", lambda *a, **k: 1 / 0 if calls.append(0) or len(calls) % 5 == 3 else honest(*a, **k))
    for _ in range(2):
        model(tokens, num_loops=4).logsumexp(-1).mean().backward()
    means, once = loop_means(*rows(buffer))
    assert [kind for kind, _ in errors] == ["state_missing"] * 2 and "division by zero" in errors[0][1]
    assert once["depth"] == 4
    # h_2 is missing, and with it the steps to it and from it.
    assert np.isnan(means[:, 0]).tolist() == [False, False, True, False, False]
    assert np.isnan(means[:, 1]).tolist() == [False, True, True, False, True]
    assert (means[:, 3] == 2 * tokens.numel()).all()
