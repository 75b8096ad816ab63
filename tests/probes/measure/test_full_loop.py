"""The full loop measured during training: right numbers, no trace in training, each failure reported one time."""

import math
import os
import random

import loopscope
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loopscope.loops.bound import bound_loop
from loopscope.loops.call import Call
from loopscope.probes import LoopSite, open_run
from loopscope.probes.measure.full_loop import FullLoopProbe, measure_full_loop
from loopscope.probes.schedule import find_preset, inspecting
from loopscope.runfile.disk.repair import repair
from loopscope.runfile.layout import FIRST_COLUMNS, STEP_COLUMNS
from loopscope.runfile.writer import RunWriter
from torch import nn


def train(model, probe=None, steps=20):
    """A plain training loop whose depths and first states come from the global stream."""
    torch.manual_seed(0)
    data = torch.randint(0, 256, (steps, 4, 25), generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for batch in data:
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if probe is not None:
            probe.step(loss=loss)
        losses.append(loss.detach())
    return torch.stack(losses), (torch.get_rng_state(), random.getstate(), np.random.get_state())  # noqa: NPY002


@pytest.mark.parametrize("injection", ["addition", "concatenation", "parcae"])
def test_training_is_bit_identical_while_inspected(injection, demo_model, tmp_path):
    plain, watched = demo_model(injection), demo_model(injection)
    losses, states = train(plain)
    with loopscope.attach(watched, tmp_path / "run.h5", preset=inspecting(10, 80)) as probe:
        watched_losses, watched_states = train(watched, probe)
    assert torch.equal(losses, watched_losses)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    gradients = zip(plain.parameters(), watched.parameters(), strict=True)
    assert all(a.grad is None if b.grad is None else torch.equal(a.grad, b.grad) for a, b in gradients)
    assert all(p.requires_grad for p in watched.parameters())
    assert torch.equal(states[0], watched_states[0]) and states[1] == watched_states[1]
    assert all(np.array_equal(a, b) for a, b in zip(states[2], watched_states[2], strict=True))
    with open_run(tmp_path / "run.h5") as run:
        for name in ("jacobian_radius", "jacobian_norm", "lyapunov_max", "c_out_gain", "full_loop_seconds"):
            steps, values = run.series(name)
            assert steps.tolist() == [0, 9, 19] and np.isfinite(values).all(), name
        steps, exponents = run.arrays("lyapunov_exponents")
        assert steps.tolist() == [0, 9, 19] and exponents[0].shape == (2, 24, 4)
        assert [values[..., 0].max() for values in exponents] == pytest.approx(run.series("lyapunov_max")[1], rel=1e-6)
        radii = run.arrays("token_jacobian_radius")[1]
        assert [values.max() for values in radii] == pytest.approx(run.series("jacobian_radius")[1], rel=1e-6)
        assert (run["nonfinite"] == 0).all()  # a number that was not measured is no broken number
        (event,) = (event for event in run.events if event.kind == "full_loop")
        assert event.severity == "note"
        assert "at loop 16 of 2 x 24 tokens: per token, exact" in event.message
        diagnosis = loopscope.diagnose(run)
    assert diagnosis.regimes["loop"] != "unknown"
    assert f"Full loop {diagnosis.regimes['loop']}: λ " in diagnosis.summary


def test_numbers_are_those_of_the_dense_jacobian(demo_model):
    model = demo_model("concatenation").double()
    tokens = torch.randint(0, 256, (1, 5), generator=torch.Generator().manual_seed(2))
    with bound_loop(model, tokens) as loop:
        measured = measure_full_loop(loop, loops=16)
        with torch.no_grad():
            states = [loop.state]
            for _ in range(25):
                states.append(loop.step(states[-1]))
        jacobians = [torch.autograd.functional.jacobian(loop.step, h)[0, :, :, 0] for h in states[8:25]]
        c_out = loop.site.c_out().detach()
    dense = jacobians[8].reshape(160, 160).numpy()  # at h_16
    blocks = np.stack([jacobians[8][i, :, i].numpy() for i in range(5)])
    # The union over tokens is the spectrum; in float64 both are LAPACK on the same blocks.
    assert measured.radius.value == pytest.approx(np.abs(np.linalg.eigvals(blocks)).max(), rel=1e-9)
    # A residual of 3 % of a singular value leaves an error of its square over the gap: a few 1e-3.
    assert measured.norm.converged and measured.norm.value == pytest.approx(np.linalg.norm(dense, 2), rel=5e-3)
    late = [np.eye(32) for _ in range(5)]
    for jacobian in jacobians[:9]:
        late = [jacobian[i, :, i].numpy() @ product for i, product in enumerate(late)]
    largest = max(math.log(np.linalg.norm(product, 2)) / 9 for product in late)
    # All directions together grow as the volume does; four of them at most as the four most amplified ones.
    volumes = [np.log(np.linalg.svd(product, compute_uv=False)[:4]).sum() / 9 for product in late]
    assert (measured.exponents[0].sum(-1) <= np.array(volumes) + 1e-9).all()
    assert (measured.exponents[0].sum(-1) > np.array(volumes) - 0.4).all()
    # One aligned direction grows at most as the most amplified one of nine loops, and nearly so.
    assert largest - 0.1 < measured.lyapunov_max <= largest + 1e-9
    gain = (states[16] @ c_out.mT).norm(dim=-1) / states[16].norm(dim=-1)
    assert measured.c_out_gain == pytest.approx(float(gain.mean()), rel=1e-12)


def test_a_loop_that_is_not_causal_is_measured_whole():
    class Shift(nn.Module):
        def forward(self, h):
            return 0.5 * h + 0.5 * h.roll(1, dims=1)

    model = nn.Sequential(Shift(), nn.Identity())
    site = LoopSite(body="0", after="1")
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    with bound_loop(model, x, site=site) as loop:
        measured = measure_full_loop(loop, loops=6)
    assert measured.spectrum == "whole" and measured.radius.method.startswith("whole")
    assert measured.radius.value == pytest.approx(1.0, rel=1e-3)  # a circulant of row sum 1; the tolerance asked for
    assert measured.lyapunov_max == pytest.approx(0.0, abs=0.02)  # the second eigenvalue is 0.71: aligned after 8 loops
    assert math.isnan(measured.c_out_gain) and measured.radii is None and measured.exponents.shape == (4,)


def test_states_that_stop_being_finite_give_no_number_and_no_regime(demo_model, tokens, tmp_path):
    model = demo_model("concatenation")
    with loopscope.attach(model, tmp_path / "run.h5", preset=inspecting(1, 2)) as probe:
        model(tokens)
        probe.step(loss=1.0)
        with torch.no_grad():
            next(iter(model.parameters())).fill_(math.inf)
        model(tokens)
        probe.step(loss=1.0)
    with open_run(tmp_path / "run.h5") as run:
        assert np.isfinite(run["full_loop_seconds"]).all()  # both were tried
        assert np.isfinite(run["lyapunov_max"]).tolist() == [True, False]
        assert loopscope.diagnose(run).regimes["loop"] == "unknown"  # that of step 0 says nothing of step 1


def test_a_loop_that_cannot_be_measured_says_so_once_and_training_is_recorded(tmp_path, caplog):
    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Identity()

        def forward(self, x):
            for _ in range(3):
                x = self.body(x)
            return self.head(x)

    model = Toy().bfloat16()
    site = LoopSite(body="body", after="head")
    with loopscope.attach(model, tmp_path / "run.h5", site=site, preset=inspecting(1, 2)) as probe:
        for _ in range(3):
            loss = model(torch.ones(2, 3, 4, dtype=torch.bfloat16)).sum()
            loss.backward()
            probe.step(loss=loss)
    assert sum("the full loop is not measured" in record.message for record in caplog.records) == 1
    with open_run(tmp_path / "run.h5") as run:
        assert run["depth"].tolist() == [3, 3, 3]
        assert np.isnan(run["full_loop_seconds"]).all()
        assert [(event.kind, event.severity) for event in run.events] == [
            ("full_loop", "warning"),
            ("fixed_batch", "note"),  # three loops, whose number nothing sets
        ]
        assert "float32" in run.events[0].message


def test_without_a_batch_the_remedy_is_told(demo_model):
    model = demo_model()
    probe = FullLoopProbe(model, LoopSite(**model.loop_site()))
    measured = probe.measure(None, 0)
    assert not measured.values and not measured.arrays and "probe_batch" in measured.event.message
    assert probe.measure(None, 1).event is None


def test_a_compiled_body_is_run_as_written(demo_model, tokens):
    model = demo_model()
    site = LoopSite(**model.loop_site())
    expected = FullLoopProbe(model, site).measure(Call((tokens,), {}), 0).values
    for block in model.core:
        block.compile(backend="eager")
    model(tokens)
    compiled = FullLoopProbe(model, site).measure(Call((tokens,), {}), 0).values
    del expected["full_loop_seconds"], compiled["full_loop_seconds"]
    assert compiled == expected


def test_the_schedule_ends_on_round_numbers_of_steps():
    due = find_preset("inspect").full_loop
    assert [step for step in range(150) if due(step)] == [0, 49, 99, 149]
    assert due(19_999) and not due(20_049)  # every 400 in the long run


def test_files_without_the_newer_columns_are_read_resumed_and_repaired(tmp_path, monkeypatch):
    path = tmp_path / "old.h5"
    with monkeypatch.context() as past:
        past.setattr("loopscope.runfile.writer.STEP_COLUMNS", STEP_COLUMNS[:FIRST_COLUMNS])
        with RunWriter.create(path, info={"a_bar_learned": True}, scalars=("accuracy",)) as writer:
            for step in range(5):
                writer.append_step({"step": step, "loss": 2.0, "a_bar_radius": 0.9, "accuracy": 0.5})
    with open_run(path) as run:
        with pytest.raises(KeyError, match="no 'lyapunov_max'"):
            run["lyapunov_max"]
        diagnosis = loopscope.diagnose(run)
    assert diagnosis.regimes["loop"] == "unknown" and "LS040" in diagnosis.skipped
    with RunWriter.resume(path) as writer:
        writer.append_step({"step": 5, "loss": 2.0, "lyapunov_max": -0.3, "full_loop_seconds": 0.2})
    with open_run(path) as run:
        assert run.series("lyapunov_max")[1].tolist() == [-0.3]
        assert run["accuracy"][:5].tolist() == [0.5] * 5
        assert loopscope.diagnose(run).regimes["loop"] == "stable"
    writer = RunWriter.resume(path)  # back to the layout of a live run
    writer.close()
    os.truncate(path, int(path.stat().st_size * 0.99))  # free room behind the last rows
    assert repair(path).rows == 6


class Few(nn.Module):
    """Three loops."""

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head, self.depth = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9), 3

    def forward(self, tokens):
        h = self.embed(tokens)
        for _ in range(self.depth):
            h = torch.tanh(self.body(h))
        return self.head(h)


def test_a_loop_that_is_trained_at_three_is_linearised_after_sixteen(tmp_path):
    torch.manual_seed(0)
    model = Few()
    with loopscope.attach(model, tmp_path / "a.h5", preset=inspecting(1, 2)) as probe:
        probe.step(loss=model(torch.arange(8).view(2, 4)).square().mean())
    with open_run(tmp_path / "a.h5") as run:
        (event,) = [event for event in run.events if event.kind == "full_loop"]
        assert "full loop measured at loop 16 of 2 x 4 tokens" in event.message
