"""Loops of every kind that people train, small; each notes its own states, so that a recording has a twin to equal.

Written for these tests; the kinds are those of public code. ``note`` keeps what a state was and hands it on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import loopscope
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

D, V = 8, 16


class Noting(nn.Module):
    """A model that keeps the states of its last forward, and marks them where it is told to."""

    marks = False

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embed, self.head, self.depth = nn.Embedding(V, D), nn.Linear(D, V), depth
        self.seen: list[tuple[str, Tensor]] = []

    def note(self, h: Tensor, name: str = "h") -> Tensor:
        self.seen.append((name, h.detach().clone()))
        return loopscope.mark(h, name) if self.marks else h

    def start(self, tokens: Tensor) -> Tensor:
        self.seen.clear()
        return self.embed(tokens)


class Block(nn.Module):
    def __init__(self, width: int = D) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Mix(nn.Module):
    """A block of two arguments: the state, and what is injected into it."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, hidden_states: Tensor, injected: Tensor) -> Tensor:
        return torch.tanh(self.block(hidden_states + injected))


class Plain(Noting):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.note(self.start(tokens))
        for _ in range(self.depth):
            h = self.note(self.block(h))
        return self.head(h)


class Concatenated(Noting):
    def __init__(self) -> None:
        super().__init__()
        self.adapter, self.block = nn.Linear(2 * D, D), Block()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        h = self.note(torch.zeros_like(e))
        for _ in range(self.depth):
            h = self.note(self.block(self.adapter(torch.cat([h, e], -1))))
        return self.head(h)


class Added(Noting):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        h = self.note(torch.zeros_like(e))
        for _ in range(self.depth):
            h = self.note(self.block(h + e))
        return self.head(h)


