"""The probe under every way of running a step: compiled, checkpointed, in bf16, with accumulation.

Every combination runs; torch 2.13 supports them all. Compilation uses the ``aot_eager`` backend: tracing and graphs are
those of Inductor, the kernels are the eager ones, so that this file stays below a minute.
"""

import logging

import loopscope
import numpy as np
import pytest
import torch
import torch._dynamo.utils as dynamo
import torch.nn.functional as F
from loopscope.probes import Preset, every, open_run

ROWS_ONLY = Preset("rows only", every(1), every(10**9), lambda step: False)  # no passes of the probe batch in between
CHECKPOINTING = pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non-reentrant"])
PRECISION = pytest.mark.parametrize("precision", ["fp32", "bf16"])
ACCUMULATION = pytest.mark.parametrize("accumulation", [1, 2])

# The compiled loops below run the same operations on the same numbers as the eager ones, but a decomposition may round
# elsewhere: a few float32 roundings, or bf16 ones (2^-8) that averaging over 128 tokens makes smaller.
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-3}


class States:
    """Hooks of the test's own that keep h_0 … h_T of every forward in float64."""

    def __init__(self, model):
        self.forwards = []
        model.register_forward_pre_hook(lambda module, args: self.forwards.append([]))
        model.injection.register_forward_pre_hook(self.keep)
        model.read_out.register_forward_pre_hook(self.keep)

    def keep(self, module, args):
        if torch._C._current_graph_task_id() == -1:  # not in the recomputation of a checkpoint
            self.forwards[-1].append(args[0].detach().double().clone())


def means_of(forwards):
    """state_norm and residual_norm over loops, averaged over the tokens of all forwards that reached the loop."""
    depth = max(map(len, forwards))
    state, residual = np.full(depth, np.nan), np.full(depth, np.nan)
    for t in range(depth):
        there = [f for f in forwards if t < len(f)]
        state[t] = torch.stack([f[t].norm(dim=-1).mean() for f in there]).mean()
        moving = [f for f in there if t + 1 < len(f)]
        if moving:
            residual[t] = torch.stack([(f[t + 1] - f[t]).norm(dim=-1).mean() for f in moving]).mean()
    return state, residual


def batch_of(step):
    """Tokens and h_0, the same whoever asks."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, (4, 33), generator=generator), torch.randn(4, 32, 32, generator=generator)


def train(model, run, precision, depths_of_steps, probe=None):
    """A plain training loop; one forward for each depth of a step. Returns the losses and torch's random state."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for step, depths in enumerate(depths_of_steps):
        optimizer.zero_grad()
        for i, depth in enumerate(depths):
            tokens, h0 = batch_of(10 * step + i)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = run(tokens[:, :-1], num_loops=depth, initial_state=h0)
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / len(depths)
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
        if probe is not None:
            probe.step(loss=loss)
    return torch.stack(losses), torch.get_rng_state()


@ACCUMULATION
@PRECISION
@CHECKPOINTING
def test_eager_training_is_bit_identical_and_the_rows_are_right(
    checkpointing, precision, accumulation, demo_model, tmp_path
):
    depths = [[5], [2], [6], [3]] if accumulation == 1 else [[5, 2], [3, 3], [1, 6], [4, 2]]
    plain = demo_model("parcae", activation_checkpointing=checkpointing)
    states = States(plain)
    losses, random = train(plain, plain, precision, depths)
    watched = demo_model("parcae", activation_checkpointing=checkpointing)
    with loopscope.attach(watched, tmp_path / "run.h5", preset=ROWS_ONLY) as probe:
        watched_losses, watched_random = train(watched, watched, precision, depths, probe)
    assert torch.equal(losses, watched_losses)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert torch.equal(random, watched_random)
    with open_run(tmp_path / "run.h5") as run:
        assert run["depth"].tolist() == [np.mean(d) for d in depths]
        assert run["depth_max"].tolist() == [max(d) for d in depths]
        recorded = run.loops("state_norm"), run.loops("residual_norm")
    for step in range(len(depths)):
        expected = means_of(states.forwards[accumulation * step :][:accumulation])
        for row, right in zip(recorded, expected, strict=True):
            # float32 sums over 128 or 256 tokens against float64
            np.testing.assert_allclose(row[step, : len(right)], right, rtol=2e-6)


