"""A̅ is compared with the injection in training where no fixed batch can do it, or the file says that nobody did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loopscope.probes import open_run
from loopscope.probes.schedule import Preset, every
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

D, BEFORE, AFTER = 12, 5, 6
OFTEN = Preset("often", rows=every(1), spectrum=every(1), probe_batch=every(2))


class OwnDepth(nn.Module):
    """Draws its depth itself, so that no fixed batch can be run at a fixed one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inject = nn.Embedding(32, D), nn.Linear(2 * D, D)
        self.block, self.head = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D)), nn.Linear(D, 32)

    def depths(self, count: int) -> Tensor:
        return torch.full((count,), int(torch.randint(3, 6, ())))

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.embed(tokens)
        h, depths = torch.zeros_like(e), self.depths(len(tokens))
        for loop in range(int(depths.max())):
            h = torch.where((loop < depths)[:, None, None], self.turn(h, e), h)
        return self.head(h)

    def turn(self, h: Tensor, e: Tensor) -> Tensor:
        h = self.inject(torch.cat([h, e], dim=-1))
        return h + 0.5 * torch.tanh(self.block(h))


class PerSequence(OwnDepth):
    def depths(self, count: int) -> Tensor:
        return torch.randint(2, 6, (count,))


class Checkpointed(OwnDepth):
    def turn(self, h: Tensor, e: Tensor) -> Tensor:
        out: Tensor = checkpoint(super().turn, h, e, use_reentrant=False)
        return out


class LastOnesTrained(OwnDepth):
    """Truncated backpropagation."""

    def turn(self, h: Tensor, e: Tensor) -> Tensor:
        with torch.set_grad_enabled(bool(torch.rand(()) < 0.7) or not h.requires_grad):
            return super().turn(h, e)


