"""Derivatives of a loop that detaches, of states that are no (B, S, D) in float32, and why there are none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import loopscope
import pytest
import torch
from loopscope import mark
from loopscope.loops.bound import bound_loop
from loopscope.loops.rerun import CUTS
from loopscope.loops.site import LoopSite, LoopSiteError, Variable
from loopscope.models import build
from torch import Tensor, nn
from torch.autograd.functional import jacobian

D, TOKENS = 4, torch.arange(4).view(2, 2)


class Base(nn.Module):
    """A loop over tanh(W h + e), read and begun in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(8, D), nn.Linear(D, D), nn.Linear(D, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.embed(tokens)
        h = self.start(e)
        for _ in range(4):
            h = self.one(h, e)
        return self.head(h.real)

    def start(self, e: Tensor) -> Tensor:
        return mark(torch.zeros_like(e), "h")

    def one(self, h: Tensor, e: Tensor) -> Tensor:
        return mark(torch.tanh(self.body(h) + e), "h")


class Whole(Base):
    """Truncates backpropagation: the state is detached at the beginning of every pass."""

    def one(self, h: Tensor, e: Tensor) -> Tensor:
        return super().one(h.clone().detach(), e)


class ByData(Base):
    def one(self, h: Tensor, e: Tensor) -> Tensor:
        return super().one(h.data, e)


class Rounded(Base):
    """A straight-through estimator: what is detached inside stays so."""

    def one(self, h: Tensor, e: Tensor) -> Tensor:
        made = torch.tanh(self.body(h) + e)
        return mark(made + (made.round(decimals=2) - made).detach(), "h")


class AtABody(Base):
    """No mark: the state enters at one module, and is detached there."""

    def start(self, e: Tensor) -> Tensor:
        return e

    def one(self, h: Tensor, e: Tensor) -> Tensor:
        return self.body(h.detach())


class Flat(AtABody):
    """States ``(B, D)``."""

    def start(self, e: Tensor) -> Tensor:
        return e[:, 0]


class Deep(AtABody):
    """States of four axes."""

    def start(self, e: Tensor) -> Tensor:
        return torch.stack([e, 2 * e], 1)


class Complex(Base):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.tensor(0.3 + 0.4j))

    def start(self, e: Tensor) -> Tensor:
        return mark(e + 0.5j * e, "h")

    def one(self, h: Tensor, e: Tensor) -> Tensor:
        return mark(self.turn * h + 0.1 * self.body(h.imag) + e, "h")


class ByItself(Base):
    """A pass goes down the gradient of an energy of its state."""

    def one(self, h: Tensor, e: Tensor) -> Tensor:
        with torch.enable_grad():
            h = h if h.requires_grad else h.requires_grad_()
            energy = torch.logsumexp(self.body(h), -1).sum() + 0.5 * ((h - e) ** 2).sum()
            return mark(h - 0.1 * torch.autograd.grad(energy, h, create_graph=True)[0], "h")


def plain(model: Base) -> Callable[[Tensor], Tensor]:
    e = model.embed(TOKENS).detach()
    if isinstance(model, AtABody):
        return model.body
    if isinstance(model, Complex):
        both = lambda h: torch.view_as_complex(h.unflatten(-1, (-1, 2)))  # noqa: E731
        return lambda h: torch.view_as_real(
            model.turn * both(h) + 0.1 * model.body(both(h).imag) + e
        ).flatten(-2)  # fmt: skip
    if isinstance(model, ByItself):
        return lambda h: h - 0.1 * (model.body(h).softmax(-1) @ model.body.weight + h - e)
    return lambda h: torch.tanh(model.body(h) + e)


@pytest.mark.parametrize("kind", [Base, Whole, ByData, AtABody, Flat, Deep, Complex])
def test_the_jacobian_is_that_of_the_pass_whatever_is_detached_and_whatever_the_state_is(kind: type[Base]) -> None:
    torch.manual_seed(0)
    model = kind()
    with bound_loop(model, TOKENS) as loop:
        assert loop.state.ndim == 3 and loop.state.dtype == torch.float32
        h = torch.randn_like(loop.state)
        assert torch.allclose(loop.step(h), plain(model)(h), atol=1e-6)
        assert torch.allclose(jacobian(loop.step, h), jacobian(plain(model), h), atol=1e-6)
        assert not loop.cuts()


def test_a_pass_may_derive_by_its_state() -> None:
    torch.manual_seed(0)
    model = ByItself()
    with bound_loop(model, TOKENS) as loop:
        h = torch.randn_like(loop.state)
        with torch.no_grad():
            assert torch.allclose(loop.step(h), plain(model)(h), atol=1e-6)


