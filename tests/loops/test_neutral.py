"""A look at a model leaves it as it was: modules that act when they are looked at train bit for bit the same.

Every kind of module here changes something when it is run, read, or put into another mode. Each is trained twice from
the same seed, once with everything that looks at a model in between.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import loopscope
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loopscope.loops.neutral import LookError, all_quietly, looking, on_the_side, quietly
from loopscope.loops.site import LoopSite, LoopSiteError
from loopscope.probes.schedule import PRESETS
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

D, VOCABULARY, STEPS = 8, 16, 50


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.tanh(self.linear(self.norm(h)))


class Looped(nn.Module):
    """A small looped model; others change one thing in it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inject = nn.Embedding(VOCABULARY, D), nn.Linear(2 * D, D, bias=False)
        self.block, self.head = Block(), nn.Linear(D, VOCABULARY)

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        e = self.embed(tokens)
        h = torch.zeros_like(e)
        for _ in range(n_loops):
            h = self.block(self.inject(torch.cat([h, e], -1)))
        return self.head(h)


class LoraMergedOnEval(nn.Linear):
    """As loralib does it: the product joins the frozen weight in evaluation mode, and leaves it in training mode."""

    def __init__(self) -> None:
        super().__init__(2 * D, D, bias=False)
        self.a, self.b = nn.Parameter(0.3 * torch.randn(2, 2 * D)), nn.Parameter(0.3 * torch.randn(D, 2))
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode: bool = True) -> LoraMergedOnEval:
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.b.data @ self.a.data)
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight)
        return y if self.merged else y + x @ self.a.T @ self.b.T


class Lora(Looped):
    def __init__(self) -> None:
        super().__init__()
        self.inject = LoraMergedOnEval()


class EmaSwap(Looped):
    """Evaluation uses averaged weights: ``eval()`` swaps the memory of two sets of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.average = [p.detach().clone() for p in self.block.parameters()]

    def train(self, mode: bool = True) -> EmaSwap:
        if mode != self.training:
            for p, average in zip(self.block.parameters(), self.average, strict=True):
                p.data, average.data = average.data, p.data
        return super().train(mode)

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        for p, average in zip(self.block.parameters(), self.average, strict=True):
            average.lerp_(p.detach(), 0.1)
        return super().forward(tokens, n_loops)


class FusedOnEval(nn.Module):
    """Two branches that ``eval()`` fuses into one weight and deletes, as RepVGG-like blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2 * D, D, bias=False), nn.Linear(2 * D, D, bias=False)
        self.fused: Tensor | None = None

    def eval(self) -> FusedOnEval:
        self.fused = (self.one.weight + self.two.weight).detach()
        del self.two
        return super().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x) if self.training else F.linear(x, self.fused)


class Fused(Looped):
    def __init__(self) -> None:
        super().__init__()
        self.inject = FusedOnEval()


class CountedDepth(Looped):
    calls = 0

    def forward(self, tokens: Tensor, n_loops: int | None = None) -> Tensor:
        self.calls += 1
        return super().forward(tokens, n_loops or 2 + self.calls % 4)


class CountedByClass(Looped):
    """The count is the class's, and a list in a dict that the class holds."""

    calls = 0
    log: ClassVar[dict[str, list[int]]] = {"depths": []}

    def forward(self, tokens: Tensor, n_loops: int | None = None) -> Tensor:
        type(self).calls += 1
        self.log["depths"].append(n_loops or 0)
        return super().forward(tokens, n_loops or 2 + (type(self).calls + len(self.log["depths"])) % 4)


class BufferAverage(Looped):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("load", torch.zeros(D))

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        self.load.mul_(0.9).add_(self.embed(tokens).detach().mean((0, 1)), alpha=0.1)
        return super().forward(tokens, n_loops) + self.load.sum()


class AuxiliaryLosses(Looped):
    """A list that a forward extends and the training step adds up and empties."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        logits = super().forward(tokens, n_loops)
        self.losses.append(logits.square().mean())
        return logits


@dataclass
class Metrics:
    last: float = 0.0
    history: deque[float] = field(default_factory=lambda: deque(maxlen=3))
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    table: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(3))


class ValuesLeft(Looped):
    """Values that a forward leaves for the user's metrics, which the next one uses."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = {"now": Metrics()}

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        now = self.metrics["now"]
        logits = super().forward(tokens, n_loops) * (1 + 1e-3 * (now.last + sum(now.history) + now.table[0]))
        now.last = float(logits.detach().mean())
        now.history.append(now.last)
        now.shapes.add(tuple(tokens.shape))
        now.table[len(now.history) % 3] += 0.1
        self.seen = logits
        return logits


class MaxNorm(Looped):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, D, max_norm=1.0)


class Spectral(Looped):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.inject)


class Noise(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.01 * torch.randn_like(weight)


class Noisy(Looped):
    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.inject, "weight", Noise())


class WeightNorm(Looped):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.inject)


class OldWeightNorm(Looped):
    """The one that computes the weight in a hook and leaves it on the module."""

    def __init__(self) -> None:
        super().__init__()
        with pytest.warns(FutureWarning, match="weight_norm"):
            nn.utils.weight_norm(self.inject)


