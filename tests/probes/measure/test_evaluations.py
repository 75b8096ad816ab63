"""Forwards in evaluation mode are counted with the loops that they run, and nothing of ours or of a checkpoint is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
from loopscope.loops.site import LoopSite, Variable
from loopscope.probes.probe import Probe
from loopscope.probes.schedule import find_preset
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

TOKENS = torch.arange(8).view(2, 4)


class Plain(nn.Module):
    """Trained at depth 3, evaluated as `deep` says; its loop may break off, or run under a checkpoint."""

    site: LoopSite | None = LoopSite(body="block", after="norm")

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.norm, self.head = (
            nn.Embedding(16, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 16),
        )  # fmt: skip
        self.deep = 5
        self.breaks = self.checkpoints = False

    def body(self, h: Tensor) -> Tensor:
        return torch.tanh(self.block(h))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for loop in range(3 if self.training else self.deep):
            h = checkpoint(self.body, h, use_reentrant=False) if self.checkpoints else self.body(h)
            if self.breaks and loop == 1:
                raise RuntimeError("broken off")
        return self.head(self.norm(h))


class Returned(Plain):
    """Its states are read where the block returns them."""

    site = LoopSite(body="block", after="norm", state_argument=None, output="block")


class DeepSupervision(Plain):
    """The module behind the loop runs in every loop."""

    def forward(self, tokens: Tensor) -> Tensor:
        h, total = self.embed(tokens), torch.zeros(())
        for _ in range(3 if self.training else self.deep):
            h = self.body(h)
            total = total + self.head(self.norm(h))
        return total


class Twice(Plain):
    """The loop runs two times in one forward."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + super().forward(tokens.flip(0))


class TwoVariables(Plain):
    """One network for two variables: a pass is two updates of `low` and one of `high`."""

    site = LoopSite(
        variables=(
            Variable(name="low", output="block", argument=0, turns=(0, 1), of=3),
            Variable(name="high", output="block", argument=0, turns=(2,), of=3),
        )
    )

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.embed(tokens)
        high, low = 0.1 + 0 * e, 0.2 + 0 * e
        for _ in range(3 if self.training else self.deep):
            low = self.block(low)
            low = self.block(low)
            high = self.block(high)
        return self.head(self.norm(high + low))


class Marked(Plain):
    """Marks its state, the first value too."""

    site = LoopSite(variables=(Variable(name="h", first=0),))

    def forward(self, tokens: Tensor) -> Tensor:
        h = loopscope.mark(self.embed(tokens), "h")
        for _ in range(3 if self.training else self.deep):
            h = loopscope.mark(self.body(h), "h")
        return self.head(self.norm(h))


KINDS = (Plain, Returned, DeepSupervision, Twice, TwoVariables, Marked)


def evaluate(model: Plain, deep: int) -> None:
    model.eval()
    model.deep = deep
    model(TOKENS)
    model.train()


