"""Loops of several variables are recorded variable by variable, and as one joint state per pass."""

from __future__ import annotations

import itertools
from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
from loopscope.loops.site import LoopSite, LoopSiteError, Variable
from loopscope.rules.variables import round_off_of
from torch import Tensor, nn


class Level(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, hidden: Tensor, injected: Tensor) -> Tensor:
        return torch.tanh(self.layer(hidden + injected))


class TwoLevels(nn.Module):
    """One network for two variables, as in TRM: z_L three times, then z_H, twice over."""

    def __init__(self, *, marks: bool) -> None:
        super().__init__()
        self.embed, self.level, self.head = nn.Embedding(16, 8), Level(), nn.Linear(8, 16)
        self.marks = marks
        self.seen: list[tuple[str, Tensor]] = []

    def note(self, h: Tensor, name: str) -> Tensor:
        self.seen.append((name, h.detach().clone()))
        return loopscope.mark(h, name) if self.marks else h

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen.clear()
        e = self.embed(tokens)
        z_h, z_l = self.note(0.1 + 0 * e, "z_H"), self.note(0.2 + 0 * e, "z_L")
        for _ in range(2):
            for _ in range(3):
                z_l = self.note(self.level(z_l, z_h + e), "z_L")
            z_h = self.note(self.level(z_h, z_l), "z_H")
        return self.head(z_h)


MARKED = LoopSite(variables=(Variable(name="z_H"), Variable(name="z_L")))
RETURNED = LoopSite(variables=tuple(Variable(name=name, output="level", argument=0) for name in ("z_L", "z_H")))


def train(model: nn.Module, path: Path | None, site: LoopSite | None = None) -> list[Tensor]:
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = None if path is None else loopscope.attach(model, path, site=site)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(torch.arange(8).view(2, 4)).square().mean()
        loss.backward()
        optimizer.step()
        if probe is not None:
            probe.step(loss=loss)
    if probe is not None:
        probe.close()
    return [loss.detach(), *(p.detach().clone() for p in model.parameters())]


def norms(states: list[Tensor]) -> tuple[list[float], list[float]]:
    steps = [b - a for a, b in itertools.pairwise(states)]
    return tuple([float(x.norm(dim=-1).mean()) for x in each] for each in (states, steps))


@pytest.mark.parametrize(("marks", "site"), [(True, MARKED), (False, RETURNED)])
def test_every_variable_and_the_joint_state_are_those_of_the_forward(
    tmp_path: Path, marks: bool, site: LoopSite
) -> None:
    torch.manual_seed(0)
    model = TwoLevels(marks=marks)
    train(model, tmp_path / "a.h5", site)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert set(run.variables) == {"z_H", "z_L"} and run["depth"].tolist() == [2.0] * 3
        assert {event.kind for event in run.events} <= {"fixed_batch"}  # two passes are too few for it
        for name in run.variables:
            states, steps = norms([h for of, h in model.seen if of == name])
            assert np.allclose(run.loops("state_norm", variable=name)[-1], states, rtol=1e-6)
            assert np.allclose(run.loops("residual_norm", variable=name)[-1, :-1], steps, rtol=1e-6)
        assert run.loops("pass", variable="z_L")[-1].tolist() == [0, 1, 1, 1, 2, 2, 2]
        assert run.loops("inner", variable="z_L")[-1].tolist() == [0, 1, 2, 3, 1, 2, 3]
        of = {name: [h for n, h in model.seen if n == name] for name in run.variables}
        joint = [torch.cat([of["z_H"][k], of["z_L"][3 * k]], -1) for k in range(3)]
        states, steps = norms(joint)
        assert np.allclose(run.loops("state_norm")[-1], states, rtol=1e-6)
        assert np.allclose(run.loops("residual_norm")[-1, :-1], steps, rtol=1e-6)
        with pytest.raises(KeyError, match="no variable 'z'; it has"):
            run.loops("state_norm", variable="z")


def test_the_verdict_says_which_variable_still_moves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TwoLevels(marks=True)
    train(model, tmp_path / "a.h5", MARKED)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        moves = {}
        for name in run.variables:
            one, other = [h for of, h in model.seen if of == name][-2:]
            moves[name] = float((other - one).norm(dim=-1).mean() / other.norm(dim=-1).mean())
        first, second = sorted(moves, key=moves.__getitem__, reverse=True)
        said = f"by variable: {first} {moves[first]:.2g}, {second} {moves[second]:.2g}"
        assert said in loopscope.diagnose(run).summary


@pytest.mark.parametrize(("marks", "site"), [(True, MARKED), (False, RETURNED)])
def test_training_is_the_same_bit_for_bit(tmp_path: Path, marks: bool, site: LoopSite) -> None:
    results = []
    for path in (None, tmp_path / "a.h5"):
        torch.manual_seed(0)
        results.append(train(TwoLevels(marks=marks), path, site))
    assert all(map(torch.equal, *results))


def test_a_loop_that_is_cut_short_leaves_whole_passes_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TwoLevels(marks=True)
    probe = loopscope.attach(model, tmp_path / "a.h5", site=LoopSite(variables=(Variable(name="z_L"),)))
    model(torch.arange(8).view(2, 4))
    probe.step(loss=1.0)
    probe.close()
    with loopscope.open_run(tmp_path / "a.h5") as run:  # one variable alone: each update of it is a pass
        assert run["depth"].tolist() == [6.0] and run.loops("state_norm").shape == (1, 7)


