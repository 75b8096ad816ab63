"""A pass that is several calls of one network, told by how they are fed; and what is none of it."""

from __future__ import annotations

import sys
from pathlib import Path

import loopscope
import pytest
import torch
from loopscope.loops.bound import bound_loop
from loopscope.loops.discovery import discover
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from battery import shapes

TOKENS = torch.tensor([[1, 2]])


def in_turns(model: shapes.FedInTurns, z: Tensor, e: Tensor) -> Tensor:
    for _ in range(3):
        z = model.level(z + e)
    return model.level(z)


def normed_between(model: shapes.NormedBetween, h: Tensor, e: Tensor) -> Tensor:
    h = F.layer_norm(h, (shapes.D,))
    for _ in range(2):
        h = model.mix(h, e)
    return h


@pytest.mark.parametrize(
    ("shape", "by_hand", "calls"), [(shapes.FedInTurns, in_turns, 4), (shapes.NormedBetween, normed_between, 2)]
)
def test_a_pass_of_all_its_calls_is_one_map_and_its_jacobian_is_that_of_the_equations(shape, by_hand, calls) -> None:
    torch.manual_seed(0)
    model = shape()
    e = model.embed(TOKENS).detach()
    with bound_loop(model, TOKENS) as loop:
        assert [variable.per_pass for variable in loop.site.variables] == [calls]
        h = torch.randn_like(loop.state)
        ours = torch.autograd.functional.jacobian(loop.step, h)
        exact = torch.autograd.functional.jacobian(lambda x: by_hand(model, x, e), h)
        assert torch.allclose(loop.step(h), by_hand(model, h, e), atol=1e-6)
        assert torch.allclose(ours, exact, atol=1e-6)


class FedOnce(shapes.FedInTurns):
    """Its network is given the input in its first calls alone, and never again."""

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        z = self.note(torch.ones_like(e), "z")
        for at in range(6):
            z = self.note(self.level(z + e if at < 2 else z), "z")
        return self.head(z)


class HeardEveryOther(shapes.FedInTurns):
    """A loss of every other loop, and a note of a norm: beside the loop, not in it."""

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        z, heard = self.note(torch.ones_like(e), "z"), []
        for at in range(6):
            z = self.note(self.level(z + e), "z")
            if at % 2:
                heard.append(self.head(z).square().mean())
        return self.head(z) + sum(heard)


@pytest.mark.parametrize(
    "shape", [FedOnce, HeardEveryOther, shapes.SingleVariable, shapes.NormPerLoop, shapes.FirstVisit]
)
def test_calls_that_are_fed_alike_or_by_no_rule_are_passes(shape) -> None:
    site = discover(shape())
    assert all(variable.per_pass == 1 for variable in site.variables)
    assert site.mean_depth == (6 if shape in (FedOnce, HeardEveryOther) else 3)


def test_the_recording_says_where_in_a_pass_a_state_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = shapes.FedInTurns()
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        probe.step(loss=model(TOKENS).square().mean())
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [3]
        assert run.loops("state_norm").shape[1] == 4
        assert run.loops("state_norm", variable="z").shape[1] == 13
    said = str(loopscope.describe(model, TOKENS))
    assert "variable z (returned by level, 4 times a pass)" in said
    assert "a pass is 4 calls of 'level', which are not all fed alike" in said