class Gated(Noting):
    """The next state is mixed from the last one and what the block makes of it, outside of any module."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.gate = Block(), nn.Parameter(torch.zeros(D))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.note(self.start(tokens))
        for _ in range(self.depth):
            g = torch.sigmoid(self.gate)
            h = self.note(g * h + (1 - g) * self.block(h))
        return self.head(h)


class InPlace(Noting):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.note(0.5 * self.start(tokens))
        for _ in range(self.depth):
            h = self.block(h)
            h *= 0.5
            self.note(h)
        return self.head(h)


class Inline(Noting):
    """The sub-layers stand in the loop itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.attend, self.norm_2, self.mlp = (
            nn.LayerNorm(D),
            nn.Linear(D, D),
            nn.LayerNorm(D),
            nn.Linear(D, D),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.note(self.start(tokens))
        for _ in range(self.depth):
            x = x + self.attend(self.norm_1(x)).cumsum(1) / 4
            x = self.note(x + torch.tanh(self.mlp(self.norm_2(x))))
        return self.head(x)


class LayerStack(Noting):
    """All layers, looped, with the loss inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(Block() for _ in range(3)), nn.LayerNorm(D)

    def forward(self, *, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        h = self.note(self.start(input_ids))
        for _ in range(self.depth):
            for layer in self.layers:
                h = layer(h)
            h = self.note(self.norm(h))
        logits = self.head(h)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


@dataclass
class Carry:
    z_H: Tensor
    z_L: Tensor
    steps: Tensor
    other: dict[str, Tensor] = field(default_factory=dict)


class OneNetworkTwoVariables(Noting):
    """z_L several times, then z_H, by one network; only the last cycle has gradients; a carry comes and goes."""

    def __init__(self, inner: int = 3, depth: int = 3) -> None:
        super().__init__(depth)
        self.level, self.inner, self.halt = Mix(), inner, nn.Linear(D, 2)

    def forward(self, carry: Carry, batch: dict[str, Tensor]) -> tuple[Carry, Tensor]:
        e = self.start(batch["inputs"])
        z_H, z_L = carry.z_H, carry.z_L
        self.note(z_H, "z_H")
        self.note(z_L, "z_L")
        with torch.no_grad():
            for _ in range(self.depth - 1):
                for _ in range(self.inner):
                    z_L = self.note(self.level(z_L, z_H + e), "z_L")
                z_H = self.note(self.level(z_H, z_L), "z_H")
        for _ in range(self.inner):
            z_L = self.note(self.level(z_L, z_H + e), "z_L")
        z_H = self.note(self.level(z_H, z_L), "z_H")
        return Carry(z_H.detach(), z_L.detach(), carry.steps + 1), self.head(z_H) + self.halt(z_H[:, :1]).sum()


class SeveralLowVariables(Noting):
    """Low variables in a list, each made in turn from the sum of all, then the high one, by one network."""

    def __init__(self, inner: int = 4) -> None:
        super().__init__()
        self.level, self.inner = Mix(), inner

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        z_H, z_L = self.note(0.1 + 0 * e, "z_H"), [0.1 * (i + 1) + 0 * e for i in range(self.inner)]
        for _ in range(self.depth):
            for i in range(self.inner):
                z_L_sum = torch.stack(z_L).sum(0)
                z_L[i] = self.note(self.level(z_L_sum, z_H + e), f"z_L_{i}")
            z_L_sum = torch.stack(z_L).sum(0)
            z_H = self.note(self.level(z_H, z_L_sum), "z_H")
        return self.head(z_H)


class LooksAhead(Noting):
    """A loop in a module of its own that runs twice: the second time from its own detached end, for a target."""

    class Inner(nn.Module):
        def __init__(self, note: Callable[[Tensor, str], Tensor]) -> None:
            super().__init__()
            self.embed, self.low, self.high, self.note = nn.Embedding(V, D), Mix(), Mix(), note

        def forward(self, carry: tuple[Tensor, Tensor], tokens: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
            e = 2.0 * self.embed(tokens)
            z_H, z_L = carry
            for _ in range(2):
                for _ in range(2):
                    z_L = self.note(self.low(z_L, z_H + e), "z_L")
                z_H = self.note(self.high(z_H, z_L), "z_H")
            return (z_H.detach(), z_L.detach()), z_H

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.Inner(self.note)

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen.clear()
        start = torch.zeros(*tokens.shape, D)
        carry, z = self.inner((start + 0.1, start - 0.1), tokens)
        with torch.no_grad():
            target = self.head(self.inner(carry, tokens)[1])
        return self.head(z) - target


class InputMadeAnew(Noting):
    """Every pass works its input out again, through parameters of its own."""

    def __init__(self) -> None:
        super().__init__(depth=4)
        self.block, self.project = Mix(), nn.ModuleList(nn.Linear(D, D) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        h, given = self.note(torch.zeros_like(e)), self.project[0](e)
        for t in range(self.depth):
            following = self.project[(t + 1) % self.depth](e)  # there before the pass that reads it
            h = self.note(self.block(h, given))
            given = following
        return self.head(h)


class SingleVariable(Noting):
    def __init__(self) -> None:
        super().__init__()
        self.level = Block()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        z = self.note(torch.ones_like(e), "z")
        for _ in range(self.depth):
            z = self.note(self.level(z + e), "z")
        return self.head(z)


class FedInTurns(Noting):
    """One variable, one network: three calls of a pass are given the input too, and the fourth is not."""

    def __init__(self) -> None:
        super().__init__()
        self.level = Block()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        z = self.note(torch.ones_like(e), "z")
        for _ in range(self.depth):
            for _ in range(3):
                z = self.note(self.level(z + e), "z")
            z = self.note(self.level(z), "z")
        return self.head(z)


class NormedBetween(Noting):
    """One variable, one network that receives it: two calls, and a norm before the next two."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        h = self.note(torch.zeros_like(e))
        for at in range(self.depth):
            if at:
                h = F.layer_norm(h, (D,))
            for _ in range(2):
                h = self.note(self.mix(h, e))
        return self.head(h)


class TwoLevels(Noting):
    """A low level within a high one, a network each."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = Mix(), Mix()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        z_H, z_L = self.note(torch.ones_like(e), "z_H"), self.note(-torch.ones_like(e), "z_L")
        for _ in range(self.depth):
            for _ in range(2):
                z_L = self.note(self.low(z_L, z_H + e), "z_L")
            z_H = self.note(self.high(z_H, z_L), "z_H")
        return self.head(z_H)


class ThreeLevels(Noting):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.middle, self.high = Mix(), Mix(), Mix()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        a, b, c = (self.note(k * torch.ones_like(e), name) for k, name in ((1, "a"), (2, "b"), (3, "c")))
        for _ in range(self.depth):
            for _ in range(2):
                for _ in range(2):
                    a = self.note(self.low(a, b + e), "a")
                b = self.note(self.middle(b, a + c), "b")
            c = self.note(self.high(c, b), "c")
        return self.head(c)


class ManyVariables(Noting):
    """One network that updates three variables in turn, each from the sum of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.level = Mix()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        z = [self.note(k * torch.ones_like(e), f"z_{k}") for k in range(3)]
        for _ in range(self.depth):
            for k in range(3):
                z[k] = self.note(self.level(z[k], e + sum(z[:k] + z[k + 1 :])), f"z_{k}")
        return self.head(z[2] + z[0] + z[1])


class NormPerLoop(Noting):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.norms = Block(), nn.ModuleList(nn.LayerNorm(D) for _ in range(self.depth))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.note(self.start(tokens))
        for norm in self.norms:
            h = self.note(self.block(norm(h)))
        return self.head(h)


class LoraPerLoop(Noting):
    def __init__(self) -> None:
        super().__init__()
        self.block = Mix()
        self.downs = nn.ModuleList(nn.Linear(D, 2, bias=False) for _ in range(self.depth))
        self.ups = nn.ModuleList(nn.Linear(2, D, bias=False) for _ in range(self.depth))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.note(self.start(tokens))
        for down, up in zip(self.downs, self.ups, strict=True):
            h = self.note(self.block(h, up(down(h))))
        return self.head(h)


class RouterPerLoop(Noting):
    """Experts are shared, the router of each loop is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Block() for _ in range(2))
        self.mix, self.routers = Mix(), nn.ModuleList(nn.Linear(D, 2) for _ in range(self.depth))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.note(self.start(tokens))
        for router in self.routers:
            share = router(h).softmax(-1)
            parts = torch.stack([expert(h) for expert in self.experts], -1)
            h = self.note(self.mix(h, (parts * share[..., None, :]).sum(-1)))
        return self.head(h)


class SkipsInside(Noting):
    """An index list walks over shared layers, down and up again, with skips in between, once per pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.join = nn.ModuleList(Block() for _ in range(2)), Mix()
        self.weights = nn.Parameter(torch.ones(2, D))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.note(self.start(tokens))
        for _ in range(self.depth):
            kept: list[Tensor] = []
            x = h
            for layer in self.layers:
                x = layer(x)
                kept.append(x)
            for i in (1, 0):
                x = self.layers[i](x + self.weights[i] * kept.pop())
            h = self.note(self.join(x, h))
        return self.head(h)


class SkipsAcross(Noting):
    """A loop in the middle of a U-Net: what the first passes make comes in again, last first, in the later ones."""

    def __init__(self) -> None:
        super().__init__(depth=4)
        self.blocks, self.weights = nn.ModuleList(Mix() for _ in range(4)), nn.Parameter(torch.ones(5, D))
        self.gates = nn.Parameter(torch.zeros(5, D))

    def forward(self, tokens: Tensor) -> Tensor:
        x = e = self.start(tokens)
        order = [0, *[1, 2] * self.depth, 3]
        kept: list[Tensor] = []
        for n, i in enumerate(order):
            if n >= len(order) // 2:
                skip = n - len(order) // 2
                x = torch.lerp(self.weights[skip] * kept.pop(), x, torch.sigmoid(self.gates[skip]))
            x = self.blocks[i](x, e)
            if n < len(order) // 2:
                kept.append(x)
            if i == 2:
                self.note(x, "x")
        return self.head(x)


class SkipsByOneGate(Noting):
    """As `SkipsAcross`, and all skips come in by one gate, which is no part of the first passes."""

    def __init__(self) -> None:
        super().__init__(depth=4)
        self.blocks, self.gate = nn.ModuleList(Mix() for _ in range(4)), nn.Parameter(torch.zeros(D))

    def forward(self, tokens: Tensor) -> Tensor:
        x = e = self.start(tokens)
        order = [0, *[1, 2] * self.depth, 3]
        kept: list[Tensor] = []
        for n, i in enumerate(order):
            if n >= len(order) // 2:
                x = self.join(kept.pop(), x)
            x = self.blocks[i](x, e)
            if n < len(order) // 2:
                kept.append(self.keep(x))
            if i == 2:
                self.note(x, "x")
        return self.head(x)

    def keep(self, x: Tensor) -> Tensor:
        return x

    def join(self, skip: Tensor, x: Tensor) -> Tensor:
        return torch.lerp(skip, x, torch.sigmoid(self.gate))


class SkipsGatedTwice(SkipsByOneGate):
    """What is kept is scaled by the gate, too."""

    def keep(self, x: Tensor) -> Tensor:
        return x * self.gate.exp()


class SkipsByModule(SkipsByOneGate):
    """The gate is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Linear(D, D)

    def join(self, skip: Tensor, x: Tensor) -> Tensor:
        return x + self.gate + torch.sigmoid(self.share(x)) * skip


class HaltsBeside(Noting):
    """The state is put together outside of modules; the only module that a pass ends with is a gate of two channels."""

    def __init__(self) -> None:
        super().__init__(depth=4)
        self.block, self.gate = Mix(), nn.Linear(D, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = e = self.note(self.start(tokens), "x")
        done = torch.zeros_like(x[..., :1])
        for _ in range(self.depth):
            x = self.note(torch.where(done > 5, x, self.block(x, e * (1 - done))), "x")
            done = done + torch.log_softmax(self.gate(x), dim=-1)[..., :1].exp()
        return self.head(x)


class FirstVisit(Noting):
    """Values of the first visit are used again in all later ones."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.mix = nn.Linear(D, D), Mix()

    def forward(self, tokens: Tensor) -> Tensor:
        h, first = self.note(self.start(tokens)), None
        for _ in range(self.depth):
            v = self.values(h)
            first = v if first is None else first
            h = self.note(self.mix(h, 0.5 * (v + first)))
        return self.head(h)


class Anderson(Noting):
    """A solver with a buffer of what it has tried; the state is what the network makes."""

    def __init__(self) -> None:
        super().__init__(depth=5)
        self.f = Mix()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        made = torch.zeros(2, *e.shape)
        z = torch.zeros_like(e)
        for k in range(self.depth):
            fz = self.note(self.f(z, e), "fz")
            made = made.clone()
            made[k % 2] = fz
            z = 0.7 * made[k % 2] + 0.3 * made[(k + 1) % 2]
        return self.head(fz)


class Momentum(Noting):
    """The step before enters too: the last two results are alive."""

    def __init__(self) -> None:
        super().__init__(depth=6)
        self.f = Block()

    def forward(self, tokens: Tensor) -> Tensor:
        h = before = self.start(tokens)
        for _ in range(self.depth):
            h, before = self.note(self.f(1.5 * h - 0.5 * before)), h
        return self.head(h)


class Bare(Noting):
    """No module in the loop at all."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(D, D) / 4), nn.Parameter(torch.zeros(D))

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        h = self.note(torch.zeros_like(e))
        for _ in range(self.depth):
            h = self.note(torch.tanh(F.linear(h, self.w, self.b) + e))
        return self.head(h)


class Called(Noting):
    """The block is called from a dictionary of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Mix()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        weights = dict(self.block.named_parameters())
        h = self.note(torch.zeros_like(e))
        for _ in range(self.depth):
            h = self.note(torch.func.functional_call(self.block, weights, (h, e)))
        return self.head(h)


class Equilibrium(Noting):
    """A fixed point searched without gradients, then one step with them."""

    def __init__(self) -> None:
        super().__init__(depth=5)
        self.f = Mix()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        z = self.note(torch.zeros_like(e), "z")
        with torch.no_grad():
            for _ in range(self.depth - 1):
                z = self.note(self.f(z, e), "z")
        z = self.note(self.f(z.detach(), e), "z")
        return self.head(z)


class Halting(Noting):
    """A universal transformer whose tokens halt; what goes on is the weighted mean."""

    def __init__(self) -> None:
        super().__init__(depth=4)
        self.block, self.halt = Block(), nn.Linear(D, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.note(self.start(tokens))
        left, out = torch.ones_like(h[..., :1]), torch.zeros_like(h)
        for _ in range(self.depth):
            h = self.note(self.block(h))
            p = torch.sigmoid(self.halt(h)) * left
            out, left = out + p * h, left - p
        return self.head(out + left * h)


class Checkpointed(Noting):
    def __init__(self) -> None:
        super().__init__()
        self.block = Mix()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        h = self.note(torch.zeros_like(e))
        for _ in range(self.depth):
            h = self.note(checkpoint(self.block, h, e, use_reentrant=False))
        return self.head(h)


class Sampled(Noting):
    """Another depth in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Mix()

    def forward(self, tokens: Tensor, num_loops: int | None = None) -> Tensor:
        e = self.start(tokens)
        h = self.note(torch.zeros_like(e))
        for _ in range(num_loops or int(torch.randint(2, 6, ()))):
            h = self.note(self.block(h, e))
        return self.head(h)


class Nested(Noting):
    """The loop is deep inside, and its module returns a tuple."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Mix()

        def forward(self, x: Tensor, e: Tensor) -> tuple[Tensor, None]:
            return self.block(x, e), None

    class Core(nn.Module):
        def __init__(self, depth: int, note: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.inner, self.depth, self.note = Nested.Inner(), depth, note

        def forward(self, e: Tensor) -> Tensor:
            h = self.note(torch.zeros_like(e))
            for _ in range(self.depth):
                h, _ = self.inner(h, e)
                self.note(h)
            return h

    def __init__(self) -> None:
        super().__init__()
        self.core = Nested.Core(self.depth, self.note)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.core(self.start(tokens)))


class DictCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Mix(), Mix()

    def forward(self, state: dict[str, Any]) -> dict[str, Any]:
        h = self.one(state["h"], state["m"] + state["e"])
        return {"e": state["e"], "h": h, "m": self.other(state["m"], h), "t": state["t"] + 1}


class InDict(Noting):
    """Two states, an input and a counter in a dictionary; one module returns all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = DictCell()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        state = {"e": e, "h": self.note(0.1 * e, "h"), "m": self.note(torch.ones_like(e), "m"), "t": 0}
        for _ in range(self.depth):
            state = self.cell(state)
            self.note(state["h"], "h")
            self.note(state["m"], "m")
        return self.head(state["h"] + state["m"])


class Step(NamedTuple):
    t: int
    e: Tensor
    h: Tensor


class NamedCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, step: Step) -> Step:
        return step._replace(h=self.mix(step.h, step.e), t=step.t + 1)


class InNamedTuple(Noting):
    """The state is the second tensor of what the module returns."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = NamedCell()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        step = Step(0, e, self.note(torch.zeros_like(e)))
        for _ in range(self.depth):
            step = self.cell(step)
            self.note(step.h)
        return self.head(step.h)


@dataclass
class Held:
    h: Tensor
    e: Tensor
    n: int = 0


class HeldCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Mix(), Mix()

    def forward(self, held: Held) -> Held:
        held.h = self.one(held.h, held.e)
        held.e, held.n = self.other(held.e, held.h), held.n + 1
        return held


class InDataclass(Noting):
    """A module writes both of its next states into the object that it received."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = HeldCell()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        held = Held(self.note(torch.zeros_like(e), "h"), self.note(e, "e"))
        for _ in range(self.depth):
            held = self.cell(held)
            self.note(held.h, "h")
            self.note(held.e, "e")
        return self.head(held.h)


class LongShortTerm(Noting):
    """A cell of torch's own that takes and returns a pair of states."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(D, D)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.start(tokens).flatten(0, 1)
        h, c = self.note(0.1 * x, "h"), self.note(torch.zeros_like(x), "c")
        for _ in range(self.depth):
            h, c = self.cell(x, (h, c))
            self.note(h, "h")
            self.note(c, "c")
        return self.head(h.view(*tokens.shape, D))


class Scan(nn.Module):
    """A recurrence over positions that hands its last state on."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.a = nn.Linear(D, D), nn.Linear(D, D), nn.Parameter(torch.zeros(D))

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        rows = []
        for u in self.into(x).unbind(1):
            s = torch.sigmoid(self.a) * s + u
            rows.append(s)
        return x + self.out(torch.stack(rows, 1)), s


class CarryBeside(Noting):
    """A recurrent carry of another shape goes from loop to loop beside the state."""

    def __init__(self) -> None:
        super().__init__()
        self.scan, self.block = Scan(), Block()

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.note(self.start(tokens), "h")
        s = self.note(h.new_zeros(len(h), D), "s")
        for _ in range(self.depth):
            h, s = self.scan(h, s)
            self.note(s, "s")
            h = self.note(self.block(h), "h")
        return self.head(h)


class Streams(Noting):
    """Hyper-connections: four residual streams ``(B, S, n, D)``, read and written by weights outside of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.mix = Block(), nn.Parameter(torch.eye(4) / 2)
        self.read, self.write = nn.Parameter(torch.ones(4) / 4), nn.Parameter(torch.ones(4) / 4)

    def forward(self, tokens: Tensor) -> Tensor:
        streams = self.note(torch.stack([self.start(tokens)] * 4, 2))
        for _ in range(self.depth):
            made = self.block(torch.einsum("bsnd,n->bsd", streams, self.read))
            streams = torch.einsum("mn,bsnd->bsmd", self.mix, streams)
            streams = self.note(streams + self.write[:, None] * made[:, :, None, :])
        return self.head(streams.mean(2))


class Tied(Noting):
    """Layers of their own that share one set of parameters: each module runs once."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(self.depth))
        for layer in self.layers[1:]:
            for name, module in layer.named_children():
                module.weight, module.bias = (
                    getattr(self.layers[0].get_submodule(name), n) for n in ("weight", "bias")
                )

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.note(self.start(tokens))
        for layer in self.layers:
            h = self.note(layer(h))
        return self.head(h)


class CacheGrows(Noting):
    """Every loop attends to keys and values of all loops before."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.block = nn.Linear(D, D), nn.Linear(D, 2 * D), Block()

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.note(self.start(tokens))
        kept: list[Tensor] = []
        for _ in range(self.depth):
            kept.append(self.kv(h))
            k, v = torch.cat(kept, 1).chunk(2, -1)
            h = self.note(self.block(h + F.scaled_dot_product_attention(self.q(h), k, v)))
        return self.head(h)


class Growing(Noting):
    """Off at first: one pass; then the loop is switched on."""

    def __init__(self) -> None:
        super().__init__(depth=1)
        self.block = Mix()

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        h = self.note(torch.zeros_like(e))
        for _ in range(self.depth):
            h = self.note(self.block(h, e))
        return self.head(h)


class TwoInSuccession(Noting):
    """An encoder's loop, then a decoder's, which reads what the first one made."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.bridge = Block(), Mix(), nn.Linear(D, D)

    def forward(self, tokens: Tensor) -> Tensor:
        a = self.note(self.start(tokens), "a")
        for _ in range(self.depth):
            a = self.note(self.encode(a), "a")
        b = self.note(self.bridge(a), "b")
        for _ in range(4):
            b = self.note(self.decode(b, a), "b")
        return self.head(b)


class Reversible(Noting):
    """Two halves of the channels, each moved by what the other is."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = Block(D // 2), Block(D // 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x1, x2 = self.start(tokens).chunk(2, dim=-1)
        x1, x2 = self.note(x1, "x1"), self.note(x2, "x2")
        for _ in range(self.depth):
            x1 = self.note(x1 + torch.tanh(self.f(x2)), "x1")
            x2 = self.note(x2 + torch.tanh(self.g(x1)), "x2")
        return self.head(torch.cat([x1, x2], -1))


class Recursion(Noting):
    """No ``for``: a function that calls itself."""

    def __init__(self) -> None:
        super().__init__(depth=4)
        self.block = Block()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.again(self.note(self.start(tokens)), self.depth))

    def again(self, h: Tensor, left: int) -> Tensor:
        return self.again(self.note(self.block(h)), left - 1) if left else h


class CallsItself(Noting):
    """No ``for``: a module that calls itself, so that the outermost call returns the last state."""

    class Core(nn.Module):
        def __init__(self, note: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.block, self.note = Block(), note

        def forward(self, h: Tensor, left: int) -> Tensor:
            h = self.note(self.block(h))
            return h if left == 1 else self(h, left - 1)

    def __init__(self) -> None:
        super().__init__(depth=4)
        self.core = self.Core(self.note)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.core(self.note(self.start(tokens)), self.depth))


class CachePerLoop(Noting):
    """Two layers in every pass, with keys and values for each pass and layer."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.qkv, self.block = nn.LayerNorm(D), nn.Linear(D, 3 * D), Block()

        def forward(self, x: Tensor, past: list[Tensor]) -> Tensor:
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            past[:] = [k, v] if not past else [torch.cat([a, b], 1) for a, b in zip(past, (k, v), strict=True)]
            return self.block(x + F.scaled_dot_product_attention(q, *past))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.Layer() for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        past: list[list[list[Tensor]]] = [[[] for _ in self.layers] for _ in range(self.depth)]
        h = self.note(self.start(tokens))
        for of_pass in past:
            for layer, own in zip(self.layers, of_pass, strict=True):
                h = layer(h, own)
            h = self.note(h)
        return self.head(h)


class OneInAList(Noting):
    """A list that holds one module six times."""

    def __init__(self) -> None:
        super().__init__(depth=6)
        self.layers = nn.ModuleList([Block()] * self.depth)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.note(self.start(tokens))
        for layer in self.layers:
            h = self.note(layer(h))
        return self.head(h)


class Slots(Noting):
    """Slots that compete for positions: a cell of torch's moves them, and a network after it, outside of any module."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.cell, self.norm = nn.Linear(D, D), nn.Linear(D, 2 * D), nn.GRUCell(D, D), nn.LayerNorm(D)
        self.mlp, self.first = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D)), nn.Parameter(torch.ones(D))

    def forward(self, tokens: Tensor) -> Tensor:
        k, v = self.kv(self.start(tokens)).chunk(2, -1)
        slots = self.first + torch.randn(len(tokens), 3, D)
        for _ in range(self.depth):
            share = (self.q(self.norm(slots)) @ k.mT).softmax(1) + 1e-8
            moved = (share / share.sum(-1, keepdim=True)) @ v
            slots = self.cell(moved.flatten(0, 1), slots.flatten(0, 1))
            slots = self.note(slots, "slots").view(len(tokens), 3, D)
            slots = slots + self.mlp(self.norm(slots))
        return self.head(slots.mean(1))