def test_what_a_pass_detaches_besides_its_state_is_left_out_and_said() -> None:
    torch.manual_seed(0)
    model = Rounded()
    with bound_loop(model, TOKENS) as loop:
        h = torch.randn_like(loop.state)
        assert torch.allclose(jacobian(loop.step, h), jacobian(plain(model), h), atol=1e-2)
    assert loopscope.linearize(model, TOKENS, num_loops=4).skipped["detached"] == CUTS
    assert "detached" not in loopscope.linearize(Whole(), TOKENS, num_loops=4).skipped


class Discrete(Base):
    def one(self, h: Tensor, e: Tensor) -> Tensor:
        return mark(self.embed(self.head(self.body(h)).argmax(-1)), "h")


class Shrinking(Base):
    def start(self, e: Tensor) -> Tensor:
        return mark(torch.cat([e] * 8, 1), "h")

    def one(self, h: Tensor, e: Tensor) -> Tensor:
        return mark(torch.tanh(self.body(h))[:, ::2], "h")


class ForNothing(Base):
    def one(self, h: Tensor, e: Tensor) -> Tensor:
        h = torch.tanh(self.body(h) + e)
        mark(h, "h")
        return h


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Discrete, "has a step without a derivative, such as argmax"),
        (Shrinking, r"changes its shape from pass to pass \(2x8x4, then 2x4x4, then 2x2x4\)"),
        (ForNothing, r"another value of 'h' changes nothing .* h = loopscope.mark\(h, 'h'\)"),
    ],
)
def test_a_refusal_says_what_is_so(kind: type[Base], why: str) -> None:
    with pytest.raises(LoopSiteError, match=why):
        loopscope.linearize(kind(), TOKENS)


def test_of_half_the_digits_there_are_no_derivatives_and_the_advice_works() -> None:
    model = Base().bfloat16()
    with pytest.raises(LoopSiteError, match=r"computes in bfloat16.*copy.deepcopy\(model\).float\(\)"):
        loopscope.linearize(model, TOKENS)
    assert loopscope.linearize(copy.deepcopy(model).float(), TOKENS, num_loops=4).loop is not None


class Runs(nn.Module):
    """A recurrence over positions, run again and again; its hidden state has layers where x has sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(8, D), nn.GRU(D, D, batch_first=True), nn.Linear(D, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x, hidden = self.embed(tokens), None
        for _ in range(3):
            x, hidden = self.rnn(x, hidden)
        return self.head(x)


def test_variables_of_different_sequences_are_recorded_and_linearised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Runs()
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        model(TOKENS).sum().backward()
        probe.step(loss=0.0)
    with loopscope.open_run(tmp_path / "a.h5") as run:
        assert run["depth"].tolist() == [3.0] and set(run.variables) == {"x", "hidden"}
        assert run.loops("state_norm", variable="x").shape == (1, 4)
        assert "state_missing" not in [event.kind for event in run.events]
    assert "2" in str(loopscope.describe(model, TOKENS))
    with bound_loop(model, TOKENS) as loop:
        x, hidden = torch.randn(2, 2, D), torch.randn(1, 2, D)
        values = {"x": x, "hidden": hidden}
        h = torch.cat([values[variable.name].flatten() for variable in loop.site.variables])[None, None]
        made = dict(zip(("x", "hidden"), model.rnn(x, hidden), strict=True))
        after = torch.cat([made[variable.name].flatten() for variable in loop.site.variables])[None, None]
        assert torch.allclose(loop.step(h), after, atol=1e-6)


def test_a_complex_state_is_recorded_by_its_modulus(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, seen = Complex(), []
    hook = model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with loopscope.attach(model, tmp_path / "a.h5") as probe:
        model(TOKENS).sum().backward()
        probe.step(loss=0.0)
    hook.remove()
    e = model.embed(TOKENS).detach()
    h = e + 0.5j * e
    norms = [h.norm(dim=-1).mean()]
    for _ in range(4):
        h = model.turn * h + 0.1 * model.body(h.imag) + e
        norms.append(h.norm(dim=-1).mean())
    with loopscope.open_run(tmp_path / "a.h5") as run:
        recorded = torch.tensor(run.loops("state_norm")[0], dtype=torch.float32)
    assert torch.allclose(recorded, torch.stack(norms).detach().abs(), rtol=1e-5)


def test_what_an_analysis_detaches_for_itself_is_not_the_models() -> None:
    torch.manual_seed(0)
    assert (
        "detached" not in loopscope.linearize(build("demo"), torch.zeros(1, 4, dtype=torch.int64), num_loops=4).skipped
    )


def test_an_input_that_a_marked_model_does_not_take_is_named_as_the_cause() -> None:
    site, why = LoopSite(variables=(Variable(name="h"),)), r"Base failed on this input \(IndexError.*give one that the"
    with pytest.raises(LoopSiteError, match=why), bound_loop(Base(), torch.full((1, 2), 99), site=site):
        pass
