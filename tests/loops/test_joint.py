"""The joint state of several variables as a function: its Jacobian is that of the loop written out by hand."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
from loopscope.loops.bound import bound_loop
from loopscope.loops.site import LoopSite, LoopSiteError, Variable
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from battery import shapes


def example() -> dict[str, object]:
    start = torch.full((1, 2, shapes.D), 0.3)
    return {"carry": shapes.Carry(start, -start, torch.zeros(1)), "batch": {"inputs": torch.tensor([[1, 2]])}}


def by_hand(model: shapes.OneNetworkTwoVariables, joint: Tensor, e: Tensor, names: list[str]) -> Tensor:
    parts = dict(zip(names, joint.split(shapes.D, -1), strict=True))
    z_h, z_l = parts["z_H"], parts["z_L"]
    for _ in range(model.inner):
        z_l = model.level(z_l, z_h + e)
    return torch.cat([{"z_H": model.level(z_h, z_l), "z_L": z_l}[name] for name in names], -1)


@pytest.mark.parametrize("marks", [True, False])
def test_a_pass_and_its_jacobian_are_those_of_the_equations(marks: bool) -> None:
    torch.manual_seed(0)
    model = shapes.OneNetworkTwoVariables()
    model.marks = marks
    e = model.embed(torch.tensor([[1, 2]])).detach()
    with bound_loop(model, example()) as loop:
        names = [variable.name for variable in loop.site.variables]
        assert sorted(names) == ["z_H", "z_L"]
        h = torch.randn_like(loop.state)
        with torch.no_grad():
            assert torch.allclose(loop.step(h), by_hand(model, h, e, names), atol=1e-6)
        ours = torch.autograd.functional.jacobian(loop.step, h)
        exact = torch.autograd.functional.jacobian(lambda x: by_hand(model, x, e, names), h)
        assert torch.allclose(ours, exact, atol=1e-6)


def test_a_state_that_enters_at_no_module_can_be_linearised_where_it_is_returned() -> None:
    torch.manual_seed(0)
    model = shapes.SingleVariable()
    tokens = torch.tensor([[1, 2]])
    e = model.embed(tokens).detach()
    with bound_loop(model, tokens) as loop, torch.no_grad():
        h = torch.randn_like(loop.state)
        assert torch.allclose(loop.step(h), model.level(h + e), atol=1e-6)


def test_variables_that_are_not_all_that_is_carried_are_refused() -> None:
    torch.manual_seed(0)
    model = shapes.OneNetworkTwoVariables()
    model.marks = True
    alone = LoopSite(variables=(Variable(name="z_L", first=1),))
    said = "carries more than z_L, or differs from pass to pass"
    with pytest.raises(LoopSiteError, match=said), bound_loop(model, example(), site=alone):
        pass


def test_training_is_not_touched() -> None:
    torch.manual_seed(0)
    model = shapes.TwoLevels()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with bound_loop(model, torch.tensor([[1, 2]])) as loop:
        loop.step(loop.state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_each_variable_has_the_layout_that_the_model_gave_it() -> None:
    """A model may call ``view`` on its states; parts of a joint tensor cannot be viewed so."""

    class Viewed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = torch.nn.Embedding(8, 4), torch.nn.Linear(8, 8)

        def turn(self, y: Tensor, z: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
            z = torch.tanh(self.mix(torch.cat([z.view(-1, 4) + e.view(-1, 4), y.view(-1, 4)], -1))[:, :4]).view(e.shape)
            return 0.5 * (y.view(-1).view(e.shape) + z), z

        def forward(self, tokens: Tensor) -> Tensor:
            e = self.embed(tokens)
            y, z = torch.zeros_like(e), torch.zeros_like(e)
            for _ in range(4):
                y, z = self.turn(y, z, e)
                z, y = loopscope.mark(z, "z"), loopscope.mark(y, "y")
            return y

    torch.manual_seed(0)
    model, tokens = Viewed(), torch.tensor([[1, 2, 3]])
    e = model.embed(tokens).detach()
    with bound_loop(model, tokens) as loop, torch.no_grad():
        h = torch.randn_like(loop.state)
        z, y = h.split(4, -1)
        y, z = model.turn(y.contiguous(), z.contiguous(), e)
        torch.testing.assert_close(loop.step(h), torch.cat([z, y], -1))


@pytest.mark.parametrize("make", [shapes.OneNetworkTwoVariables, shapes.TwoLevels])
def test_the_joint_radius_and_the_blocks_are_those_of_a_dense_float64_jacobian(make: type) -> None:
    """The Jacobian is formed here by central differences of whole passes, with nothing of the analysis."""
    torch.manual_seed(0)
    model = make().double()
    model.marks = make is shapes.OneNetworkTwoVariables
    start = torch.full((1, 2, shapes.D), 0.3, dtype=torch.float64)
    carried = {"carry": shapes.Carry(start, -start, torch.zeros(1)), "batch": {"inputs": torch.tensor([[1, 2]])}}
    given = carried if model.marks else torch.tensor([[1, 2]])
    result = loopscope.linearize(model, given, num_loops=4)
    with bound_loop(model, given) as loop, torch.no_grad():
        h = loop.state
        for _ in range(4):
            h = loop.step(h)
        shifts = 1e-6 * torch.eye(h.numel(), dtype=torch.float64)
        columns = [(loop.step(h + s.view_as(h)) - loop.step(h - s.view_as(h))).flatten() / 2e-6 for s in shifts]
        dense, channels = torch.stack(columns, 1), loop.variables
    radius = float(torch.linalg.eigvals(dense).abs().max())
    assert result.loop.radius.converged and abs(result.loop.radius.value - radius) < 1e-6 * max(1.0, radius)
    places = torch.arange(h.numel()).view_as(h)
    for block in result.blocks:
        rows, columns = (places[..., channels[name]].flatten() for name in (block.of, block.by))
        norm = float(torch.linalg.matrix_norm(dense[rows][:, columns], 2))
        assert block.norm.converged and abs(block.norm.value - norm) < 1e-6 * max(1.0, norm)
    assert len(result.blocks) == len(channels) ** 2 and result.variables.keys() == channels.keys()


class Noisy(shapes.TwoLevels):
    """Each pass adds noise of its own to the low level; ``memory`` makes a third tensor go from pass to pass."""

    def __init__(self, draw: str, *, memory: bool = False) -> None:
        super().__init__()
        self.draw, self.memory, self.marks = draw, memory, True

    def noise(self, like: Tensor) -> Tensor:
        size = tuple(like.shape)
        if self.draw == "numpy":
            return torch.from_numpy(np.random.standard_normal(size)).float()  # noqa: NPY002 - as users' code does
        if self.draw == "python":
            return like.new_tensor([random.gauss(0, 1) for _ in range(like.numel())]).view(size)
        return torch.randn_like(like)

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        z_h, z_l, kept = torch.ones_like(e), -torch.ones_like(e), torch.zeros_like(e)
        for _ in range(4):
            mixed = self.low(z_l, z_h + e)
            mixed = mixed * (1 + 0.3 * self.noise(mixed)) if self.draw == "multiplied" else mixed + self.noise(mixed)
            z_l = loopscope.mark(mixed + kept, "z_L")
            z_h = loopscope.mark(self.high(z_h, z_l), "z_H")
            kept = 0.5 * kept + 0.1 * z_h if self.memory else kept
        return self.head(z_h)


@pytest.mark.parametrize("draw", ["torch", "numpy", "python", "multiplied"])
def test_a_loop_with_noise_in_its_passes_is_a_map_for_given_noise(draw: str) -> None:
    torch.manual_seed(0)
    model = Noisy(draw)
    before = torch.get_rng_state()
    with bound_loop(model, torch.tensor([[1, 2]])) as loop, torch.no_grad():
        once, again = loop.step(loop.state), loop.step(loop.state)
        moved = loop.step(loop.state + 1)
        assert "random" in loop.remark and torch.equal(once, again) and not torch.equal(once, moved)
    assert torch.equal(before, torch.get_rng_state())
    assert "noise" in loopscope.linearize(model, torch.tensor([[1, 2]]), num_loops=4, budget=1).skipped


def test_noise_does_not_hide_what_else_a_loop_carries() -> None:
    torch.manual_seed(0)
    with (
        pytest.raises(LoopSiteError, match="carries more than"),
        bound_loop(Noisy("torch", memory=True), torch.tensor([[1, 2]])),
    ):
        pass


def test_of_two_passes_nobody_can_say_that_they_are_one_map() -> None:
    """A pass that knows its number is refused where three run; two give no state that the map could be tried on."""

    class Numbered(nn.Module):
        def __init__(self, passes: int) -> None:
            super().__init__()
            self.embed, self.body, self.head, self.passes = nn.Embedding(4, 6), nn.Linear(6, 6), nn.Linear(6, 4), passes

        def forward(self, tokens: Tensor) -> Tensor:
            e = self.embed(tokens)
            h = e
            for number in range(self.passes):
                h = loopscope.mark(torch.tanh(self.body(h) + e + number), "h")
            return self.head(h)

    torch.manual_seed(0)
    with pytest.raises(LoopSiteError, match="differs from pass to pass"):
        loopscope.linearize(Numbered(3), torch.tensor([[1, 2]]), num_loops=4)
    skipped = loopscope.linearize(Numbered(2), torch.tensor([[1, 2]]), num_loops=4).skipped
    assert "too few passes" in skipped["one map"]


def test_a_loop_without_noise_has_no_remark() -> None:
    torch.manual_seed(0)
    model = shapes.TwoLevels()
    model.marks = True
    with bound_loop(model, torch.tensor([[1, 2]])) as loop:
        assert not loop.remark
