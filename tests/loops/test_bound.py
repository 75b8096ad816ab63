"""One loop of a live model as a function: the same function however the loop is run, or a refusal by name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import loopscope
import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from loopscope.loops.bound import bound_loop
from loopscope.loops.rerun import SAME_NOISE, UNCHECKED
from loopscope.loops.site import LoopSite, LoopSiteError, Part
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

D, LOOPS = 6, 4
TOKENS = torch.arange(10).view(2, 5)
Step = Callable[[Tensor], Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.tanh(self.linear(self.norm(h)))


class Looped(nn.Module):
    """A loop that is found from one forward; others run it in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inject = nn.Embedding(16, D), nn.Linear(2 * D, D, bias=False)
        self.block, self.head = Block(), nn.Linear(D, 16)

    def once(self, h: Tensor, e: Tensor) -> Tensor:
        return self.block(self.inject(torch.cat([h, e], dim=-1)))

    def run(self, h: Tensor, e: Tensor, loops: int) -> Tensor:
        for _ in range(loops):
            h = self.once(h, e)
        return h

    def forward(self, tokens: Tensor, n_loops: int = LOOPS) -> Tensor:
        e = self.embed(tokens)
        return self.head(self.run(torch.zeros_like(e), e, n_loops))


class NoGradient(Looped):
    def run(self, h: Tensor, e: Tensor, loops: int) -> Tensor:
        with torch.no_grad():
            return super().run(h, e, loops)


class NoGradientMethod(Looped):
    @torch.no_grad()
    def run(self, h: Tensor, e: Tensor, loops: int) -> Tensor:
        return super().run(h, e, loops)


class SwitchedOff(Looped):
    """As some published code does it: switched off before, and on again behind the last loop."""

    def run(self, h: Tensor, e: Tensor, loops: int) -> Tensor:
        torch.set_grad_enabled(False)
        try:
            return super().run(h, e, loops)
        finally:
            torch.set_grad_enabled(True)


class LastWithGradient(Looped):
    def run(self, h: Tensor, e: Tensor, loops: int) -> Tensor:
        for k in range(loops):
            with torch.set_grad_enabled(self.training and k == loops - 1):
                h = self.once(h, e)
        return h


class Checkpointed(Looped):
    options: dict[str, Any] = {"use_reentrant": True}  # noqa: RUF012

    def run(self, h: Tensor, e: Tensor, loops: int) -> Tensor:
        for _ in range(loops):
            h = checkpoint(self.once, h, e, **self.options)
        return h


class NotReentrant(Checkpointed):
    options = {"use_reentrant": False, "preserve_rng_state": False}  # noqa: RUF012


class WholeLoopCheckpointed(Looped):
    def run(self, h: Tensor, e: Tensor, loops: int) -> Tensor:
        return checkpoint(functools.partial(super().run, loops=loops), h, e, use_reentrant=False)


class Nested(Looped):
    def run(self, h: Tensor, e: Tensor, loops: int) -> Tensor:
        def inner(h: Tensor, e: Tensor) -> Tensor:
            return checkpoint(self.once, h, e, use_reentrant=False)

        for _ in range(loops):
            h = checkpoint(inner, h, e, use_reentrant=True)
        return h