class RungeKutta(Noting):
    """A solver that asks one network for its field four times in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D))

    def forward(self, tokens: Tensor) -> Tensor:
        h, dt = self.note(self.start(tokens)), 1 / self.depth
        for _ in range(self.depth):
            k1 = self.field(h)
            k2 = self.field(h + dt / 2 * k1)
            k3 = self.field(h + dt / 2 * k2)
            k4 = self.field(h + dt * k3)
            h = self.note(h + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        return self.head(h)


class Flow(Noting):
    """A recurrent map ``(B, C, H, W)`` beside coordinates that are detached in every pass; no embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate = nn.Conv2d(1, D, 3, padding=1), nn.Conv2d(2 * D + 2, D, 3, padding=1)
        self.new, self.move = nn.Conv2d(2 * D + 2, D, 3, padding=1), nn.Conv2d(D, 2, 3, padding=1)

    def forward(self, image: Tensor) -> list[Tensor]:
        self.seen.clear()
        given = torch.relu(self.enter(image))
        net, coords = self.note(torch.tanh(given), "net"), self.note(torch.zeros(2, 2, 5, 5), "coords")
        flows = []
        for _ in range(self.depth):
            coords = coords.detach()
            x = torch.cat([net, given, coords], 1)
            z = torch.sigmoid(self.gate(x))
            net = self.note((1 - z) * net + z * torch.tanh(self.new(x)), "net")
            coords = self.note(coords + self.move(net), "coords")
            flows.append(coords)
        return flows


