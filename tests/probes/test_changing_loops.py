"""Loops that are off at first, that grow, that are sampled or scheduled: what is recorded, and who is silent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
from loopscope.loops.trace import Recorder
from loopscope.probes.seeker import _is_compiled
from loopscope.runfile.writer import RunWriter
from torch import Tensor, nn

STEPS, SWITCH = 120, 60
TOKENS = torch.arange(8).view(2, 4)


class Scheduled(nn.Module):
    """Runs its block as often as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head, self.depth = nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 16), 1

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for _ in range(self.depth):
            h = torch.tanh(self.block(h))
        return self.head(h)


def train(path: Path, depths: Callable[[int], list[int]], *, steps: int = STEPS, jump: int = 10**9) -> None:
    """Train; the loss that is given is 1 with some noise, and 3 from a step on."""
    torch.manual_seed(0)
    model, draw = Scheduled(), np.random.default_rng(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with loopscope.attach(model, path) as probe:
        for step in range(steps):
            for depth in depths(step):
                model.depth = depth
                model(TOKENS).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss=(3.0 if step >= jump else 1.0) + 0.02 * draw.standard_normal())


def events_of(run: loopscope.Run, *kinds: str) -> list[tuple[str, int]]:
    return [(event.kind, event.step) for event in run.events if event.kind in kinds]


def test_a_loop_that_is_switched_on_later_is_awaited_and_found(tmp_path: Path) -> None:
    train(tmp_path / "a.h5", lambda step: [1 if step < SWITCH else 4], jump=SWITCH + 1)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        depth, said = run["depth"], loopscope.diagnose(run)
        told = events_of(run, "loop_awaited", "loop_found", "depth_changed", "loss_spike")
        words = next(event.message for event in run.events if event.kind == "loop_found")
    assert ("ran it already and is not recorded" in words) == np.isnan(depth[SWITCH])
    assert f"a forward of step {SWITCH} ran it already" in words
    assert np.isnan(depth[:SWITCH]).all() and (depth[SWITCH + 1 :] == 4).all()  # the step that shows it may be missing
    found = next(step for kind, step in told if kind == "loop_found")
    assert found in (SWITCH, SWITCH + 1) and told[0] == ("loop_awaited", 0)
    assert [step for kind, step in told if kind == "depth_changed"] == [found]
    assert "loss_spike" not in dict(told)  # the loss of a loop is another loss
    late = [f for f in said.findings if f.name == "loop-begins-late"]
    assert len(late) == 1 and late[0].severity == "note"
    assert not [f for f in said.findings if f.rule in ("LS010", "LS011", "LS012")]
    assert not [f for f in said.findings if f.name in ("few-loops", "loops-end", "no-loops")]


@torch.compile(backend="eager")
def compiled_norm(x: Tensor) -> Tensor:
    return x / (1 + x.norm())


def normed_once(x: Tensor) -> Tensor:
    return compiled_norm(x)


class Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return compiled_norm(x)


class StepsByCompiledCode(torch.optim.SGD):
    """An optimizer in the file of a model, as training scripts have it: its own functions are compiled."""

    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = compiled_norm(parameter.grad)
        super().step(closure)


class InOneScript(Scheduled):
    """Written beside a compiled function that its forward never calls; a method that no forward runs does."""

    def optimizer(self) -> StepsByCompiledCode:
        return StepsByCompiledCode(self.parameters(), 0.01)


class CallsCompiled(Scheduled):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.read_out(super().forward(tokens))

    def read_out(self, logits: Tensor) -> Tensor:
        return normed_once(logits)


class AppliesCompiled(Scheduled):
    def forward(self, tokens: Tensor) -> Tensor:
        return Normed.apply(super().forward(tokens))


class HoldsCompiled(Scheduled):
    def __init__(self) -> None:
        super().__init__()
        self.act = lambda x: normed_once(x)


def test_a_compiled_optimizer_in_the_script_of_a_model_does_not_hide_the_step_that_switches_its_loop_on(
    tmp_path: Path,
) -> None:
    """Step 20 is no power of two: found by then only where module calls are counted."""
    model = InOneScript()
    optimizer = model.optimizer()
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        for step in range(24):
            model.depth = 1 if step < 20 else 4
            loss = model(TOKENS).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss=loss)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert np.isfinite(run["depth"]).nonzero()[0].tolist() == [21, 22, 23]


@pytest.mark.parametrize(
    ("kind", "compiled"),
    [
        (Scheduled, False),
        (InOneScript, False),
        (CallsCompiled, True),
        (AppliesCompiled, True),
        (HoldsCompiled, True),
    ],
)
def test_a_model_is_compiled_where_its_forward_may_call_what_is(kind: type[nn.Module], compiled: bool) -> None:
    assert _is_compiled(kind()) == compiled


def test_a_loop_that_is_on_at_once_is_not_said_to_have_run_before(tmp_path: Path) -> None:
    train(tmp_path / "a.h5", lambda step: [4], steps=10)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert (run["depth"] == 4).all() and not any("already" in event.message for event in run.events)


