"""Models that solve for their state: the iterates, the residual and the backward solve are those of the solver.

The solvers are stand-ins of our own with the structure of those that people use: the next iterate is the map's value
(Picard), a mixture kept in a buffer that is written over (Anderson), or a step by an approximate inverse (Broyden).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Map = Callable[[Tensor], Tensor]
LOOPS, KEPT = 9, 3


def picard(f: Map, z: Tensor) -> Tensor:
    for _ in range(LOOPS):
        z = f(z)
    return z


def anderson(f: Map, z: Tensor) -> Tensor:
    """Keeps its last iterates in a buffer, and gives views of it to the map."""
    flat = z.flatten(1)
    held, made = (torch.zeros(len(flat), KEPT, flat.shape[1]) for _ in range(2))
    held[:, 0] = flat
    made[:, 0] = f(held[:, 0].view_as(z)).flatten(1)
    for k in range(1, LOOPS):
        n = min(k, KEPT)
        gaps = made[:, :n] - held[:, :n]
        gram = gaps @ gaps.mT + 1e-5 * torch.eye(n)
        weights = torch.linalg.solve(gram, torch.ones(len(flat), n, 1))
        held[:, k % KEPT] = ((weights / weights.sum(1, keepdim=True)).mT @ made[:, :n])[:, 0]
        made[:, k % KEPT] = f(held[:, k % KEPT].view_as(z)).flatten(1)
    return made[:, (LOOPS - 1) % KEPT].view_as(z)


def broyden(f: Map, z: Tensor) -> Tensor:
    """Follows f(z) - z to zero with a rank-one inverse."""
    gap = f(z) - z
    step = gap
    for _ in range(LOOPS - 1):
        z = z + step
        new = f(z) - z
        turned = (gap - new).flatten(1)
        along = (new.flatten(1) * turned).sum(1) / (turned * turned).sum(1).clamp_min(1e-12)
        step, gap = new + along.view(-1, 1, 1) * (step - (gap - new)), new
    return z


SOLVERS = {"picard": picard, "anderson": anderson, "broyden": broyden}


class Implicit(torch.autograd.Function):
    """The identity, whose backward solves y = Jᵀ y + g by iteration."""

    @staticmethod
    def forward(ctx, f: Map, loops: int, z: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        ctx.f, ctx.loops = f, loops
        ctx.save_for_backward(z.detach())
        return z

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, None, Tensor]:  # type: ignore[no-untyped-def,override]
        h = ctx.saved_tensors[0].clone().requires_grad_()
        with torch.enable_grad():
            made = ctx.f(h)
        y = torch.zeros_like(gradient)
        for _ in range(ctx.loops):
            y = torch.autograd.grad(made, h, y, retain_graph=True)[0] + gradient
        return None, None, y


def hooked(f: Map, loops: int, z: Tensor) -> Tensor:
    """Solve for the gradient in a hook, through the graph of the forward's last call, which is kept."""
    z = z.detach().requires_grad_()
    made = f(z)

    def solve(gradient: Tensor) -> Tensor:
        handle.remove()
        y = torch.zeros_like(gradient)
        for _ in range(loops):
            y = torch.autograd.grad(made, z, y, retain_graph=True)[0] + gradient
        return y

    handle = made.register_hook(solve)
    return made


class Equilibrium(nn.Module):
    """A deep equilibrium model.

    Args:
        solver: Which one.
        marks: What it marks: the iterate ``z``, and the ``residual`` f(z) − z.
        backward: Products of its backward solve; 0: the gradient of one further call.
        checkpoints: Whether the last call is run again in backward instead of being kept.
        hook: Whether that solve is one of a hook.
    """

    def __init__(
        self,
        solver: str,
        marks: tuple[str, ...] = (),
        backward: int = 0,
        *,
        checkpoints: bool = False,
        hook: bool = False,
    ) -> None:
        super().__init__()
        self.embed, self.inside, self.head = nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 16)
        with torch.no_grad():
            self.inside.weight.mul_(0.7)
        self.solver, self.marks, self.backward = SOLVERS[solver], marks, backward
        self.checkpoints, self.hook = checkpoints, hook
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, *, batch: dict[str, Tensor]) -> Tensor:
        e = self.embed(batch["tokens"])

        def f(z: Tensor) -> Tensor:
            z = loopscope.mark(z, "z") if "z" in self.marks else z
            made = torch.tanh(self.inside(z) + e)
            if "residual" in self.marks:
                loopscope.mark(made - z, "residual")
            self.calls.append((z.detach().clone(), made.detach().clone()))
            return made

        self.calls = []
        with torch.no_grad():
            z = self.solver(f, torch.zeros_like(e))
        if self.hook:
            return self.head(hooked(f, self.backward, z))
        z = checkpoint(f, z.requires_grad_(), use_reentrant=True) if self.checkpoints else f(z)
        if self.backward:
            z = Implicit.apply(f, self.backward, z)
        return self.head(z)