class RunningStatistics(Looped):
    """Statistics that are taken in either mode: torch's kernel writes to them without saying so."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(D))
        self.register_buffer("spread", torch.ones(D))

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        e = F.batch_norm(self.embed(tokens).flatten(0, 1), self.mean, self.spread, training=True).view(*tokens.shape, D)
        h = torch.zeros_like(e)
        for _ in range(n_loops):
            h = self.block(self.inject(torch.cat([h, e], -1)))
        return self.head(h) + self.mean.sum()


class Dropping(Looped):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(Block(), nn.Dropout(0.2))


class RandomDepth(Looped):
    """Draws from Python, numpy, and generators of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.numpy, self.python = torch.Generator(), np.random.default_rng(0), random.Random(0)

    def forward(self, tokens: Tensor, n_loops: int | None = None) -> Tensor:
        drawn = (
            int(torch.randint(0, 2, (), generator=self.own)) + int(self.numpy.integers(2)) + self.python.randint(0, 1)
        )
        return super().forward(tokens, n_loops or 2 + drawn + random.randint(0, 1) + int(np.random.rand() > 0.5))  # noqa: NPY002


class TrainCallsOthers(Looped):
    """``train()`` freezes a part, and tells an object that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Dropout(0.5)
        self.told: list[bool] = []

    def train(self, mode: bool = True) -> TrainCallsOthers:
        super().train(mode)
        self.frozen.eval()
        self.told.append(mode)
        return self

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        return self.frozen(super().forward(tokens, n_loops)) + 0.01 * len(self.told)


class LazyCache(Looped):
    """A table made at the first forward, from a random stream, and made longer when it is too short."""

    positions: Tensor | None = None

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        if self.positions is None or len(self.positions) < tokens.shape[1]:
            self.positions = torch.randn(tokens.shape[1], VOCABULARY)
        return super().forward(tokens, n_loops) + self.positions[: tokens.shape[1]]


class SwapsMemory(Looped):
    """A forward that exchanges the memory of two of its buffers, and clamps a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("front", torch.zeros(VOCABULARY))
        self.register_buffer("back", torch.ones(VOCABULARY))

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        self.front.data, self.back.data = self.back.data, self.front.data
        self.head.bias.data.clamp_(-0.01, 0.01)
        self.back[:3] += 0.1
        return super().forward(tokens, n_loops) + self.front


KINDS: list[type[Looped]] = [
    Looped, Lora, EmaSwap, Fused, CountedDepth, CountedByClass, BufferAverage, AuxiliaryLosses, ValuesLeft, MaxNorm,
    Spectral, Noisy, WeightNorm, OldWeightNorm, RunningStatistics, Dropping, RandomDepth, TrainCallsOthers, LazyCache,
    SwapsMemory,
]  # fmt: skip


def made(kind: type[Looped]) -> Looped:
    """A new model, with everything that is global as it is at the start."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    CountedByClass.calls, CountedByClass.log = 0, {"depths": []}
    return kind()


def step(model: Looped, optimizer: torch.optim.Optimizer, number: int) -> Tensor:
    tokens = torch.randint(0, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(number))
    loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    if isinstance(model, AuxiliaryLosses):
        loss = loss + 0.1 * torch.stack(model.losses).sum()
        model.losses.clear()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def trained(kind: type[Looped], path: Path | None = None, preset: str = "watch") -> tuple[list[Any], Looped]:
    """Losses, random states and the model after the steps; looked at in every way where there is a path."""
    model = made(kind)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.5)
    probe = None
    if path is not None:
        loopscope.describe(model)
        probe = loopscope.attach(model, path, preset=preset)
    left: list[Any] = []
    for number in range(STEPS):
        left.append(step(model, optimizer, number))
        if probe is not None:
            probe.step(loss=left[-1])
            if number == 20:
                loopscope.describe(model)
                loopscope.linearize(model, torch.zeros(1, 3, dtype=torch.int64), num_loops=2, budget=0.0)
    if probe is not None:
        probe.close()
    numpy = np.random.get_state()  # noqa: NPY002
    left += [torch.get_rng_state(), torch.from_numpy(np.array(numpy[1])), random.getstate(), numpy[2:]]
    return left, model


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same bit for bit, in nested containers and objects."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Metrics):
        return equal(vars(a), vars(b))
    if isinstance(a, torch.Generator):
        return torch.equal(a.get_state(), b.get_state())
    if isinstance(a, random.Random):
        return a.getstate() == b.getstate()
    if isinstance(a, np.random.Generator):
        return bool(a.bit_generator.state == b.bit_generator.state)
    return isinstance(a, nn.Module) or callable(a) or bool(a == b)


def same_model(a: nn.Module, b: nn.Module) -> list[str]:
    """Names of what differs."""
    others = []
    for (name, x), (_, y) in zip(a.named_modules(), b.named_modules(), strict=True):
        keys = {key for key in {**vars(x), **vars(y)} if "hook" not in key}
        others += [f"{name}.{key}" for key in keys if not equal(vars(x).get(key), vars(y).get(key))]
    return others


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_same_bit_for_bit(kind: type[Looped], tmp_path: Path) -> None:
    right, alone = trained(kind)
    presets = sorted(PRESETS) if kind in (BufferAverage, Spectral, Lora) else ["study"]
    for preset in presets:
        left, watched = trained(kind, tmp_path / f"{preset}.h5", preset)
        differs = [number for number, (a, b) in enumerate(zip(right, left, strict=True)) if not equal(a, b)]
        assert not differs and not same_model(alone, watched), preset
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
            probe.step(loss=step(model, optimizer, number))
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