@PRECISION
@CHECKPOINTING
@pytest.mark.parametrize("how", ["body", "whole"])
def test_compiled_training_has_the_right_rows_and_no_graph_break(how, checkpointing, precision, demo_model, tmp_path):
    # Steps with one and with two micro-batches, all through the same graphs. The last ones show that nothing is
    # compiled again: a probe that recompiled would hit Dynamo's limit within a few steps. A whole-model graph holds one
    # depth; a compiled body runs any. Its first of three loops is outside the backward pass, as in truncated training.
    second = 3 if how == "body" else 2
    depths = [[2], [2, second], [2], [2, second]]
    small = {"activation_checkpointing": checkpointing, "prelude_layers": 0, "coda_layers": 0, "backward_depth": 2}
    plain = demo_model("concatenation", **small)
    states = States(plain)
    losses, _ = train(plain, plain, precision, depths)

    torch._dynamo.reset()
    dynamo.counters.clear()
    model = demo_model("concatenation", **small)
    graphs = []
    with loopscope.attach(model, tmp_path / "run.h5", preset=ROWS_ONLY) as probe:
        if how == "body":
            model.compile_loop(backend="aot_eager")
            run_model = model
        else:
            run_model = torch.compile(model, backend="aot_eager", fullgraph=True)  # a graph break would raise
        probe_step = probe.step
        probe.step = lambda **given: (probe_step(**given), graphs.append(dynamo.counters["stats"]["unique_graphs"]))
        compiled_losses, _ = train(model, run_model, precision, depths, probe)
    assert not dynamo.counters["graph_break"]
    assert graphs[1] == graphs[-1] > 0
    np.testing.assert_allclose(compiled_losses, losses, rtol=TOLERANCE[precision])
    with open_run(tmp_path / "run.h5") as run:
        assert run["depth"].tolist() == [np.mean(d) for d in depths]
        recorded = run.loops("state_norm"), run.loops("residual_norm")
        assert (run["rows_dropped"] == 0).all()
    first = 0
    for step, of_step in enumerate(depths):
        expected = means_of(states.forwards[first : first + len(of_step)])
        first += len(of_step)
        for row, right in zip(recorded, expected, strict=True):
            np.testing.assert_allclose(row[step, : len(right)], right, rtol=TOLERANCE[precision])


def warnings_of(caplog):
    return [r.message for r in caplog.records if r.name == "loopscope" and r.levelno == logging.WARNING]


@pytest.mark.parametrize("how", ["body", "whole"])
def test_attaching_after_the_first_compiled_call_is_explained_and_a_reset_helps(how, demo_model, tmp_path, caplog):
    torch._dynamo.reset()
    model = demo_model("addition", prelude_layers=0, coda_layers=0)
    run_model = torch.compile(model, backend="aot_eager") if how == "whole" else model
    if how == "body":
        model.compile_loop(backend="aot_eager")
    train(model, run_model, "fp32", [[1]])
    with loopscope.attach(model, tmp_path / "run.h5", preset=ROWS_ONLY) as probe:
        train(model, run_model, "fp32", [[1], [1]], probe)
        torch._dynamo.reset()
        train(model, run_model, "fp32", [[1]], probe)
    [said] = warnings_of(caplog)
    assert "step 0 recorded no loop: attached after the first compiled call" in said
    assert "torch._dynamo.reset()" in said
    with open_run(tmp_path / "run.h5") as run:
        np.testing.assert_array_equal(run["depth"], [np.nan, np.nan, 1])


def test_a_step_in_evaluation_mode_is_explained(demo_model, tokens, tmp_path, caplog):
    model = demo_model().eval()
    with loopscope.attach(model, tmp_path / "run.h5", preset=ROWS_ONLY) as probe:
        for _ in range(3):
            model(tokens).sum().backward()
            probe.step(loss=1.0)
    assert warnings_of(caplog) == [
        "loopscope: step 0 recorded no loop: the model is in evaluation mode; call model.train() before the forward"
    ]


def test_a_step_without_a_forward_is_explained_and_one_with_a_loop_says_nothing(demo_model, tokens, tmp_path, caplog):
    model = demo_model()
    with loopscope.attach(model, tmp_path / "run.h5", preset=ROWS_ONLY) as probe:
        model(tokens)
        probe.step(loss=1.0)
        assert not warnings_of(caplog)
        probe.step(loss=1.0)
    [said] = warnings_of(caplog)
    assert "step 1 recorded no loop" in said


def test_a_wide_matrix_has_an_interval_at_every_step_and_exact_values_with_their_step(tmp_path):
    from loopscope.probes.recorder import Record, Recorder
    from loopscope.runfile.reader import Run

    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 200)) / np.sqrt(200) * 0.8
    recorder = Recorder(tmp_path / "r.h5", info={}, scalars=(), resume=False, overwrite=False)
    recorder._radius._background = recorder._norm._background = False
    exact = []
    for step in range(0, 40, 2):
        a = a + 0.003 * rng.normal(size=a.shape) / np.sqrt(200)
        exact.append(np.abs(np.linalg.eigvals(a)).max())
        recorder.put(Record(step=step, time=0.0, values={"loss": 1.0}, matrices={"a_bar": a.astype(np.float32)}))
    recorder.close()
    with Run(tmp_path / "r.h5") as run:
        lower, upper = run["a_bar_radius_lower"], run["a_bar_radius_upper"]
        assert np.isfinite(run["a_bar_radius"]).all()
        assert ((lower <= exact) & (exact <= upper)).all()
        arrived = np.isfinite(run["a_bar_radius_exact"])
        assert arrived.any()
        steps = run["a_bar_radius_exact_step"][arrived].astype(int)
        np.testing.assert_allclose(run["a_bar_radius_exact"][arrived], np.array(exact)[steps // 2], rtol=1e-6)
