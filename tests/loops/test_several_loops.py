"""Models in which two loops run one after the other: a probe records one, and says how."""

from __future__ import annotations

from pathlib import Path

import loopscope
import pytest
import torch
from loopscope import LoopSite
from loopscope.loops.discovery import discover
from loopscope.loops.site import LoopSiteError, Variable
from torch import Tensor, nn


class EncoderDecoder(nn.Module):
    """Both are looped."""

    def __init__(self, marks: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16)
        self.encode, self.decode, self.join = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 8)
        self.marks = marks
        self.norms: dict[str, list[float]] = {}

    def note(self, h: Tensor, name: str) -> Tensor:
        self.norms.setdefault(name, []).append(float(h.detach().norm(dim=-1).mean()))
        return loopscope.mark(h, name) if name in self.marks else h

    def forward(self, tokens: Tensor) -> Tensor:
        self.norms.clear()
        x = self.note(self.embed(tokens), "x")
        for _ in range(3):
            x = self.note(torch.tanh(self.encode(x)), "x")
        y = self.note(self.embed(tokens.flip(1)), "y")
        for _ in range(4):
            y = self.note(torch.tanh(self.decode(self.join(torch.cat([y, x], -1)))), "y")
        return self.head(y)


TOKENS = torch.arange(8).view(2, 4)


def test_marks_in_both_are_an_error_that_names_them_and_what_to_do() -> None:
    with pytest.raises(LoopSiteError, match=r"2 loops that run one after the other \(x, then y\)") as told:
        discover(EncoderDecoder(("x", "y")), TOKENS)
    assert "site=LoopSite(variables=(Variable(name='x'),))" in str(told.value)


@pytest.mark.parametrize(
    ("name", "passes", "by_site"), [("x", 3, False), ("y", 4, False), ("x", 3, True), ("y", 4, True)]
)
def test_one_of_them_is_recorded_as_advised(name: str, passes: int, by_site: bool, tmp_path: Path) -> None:
    model = EncoderDecoder(("x", "y") if by_site else (name,))
    site = LoopSite(variables=(Variable(name=name),)) if by_site else None
    with loopscope.attach(model, tmp_path / "a.h5", site=site) as probe:
        loss = model(TOKENS).square().mean()
        loss.backward()
        probe.step(loss=loss)
        norms = model.norms[name]
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [passes]
        assert run.loops("state_norm")[0].tolist() == pytest.approx(norms, rel=1e-6)


class Wrapper(nn.Module):
    """Its own method is called, never its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = EncoderDecoder(("y",))

    def training_step(self, tokens: Tensor) -> Tensor:
        return self.net(tokens).square().mean()


def test_a_wrapper_whose_forward_never_runs_is_told_which_part_to_attach_to(tmp_path: Path) -> None:
    model = Wrapper()
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        for _ in range(3):
            loss = model.training_step(TOKENS)
            loss.backward()
            probe.step(loss=loss)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        (event,) = [event for event in run.events if event.kind == "loop_awaited"]
        assert "no forward of Wrapper itself ran" in event.message and "model.net (EncoderDecoder)" in event.message
    with loopscope.attach(model.net, tmp_path / "b.h5") as probe:
        loss = model.training_step(TOKENS)
        loss.backward()
        probe.step(loss=loss)
    with loopscope.open_run(tmp_path / "b.h5") as run:
        assert run["depth"].tolist() == [4]
