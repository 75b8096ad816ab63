"""Small looped models whose modules act when somebody looks at them: what no probe may disturb.

Each changes something when it is run, read, or put into another mode: adapters that merge, weights that swap, counters
that set the depth, lists of losses, buffers, power iterations, random streams of a model's own. `loopscope selfcheck`
trains each of them with a probe and without one, and compares what is left.

Not covered: modules that act outside of the model and of torch's sight; a look at those is refused (`LookError`).
"""

# ruff: noqa: D102 - a forward of a module is what its class says
from __future__ import annotations

import random
import warnings
from collections import deque
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

D: Final = 8
VOCABULARY: Final = 16


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.tanh(self.linear(self.norm(h)))


class Looped(nn.Module):
    """A small looped model; others change one thing in it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, D), nn.Linear(D, VOCABULARY)
        self.inject: nn.Module = nn.Linear(2 * D, D, bias=False)
        self.block: nn.Module = Block()

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        e = self.embed(tokens)
        h = torch.zeros_like(e)
        for _ in range(n_loops):
            h = self.block(self.inject(torch.cat([h, e], -1)))
        logits: Tensor = self.head(h)
        return logits


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
    """An injection with an adapter of low rank that merges in evaluation mode."""

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
        whole: Tensor = self.one(x) + self.two(x) if self.fused is None else F.linear(x, self.fused)
        return whole


class Fused(Looped):
    """An injection of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.inject = FusedOnEval()


class CountedDepth(Looped):
    """The depth is set by how often the model was called."""

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
    """A running mean that the output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.load: Tensor = nn.Buffer(torch.zeros(D))

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
    """What is left of the forwards so far."""

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
        logits: Tensor = super().forward(tokens, n_loops) * (1 + 1e-3 * (now.last + sum(now.history) + now.table[0]))
        now.last = float(logits.detach().mean())
        now.history.append(now.last)
        now.shapes.add(tuple(tokens.shape))
        now.table[len(now.history) % 3] += 0.1
        self.seen = logits
        return self.seen


class MaxNorm(Looped):
    """An embedding that shortens the rows it looks up."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, D, max_norm=1.0)


class Spectral(Looped):
    """A weight whose reading moves a power iteration on."""

    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.inject)


class Noise(nn.Module):
    """A weight with noise that is drawn at every reading."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.01 * torch.randn_like(weight)


class Noisy(Looped):
    """An injection with such a weight."""

    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.inject, "weight", Noise())


class WeightNorm(Looped):
    """A weight that is computed when it is read."""

    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.inject)


class OldWeightNorm(Looped):
    """The one that computes the weight in a hook and leaves it on the module."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(self.inject)


class RunningStatistics(Looped):
    """Statistics that are taken in either mode: torch's kernel writes to them without saying so."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor = nn.Buffer(torch.zeros(D))
        self.spread: Tensor = nn.Buffer(torch.ones(D))

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        e = F.batch_norm(self.embed(tokens).flatten(0, 1), self.mean, self.spread, training=True).view(*tokens.shape, D)
        h = torch.zeros_like(e)
        for _ in range(n_loops):
            h = self.block(self.inject(torch.cat([h, e], -1)))
        logits: Tensor = self.head(h) + self.mean.sum()
        return logits


class Dropping(Looped):
    """Dropout inside the loop."""

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
        logits: Tensor = self.frozen(super().forward(tokens, n_loops))
        return logits + 0.01 * len(self.told)


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
        self.front: Tensor = nn.Buffer(torch.zeros(VOCABULARY))
        self.back: Tensor = nn.Buffer(torch.ones(VOCABULARY))

    def forward(self, tokens: Tensor, n_loops: int = 3) -> Tensor:
        self.front.data, self.back.data = self.back.data, self.front.data
        self.head.bias.data.clamp_(-0.01, 0.01)
        self.back[:3] += 0.1
        return super().forward(tokens, n_loops) + self.front


ACTING: Final[tuple[type[Looped], ...]] = (
    Looped, Lora, EmaSwap, Fused, CountedDepth, CountedByClass, BufferAverage, AuxiliaryLosses, ValuesLeft, MaxNorm,
    Spectral, Noisy, WeightNorm, OldWeightNorm, RunningStatistics, Dropping, RandomDepth, TrainCallsOthers, LazyCache,
    SwapsMemory,
)  # fmt: skip


def made(kind: type[Looped], seed: int = 0) -> Looped:
    """Return a new model, with all random streams and what its class holds as they are at the start.

    >>> made(CountedByClass).calls
    0
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global stream is what users' code draws from
    CountedByClass.calls, CountedByClass.log = 0, {"depths": []}
    return kind()


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the loss of a training step, as the model's user would compute it."""
    loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    if isinstance(model, AuxiliaryLosses):
        loss = loss + 0.1 * torch.stack(model.losses).sum()
        model.losses.clear()
    return loss


def tokens_of(step: int) -> Tensor:
    """Return the batch of a step, ``(2, 6)``."""
    return torch.randint(0, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(step))
