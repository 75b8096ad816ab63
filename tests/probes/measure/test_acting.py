"""The recorded A̅ is what the injection does, in every pass of the fixed batch and not only at attach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import loopscope
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loopscope.loops.site import BY_HAND, LoopSite
from loopscope.probes import open_run
from loopscope.probes.schedule import Preset, every
from torch import Tensor, nn

D, BEFORE, AFTER = 12, 5, 6
OFTEN = Preset("often", rows=every(1), spectrum=every(1), probe_batch=every(2))


class Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inject = nn.Embedding(32, D), nn.Linear(2 * D, D)
        self.block, self.head = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D)), nn.Linear(D, 32)

    def forward(self, tokens: Tensor, num_loops: int = 4) -> Tensor:
        e = self.embed(tokens)
        h = torch.zeros_like(e)
        for _ in range(num_loops):
            h = self.inject(torch.cat([h, e], dim=-1))
            h = h + 0.5 * torch.tanh(self.block(h))
        return self.head(h)


def made() -> Looped:
    torch.manual_seed(0)
    return Looped()


def hooked(model: Looped) -> None:
    model.inject.register_forward_hook(lambda module, args, output: 2 * output)


def low_rank_beside(model: Looped) -> None:
    """As adapters do that are switched on in a hook."""
    up, down = 0.4 * torch.randn(D, 2), 0.4 * torch.randn(2, 2 * D)
    model.inject.register_forward_hook(lambda module, args, output: output + args[0] @ down.T @ up.T)


def other_forward(model: Looped) -> None:
    inject = model.inject
    model.inject.forward = lambda x: F.linear(x, inject.weight.round(decimals=1), inject.bias)  # type: ignore[method-assign]


def squashed(model: Looped) -> None:
    model.inject.register_forward_hook(lambda module, args, output: torch.tanh(3 * output))


def rounds_what_it_gets(model: Looped) -> None:
    model.inject.register_forward_pre_hook(lambda module, args: ((4 * args[0]).round() / 4,))


def normalised(model: Looped) -> None:
    model.inject.register_forward_hook(lambda module, args, output: F.normalize(output, dim=-1))


def recorded(path: Path, change: Callable[[Looped], None], **attach: object) -> Looped:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with loopscope.attach(model, path, preset=OFTEN, **attach) as probe:  # type: ignore[arg-type]
        for number in range(BEFORE + AFTER):
            if number == BEFORE:
                change(model)
            tokens = torch.randint(0, 32, (3, 8), generator=torch.Generator().manual_seed(number))
            loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
            optimizer.zero_grad()
            loss.backward()
            if number == BEFORE + AFTER - 1:
                break  # so that the parameters are those of the last row
            optimizer.step()
            probe.step(loss=loss)
        probe.step(loss=loss)
    return model


def radius_of(model: Looped) -> float:
    with torch.no_grad():
        units = torch.eye(2 * D)[:D]
        a_bar = (model.inject(units) - model.inject(torch.zeros_like(units))).T
    return float(torch.linalg.eigvals(a_bar).abs().max())


@pytest.mark.parametrize("change", [hooked, low_rank_beside, other_forward])
def test_a_module_that_begins_to_act_differently_is_measured(change: Callable[[Looped], None], tmp_path: Path) -> None:
    model = recorded(tmp_path / "a.h5", change)
    with open_run(tmp_path / "a.h5") as run:
        said = [(event.step, event.message) for event in run.events if event.kind == "a_bar_differs"]
        radius = run["a_bar_radius"]
    assert [step for step, _ in said] == [6] and "after step 4; from step 7 on A̅ is measured" in said[0][1]
    assert np.isfinite(radius).all() and radius[-1] == pytest.approx(radius_of(model), rel=1e-4)


@pytest.mark.parametrize("change", [squashed, rounds_what_it_gets, normalised])
def test_what_is_no_matrix_any_more_is_missing_from_there_on(change: Callable[[Looped], None], tmp_path: Path) -> None:
    recorded(tmp_path / "a.h5", change)
    with open_run(tmp_path / "a.h5") as run:
        said = [event.message for event in run.events if event.kind == "a_bar_differs"]
        assert len(said) == 1 and "A̅ is missing" in said[0]
        assert np.isfinite(run["a_bar_radius"][:7]).all() and np.isnan(run["a_bar_radius"][7:]).all()
        assert np.isfinite(run["depth"]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_module_that_acts_as_before_is_left_alone(dtype: torch.dtype, autocast: bool, tmp_path: Path) -> None:
    """Rounding is no change, in the precision of the layer and in that of training."""
    model = made().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    with loopscope.attach(model, tmp_path / "a.h5", preset=OFTEN) as probe:
        for number in range(30):
            tokens = torch.randint(0, 32, (3, 8), generator=torch.Generator().manual_seed(number))
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = F.cross_entropy(model(tokens).flatten(0, 1).float(), tokens.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            probe.step(loss=loss)
    with open_run(tmp_path / "a.h5") as run:
        assert not [event.message for event in run.events if event.kind == "a_bar_differs"]
        assert np.isfinite(run["a_bar_radius"]).all() and len(run.probe_steps) == 16


def test_a_module_that_acts_differently_under_the_autocast_of_training_is_noticed(tmp_path: Path) -> None:
    """Passes run in the precision of the weights; the module is asked under the autocast of training all the same."""
    model = made()
    model.inject.register_forward_hook(
        lambda module, args, output: 0.5 * output if torch.is_autocast_enabled("cpu") else output
    )
    with loopscope.attach(model, tmp_path / "a.h5", preset=OFTEN) as probe:
        for _ in range(4):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.arange(16).view(2, 8)).float().logsumexp(-1).mean()
            probe.step(loss=loss)
    with open_run(tmp_path / "a.h5") as run:
        assert [event.step for event in run.events if event.kind == "a_bar_differs"] == [0]
        assert np.isnan(run["a_bar_radius"][1:]).all()


def test_an_exchanged_module_that_is_no_matrix_has_none(tmp_path: Path) -> None:
    def exchange(model: Looped) -> None:
        model.inject = nn.Sequential(model.inject, nn.Tanh())  # type: ignore[assignment]

    recorded(tmp_path / "a.h5", exchange)
    with open_run(tmp_path / "a.h5") as run:
        (said,) = [event.message for event in run.events if event.kind == "module_exchanged"]
        assert "A̅ is missing" in said and np.isnan(run["a_bar_radius"][BEFORE + 1 :]).all()
        assert run["depth"][BEFORE + 1 :].tolist() == [4.0] * (AFTER - 1)


def test_what_is_given_by_hand_is_recorded_and_said_to_differ(tmp_path: Path) -> None:
    site = LoopSite(body="block", after="head", depth_argument="num_loops", mean_depth=4, a_bar=lambda: torch.eye(D))
    recorded(tmp_path / "a.h5", hooked, site=site)
    with open_run(tmp_path / "a.h5") as run:
        assert [event.kind for event in run.events if "by hand" in event.message] == ["a_bar_differs"]
        assert (run["a_bar_radius"] == 1).all() and site.found == BY_HAND