def run_of(path: Path, model: Plain, between: Callable[[Probe, int], None], **how: object) -> loopscope.Run:
    """Train 4 steps, with something before the end of each."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with loopscope.attach(model, path, site=model.site, **how) as probe:  # type: ignore[arg-type]
        for step in range(4):
            loss = model(TOKENS).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            between(probe, step)
            probe.step(loss=loss)
    return loopscope.open_run(path)


def numbers(run: loopscope.Run) -> list[list[float]]:
    return np.stack([run[name] for name in ("eval_depth", "eval_depth_max", "eval_forwards")], axis=1).tolist()


NONE = [float("nan")] * 3


@pytest.mark.parametrize("how", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_loop_is_counted_in_evaluation(tmp_path: Path, kind: type[Plain], how: type) -> None:
    model = kind()

    def between(probe: Probe, step: int) -> None:
        if step == 1:
            with how():
                evaluate(model, 5)
                evaluate(model, 8)

    with run_of(tmp_path / "a.h5", model, between) as run:
        np.testing.assert_equal(numbers(run), [NONE, [6.5, 8.0, 2.0], NONE, NONE])
        assert run["depth"].tolist() == [3.0] * 4  # an evaluation is no part of the step
        assert (run["nonfinite"] == 0).all()
        (found,) = [each for each in loopscope.diagnose(run).findings if each.rule == "LS007"]
        assert (found.step, found.value, found.threshold, found.severity) == (1, 8.0, 3.0, "note")
        assert "evaluated at 8 loops, where training ran 3 loops on average in the end and never more than 3" in (
            found.message
        )


@pytest.mark.parametrize("kind", [Plain, Returned, TwoVariables, Marked])
def test_a_compiled_model_is_counted_too(tmp_path: Path, kind: type[Plain]) -> None:
    model = kind()
    model.forward = torch.compile(model.forward, backend="aot_eager")  # type: ignore[method-assign]

    def between(probe: Probe, step: int) -> None:
        if step == 2:
            with torch.no_grad():
                evaluate(model, 6)

    with run_of(tmp_path / "a.h5", model, between) as run:
        np.testing.assert_equal(numbers(run), [NONE, NONE, [6.0, 6.0, 1.0], NONE])
        assert run["depth"].tolist() == [3.0] * 4


def test_the_modules_of_a_whole_compiled_model_are_counted(tmp_path: Path) -> None:
    model = Plain()
    model.compile(backend="aot_eager")

    def between(probe: Probe, step: int) -> None:
        if step == 2:
            with torch.inference_mode():
                evaluate(model, 6)

    with run_of(tmp_path / "a.h5", model, between) as run:
        np.testing.assert_equal(numbers(run), [NONE, NONE, [6.0, 6.0, 1.0], NONE])


def test_what_is_ours_is_not_counted(tmp_path: Path) -> None:
    """Passes of the fixed batch, measurements of the full loop, and a look in the middle of a run."""
    model = Plain()
    model.depth = 4  # type: ignore[assignment]
    site = LoopSite(body="block", after="norm", depth_attribute="deep", mean_depth=4)
    model.site = site

    def between(probe: Probe, step: int) -> None:
        if step == 1:
            loopscope.describe(model, TOKENS)
            loopscope.linearize(model, TOKENS, site=site)

    with run_of(tmp_path / "a.h5", model, between, preset="study") as run:
        assert len(run.probe_steps)
        np.testing.assert_equal(numbers(run), [NONE] * 4)


def test_a_recomputation_a_raised_forward_and_a_copy_are_not_counted(tmp_path: Path) -> None:
    model = Plain()
    model.checkpoints = True

    def between(probe: Probe, step: int) -> None:
        if step == 0:  # gradients through an evaluation, whose loops a checkpoint runs again
            model.eval()
            model(TOKENS).square().mean().backward()
            model.train()
        if step == 1:
            model.breaks = True
            with suppress(RuntimeError):
                evaluate(model, 5)
            model.breaks = False
            model.train()
        if step == 2:  # the whole model under a checkpoint
            model.eval()
            scale = torch.ones((), requires_grad=True)
            checkpoint(lambda x, s: s * model(x), TOKENS, scale, use_reentrant=True).sum().backward()
            model.train()

    with run_of(tmp_path / "a.h5", model, between) as run:
        np.testing.assert_equal(numbers(run), [[5.0, 5.0, 1.0], NONE, [5.0, 5.0, 1.0], NONE])


def test_a_carry_over_several_forwards_shows_in_their_number(tmp_path: Path) -> None:
    """As TRM: in training some forwards a step, in evaluation as many as there may be."""
    model = TwoVariables()

    def between(probe: Probe, step: int) -> None:
        if step == 3:
            for _ in range(16):
                evaluate(model, 3)

    with run_of(tmp_path / "a.h5", model, between) as run:
        np.testing.assert_equal(numbers(run), [NONE, NONE, NONE, [3.0, 3.0, 16.0]])
        assert not [each for each in loopscope.diagnose(run).findings if each.rule == "LS007"]  # as deep as training


def test_an_evaluation_after_the_last_row_is_an_event(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Plain()
    with loopscope.attach(model, tmp_path / "a.h5", site=model.site) as probe:
        for _ in range(3):
            model(TOKENS).square().mean().backward()
            probe.step(loss=1.0)
        with torch.no_grad():
            evaluate(model, 9)
            evaluate(model, 11)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        np.testing.assert_equal(numbers(run), [NONE] * 3)
        (event,) = [event for event in run.events if event.kind == "evaluated"]
        assert (event.step, event.value, event.severity) == (2, 11.0, "note")
        assert event.message == (
            "after the last row the model was evaluated: 2 forwards of 10 loops on average, 11 at most"
        )
        assert [each.value for each in loopscope.diagnose(run).findings if each.rule == "LS007"] == [11.0]


def test_rows_that_are_sampled_add_up_what_was_evaluated_between_them(tmp_path: Path) -> None:
    model = Plain()
    preset = replace(find_preset("watch"), rows=lambda step: step % 2 == 1)
    with run_of(tmp_path / "a.h5", model, lambda probe, step: evaluate(model, 4 + step), preset=preset) as run:
        np.testing.assert_equal(numbers(run), [[4.5, 5.0, 2.0], [6.5, 7.0, 2.0]])


class Counted(TorchDispatchMode):
    """Counts every operation of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.operations += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_no_operation_is_added_and_no_state_is_kept(tmp_path: Path, kind: type[Plain]) -> None:
    torch.manual_seed(0)
    model = kind().eval()

    def operations() -> tuple[int, Tensor]:
        with torch.no_grad(), Counted() as counted:
            result = model(TOKENS)
        return counted.operations, result

    alone, result = operations()
    with loopscope.attach(model, tmp_path / "a.h5", site=model.site):
        watched, same = operations()
    assert watched == alone and torch.equal(result, same)
