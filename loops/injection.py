"""What the module where state and input meet does to them, seen by calling it.

A matrix is A̅ only if the loop's linear part acts like it. A layer's weight need not be what it applies: layers scale,
quantise, normalise or wrap their weights, add adapters of low rank, or are exchanged after the probe was attached. So
the module is called on the side, and what it does to a change of the state is compared with the matrix that was read.
Where they differ, or where reading the weight runs code of the layer, its *effective* matrix is measured: an affine
module gives it away on the unit vectors. What is not affine has no such matrix.

Not covered: modules that need more arguments than state and input (the matrix is then taken as read), sharded ones, and
a layer that begins to act differently later without being exchanged.
"""

# Shapes: N tokens of a call, D width of the state, E width of the input.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .neutral import on_the_side
from .site import BY_HAND, Item, LoopSite, Part, Place

TOKENS_AT_ONCE = 256
PROBED = 16  # tokens on which a matrix is compared
EXACT = 1e-4  # of the size of what is compared, in float32: rounding of sums over some thousand channels
COARSE = 2e-3  # where float32 products may be rounded to ten bits (TF32)


@dataclass(frozen=True, slots=True)
class Injection:
    """The module of one loop that receives state and input, whichever has its name now.

    Args:
        model: The user's module, unwrapped.
        body: Dotted name of the module.
        state: Where it receives the state.
        given: Where it receives the input; None where it does not.
        width: D.
        input_width: E.
    """

    model: nn.Module
    body: str
    state: Place
    given: Place | None
    width: int
    input_width: int

    @classmethod
    def of(cls, model: nn.Module, site: LoopSite, a_bar: Tensor, b_bar: Tensor | None) -> Injection:
        """Return the injection of a site, its widths taken from the matrices that were read."""
        assert site.state_argument is not None
        at, given = site.state_argument, site.input_argument
        width = at.stop - at.start if isinstance(at, Part) else a_bar.shape[0] if a_bar.ndim else PROBED
        input_width = b_bar.shape[-1] if b_bar is not None and b_bar.ndim else width
        if isinstance(given, Part):
            input_width = given.stop - given.start
        return cls(model, site.body, at, given, width, input_width)

    @property
    def module(self) -> nn.Module:
        """The module that has the name now."""
        return self.model.get_submodule(self.body)

    def differs_from(self, a_bar: Tensor) -> bool:
        """Return whether the module does something else to a change of the state than a matrix does."""
        change, done, size, tolerance = self._seen_change()
        expected = change @ a_bar.mT if a_bar.ndim == 2 else a_bar * change
        return not float((done.double() - expected).norm()) <= tolerance * (float(expected.norm()) + size)

    def a_bar(self) -> Tensor:
        """Return the effective A̅ ``(D, D)``; it requires gradients where parameters behind it do."""
        return self._matrix(self.width, self.input_width, lambda unit, rest: self._call(unit, rest))

    def b_bar(self) -> Tensor:
        """Return the effective B̅ ``(D, E)``."""
        return self._matrix(self.input_width, self.width, lambda unit, rest: self._call(rest, unit))

    def is_affine(self) -> bool:
        """Return whether the module does to every state what its effective matrix does to it."""
        return not self.differs_from(self.a_bar().detach().double())

    def _seen_change(self) -> tuple[Tensor, Tensor, float, float]:
        """Return a change of the state, what came of it, the size of what was subtracted, and the tolerance."""
        own = torch.Generator().manual_seed(0)
        h, change = (torch.randn(1, PROBED, self.width, generator=own) for _ in range(2))
        e = torch.randn(1, PROBED, self.input_width, generator=own)
        with on_the_side(self.module):
            before, after = self._call(h, e), self._call(h + change, e)
        rounded = self._placed(h + change).double() - self._placed(h).double()
        return rounded, (after - before).detach().double(), float(before.detach().double().norm()), tolerance(after)

    def _matrix(self, width: int, other: int, act: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return what unit vectors are sent to, as columns."""
        columns = []
        # This may run inside a block of training that is checkpointed: what is saved here is none of its tensors.
        with saved_tensors_hooks(_unchanged, _unchanged), on_the_side(self.module), torch.enable_grad():
            base = act(torch.zeros(1, 1, width), torch.zeros(1, 1, other))
            for start in range(0, width, TOKENS_AT_ONCE):
                unit = torch.eye(width)[None, start : start + TOKENS_AT_ONCE]
                columns.append(act(unit, torch.zeros(1, unit.shape[1], other)) - base)
        return torch.cat(columns, dim=1)[0].mT.float()

    def _placed(self, tensor: Tensor) -> Tensor:
        """Return a tensor where and as the module computes."""
        like = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        where = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return tensor.to(where) if like is None else tensor.to(like.device, like.dtype)

    def _call(self, h: Tensor, e: Tensor) -> Tensor:
        """Return the module's output for a state and an input, without autocast."""
        h, e = self._placed(h), self._placed(e)
        by_place: dict[int | str, Tensor] = {}
        for place, value in ((self.state, h), (self.given, e)):
            if isinstance(place, Part):
                ends = [
                    p.stop for p in (self.state, self.given) if isinstance(p, Part) and p.argument == place.argument
                ]
                whole = by_place.setdefault(place.argument, value.new_zeros(*value.shape[:-1], max(ends)))
                whole[..., place.start : place.stop] = value
            elif isinstance(place, Item):
                raise TypeError(f"{self.body!r} takes its state inside of an argument")
            elif place is not None:
                by_place[place] = value
        positions = sorted(place for place in by_place if isinstance(place, int))
        if positions != list(range(len(positions))):
            raise TypeError(f"{self.body!r} takes other arguments before state and input")
        keywords = {place: value for place, value in by_place.items() if isinstance(place, str)}
        with torch.autocast(h.device.type, enabled=False):
            output: Any = self.module(*(by_place[place] for place in positions), **keywords)
        result: Tensor = output[0] if isinstance(output, tuple | list) else output
        return result


def _unchanged(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd saves as it is."""
    return tensor


def verified(model: nn.Module, site: LoopSite) -> LoopSite:
    """Return a site whose A̅ is what its injection was seen to do: as read, measured, or missing.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is.

    >>> class Scaled(nn.Linear):
    ...     def forward(self, x):
    ...         return 3 * super().forward(x)
    >>> model = nn.ModuleDict({"mix": Scaled(4, 2, bias=False), "head": nn.Identity()})
    >>> read = LoopSite(body="mix", after="head", state_argument=Part(0, 0, 2), input_argument=Part(0, 2, 4),
    ...                 a_bar=lambda: model["mix"].weight[:, :2], b_bar=lambda: model["mix"].weight[:, 2:])
    >>> torch.allclose(verified(model, read).a_bar(), 3 * model["mix"].weight[:, :2])
    True
    """
    if site.a_bar is None or site.state_argument is None:
        return site
    first = next(model.parameters(), None)
    if type(first) not in (nn.Parameter, type(None)) or (first is not None and first.is_meta):
        return site  # spread over ranks, or without numbers yet: nothing can be called here
    module, acts = model.get_submodule(site.body), _reading_acts(model.get_submodule(site.body))
    try:
        with on_the_side(module):
            a_bar, b_bar = (None if read is None else read().detach().double() for read in (site.a_bar, site.b_bar))
        assert a_bar is not None
        injection = Injection.of(model, site, a_bar, b_bar)
        differs = injection.differs_from(a_bar)
        affine = injection.is_affine() if acts or differs else True
    except Exception:  # it cannot be called alone: the matrix is taken as it was read
        return site
    if affine and (acts or differs):
        note = "its A is measured from what the module does" + (
            ", which is not what its weight says" if differs else ""
        )
        b = injection.b_bar if site.b_bar is not None and injection.given is not None else None
        return replace(site, a_bar=injection.a_bar, b_bar=b, notes=_with_note(site, f"{site.body!r}: {note}"))
    if differs and site.found == BY_HAND:
        note = f"{site.body!r} is not a linear function of the state, so the A given by hand could not be checked"
        return replace(site, notes=_with_note(site, note))
    if differs or not affine:
        note = f"{site.body!r} does not act like the matrix read from it, and like no other: A is missing"
        return replace(site, a_bar=None, b_bar=None, notes=_with_note(site, note))
    return replace(site, a_bar=_unless_exchanged(injection, module, site.a_bar, injection.a_bar),
                   b_bar=site.b_bar if site.b_bar is None or injection.given is None else
                   _unless_exchanged(injection, module, site.b_bar, injection.b_bar))  # fmt: skip


def _with_note(site: LoopSite, note: str) -> tuple[str, ...]:
    """Return the notes of a site and one more, once: a site may be verified again by whoever receives it."""
    return site.notes if note in site.notes else (*site.notes, note)


def _unless_exchanged(
    injection: Injection, module: nn.Module, read: Callable[[], Tensor], measure: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    """Return what reads a matrix while the module it was checked against is the model's, and measures it afterwards."""
    return lambda: read() if injection.module is module else measure()


def _reading_acts(module: nn.Module) -> bool:
    """Return whether a layer inside computes its weight, so that reading it may run code or show something else."""
    return any(isinstance(layer, nn.Linear) and type(layer) is not nn.Linear for layer in module.modules())


def tolerance(result: Tensor) -> float:
    """Return the relative difference that rounding explains."""
    return max(COARSE if result.is_cuda else EXACT, 2 * torch.finfo(result.dtype).eps)


__all__ = ["EXACT", "Injection", "tolerance", "verified"]