class NoneAtFirst(Noting):
    """A recurrence over positions, run again over what it made; its hidden state is not there before the first pass."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(D, D, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x, hidden = self.note(self.start(tokens), "x"), None
        for _ in range(self.depth):
            x, hidden = self.rnn(x, hidden)
            x, hidden = self.note(x, "x"), self.note(hidden, "hidden")
        return self.head(x)


class Positions(Noting):
    """No depth: a memory goes from chunk to chunk of the sequence."""

    def __init__(self) -> None:
        super().__init__(depth=2)
        self.block, self.first = Block(), nn.Parameter(torch.ones(2, D))

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.start(tokens)
        memory = self.note(self.first.expand(len(tokens), -1, -1), "memory")
        made = []
        for chunk in e.split(tokens.shape[1] // 2, dim=1):
            both = self.block(torch.cat([memory, chunk + memory.mean(1, keepdim=True)], 1))
            memory = self.note(both[:, :2], "memory")
            made.append(both[:, 2:])
        return self.head(torch.cat(made, 1))


def marked(shape: type[Noting]) -> Callable[[], Noting]:
    """The same model, its states marked."""

    def make() -> Noting:
        model = shape()
        model.marks = True
        return model

    return make


TOKENS = torch.arange(8).view(2, 4)


def plain_call(model: nn.Module, step: int) -> Tensor:
    return model((TOKENS + step) % V).square().mean()


def carried_call(model: nn.Module, step: int) -> Tensor:
    start = torch.full((2, 4, D), 0.1 * (step + 1))
    carry = Carry(start, -start, torch.zeros(2))
    return model(carry, batch={"inputs": (TOKENS + step) % V})[1].square().mean()


def image_call(model: nn.Module, step: int) -> Tensor:
    flows = model(torch.linspace(-1, 1, 50).view(2, 1, 5, 5) + 0.1 * step)
    return sum((flow.square().mean() for flow in flows), torch.zeros(()))


def labelled_call(model: nn.Module, step: int) -> Tensor:
    return model(input_ids=TOKENS, labels=(TOKENS + 1) % V)["loss"]


@dataclass(frozen=True)
class Case:
    """One shape: how it is made and called, and which variables with how many passes a recording must have."""

    name: str
    make: Callable[[], Noting]
    variables: tuple[str, ...] = ("h",)
    call: Callable[[nn.Module, int], Any] = plain_call
    passes: int = 3
    site: loopscope.LoopSite | None = None


def only(name: str) -> loopscope.LoopSite:
    """Of several loops that are marked, the one of this state."""
    return loopscope.LoopSite(variables=(loopscope.Variable(name=name),))


CASES = [
    *(Case(shape.__name__, shape) for shape in (
        Plain, Concatenated, Added, Gated, InPlace, Inline, NormPerLoop, LoraPerLoop, RouterPerLoop, SkipsInside,
        FirstVisit, Called, Checkpointed, Nested,
    )),
    Case("LayerStack", LayerStack, call=labelled_call),
    Case("OneNetworkTwoVariables", OneNetworkTwoVariables, ("z_H", "z_L"), carried_call),
    Case("OneNetworkTwoVariables twice", lambda: OneNetworkTwoVariables(depth=2), ("z_H", "z_L"), carried_call, 2),
    Case("SingleVariable", SingleVariable, ("z",)),
    Case("FedInTurns", FedInTurns, ("z",)),
    Case("NormedBetween", NormedBetween),
    Case("TwoLevels", TwoLevels, ("z_H", "z_L")),
    Case("ThreeLevels", ThreeLevels, ("a", "b", "c")),
    Case("ManyVariables", ManyVariables, ("z_0", "z_1", "z_2")),
    Case("SeveralLowVariables", SeveralLowVariables, ("z_L_0", "z_L_1", "z_L_2", "z_L_3", "z_H")),
    Case("LooksAhead", LooksAhead, ("z_H", "z_L"), passes=4),
    Case("InputMadeAnew", InputMadeAnew, passes=4),
    Case("Anderson", Anderson, ("fz",), passes=5),
    Case("Momentum", Momentum, passes=6),
    Case("Equilibrium", Equilibrium, ("z",), passes=5),
    Case("Halting", Halting, passes=4),
    *(Case(shape.__name__, shape, ("x",), passes=4) for shape in (
        SkipsAcross, SkipsByOneGate, SkipsGatedTwice, SkipsByModule,
    )),
    Case("InDict", InDict, ("h", "m")),
    Case("InNamedTuple", InNamedTuple),
    Case("InDataclass", InDataclass, ("h", "e")),
    Case("LongShortTerm", LongShortTerm, ("h", "c")),
    Case("CarryBeside", CarryBeside, ("s", "h")),
    *(Case(f"{shape.__name__} marked", marked(shape)) for shape in (Streams, Tied, CacheGrows)),
    Case("HaltsBeside marked", marked(HaltsBeside), ("x",), passes=4),
    *(Case(f"{shape.__name__} marked", marked(shape)) for shape in (Plain, Bare, Gated, SkipsInside)),
    Case("OneNetworkTwoVariables marked", marked(OneNetworkTwoVariables), ("z_H", "z_L"), carried_call),
    Case("TwoLevels marked", marked(TwoLevels), ("z_H", "z_L")),
    Case("ThreeLevels marked", marked(ThreeLevels), ("a", "b", "c")),
    *(Case(shape.__name__, shape, passes=passes) for shape, passes in (
        (Recursion, 4), (CallsItself, 4), (CachePerLoop, 3), (OneInAList, 6),
    )),
    Case("TwoInSuccession first", marked(TwoInSuccession), ("a",), site=only("a")),
    Case("TwoInSuccession second", marked(TwoInSuccession), ("b",), passes=4, site=only("b")),
    Case("Reversible marked", marked(Reversible), ("x1", "x2")),
    Case("Slots", Slots, ("slots",)),
    Case("RungeKutta marked", marked(RungeKutta)),
    Case("Flow marked", marked(Flow), ("net", "coords"), image_call),
    Case("NoneAtFirst", NoneAtFirst, ("x", "hidden")),
    Case("Positions marked", marked(Positions), ("memory",), passes=2),
    Case("Equilibrium marked", marked(Equilibrium), ("z",), passes=5),
    Case("Anderson marked", marked(Anderson), ("fz",), passes=5),  # its first value is marked in the loop
]  # fmt: skip
