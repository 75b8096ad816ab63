"""The self-check passes where nothing is wrong and names what is."""

import json

import pytest
import torch
from loopscope.commands.selfcheck import check_acting_models
from loopscope.models.acting import (
    ACTING,
    AuxiliaryLosses,
    BufferAverage,
    CountedDepth,
    EmaSwap,
    Fused,
    LazyCache,
    Lora,
    MaxNorm,
    SwapsMemory,
)
from loopscope.probes import LoopSite
from loopscope.probes.measure import reduction as reduction_module
from loopscope.probes.measure import tap as tap_module
from loopscope.probes.selfcheck import selfcheck
from torch import nn

from ..warm import run


def batch_of(step):
    return torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(step))


def loss_of(model, tokens):
    return model(tokens).logsumexp(-1).mean()


def check(make_model, **settings):
    return selfcheck(make_model, batch_of, loss_of, **({"steps": 3, "timed": 2} | settings))


@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
def test_a_healthy_model_passes(checkpointing, demo_model):
    report = check(lambda: demo_model(activation_checkpointing=checkpointing))
    assert report.passed, report.text()
    assert (report.same_losses, report.same_parameters, report.same_random) == (True, True, True)
    assert report.difference == 0
    assert report.loops_recorded == report.loops_run > 3
    assert report.norm_error < 1e-6
    assert report.graphs == (0, 0)
    assert report.step_seconds > 0
    assert "PASS" in report.text()
    assert json.loads(json.dumps(report.as_dict()))["passed"] is True


def test_a_model_of_the_users_own_with_accumulation_and_a_compiled_body():
    class Body(nn.Module):  # of its own class, for Dynamo leaves a bare nn.Linear as it is
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, h):
            return torch.tanh(self.linear(h))

    class Toy(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.inject, self.head = nn.Embedding(256, 8), Body(), nn.Linear(8, 256)
            self.inject.compile(backend="aot_eager")

        def forward(self, tokens):
            h = self.embed(tokens)
            for _ in range(4):
                h = self.inject(h)
            return self.head(h)

    report = selfcheck(
        Toy,
        batch_of,
        lambda model, tokens: sum(loss_of(model, part) for part in tokens.split(1)),
        site=LoopSite(body="inject", after="head"),
        steps=3,
        timed=1,
    )
    assert report.passed, report.text()
    assert report.loops_run == report.loops_recorded == 12
    assert report.graph_breaks == (0, 0)
    assert report.graphs[1] >= report.graphs[0] > 0
    assert report.overhead == report.overhead  # every timed step was watched, in graphs of its own
    assert "graph breaks: 0" in report.text()


def test_a_probe_that_draws_random_numbers_is_found_out(demo_model, monkeypatch):
    honest = reduction_module.EagerReduction.add
    monkeypatch.setattr(reduction_module.EagerReduction, "add", lambda *args: (torch.rand(()), honest(*args))[1])
    report = check(demo_model)
    assert not report.passed
    assert not report.same_random
    assert "the random state differs with the probe" in report.problems
    assert "FAIL" in report.text()


def test_a_probe_that_measures_wrongly_or_not_at_all_is_found_out(demo_model, monkeypatch):
    honest = reduction_module.EagerReduction.add
    monkeypatch.setattr(
        reduction_module.EagerReduction, "add", lambda self, state, *where: honest(self, 1.01 * state, *where)
    )
    report = check(demo_model)
    assert [problem.split(" by ")[0] for problem in report.problems] == ["recorded norms are off"]
    assert report.norm_error == pytest.approx(0.01, rel=1e-3)
    monkeypatch.setattr(tap_module.LoopTap, "_see", lambda self, *seen: None)
    report = check(demo_model)
    assert report.loops_recorded == 0
    assert any(problem.startswith("0 loops recorded where") for problem in report.problems)


class Counting(nn.Module):
    """Keeps a running mean and a count beside a loop that is stated, and the output depends on neither."""

    def __init__(self):
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(256, 8), nn.Linear(8, 8), nn.Linear(8, 256)
        self.mean, self.calls, self.kept = nn.Buffer(torch.zeros(8)), 0, []

    def forward(self, tokens, num_loops=3):
        h = self.embed(tokens)
        self.calls += 1
        self.mean.lerp_(h.detach().mean((0, 1)), 0.1)
        self.kept.append(num_loops)
        for _ in range(num_loops):
            h = torch.tanh(self.block(h))
        return self.head(h)


@pytest.mark.parametrize(
    ("broken", "named"),
    [(None, []), ("python_state.PythonState.rewind", ["calls", "kept"]), ("writes.Writes.undo", ["mean"])],
)
def test_what_a_look_leaves_behind_is_found_out(broken, named, monkeypatch):
    """Losses and parameters are the same all the while: only what the model holds besides tells."""
    site = LoopSite(body="block", after="head", depth_argument="num_loops", mean_depth=3)
    if broken is not None:
        monkeypatch.setattr(f"loopscope.loops.{broken}", lambda self: False)
        monkeypatch.setattr("loopscope.loops.neutral._verify", lambda *args, **kwargs: None)
    found = selfcheck(Counting, batch_of, loss_of, site=site, steps=4, timed=1)
    assert found.same_losses and found.same_parameters and found.looks == 2
    assert found.passed == (broken is None) and set(named) <= {name.split(".")[0] for name in found.differing}
    assert all(name in found.text() for name in named)


@pytest.mark.parametrize(
    ("broken", "kinds"),
    [
        ("python_state.PythonState.rewind", [CountedDepth, AuxiliaryLosses, LazyCache]),
        ("writes.Writes.undo", [BufferAverage, MaxNorm, SwapsMemory]),
        ("neutral._may_act", [Lora, EmaSwap, Fused]),
    ],
)
def test_models_that_act_are_not_the_same_where_a_look_leaves_a_trace(broken, kinds, monkeypatch):
    assert [check.differing for check in check_acting_models(kinds, steps=4)] == [()] * 3
    assert all(check.looks for check in check_acting_models(kinds[:1], steps=4))
    monkeypatch.setattr("loopscope.loops.neutral._verify", lambda *args, **kwargs: None)
    if broken == "neutral._may_act":  # flags are then set by the user's own methods
        monkeypatch.setattr("loopscope.loops.neutral._evaluate", lambda model: model.eval())
        monkeypatch.setattr("loopscope.loops.python_state.PythonState.rewind", lambda self: False)
        monkeypatch.setattr("loopscope.loops.writes.Writes.undo", lambda self: None)
    else:
        monkeypatch.setattr(f"loopscope.loops.{broken}", lambda self: False)
    assert all(check.differing for check in check_acting_models(kinds, steps=4))


def test_the_command_reports_and_exits_with_zero():
    done = run("selfcheck", "--device", "cpu", "--precision", "bf16", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["passed"] is True
    assert report["same_parameters"] is True and report["differing"] == [] and report["looks"] > 0
    acting = report["acting_models"]
    assert len(acting) == len(ACTING) and all(check["looks"] and not check["differing"] for check in acting)
