"""A look at a model leaves it as it was: modules that act when they are looked at train bit for bit the same.

Every kind of module here changes something when it is run, read, or put into another mode. Each is trained twice from
the same seed, once with everything that looks at a model in between.
"""

from __future__ import annotations

import copy
import itertools
import random
from pathlib import Path
from typing import Any

import loopscope
import numpy as np
import pytest
import torch
from loopscope.loops.neutral import LookError, all_quietly, looking, on_the_side, quietly
from loopscope.loops.same_state import differences
from loopscope.loops.site import LoopSite, LoopSiteError
from loopscope.models.acting import (
    ACTING,
    BufferAverage,
    D,
    Looped,
    MaxNorm,
    Spectral,
    loss_of,
    made,
    tokens_of,
)
from loopscope.probes.schedule import PRESETS
from torch import Tensor, nn

STEPS = 50


def trained(kind: type[Looped], path: Path | None = None, preset: str = "watch") -> tuple[list[Any], Looped]:
    """Losses, random states and the model after the steps; looked at where there is a path, fully under `study`."""
    model = made(kind)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.5)
    probe = None
    if path is not None:
        loopscope.describe(model)
        probe = loopscope.attach(model, path, preset=preset)
    left: list[Any] = []
    for number in range(STEPS):
        loss = loss_of(model, tokens_of(number))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        left.append(loss.detach())
        if probe is not None:
            probe.step(loss=left[-1])
            if number == 20 and preset == "study":
                loopscope.describe(model)
                loopscope.linearize(model, torch.zeros(1, 3, dtype=torch.int64), num_loops=2, budget=0.0)
    if probe is not None:
        probe.close()
    numpy = np.random.get_state()  # noqa: NPY002
    left += [torch.get_rng_state(), numpy, random.getstate()]
    return left, model


@pytest.mark.parametrize("kind", ACTING)
def test_training_is_the_same_bit_for_bit(kind: type[Looped], tmp_path: Path) -> None:
    right, alone = trained(kind)
    for preset in sorted(PRESETS):
        left, watched = trained(kind, tmp_path / f"{preset}.h5", preset)
        assert not differences(right, left) and not differences(alone, watched), preset
        with loopscope.open_run(tmp_path / f"{preset}.h5") as run:
            assert (run["depth"] > 0).all() and len(run.probe_steps), [event.message for event in run.events]


def test_what_was_looked_at_is_not_noticed_by_the_graph_that_waits_for_its_backward_pass() -> None:
    """A look between forward and backward: version counters are as before, so autograd does not object."""
    model = made(BufferAverage)
    loss = model(torch.zeros(1, 3, dtype=torch.int64)).square().mean()
    versions = [t._version for t in (*model.parameters(), *model.buffers())]
    loopscope.describe(model)
    assert versions == [t._version for t in (*model.parameters(), *model.buffers())] and not looking()
    loss.backward()


def test_weights_that_nobody_writes_to_are_not_copied() -> None:
    model = made(MaxNorm)
    with on_the_side(model) as look:
        model(torch.zeros(1, 3, dtype=torch.int64))
        kept = look.writes.memory
    assert kept == {model.embed.weight.untyped_storage().data_ptr()}


def test_a_reading_that_acts_is_made_quiet_and_any_other_is_left_alone() -> None:
    model = made(Spectral)
    read = quietly(model, lambda: model.inject.weight)
    right = copy.deepcopy(model).inject.weight
    assert torch.equal(read(), right) and torch.equal(read(), right) and read().requires_grad
    plain = made(Looped)

    def weight() -> Tensor:
        return plain.inject.weight

    assert quietly(plain, weight) is weight


def test_readings_tried_out_together_are_judged_one_by_one() -> None:
    model = made(Spectral)

    def embedding() -> Tensor:
        return model.embed.weight

    def broken() -> Tensor:
        raise RuntimeError("no such matrix")

    before = model.inject.parametrizations.weight[0]._u.clone()
    reads = all_quietly(model, {"a_bar": lambda: model.inject.weight, "b_bar": embedding, "c_out": broken})
    assert reads["b_bar"] is embedding and reads["c_out"] is broken
    reads["a_bar"]()
    assert torch.equal(model.inject.parametrizations.weight[0]._u, before)
    assert all_quietly(model, reads) == reads  # what was tried out once is not tried again


class Numbers(Looped):
    """Writes to a buffer past torch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        self.seen.numpy()[0] += 1
        return super().forward(tokens, n_loops)


class Streaming(Looped):
    def __init__(self) -> None:
        super().__init__()
        self.noise = itertools.count()

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        return super().forward(tokens, n_loops) + next(self.noise)


class Uninitialised(Looped):
    def __init__(self) -> None:
        super().__init__()
        self.inject = nn.LazyLinear(D, bias=False)


@pytest.mark.parametrize(
    ("kind", "why"), [(Numbers, "seen in a way"), (Streaming, "iterator"), (Uninitialised, "lazy")]
)
def test_where_it_could_not_be_put_back_there_is_no_look_and_that_is_said_once(
    kind: type[Looped], why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = made(kind)
    with pytest.raises(LookError, match=why):
        loopscope.linearize(model, torch.zeros(1, 3, dtype=torch.int64), num_loops=2)
    assert issubclass(LookError, LoopSiteError)
    if kind is Uninitialised:
        return
    site = LoopSite(body="block", after="head", depth_argument="n_loops", mean_depth=3)
    model = made(kind)
    optimizer = torch.optim.SGD(model.parameters())
    with loopscope.attach(model, tmp_path / "a.h5", site=site) as probe:
        for number in range(25):
            loss = loss_of(model, tokens_of(number))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            probe.step(loss=loss)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [3.0] * 25
        said = [event.message for event in run.events if event.kind == "fixed_batch"]
    assert len(said) == 1 and why in said[0]
    if kind is Numbers:
        assert float(model.seen[0]) == 25  # what the one look left was put back


def test_a_trainer_that_the_model_knows_is_not_walked_over() -> None:
    model = made(Looped)
    model.loader = torch.utils.data.DataLoader(list(range(10**6)))
    with on_the_side(model):
        pass
    model.numbers = [object() for _ in range(400_000)]
    with pytest.raises(LookError, match="more than 300000 Python values"), on_the_side(model):
        pass
