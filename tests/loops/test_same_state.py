"""Two models after the same training: whatever differs is named."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from loopscope.loops.same_state import differences
from torch import Tensor, nn


@dataclass
class Metrics:
    last: float = float("nan")
    history: deque[float] = field(default_factory=lambda: deque([1.0, 2.0], maxlen=3))


class Slotted:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 1


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.mean = nn.Linear(3, 3), nn.Buffer(torch.tensor([1.0, float("nan")]))
        self.calls, self.losses, self.shapes = 0, [torch.ones(2)], {(1, 2)}
        self.table, self.generator, self.numpy = np.zeros(3), torch.Generator(), np.random.default_rng(0)
        self.python, self.metrics, self.slotted = random.Random(0), {"now": Metrics()}, Slotted()
        self.me, self.by_identity = [self], {id(self.mix): 1}

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


def ulp(model: Model) -> None:
    model.mix.weight.data[0, 0] = torch.nextafter(model.mix.weight.data[0, 0], torch.tensor(9.0))


def gradient(model: Model) -> None:
    model.mix.bias.grad = torch.zeros(3)


CHANGES: dict[str, Callable[[Model], Any]] = {
    "mix.weight": ulp,
    "mix.bias.grad": gradient,
    "mean": lambda model: model.mean.zero_(),
    "calls": lambda model: setattr(model, "calls", 1),
    "losses.1": lambda model: model.losses.append(torch.ones(2)),
    "losses.0": lambda model: model.losses[0].add_(1),
    "shapes": lambda model: model.shapes.add((3, 4)),
    "table": lambda model: model.table.fill(1),
    "generator": lambda model: torch.rand(1, generator=model.generator),
    "numpy": lambda model: model.numpy.random(),
    "python": lambda model: model.python.random(),
    "metrics.now.last": lambda model: setattr(model.metrics["now"], "last", 1.0),
    "metrics.now.history.0": lambda model: model.metrics["now"].history.rotate(),
    "slotted.count": lambda model: setattr(model.slotted, "count", 2),
    "training": lambda model: model.eval(),
    "by_identity.0": lambda model: model.by_identity.update({id(model.mix): 2}),
    "cache": lambda model: setattr(model, "cache", 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_is_named(name: str) -> None:
    model = Model()
    other = copy.deepcopy(model)
    other.register_forward_hook(lambda *args: None)
    other.by_identity = {id(other.mix): 1}
    assert differences(model, other) == []
    CHANGES[name](other)
    assert name in differences(model, other) and name in differences(other, model)


def test_rounding_passes_where_it_is_expected() -> None:
    model = Model()
    other = copy.deepcopy(model)
    other.mix.weight.data.mul_(1 + 1e-6)
    assert differences(model, other) == ["mix.weight"] and differences(model, other, tolerance=1e-4) == []
    other.mix.weight.data.mul_(1.01)
    assert differences(model, other, tolerance=1e-4) == ["mix.weight"]
