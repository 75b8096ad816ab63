"""What the tap records equals what one computes from the states themselves."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from loopscope.loops.find import find_site
from loopscope.loops.site import LoopSite, Part
from loopscope.probes.measure.sums import LoopSums, loop_means
from loopscope.probes.measure.tap import LoopTap
from torch import Tensor, nn
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
    monkeypatch.setattr(
        buffer, "add", lambda *a, **k: 1 / 0 if calls.append(0) or len(calls) % 5 == 3 else honest(*a, **k)
    )
    for _ in range(2):
        model(tokens, num_loops=4).logsumexp(-1).mean().backward()
    means, once = loop_means(*rows(buffer))
    assert [kind for kind, _ in errors] == ["state_missing"] * 2 and "division by zero" in errors[0][1]
    assert once["depth"] == 4
    # h_2 is missing, and with it the steps to it and from it.
    assert np.isnan(means[:, 0]).tolist() == [False, False, True, False, False]
    assert np.isnan(means[:, 1]).tolist() == [False, True, True, False, True]
    assert (means[:, 3] == 2 * tokens.numel()).all()


class Blocks(nn.Module):
    """A loop whose forward can do what the tests below ask of it; ``states`` are those of the last forward."""

    def __init__(self, *, joined: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(256, 16), nn.Linear(16, 8)
        self.block = nn.Linear(32 if joined else 16, 16)
        self.joined = joined
        self.states: list[Tensor] = []

    def body(self, h: Tensor, e: Tensor) -> Tensor:
        return torch.tanh(self.block(torch.cat([h, e], dim=-1) if self.joined else h)) + 0.1 * h

    def site(self) -> LoopSite:
        return LoopSite(body="block", after="head", state_argument=Part(0, 0, 16) if self.joined else 0)

    def run(self, h: Tensor, e: Tensor, loops: int, every: int = 0) -> list[Tensor]:
        outputs, self.states = [], [h]
        for t in range(1, loops + 1):
            h = self.body(h, e)
            self.states.append(h)
            if (every and t % every == 0) or t == loops:
                outputs.append(self.head(h))
        return outputs

    def forward(self, tokens: Tensor, how: str = "plain") -> Tensor:
        e = self.embed(tokens)
        if how == "two runs":
            return self.run(e, e, 6)[-1] + self.run(0.5 * e, e, 6)[-1]
        if how == "used again":
            return self.run(e, e, 6)[-1] + self.body(3 * e, e).sum()
        if how == "raises":
            self.run(e, e, 3)
            raise MemoryError("no more of it")
        if how == "packed":
            h, kept = e.flatten(0, 1), []
            for _ in range(6):
                kept.append(h)
                h = self.body(h, e.flatten(0, 1)[: len(h)])[:-10]
            return self.head(h)
        return sum(self.run(e, e, 6, every={"plain": 0, "every loop": 1, "every second loop": 2}[how]))


@pytest.mark.parametrize("joined", [False, True], ids=["the state itself", "state and input joined"])
@pytest.mark.parametrize("how", ["plain", "every loop", "every second loop", "two runs", "used again"])
def test_the_depth_is_right_whenever_the_module_behind_the_loop_runs(how, joined, tokens):
    model = Blocks(joined=joined)
    _tap, buffer, notices = tapped(model, site=model.site())
    for _ in range(2):
        model(tokens, how)
    means, once = loop_means(*rows(buffer))
    assert (once["depth"], once["depth_min"], once["depth_max"]) == (6, 6, 6)
    if how not in ("two runs", "used again"):
        expected = direct([[s.detach().double() for s in model.states]])
        np.testing.assert_allclose(means[:, :2], expected[:, :2], rtol=RELATIVE)
    said = {"two runs", "used again"} | ({"every loop", "every second loop"} if joined else set())
    assert {kind for kind, _ in notices} == ({"loop_again"} if how in said else set())


def test_what_is_no_part_of_the_step_is_not_recorded(tokens):
    model = Blocks()
    _tap, buffer, _ = tapped(model, site=model.site())

    def recorded(*forwards):
        buffer.reset()
        for how, gradients in forwards:
            with torch.set_grad_enabled(gradients), suppress(MemoryError):
                model(tokens if gradients else tokens.repeat(3, 1), how)
        means, once = loop_means(*rows(buffer)) if len(buffer.counts) else (np.empty((0, 4)), {"depth": 0})
        return once["depth"], means[:1, 3].tolist(), len(buffer.device_rows()["batches"])

    one, size = recorded(("plain", True)), tokens.numel()
    assert one == (6, [size], 1)
    assert recorded(("plain", False), ("plain", True)) == one
    assert recorded(("plain", True), ("plain", False), ("plain", False)) == one
    assert recorded(("raises", True), ("plain", True)) == one
    assert recorded(("plain", True), ("raises", True)) == one
    assert recorded(("raises", True))[0] == 0
    # Evolution strategies and whole-model checkpoints train without gradients: then those forwards are the step.
    assert recorded(("plain", False)) == (6, [3 * size], 1)
    # Called while an exception is being handled, a forward that returns is a forward.
    buffer.reset()
    try:
        raise RuntimeError
    except RuntimeError:
        model(tokens)
    assert loop_means(*rows(buffer))[1]["depth"] == 6


def test_a_batch_that_shrinks_is_recorded_as_far_as_it_can_be(tokens):
    model = Blocks()
    _tap, buffer, notices = tapped(model, site=model.site())
    model(tokens, "packed")
    means, once = loop_means(*rows(buffer))
    sizes = [tokens.numel() - 10 * t for t in range(7)]
    assert not notices
    assert means[:, 3].tolist() == sizes
    assert np.isfinite(means[:, 0]).all() and np.isnan(means[:, 1:3]).all()  # nobody knows which tokens are which
    assert once["depth"] == pytest.approx(sum(sizes[:6]) / sizes[0])
    assert (once["depth_min"], once["depth_max"]) == (1, 6)


def test_means_are_over_the_tokens_that_moved(tokens):
    """Sequence 0 runs three loops, 1 runs two and waits, 2 waits in the middle, 3 never moves; all are read."""
    active = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0]], dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(4, 5, 8, generator=generator)]
    for moves in active:
        states.append(torch.where(moves[:, None, None], torch.randn(4, 5, 8, generator=generator), states[-1]))
    buffer = LoopSums(8, torch.device("cpu"))
    buffer.begin()
    for state in states:
        buffer.add(state)
    means, once = loop_means(*rows(buffer))
    for t, moves in enumerate(active):
        assert means[t, 0] == pytest.approx(float(states[t][moves].norm(dim=-1).mean()), rel=RELATIVE)
        assert means[t, 1] == pytest.approx(float((states[t + 1] - states[t])[moves].norm(dim=-1).mean()), rel=RELATIVE)
    turned = active[1:] & active[:-1]
    for t, moves in enumerate(turned, 1):
        before, after = (states[t] - states[t - 1])[moves], (states[t + 1] - states[t])[moves]
        assert means[t, 2] == pytest.approx(float(torch.cosine_similarity(after, before, dim=-1).mean()), abs=1e-6)
    assert means[:, 3].tolist() == [15, 10, 10, 20]
    assert (once["depth"], once["depth_min"], once["depth_max"]) == (7 / 4, 0, 3)


@pytest.mark.parametrize("drawn", ["batch", "sequence", "token"])
def test_depth_is_that_of_the_deepest_token_of_each_sequence(drawn):
    """As docs/run-file.md defines it; the mean over tokens is in the counts of the loops."""
    generator = torch.Generator().manual_seed(3)
    shape = {"batch": (1, 1), "sequence": (4, 1), "token": (4, 5)}[drawn]
    depth = torch.randint(1, 7, shape, generator=generator).expand(4, 5)
    buffer = LoopSums(16, torch.device("cpu"))
    buffer.begin()
    state = torch.randn(4, 5, 8, generator=generator)
    buffer.add(state)
    for t in range(int(depth.max())):
        state = torch.where((t < depth)[..., None], torch.randn(4, 5, 8, generator=generator), state)
        buffer.add(state)
    means, once = loop_means(*rows(buffer))
    deepest = depth.amax(dim=1).float()
    assert once["depth"] == pytest.approx(float(deepest.mean()))
    assert (once["depth_min"], once["depth_max"]) == (deepest.min(), deepest.max())
    assert means[:-1, 3].sum() / means[-1, 3] == pytest.approx(float(depth.float().mean()))
    assert (drawn == "token") == (once["depth"] > float(depth.float().mean()) + 1e-6)


def test_a_loop_in_which_nothing_moved_is_a_step_of_zero():
    h = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    buffer = LoopSums(8, torch.device("cpu"))
    buffer.begin()
    for state in (h, 1.01 * h, 1.01 * h, 1.01 * h):  # after a large step it would be a stop: test_stopped.py
        buffer.add(state)
    means, once = loop_means(*rows(buffer))
    assert means[1:3, 1].tolist() == [0, 0] and (means[:, 3] == 6).all() and once["depth"] == 3
    assert means[1, 0] == pytest.approx(float((1.01 * h).norm(dim=-1).mean()), rel=RELATIVE)


def test_a_state_that_is_measured_and_not_finite_is_infinite_and_one_not_measured_is_nan():
    buffer = LoopSums(8, torch.device("cpu"))
    buffer.begin()
    buffer.add_missing(torch.ones(2, 3, 8))
    for value in (1.0, float("nan"), float("nan")):
        buffer.add(torch.full((2, 3, 8), value))
    means, _ = loop_means(*rows(buffer))
    assert np.isnan(means[0, :2]).all() and means[0, 3] == 6
    assert means[1:, 0].tolist() == pytest.approx([8**0.5, np.inf, np.inf]) and means[1:3, 1].tolist() == [np.inf] * 2
