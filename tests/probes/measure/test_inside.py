"""What the preset ``study`` adds equals what one computes from the modules' outputs and from autograd itself."""

import dataclasses
from functools import partial

import loopscope
import numpy as np
import pytest
import torch
import torch._dynamo.utils as dynamo
import torch.nn.functional as F
from loopscope.probes import open_run
from loopscope.probes.schedule import find_preset

# Every step measured inside, no passes in between: rows alone.
INSIDE = dataclasses.replace(
    find_preset("study"), inside=lambda step: True, probe_batch=lambda step: False, full_loop=lambda step: False
)
PLACES = ("prelude.0", "injection", "core.0")
# Float32 sums over 128 tokens against float64.
RELATIVE = 2e-6


class Witness:
    """Hooks of the test's own: outputs of the first loop, and states whose gradient is kept."""

    def __init__(self, model):
        self.outputs, self.states = [], []
        model.register_forward_pre_hook(self.begin)
        for name in PLACES:
            model.get_submodule(name).register_forward_hook(partial(self.output, name))
        model.injection.register_forward_pre_hook(self.keep)
        model.read_out.register_forward_pre_hook(self.keep)

    def begin(self, module, args):
        self.outputs.append({})
        self.states.append([])

    def output(self, name, module, args, output):
        self.outputs[-1].setdefault(name, output.detach().double())

    def keep(self, module, args):
        if args[0].requires_grad:
            args[0].retain_grad()
        self.states[-1].append(args[0])

    def block_norms(self):
        outputs, self.outputs = self.outputs, []
        return [float(torch.cat([o[name] for o in outputs]).norm(dim=-1).mean()) for name in PLACES]

    def gradient_norms(self):
        states, self.states = self.states, []
        gradients = [[torch.zeros(()) if h.grad is None else h.grad.double() for h in f] for f in states]
        return [float(torch.stack([g.norm() for g in of_loop]).norm()) for of_loop in zip(*gradients, strict=True)]