def test_an_evaluation_in_between_is_no_change_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of another depth nor of another batch: no training forward is looked at for it, nor blamed."""
    looked: list[int] = []
    model, steps = Scheduled(), 24
    begun = Recorder.__enter__
    monkeypatch.setattr(Recorder, "__enter__", lambda self: looked.append(1) or begun(self))
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        looked.clear()
        for step in range(steps):
            model.depth = 1 if step < 20 else 4
            model(TOKENS).square().mean().backward()
            probe.step(loss=1.0)
            model.eval()
            with torch.no_grad():
                for model.depth in (1, 5):
                    model(TOKENS)
            model.train()
    assert len(looked) == 1 + 4 + 1  # the 1st forward, the 2nd, 4th, 8th and 16th, and the one behind the change
    with loopscope.open_run(tmp_path / "a.h5") as run:
        words = [event.message for event in run.events if event.kind == "loop_found"]
        assert len(words) == 1 and "a forward of step 20 ran it already" in words[0]
        assert run["depth"][21:].tolist() == [4.0] * 3 and np.isnan(run["depth"][:21]).all()
        # Those before the loop was found are not counted; of step 23 the event tells.
        assert run["eval_depth_max"][22:].tolist() == [5.0, 5.0] and np.isnan(run["eval_depth"][:22]).all()
        assert [event.value for event in run.events if event.kind == "evaluated"] == [5.0]


def test_of_several_forwards_in_a_step_the_second_shows_the_loop(tmp_path: Path) -> None:
    train(tmp_path / "a.h5", lambda step: [1, 1] if step < 10 else [4, 4], steps=20)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        depth, words = run["depth"], [event.message for event in run.events if event.kind == "loop_found"]
    assert np.isnan(depth[:10]).all() and (depth[10:] == 4).all()
    assert len(words) == 1 and "a forward of step 10 ran it already" in words[0]


def test_most_of_a_run_may_lie_before_its_loop(tmp_path: Path) -> None:
    train(tmp_path / "a.h5", lambda step: [1 if step < 90 else 3])
    with loopscope.open_run(tmp_path / "a.h5") as run:
        names = {finding.name for finding in loopscope.diagnose(run).findings}
    assert "loop-begins-late" in names and "few-loops" not in names


@pytest.mark.parametrize(
    ("before", "after"), [([2], [5]), ([5], [2]), ([2, 2], [5, 5]), ([2], [16])], ids=["2 → 5", "5 → 2", "micro", "16"]
)
def test_a_change_of_depth_is_an_event_and_no_spike(tmp_path: Path, before: list[int], after: list[int]) -> None:
    train(tmp_path / "a.h5", lambda step: before if step < SWITCH else after, jump=SWITCH)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        told = events_of(run, "depth_changed", "loss_spike")
        said = loopscope.diagnose(run)
        depth = run["depth"]
    assert depth[SWITCH - 1 : SWITCH + 1].tolist() == [before[0], after[0]]
    assert [kind for kind, _ in told] == ["depth_changed"] and SWITCH <= told[0][1] < SWITCH + 10
    assert not [f for f in said.findings if f.rule in ("LS010", "LS011", "LS012", "LS017", "LS018")]


def test_depths_that_are_sampled_are_one_law(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    drawn = [[int(n) for n in 1 + draw.poisson(4, 2)] for _ in range(STEPS)]
    train(tmp_path / "a.h5", lambda step: drawn[step])
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert events_of(run, "depth_changed", "loss_spike") == []
        first = int(np.flatnonzero(~np.isnan(run["depth"]))[0])
        assert first <= 2
        assert run["depth"][first + 1 :].tolist() == [sum(pair) / 2 for pair in drawn[first + 1 :]]
        assert run["depth_max"][first + 1 :].tolist() == [max(pair) for pair in drawn[first + 1 :]]


def test_a_schedule_step_by_step_is_followed_without_an_alarm(tmp_path: Path) -> None:
    train(tmp_path / "a.h5", lambda step: [2 + step // 20])
    with loopscope.open_run(tmp_path / "a.h5") as run:
        told = events_of(run, "depth_changed", "loss_spike")
        assert run["depth"].tolist() == [2 + step // 20 for step in range(STEPS)]
    assert {kind for kind, _ in told} == {"depth_changed"} and 3 <= len(told) <= 5


def test_ranks_that_run_different_depths_are_told(tmp_path: Path) -> None:
    with loopscope.open_run(write_ranks(tmp_path, [[4] * 30, [4] * 20 + [6] * 10])) as run:
        told = [f for f in loopscope.diagnose(run).findings if f.name == "ranks-differ-in-depth"]
    assert [(f.step, f.severity) for f in told] == [(20, "note")]
    assert "in 10 of 30 steps, first at step 20: rank 0 4, rank 1 6" in told[0].message


def test_ranks_of_one_depth_are_not(tmp_path: Path) -> None:
    with loopscope.open_run(write_ranks(tmp_path, [[4] * 30, [4] * 30])) as run:
        assert "ranks-differ-in-depth" not in {f.name for f in loopscope.diagnose(run).findings}


def write_ranks(folder: Path, depths: list[list[int]]) -> Path:
    """Write a run of several ranks with these depths."""
    for rank, own in enumerate(depths):
        info = {"rank": rank, "world_size": len(depths)}
        path = folder / ("a.h5" if rank == 0 else f"a.rank{rank}.h5")
        with RunWriter.create(path, info=info) as writer:
            for step, depth in enumerate(own):
                loops = np.ones((depth + 1, 4), np.float32)
                writer.append_step({"step": step, "loss": 1.0 + 0.01 * step, "depth": depth}, loops)
    return folder / "a.h5"