def run(path: Path, kind: type[OwnDepth], change: Callable[[OwnDepth], None] | None, **options: object) -> list[float]:
    torch.manual_seed(0)
    model = kind().to(options.get("dtype", torch.float32))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    if options.get("compiled"):
        model.compile(backend="eager")
    probe = loopscope.attach(model, path, preset=OFTEN) if options.get("attached", True) else None
    for number in range(BEFORE + AFTER):
        if number == BEFORE and change is not None:
            change(model)
        torch.manual_seed(number)
        tokens = torch.randint(0, 32, (3, 8))
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(options.get("autocast"))):
            loss = F.cross_entropy(model(tokens).flatten(0, 1).float(), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if probe is not None:
            probe.step(loss=loss)
    if probe is not None:
        probe.close()
    return losses


def doubled(model: OwnDepth) -> None:
    model.inject.register_forward_hook(lambda module, args, output: 2 * output)


def low_rank_beside(model: OwnDepth) -> None:
    up, down = 0.4 * torch.randn(D, 2), 0.4 * torch.randn(2, 2 * D)
    model.inject.register_forward_hook(lambda module, args, output: output + args[0] @ down.T @ up.T)


def squashed(model: OwnDepth) -> None:
    model.inject.register_forward_hook(lambda module, args, output: torch.tanh(3 * output))


def said(path: Path, kind: str) -> list[str]:
    with open_run(path) as file:
        return [event.message for event in file.events if event.kind == kind]


KINDS = [OwnDepth, PerSequence, Checkpointed, LastOnesTrained]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [doubled, low_rank_beside, squashed])
def test_an_injection_that_begins_to_act_differently_is_noticed_without_a_fixed_batch(
    kind: type[OwnDepth], change: Callable[[OwnDepth], None], tmp_path: Path
) -> None:
    path = tmp_path / "a.h5"
    assert run(path, kind, change) == run(path, kind, change, attached=False)
    (message,) = said(path, "a_bar_differs")
    assert ("is missing" if change is squashed else "is measured") in message
    with open_run(path) as file:
        assert not len(file.probe_steps)
        assert np.isfinite(file["a_bar_radius"][:BEFORE]).all()
        assert np.isfinite(file["a_bar_radius"][-1]) == (change is not squashed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_an_injection_that_acts_as_before_is_left_alone(
    kind: type[OwnDepth], dtype: torch.dtype, autocast: bool, tmp_path: Path
) -> None:
    run(tmp_path / "a.h5", kind, None, dtype=dtype, autocast=autocast)
    assert not said(tmp_path / "a.h5", "a_bar_differs") and not said(tmp_path / "a.h5", "a_bar_unchecked")
    with open_run(tmp_path / "a.h5") as file:
        assert np.isfinite(file["a_bar_radius"]).all()


@pytest.mark.parametrize("how", ["probe.step before optimizer.step", "data written to", "another matrix", "an average"])
def test_weights_that_change_between_two_steps_are_no_other_behaviour(how: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OwnDepth()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with loopscope.attach(model, tmp_path / "a.h5", preset=OFTEN) as probe:
        for number in range(BEFORE + AFTER):
            tokens = torch.randint(0, 32, (3, 8), generator=torch.Generator().manual_seed(number))
            loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
            optimizer.zero_grad()
            loss.backward()
            if how.startswith("probe"):
                probe.step(loss=loss)
            optimizer.step()
            if how.startswith("probe"):
                continue
            probe.step(loss=loss)
            if how == "data written to":
                model.inject.weight.data.mul_(1.05)
            elif how == "an average":
                model.inject.weight.data.lerp_(torch.zeros_like(model.inject.weight), 0.1)
            else:
                model.inject.weight = nn.Parameter(1.05 * model.inject.weight.detach())
    assert not said(tmp_path / "a.h5", "a_bar_differs") and not said(tmp_path / "a.h5", "a_bar_unchecked")
    with open_run(tmp_path / "a.h5") as file:
        assert np.isfinite(file["a_bar_radius"]).all()


class Dropped(OwnDepth):
    def __init__(self) -> None:
        super().__init__()
        self.inject = nn.Linear(2 * D, D)
        self.inject.drop = nn.Dropout(0.3)  # type: ignore[assignment]
        inject = self.inject
        inject.register_forward_hook(lambda module, args, output: inject.drop(output))


class NewInput(OwnDepth):
    """Adds noise to the input in every loop."""

    def turn(self, h: Tensor, e: Tensor) -> Tensor:
        return super().turn(h, e + 0.1 * torch.randn_like(e) if self.training else e)


class OneLoop(OwnDepth):
    def depths(self, count: int) -> Tensor:
        return torch.full((count,), 1 if self.training else int(torch.randint(3, 6, ())))


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Dropped, "has dropout"), (NewInput, "differ in more than the state"), (OneLoop, "ran two loops")],
)
def test_what_cannot_be_compared_is_said(kind: type[OwnDepth], why: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    assert run(path, kind, None) == run(path, kind, None, attached=False)
    assert len([message for message in said(path, "a_bar_unchecked") if why in message]) == 1
    with open_run(path) as file:
        told = [each for each in loopscope.diagnose(file).findings if each.name == "a-bar-unchecked"]
    assert [each.severity for each in told] == ["note"] * len(told) and any(why in each.message for each in told)
    assert not said(path, "a_bar_differs")


@pytest.mark.parametrize("kind", [OwnDepth, PerSequence])
def test_a_compiled_model_without_a_fixed_batch_says_that_nobody_compares(kind: type[OwnDepth], tmp_path: Path) -> None:
    """What a process has compiled besides does not matter; hooks that come and go would compile the model again."""
    torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2))
    run(tmp_path / "plain.h5", kind, None)
    assert not said(tmp_path / "plain.h5", "a_bar_unchecked")
    run(tmp_path / "a.h5", kind, None, compiled=True)
    (message,) = said(tmp_path / "a.h5", "a_bar_unchecked")
    assert "the model is compiled" in message and not said(tmp_path / "a.h5", "a_bar_differs")


def test_sharded_parameters_are_compared_in_training(torchrun: Callable[[Path, Path], None], tmp_path: Path) -> None:
    torchrun(Path(__file__).with_name("acting_worker.py"), tmp_path)
    for name in ("same", "changed"):
        with open_run(tmp_path / f"{name}.h5") as file:
            assert list(file.ranks) == [0, 1]
            for one in file.ranks.values():
                messages = [event.message for event in one.events if event.kind == "a_bar_differs"]
                assert not [event.message for event in one.events if event.kind == "a_bar_unchecked"]
                assert np.isfinite(one["a_bar_radius"][:6]).all() and np.isfinite(one["depth"]).all()
                if name == "same":
                    assert not messages and np.isfinite(one["a_bar_radius"]).all()
                else:
                    assert len(messages) == 1 and "A̅ is missing from here on" in messages[0]
                    assert np.isnan(one["a_bar_radius"][-3:]).all()
