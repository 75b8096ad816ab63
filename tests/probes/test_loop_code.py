"""Which code of the project a run names as its loop's, and which parameters as those of A̅."""

from __future__ import annotations

import inspect

import loopscope
import pytest
import torch
from loopscope.models import build
from loopscope.probes.loop_code import loop_code, parameters_behind
from torch import nn


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 4, bias=False)
        self.cores = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, e: torch.Tensor) -> torch.Tensor:
        h = torch.zeros_like(e)
        for _ in range(4):
            h = self.mix(torch.cat([h, e], -1))
            h = h + 0.1 * torch.tanh(self.cores[0](h))
        return h


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(9, 4), Inner(), nn.Linear(4, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.embed(x)))


def info_of(model, path, batch):
    with loopscope.attach(model, path, probe_batch=batch):
        pass
    with loopscope.open_run(path) as run:
        return run.info


def test_the_innermost_forward_around_the_loop_is_named(tmp_path):
    model = Outer()
    info = info_of(model, tmp_path / "a.h5", torch.zeros(2, 3, dtype=torch.long))
    line = inspect.getsourcelines(Inner.forward)[1]
    assert info["site"]["body"] == "inner.mix"
    assert info["loop_code"] == {"file": "tests/probes/test_loop_code.py", "line": line, "holds_loop": True}
    assert info["a_bar_parameters"] == ["inner.mix.weight"]


def test_a_loop_that_training_shows_is_named_too(tmp_path):
    model = Outer()
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        for _ in range(3):
            loss = model(torch.zeros(2, 3, dtype=torch.long)).sum()
            loss.backward()
            probe.step(loss=loss)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run.info["loop_code"]["line"] == inspect.getsourcelines(Inner.forward)[1]


def test_code_outside_of_the_project_is_not_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    info = info_of(Outer(), tmp_path / "a.h5", torch.zeros(2, 3, dtype=torch.long))
    assert info["loop_code"] is None and info["a_bar_parameters"] == ["inner.mix.weight"]


def test_where_the_loop_belongs_to_somebody_else_the_line_of_the_project_is_named(tmp_path, monkeypatch):
    script = tmp_path / "train.py"
    script.write_text("\n\ndef go(attach, model, path):\n    with attach(model, path):\n        pass\n")
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "train"}
    exec(compile(script.read_text(), str(script), "exec"), space)  # noqa: S102
    space["go"](loopscope.attach, build("demo", injection="concatenation"), tmp_path / "a.h5")
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run.info["loop_code"] == {"file": "train.py", "line": 4, "holds_loop": False}


@pytest.mark.parametrize("injection", ["addition", "concatenation", "parcae"])
def test_the_parameters_of_a_bar_of_our_models(injection, tmp_path):
    model = build("demo", injection=injection)
    with loopscope.attach(model, tmp_path / "a.h5"):
        pass
    with loopscope.open_run(tmp_path / "a.h5") as run:
        names = run.info["a_bar_parameters"]
    assert bool(names) == (injection != "addition")
    assert all(name.startswith("injection.") and name in dict(model.named_parameters()) for name in names)


def test_nothing_about_the_code_ends_an_attach():
    class Odd(nn.Module):
        def get_submodule(self, target):
            raise KeyError(target)

    assert loop_code(Odd(), loopscope.LoopSite(body="a.b", after="c"), None) == {
        "a_bar_parameters": [],
        "loop_code": None,
    }
    assert parameters_behind(nn.Linear(1, 1), torch.ones(1)) == []