class WithCache(Block):
    """As layers of Hugging Face do: the state first, what else there is behind it."""

    def forward(self, h: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(h), None


class Tuples(Looped):
    def __init__(self) -> None:
        super().__init__()
        self.block = WithCache()

    def once(self, h: Tensor, e: Tensor) -> Tensor:
        return super().once(h, e)[0]


class Lists(Looped):
    def __init__(self) -> None:
        super().__init__()
        self.block.register_forward_hook(lambda module, args, output: [output, torch.zeros(1)])

    def once(self, h: Tensor, e: Tensor) -> Tensor:
        return super().once(h, e)[0]


class HeadOfTuple(Looped):
    """What follows the loop receives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first = First()

    def forward(self, tokens: Tensor, n_loops: int = LOOPS) -> Tensor:
        e = self.embed(tokens)
        return self.head(self.first((self.run(torch.zeros_like(e), e, n_loops), None)))


class First(nn.Module):
    def forward(self, pair: tuple[Tensor, None]) -> Tensor:
        return pair[0]


class HeadInEveryLoop(Looped):
    """Deep supervision, at a depth that nobody can set."""

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        e = self.embed(tokens)
        h, said = torch.zeros_like(e), []
        for _ in range(LOOPS):
            h = self.once(h, e)
            said.append(self.head(h))
        return torch.stack(said)[-1]


class DetachesWhatEnters(Looped):
    """The loop is the function of its state all the same: the state is put in behind that."""

    def once(self, h: Tensor, e: Tensor) -> Tensor:
        return super().once(h.detach(), e)


SAME: list[type[Looped]] = [
    NoGradient, NoGradientMethod, SwitchedOff, LastWithGradient, Checkpointed, NotReentrant, WholeLoopCheckpointed,
    Nested, Tuples, Lists, HeadOfTuple, HeadInEveryLoop, DetachesWhatEnters,
]  # fmt: skip
BY_HAND = LoopSite(
    body="inject",
    after="first",
    state_argument=Part(0, 0, D),
    input_argument=Part(0, D, 2 * D),
    depth_argument="n_loops",
    mean_depth=LOOPS,
)


def made(kind: type[Looped]) -> Looped:
    """The same weights in every kind."""
    torch.manual_seed(0)
    model = Looped()
    other = kind()
    other.load_state_dict(model.state_dict(), strict=False)
    return other


def jacobian(step: Step, h: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda x: step(x)[0, 0], h)


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("training", [True, False])
def test_a_loop_is_the_same_function_however_it_is_run(kind: type[Looped], training: bool) -> None:
    h = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))
    with bound_loop(made(Looped), TOKENS) as plain:
        expected, slope = plain.step(h), jacobian(plain.step, h)
        logits = plain.read_out(h) if plain.read_out is not None else None
    model = made(kind).train(training)
    site = {HeadOfTuple: BY_HAND, HeadInEveryLoop: replace(BY_HAND, after="head", depth_argument=None)}.get(kind)
    usual = torch.utils.checkpoint.CheckpointFunction
    with bound_loop(model, TOKENS, site=site) as loop:
        assert torch.equal(loop.step(h), expected) and torch.equal(loop.state, torch.zeros(2, 5, D))
        torch.testing.assert_close(jacobian(loop.step, h), slope)
        assert loop.read_out is not None and logits is not None and torch.equal(loop.read_out(h), logits)
        twice = torch.autograd.functional.hessian(lambda x: loop.step(x).square().sum(), h[:, :1].expand(2, 5, D))
        assert bool(twice.isfinite().all()) and bool(twice.any())
    assert torch.utils.checkpoint.CheckpointFunction is usual
    assert all(module.training is training for module in model.modules()) and torch.is_grad_enabled()


@pytest.mark.parametrize("kind", [NoGradient, NotReentrant])
def test_the_verdict_is_that_of_the_plain_loop(kind: type[Looped]) -> None:
    def verdict(which: type[Looped]) -> str:
        return loopscope.linearize(made(which), TOKENS, num_loops=4).verdict

    assert verdict(kind) == verdict(Looped)


class DetachesEachLoop(Looped):
    def once(self, h: Tensor, e: Tensor) -> Tensor:
        return super().once(h, e).detach()


class Inference(Looped):
    def run(self, h: Tensor, e: Tensor, loops: int) -> Tensor:
        with torch.inference_mode():
            return super().run(h, e, loops)


class ThroughNumpy(Looped):
    def once(self, h: Tensor, e: Tensor) -> Tensor:
        h = super().once(h, e)
        return h + 0 * float(h.numpy().sum())


class KnowsItsStates(Looped):
    """Checks what it carries, as code with assertions does."""

    def once(self, h: Tensor, e: Tensor) -> Tensor:
        made = super().once(h, e)
        assert not made.requires_grad, "states are kept without graphs here"
        return made


class Overwrites(Looped):
    def once(self, h: Tensor, e: Tensor) -> Tensor:
        x = self.inject(torch.cat([h, e], dim=-1))
        y = torch.exp(x)
        y2 = y * y
        y.zero_()
        return self.block(0.01 * y2)


class NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise ValueError("this operation has no derivative")


class Opaque(Looped):
    def once(self, h: Tensor, e: Tensor) -> Tensor:
        return NoDerivative.apply(super().once(h, e))  # type: ignore[no-any-return]


class FailsOnThisInput(Looped):
    def forward(self, tokens: Tensor, n_loops: int = LOOPS) -> Tensor:
        if tokens.shape == TOKENS.shape:
            raise IndexError("position 5 is out of range")
        return super().forward(tokens, n_loops)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (DetachesEachLoop, "without its gradient"),
        (Inference, r"torch.inference_mode\(\)"),
        (ThroughNumpy, "Can't call numpy"),
        (KnowsItsStates, "states are kept without graphs here"),
        (FailsOnThisInput, "position 5 is out of range"),
        (Overwrites, "a derivative of the loop of Overwrites cannot be taken .*modified by an inplace operation"),
        (Opaque, "a derivative of the loop of Opaque cannot be taken .*this operation has no derivative"),
    ],
)
def test_what_cannot_be_a_function_is_refused_by_name(kind: type[Looped], why: str) -> None:
    with pytest.raises(LoopSiteError, match=why) as refused:
        loopscope.linearize(made(kind), TOKENS, num_loops=2)
    assert kind.__name__ in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("site", "why"),
    [
        (LoopSite(body="inject", after="head", state_argument="h"), "'inject' receives nothing at 'h'"),
        (LoopSite(body="inject", after="head", state_argument=3), "'inject' receives nothing at 3"),
        (LoopSite(body="block", after="embed"), "'embed' was not called after the loop"),
        (LoopSite(body="block", after="head", shared=True), "watched but not linearised"),
    ],
)
def test_a_site_that_does_not_fit_is_refused_by_name(site: LoopSite, why: str) -> None:
    with pytest.raises(LoopSiteError, match=why):
        loopscope.linearize(made(Looped), TOKENS, num_loops=2, site=site)


class Called(Looped):
    """A loop whose state enters at several places; with an identity at the top it enters there."""

    reads_every_loop, marks = True, False

    def __init__(self, identity: bool) -> None:
        super().__init__()
        self.state = nn.Identity()
        self.top: Step = self.state if identity else lambda h: h  # type: ignore[assignment]
        self.mix = nn.Linear(D, D)

    def forward(self, tokens: Tensor, n_loops: int = LOOPS) -> Tensor:
        e = self.embed(tokens)
        mark = loopscope.mark if self.marks else lambda h, name: h
        h, said = mark(torch.zeros_like(e), "h"), None
        for _ in range(n_loops):
            h = mark(self.loop(self.top(h), e), "h")
            said = self.head(h) if self.reads_every_loop else None
        return self.head(h) if said is None else said

    def loop(self, h: Tensor, e: Tensor) -> Tensor:
        return self.block(h)


class Beside(Called):
    def loop(self, h: Tensor, e: Tensor) -> Tensor:
        return self.block(self.mix(h) + e) + 0.5 * h


class Residual(Called):
    def loop(self, h: Tensor, e: Tensor) -> Tensor:
        return h + self.block(h)


class Added(Called):
    reads_every_loop = False

    def loop(self, h: Tensor, e: Tensor) -> Tensor:
        return self.block(h + e)


def test_a_state_that_enters_at_no_module_of_its_own_is_linearised_without_advice() -> None:
    torch.manual_seed(0)
    bare, twin = Added(identity=False), Added(identity=True)
    twin.load_state_dict(bare.state_dict())
    h = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))
    marked = LoopSite(body="state", after="head")
    with bound_loop(bare, TOKENS) as loop, bound_loop(twin, TOKENS, site=marked) as known:
        torch.testing.assert_close(loop.step(h), bare.loop(h, bare.embed(TOKENS)))
        torch.testing.assert_close(loop.step(h), known.step(h))
        # Only returned states are seen, so the first one is h_1; an identity on the state shows h_0.
        torch.testing.assert_close(loop.state, known.step(known.state))
    found = loopscope.linearize(bare, TOKENS, num_loops=LOOPS)
    told = loopscope.linearize(twin, TOKENS, num_loops=LOOPS + 1, site=marked)
    assert found.loop is not None and told.loop is not None
    assert found.loop.radius is not None and told.loop.radius is not None
    assert found.loop.radius.value == pytest.approx(told.loop.radius.value, rel=1e-4)


@pytest.mark.parametrize("kind", [Residual, Beside])
def test_the_advice_of_a_refusal_followed_works(kind: type[Called]) -> None:
    torch.manual_seed(0)
    with pytest.raises(LoopSiteError, match=r"h = loopscope\.mark\(h, 'h'\)"):
        loopscope.linearize(kind(identity=False), TOKENS, num_loops=2, budget=0.0)
    model = kind(identity=False)
    model.marks = True
    with bound_loop(model, TOKENS) as loop:
        h = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(loop.step(h), model.loop(h, model.embed(TOKENS)))


class BetweenLoopAndReadOut(nn.Module):
    """A norm before the head, a second block, an input that changes, and an argument that sets no depth."""

    def __init__(self, *, by_argument: bool = True) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(16, D), nn.Linear(D, D), Block()
        self.mix, self.final_norm, self.head = nn.Linear(D, D), nn.LayerNorm(D), nn.Linear(D, 16)
        self.gate = nn.Bilinear(D, D, D)
        self.by_argument, self.numbered = by_argument, True

    def forward(self, tokens: Tensor, n_loops: int = LOOPS, scale: int = 1) -> Tensor:
        e = self.embed(tokens)
        h = torch.zeros_like(e) + 0.1
        for t in range(n_loops if self.by_argument else LOOPS):
            h = torch.tanh(self.first(h) + e)
            h = self.second(self.gate(h, e * (1.0 + t * self.numbered)) + h)
            self.mix(h.mean(1))
        return self.head(self.final_norm(h) * scale)


NOT_THE_STATE: dict[str, dict[str, Any]] = {
    "a norm lies between the loop and after": {"body": "first", "after": "head"},
    "body is in the middle of a pass": {"body": "second", "after": "final_norm"},
    "what the state argument names is something else": {"body": "gate", "after": "final_norm", "state_argument": 1},
    "after runs in every loop, on a mean": {"body": "first", "after": "mix"},
}


@pytest.mark.parametrize("sets_depth", [True, False])
@pytest.mark.parametrize("name", NOT_THE_STATE)
def test_a_site_by_hand_whose_map_is_not_the_loop_is_refused(name: str, sets_depth: bool) -> None:
    torch.manual_seed(0)
    model = BetweenLoopAndReadOut(by_argument=sets_depth)
    depth = {"depth_argument": "n_loops"} if sets_depth else {}
    site = LoopSite(**NOT_THE_STATE[name], **depth)
    said = r"is not the state that '\w+' receives in the next loop"
    with pytest.raises(LoopSiteError, match=said):
        loopscope.linearize(model, TOKENS, num_loops=4, site=site)


def test_the_same_model_is_linearised_where_after_receives_the_state() -> None:
    torch.manual_seed(0)
    site = LoopSite(body="first", after="final_norm", depth_argument="n_loops")
    model = BetweenLoopAndReadOut()
    with pytest.raises(LoopSiteError, match="differs from pass to pass"):
        loopscope.linearize(model, TOKENS, num_loops=4, site=site)
    model.numbered = False
    assert not loopscope.linearize(model, TOKENS, num_loops=4, site=site).skipped.keys() & {"one map", "noise"}


class Cached(Looped):
    """Every loop attends to what all loops before it left behind, as CoTFormer does."""

    def run(self, h: Tensor, e: Tensor, loops: int) -> Tensor:
        kept: list[Tensor] = []
        for _ in range(loops):
            kept.append(h)
            h = self.once(h, e) + 0.1 * torch.cat(kept, dim=1).mean(1, keepdim=True)
        return h


class Tabled(Looped):
    """Has a number for each of two loops and no more."""

    def run(self, h: Tensor, e: Tensor, loops: int) -> Tensor:
        for scale in [(1.0, 1.0)[number] for number in range(loops)]:
            h = self.once(h, e) * scale
        return h


class Noised(Looped):
    """Adds noise of its own to the input in every loop."""

    def once(self, h: Tensor, e: Tensor) -> Tensor:
        made = self.inject(torch.cat([h, e], dim=-1))
        return self.block(made + torch.randn_like(made))


def test_a_loop_that_attends_to_its_earlier_passes_is_no_map() -> None:
    torch.manual_seed(0)
    with pytest.raises(LoopSiteError, match="differs from pass to pass"), bound_loop(Cached(), TOKENS, site=BY_NAME):
        pass


def test_a_loop_of_two_passes_and_one_with_noise_are_linearised_and_say_so() -> None:
    torch.manual_seed(0)
    with bound_loop(Tabled(), TOKENS, site=BY_NAME) as loop:
        assert loop.remark == UNCHECKED
    with bound_loop(Noised(), TOKENS, site=BY_NAME) as loop, torch.no_grad():
        assert loop.remark == SAME_NOISE
        assert torch.equal(loop.step(loop.state), loop.step(loop.state))


BY_NAME = LoopSite(
    body="inject",
    after="head",
    state_argument=Part(0, 0, D),
    input_argument=Part(0, D, 2 * D),
    depth_argument="n_loops",
    mean_depth=2,
)


def test_an_input_that_changes_from_loop_to_loop_is_none() -> None:
    torch.manual_seed(0)

    class Changing(Looped):
        def once(self, h: Tensor, e: Tensor) -> Tensor:
            return self.block(self.inject(torch.cat([h, torch.tanh(h) + e], dim=-1)))

    site = LoopSite(body="inject", after="head", state_argument=Part(0, 0, D), input_argument=Part(0, D, 2 * D))
    with (
        pytest.raises(LoopSiteError, match="so that is not the input of the loop"),
        bound_loop(Changing(), TOKENS, site=site),
    ):
        pass


def test_an_argument_that_does_not_set_the_depth_is_named() -> None:
    site = LoopSite(body="first", after="final_norm", depth_argument="scale")
    with (
        pytest.raises(LoopSiteError, match="'scale' does not set the depth: at 3 the loop runs 4 times"),
        bound_loop(BetweenLoopAndReadOut(), TOKENS, site=site),
    ):
        pass


class TwoLayers(nn.Module):
    """A loop of two layers whose depth can be set, or stands in the code."""

    def __init__(self, *, settable: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(16, 6), nn.Linear(6, 16)
        self.first, self.second = (nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
        if settable:
            self.depth = 3

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for _ in range(getattr(self, "depth", 3)):
            h = self.second(self.first(h))
        return self.head(h)


def test_a_loop_whose_depth_nothing_sets_is_linearised_as_one_whose_depth_can_be_set():
    tokens = torch.arange(8).view(2, 4)
    one, other = (loopscope.linearize(TwoLayers(settable=settable), tokens) for settable in (True, False))
    assert np.allclose(one.loop.eigenvalues, other.loop.eigenvalues)
    assert [gain.name for gain in other.loop.sublayers] == ["first", "second"]
    shares = [[gain.log_gain for gain in made.loop.sublayers] for made in (one, other)]
    assert np.allclose(*shares, atol=1e-6)
    assert sum(shares[1]) == pytest.approx(math.log(other.loop.radius.value), abs=1e-4)