def train(model: Equilibrium, path: Path | None) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    probe = None if path is None else loopscope.attach(model, path)
    for _ in range(3):
        loss = model(batch={"tokens": torch.arange(8).view(2, 4)}).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if probe is not None:
            probe.step(loss=loss)
    if probe is not None:
        probe.close()
    return [parameter.detach().clone() for parameter in model.parameters()]


def means(states: list[Tensor]) -> list[float]:
    return [float(state.norm(dim=-1).mean()) for state in states]


@pytest.mark.parametrize("backward", [0, 7])
@pytest.mark.parametrize("solver", SOLVERS)
def test_iterates_residual_and_backward_solve_from_the_first_step_on(
    tmp_path: Path, solver: str, backward: int
) -> None:
    model = Equilibrium(solver, ("z", "residual"), backward)
    alone = train(Equilibrium(solver, ("z", "residual"), backward), None)
    assert all(torch.equal(one, other) for one, other in zip(train(model, tmp_path / "a.h5"), alone, strict=True))
    calls = model.calls[: LOOPS + 1]  # what the backward solve called besides is no iterate
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [LOOPS] * 3  # the first step too, whose states Anderson writes over
        z = run.loops("state_norm", variable="z")
        assert np.allclose(z[-1], means([z for z, _ in calls]), rtol=1e-5, atol=1e-7)
        residual = run.loops("state_norm", variable="residual")[-1, 1:]
        assert np.allclose(residual, means([made - z for z, made in calls]), rtol=1e-4, atol=1e-6)
        if solver == "picard":  # there the step to the next iterate is the residual
            assert np.allclose(run.loops("residual_norm", variable="z")[-1, :-1], residual[:-1], rtol=1e-4, atol=1e-6)
        wanted = np.full(3, backward or np.nan)
        np.testing.assert_equal(run["backward_depth"], wanted)
        assert not [event for event in run.events if event.kind == "state_missing"]


def test_a_step_whose_first_forward_is_written_over_is_that_of_the_iterates(tmp_path: Path) -> None:
    """The copies that are kept of the first forward are of the states as they were marked."""
    model, first = Equilibrium("anderson", ("z",)), Equilibrium("anderson", ("z",))
    train(model, tmp_path / "a.h5")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    first(batch={"tokens": torch.arange(8).view(2, 4)})
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert np.allclose(run.loops("state_norm")[0], means([z for z, _ in first.calls]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_a_marked_residual_is_not_the_only_reason_that_a_solver_is_not_linearised(tmp_path: Path, solver: str) -> None:
    """Its mark is made for nothing, as the documents have it; to use what it returns would change nothing."""
    model = Equilibrium(solver, ("z", "residual"))
    train(model, tmp_path / "a.h5")
    with pytest.raises(loopscope.LoopSiteError) as refused:
        loopscope.linearize(model, {"batch": {"tokens": torch.arange(8).view(2, 4)}})
    text = " ".join(str(refused.value).split())
    assert "Where residual is a reading that the loop does not carry" in text
    assert "% apart): a solver's next point comes of more than the last" in text


def test_a_checkpoint_is_no_backward_solve(tmp_path: Path) -> None:
    model = Equilibrium("picard", ("z",), checkpoints=True)
    train(model, tmp_path / "a.h5")
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert np.isnan(run["backward_depth"]).all()


def test_the_backward_solve_of_a_hook(tmp_path: Path) -> None:
    model = Equilibrium("picard", ("z",), 6, hook=True)
    alone = train(Equilibrium("picard", ("z",), 6, hook=True), None)
    assert all(torch.equal(one, other) for one, other in zip(train(model, tmp_path / "a.h5"), alone, strict=True))
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [LOOPS] * 3
        # The loop is known when the first forward is over, and the call that its backward solves with lies in it.
        np.testing.assert_equal(run["backward_depth"], [np.nan, 6.0, 6.0])


class Block(nn.Module):
    """A map that is a module, so that its states are read where it returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, z: Tensor, e: Tensor) -> Tensor:
        return torch.tanh(self.layer(z) + e)


class OfModules(nn.Module):
    """Picard's iteration of a module, and an implicit gradient: found without a mark."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(16, 8), Block(), nn.Linear(8, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.embed(tokens)
        with torch.no_grad():
            z = picard(lambda z: self.block(z, e), torch.zeros_like(e))
        z = self.block(z, e)
        return self.head(Implicit.apply(lambda z: self.block(z, e), 5, z))


def test_the_backward_solve_of_a_loop_that_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OfModules()
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        for _ in range(2):
            loss = model(torch.arange(8).view(2, 4)).square().mean()
            loss.backward()
            probe.step(loss=loss)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [LOOPS + 1] * 2 and run["backward_depth"].tolist() == [5.0] * 2