def test_a_site_that_names_what_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    wrong = LoopSite(variables=(Variable(name="z", output="levels"),))
    with pytest.raises(LoopSiteError, match=r"Variable\('z', output='levels'\).*no module of that name; it has embed"):
        loopscope.attach(TwoLevels(marks=False), tmp_path / "a.h5", site=wrong)
    twice = LoopSite(variables=(Variable(name="z"), Variable(name="z")))
    with pytest.raises(LoopSiteError, match="two variables have one name"):
        loopscope.attach(TwoLevels(marks=False), tmp_path / "a.h5", site=twice)


def test_inspect_records_what_every_variable_does_over_64_passes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TwoLevels(marks=True)
    tokens = torch.arange(8).view(2, 4)
    with loopscope.attach(model, tmp_path / "a.h5", preset="inspect") as probe:
        for _ in range(2):
            probe.step(loss=model(tokens).square().mean())
    with torch.no_grad():
        e = model.embed(tokens)
        z_h, z_l = 0.1 + 0 * e, 0.2 + 0 * e
        states: dict[str, list[Tensor]] = {"z_H": [z_h], "z_L": [z_l]}
        for _ in range(65):
            for _ in range(3):
                z_l = model.level(z_l, z_h + e)
            z_h = model.level(z_h, z_l)
            states["z_H"].append(z_h)
            states["z_L"].append(z_l)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        _, (measured, *_) = run.arrays("variable_passes")
        assert run.variables == ("z_H", "z_L")
        said = loopscope.diagnose(run).variables
    assert measured.shape == (2, 65, 3)
    for name, rows in zip(("z_H", "z_L"), measured, strict=True):
        state, step = norms(states[name][1:])  # the first joint state of a forward is the one after a pass
        assert np.allclose(rows[:, 0], state, rtol=1e-5)
        assert np.allclose(rows[:-1, 1], step, rtol=1e-3, atol=1e-6)
    assert {name: law.kind for name, law in said.items()} == {"z_H": "settling", "z_L": "settling"}


class Staircase(Level):
    """A pass that rounds to bfloat16 within, and gives a state of float32 back."""

    def forward(self, hidden: Tensor, injected: Tensor) -> Tensor:
        made = super().forward(hidden, injected)
        return 0.5 * hidden + 0.5 * made.bfloat16().float()


@pytest.mark.parametrize("level", [Level, Staircase])
def test_inspect_measures_the_full_loop_where_the_variables_are_judged_and_how_a_pass_rounds(
    tmp_path: Path, level: type[Level]
) -> None:
    torch.manual_seed(0)
    model = TwoLevels(marks=True)
    model.level = level()
    with torch.no_grad():
        model.level.layer.weight.mul_(3)
    tokens = torch.arange(8).view(2, 4)
    with loopscope.attach(model, tmp_path / "a.h5", preset="inspect") as probe:
        probe.step(loss=model(tokens).square().mean())
    with loopscope.open_run(tmp_path / "a.h5") as run:
        _, (rounding,) = run.arrays("pass_rounding")
        (radius,) = run.series("jacobian_radius")[1]
        (told,) = [event.message for event in run.events if event.kind == "full_loop"]
        assert round_off_of(run, passes=True) == (None if level is Staircase else 1e-5) and round_off_of(run) is None
    assert "at loop 64 of 2 x 4 tokens" in told and rounding.shape == (2,)
    if level is Staircase:
        assert rounding.min() > 1e-5
        return
    assert rounding.max() < 1e-5
    e = model.embed(tokens).detach()

    def one(joint: Tensor) -> Tensor:
        z_h, z_l = joint.split(8, -1)
        for _ in range(3):
            z_l = model.level(z_l, z_h + e)
        return torch.cat([model.level(z_h, z_l), z_l], -1)

    state = torch.cat([0.1 + 0 * e, 0.2 + 0 * e], -1)
    with torch.no_grad():
        for _ in range(65):  # the first joint state of a forward is the one after a pass
            state = one(state)
    dense = torch.autograd.functional.jacobian(one, state).reshape(128, 128)
    assert radius == pytest.approx(float(torch.linalg.eigvals(dense).abs().max()), rel=1e-4)


def test_a_state_that_explodes_is_linearised_before_it_overflows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TwoLevels(marks=True)

    class Grows(Level):
        def forward(self, hidden: Tensor, injected: Tensor) -> Tensor:
            return 1.5 * hidden + torch.tanh(injected)

    model.level = Grows()
    with loopscope.attach(model, tmp_path / "a.h5", preset="inspect") as probe:
        probe.step(loss=model(torch.arange(8).view(2, 4)).square().mean())
    with loopscope.open_run(tmp_path / "a.h5") as run:
        (radius,) = run.series("jacobian_radius")[1]
        said = loopscope.diagnose(run)
    assert radius == pytest.approx(1.5**3, rel=1e-3)  # three updates of z_L in a pass
    assert {law.kind for law in said.variables.values()} == {"exploding"}
    assert said.regimes["trajectory"] == said.verdict == "unstable"
