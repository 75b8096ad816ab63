"""`mark` is the identity: in value, in autograd, in compiled, traced and exported graphs, watched or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
from loopscope.loops.mark import mark
from loopscope.loops.marked import MarkWatcher
from torch import Tensor, nn


class Loop(nn.Module):
    """A loop that marks its state and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, e: Tensor) -> Tensor:
        h = mark(torch.zeros_like(e), "h", input=e)
        for _ in range(3):
            h = mark(torch.tanh(self.f(h)) + e, "h")
        return h


def gradients(model: nn.Module, function: nn.Module, e: Tensor) -> list[Tensor]:
    model.zero_grad()
    function(e).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_nothing_is_imported_for_it() -> None:
    code = "import sys; from loopscope import mark; assert mark(3, 'h') == 3 and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_state_goes_on_as_it_is_and_views_stay_views() -> None:
    seen: list[tuple[str, float, bool]] = []
    watcher = MarkWatcher(lambda name, h, given: seen.append((name, float(h.sum()), given is not None)))
    base = torch.arange(6.0).view(2, 3)
    view = base[:, 1:]
    assert mark(view, "h", input=base) is view and view._base is not None
    watcher.close()
    watcher.close()
    assert mark(view, "h") is view and seen == [("h", 12.0, True)]


def test_what_a_watcher_returns_takes_the_states_place() -> None:
    watcher = MarkWatcher(lambda name, h, given: 2 * h)
    assert mark(torch.ones(1, 2), "h").tolist() == [[2.0, 2.0]]
    watcher.close()


def test_a_compiled_graph_shows_every_mark_without_a_break_and_computes_the_same() -> None:
    torch.manual_seed(0)
    model, e = Loop(), torch.randn(2, 4)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)  # raises where the graph would break
    plain, before = gradients(model, model, e), gradients(model, compiled, e)  # before anybody looks on
    shown: list[Tensor] = []
    watcher = MarkWatcher(lambda name, h, given: None, lambda name, h, given: shown.append(h))
    try:
        watched = gradients(model, compiled, e)
    finally:
        watcher.close()
    assert all(map(torch.equal, plain, before)) and all(map(torch.equal, before, watched))
    assert len(shown) == 4 and torch.equal(shown[-1], model(e))


def test_traced_and_exported_models_hold_nothing_of_ours() -> None:
    model, e = Loop(), torch.randn(2, 4)
    watcher = MarkWatcher(lambda name, h, given: None)
    try:
        traced = torch.jit.trace(model, e)
        exported = torch.export.export(model, (e,))
    finally:
        watcher.close()
    assert "loopscope" not in str(traced.graph) and "loopscope" not in str(exported.graph)
    assert torch.allclose(traced(e), model(e))


@pytest.mark.parametrize("value", [None, 3, "h"])
def test_what_is_no_tensor_is_handed_on(value: object) -> None:
    watcher = MarkWatcher(lambda name, h, given: None)
    assert mark(value, "h") is value  # type: ignore[arg-type]
    watcher.close()


class Halting(nn.Module):
    """Adaptive computation: a mask of the tokens that go on, and their chance to, are carried beside the state."""

    def __init__(self, marked: tuple[str, ...]) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 9)
        self.block, self.gate = nn.Linear(8, 8), nn.Linear(8, 1)
        self.marked = marked

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.embed(tokens)
        h, chance = torch.zeros_like(e), torch.zeros(tokens.shape)
        alive = torch.ones(tokens.shape, dtype=torch.bool)
        for _ in range(5):
            h = torch.where(alive[..., None], torch.tanh(self.block(h + e)), h)
            if "h" in self.marked:
                h = mark(h, "h")
            chance = chance + torch.sigmoid(self.gate(h)).squeeze(-1) * alive
            alive = alive & (chance < 1.2)
            if "alive" in self.marked:
                alive = mark(alive, "alive")
        return self.head(h)


def trained(path: Path, marked: tuple[str, ...], *, watched: bool = True) -> tuple[list[float], Tensor]:
    torch.manual_seed(0)
    model = Halting(marked)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    probe = loopscope.attach(model, path) if watched else None
    for _ in range(25):
        loss = model(torch.arange(8).view(2, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if probe is not None:
            probe.step(loss=losses[-1])
    if probe is not None:
        probe.close()
    return losses, model.block.weight.detach()


def test_a_mark_on_what_has_no_norm_costs_nothing_but_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, weight = trained(tmp_path / "none.h5", ("h", "alive"), watched=False)
    losses, same = trained(tmp_path / "a.h5", ("h", "alive"))
    alone, _ = trained(tmp_path / "b.h5", ("h",))
    assert losses == plain == alone and torch.equal(weight, same)
    told = [record.getMessage() for record in caplog.records if "'alive'" in record.getMessage()]
    assert len(told) == 1 and "a tensor of 2 axes in bool, which has no norm per token" in told[0]
    with loopscope.open_run(tmp_path / "a.h5") as run, loopscope.open_run(tmp_path / "b.h5") as other:
        assert run.variables == other.variables == ("h",)
        for name in ("state_norm", "residual_norm", "tokens"):
            assert np.array_equal(run.loops(name), other.loops(name), equal_nan=True)


def test_the_advice_names_the_state_and_neither_the_mask_nor_a_number_for_each_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path / "a.h5", ())
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "h = loopscope.mark(h, 'h')" in said and "'alive'" not in said and "'chance'" not in said