def train(model, depths, *, run=None, probe=None, witness=None, precision=None):
    """One step per entry of ``depths``, one forward per depth in it; what the witness saw of each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator, losses, seen = torch.Generator().manual_seed(0), [], []
    for of_step in depths:
        optimizer.zero_grad()
        for depth in of_step:
            tokens = torch.randint(0, 256, (4, 33), generator=generator)
            h0 = torch.randn(4, 32, 32, generator=generator)
            logits = (run or model)(tokens[:, :-1], num_loops=depth, initial_state=h0)
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / len(of_step)
            loss.backward()
            losses.append(loss.detach())
        if witness is not None:
            seen.append((witness.block_norms(), witness.gradient_norms()))
        optimizer.step()
        if probe is not None:
            probe.step(loss=loss)
    return torch.stack(losses), seen


@pytest.mark.parametrize("injection", ["addition", "concatenation", "parcae"])
@pytest.mark.parametrize("depths", [[[5], [1], [4]], [[3, 3], [2, 2]]], ids=["one forward", "two micro-batches"])
def test_norms_and_gradients_equal_direct_computation(injection, depths, demo_model, tmp_path):
    plain = demo_model(injection, backward_depth=8)
    _, seen = train(plain, depths, witness=Witness(plain))
    model = demo_model(injection, backward_depth=8)
    with loopscope.attach(model, tmp_path / "run.h5", preset=INSIDE) as probe:
        train(model, depths, probe=probe)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    with open_run(tmp_path / "run.h5") as run:
        site = run.info["site"]
        assert (*site["prelude"], *site["sublayers"]) == PLACES
        steps, blocks = run.arrays("block_state_norm")
        assert steps.tolist() == list(range(len(depths)))
        _, gradients = run.arrays("state_gradient_norm")
    for recorded, gradient, (norms, expected) in zip(blocks, gradients, seen, strict=True):
        np.testing.assert_allclose(recorded, norms, rtol=RELATIVE)
        assert np.isnan(gradient[0])  # h_0 is given and takes no gradient
        np.testing.assert_allclose(gradient[1:], expected[1:], rtol=RELATIVE)


def test_loops_outside_the_backward_pass_have_no_gradient(demo_model, tmp_path):
    model = demo_model("parcae", backward_depth=2)
    with loopscope.attach(model, tmp_path / "run.h5", preset=INSIDE) as probe:
        train(model, [[6]], probe=probe)
    with open_run(tmp_path / "run.h5") as run:
        gradient = run.arrays("state_gradient_norm")[1][0]
    # The last two of six loops carry gradients: to h_5 and h_6 they arrive; h_4 is where the first of them begins.
    assert np.isnan(gradient).tolist() == [True] * 5 + [False] * 2


def test_a_gradient_that_is_not_a_number_is_told_from_one_that_never_came(demo_model, tmp_path):
    model = demo_model("parcae", backward_depth=2)
    with loopscope.attach(model, tmp_path / "run.h5", preset=INSIDE) as probe:
        train(model, [[6]], probe=probe)  # an ordinary step, after which one weight behind the loop is lost
        with torch.no_grad():
            model.read_out.weight[0, 0] = torch.nan
        train(model, [[6]], probe=probe)
    with open_run(tmp_path / "run.h5") as run:
        fine, lost = run.arrays("state_gradient_norm")[1]
    assert np.isfinite(fine[5:]).all() and np.isinf(lost[5:]).all()
    assert np.isnan(fine[:5]).all() and np.isnan(lost[:5]).all()


@pytest.mark.parametrize("checkpointing", ["reentrant", "non-reentrant"])
def test_checkpoints_change_neither_training_nor_the_norms(checkpointing, demo_model, tmp_path):
    plain = demo_model("parcae", backward_depth=8, activation_checkpointing=checkpointing)
    losses, _ = train(plain, [[4], [5]])
    whole = demo_model("parcae", backward_depth=8)
    _, seen = train(whole, [[4], [5]], witness=Witness(whole))
    model = demo_model("parcae", backward_depth=8, activation_checkpointing=checkpointing)
    with loopscope.attach(model, tmp_path / "run.h5", preset=INSIDE) as probe:
        watched, _ = train(model, [[4], [5]], probe=probe)
    assert torch.equal(losses, watched)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    with open_run(tmp_path / "run.h5") as run:
        blocks, gradients = run.arrays("block_state_norm")[1], run.arrays("state_gradient_norm")[1]
    for recorded, gradient, (norms, expected) in zip(blocks, gradients, seen, strict=True):
        np.testing.assert_allclose(recorded, norms, rtol=RELATIVE)
        there = np.isfinite(gradient)
        assert there[-1]
        np.testing.assert_allclose(gradient[there], np.array(expected)[there], rtol=1e-5)


def test_compiled_bodies_are_measured_inside_without_gradients(demo_model, tmp_path):
    plain = demo_model("concatenation")
    _, seen = train(plain, [[3], [2]], witness=Witness(plain))
    torch._dynamo.reset()
    dynamo.counters.clear()
    model = demo_model("concatenation")
    with loopscope.attach(model, tmp_path / "run.h5", preset=INSIDE) as probe:
        model.compile_loop(backend="aot_eager")
        train(model, [[3], [2]], probe=probe)
    assert not dynamo.counters["graph_break"]
    with open_run(tmp_path / "run.h5") as run:
        for recorded, (norms, _) in zip(run.arrays("block_state_norm")[1], seen, strict=True):
            np.testing.assert_allclose(recorded, norms, rtol=1e-5)


def test_a_gradient_that_cannot_be_measured_does_not_stop_training(demo_model, tmp_path, caplog, monkeypatch):
    model = demo_model("parcae")
    with loopscope.attach(model, tmp_path / "run.h5", preset=INSIDE) as probe:
        monkeypatch.setattr("loopscope.probes.measure.inside.InsideTap._add_gradient", lambda *args: 1 / 0)
        train(model, [[3], [3]], probe=probe)
    assert sum("gradients of states are measured no more" in record.message for record in caplog.records) == 1
    with open_run(tmp_path / "run.h5") as run:  # everything else goes on
        assert run["depth"].tolist() == [3, 3] and np.isfinite(run.loops("state_norm")).all()


def test_maps_over_tokens_average_to_the_rows_of_the_pass(demo_model, tmp_path):
    model = demo_model("parcae")
    study = dataclasses.replace(find_preset("study"), full_loop=lambda step: False)
    with loopscope.attach(model, tmp_path / "run.h5", preset=study) as probe:
        train(model, [[3]] * 12, probe=probe)
    with open_run(tmp_path / "run.h5") as run:
        steps, maps = run.arrays("token_residual_norm")
        assert steps.tolist() == run.probe_steps.tolist() == [0, 10, 11]
        for token_map, rows in zip(maps, run.probe("residual_norm"), strict=True):
            assert token_map.shape == (16, 2, 32)  # 2 · μ_rec loops, the probe batch's two sequences
            np.testing.assert_allclose(token_map.mean(axis=(1, 2)), rows[:-1], rtol=RELATIVE)
