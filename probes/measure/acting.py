"""Whether the loop's injection still acts like the recorded A̅, seen in every pass of the fixed batch.

A module may begin to act differently without being exchanged: an adapter is switched on, a layer merges or quantises
its weight, or it does something else under the autocast of training. So each pass keeps the arguments of the
injection's first call and the state of its second, and the module is called with the one and the other state. Whatever
else it received is the same in both calls, so the results differ by A̅ times the difference of the states.

Not covered: directions of the state that the two states do not show, and parameters that are spread over ranks.
"""

# Shapes: N tokens of a call, D width of the state.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...loops.hooks import Hook, state_in
from ...loops.injection import tolerance
from ...loops.site import LoopSite, argument, with_argument
from .sharded import is_spread


@dataclass(frozen=True, slots=True)
class Autocast:
    """Whether torch computes in another precision than that of the tensors, and in which.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     Autocast.now("cpu")
    Autocast(device='cpu', enabled=True, dtype=torch.bfloat16)
    """

    device: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, device: str) -> Autocast:
        """Return the setting that holds here."""
        if not torch.amp.is_autocast_available(device):
            return cls(device, False, torch.float32)
        return cls(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold this setting for a block."""
        if not torch.amp.is_autocast_available(self.device):
            yield
            return
        with torch.autocast(self.device, self.dtype, enabled=self.enabled, cache_enabled=False):
            yield


@dataclass(frozen=True, slots=True)
class _FirstCall:
    """What the injection was called with first, in precision and arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: Autocast


class SeenInjection:
    """The injection's calls in one pass of the fixed batch.

    Args:
        model: The user's module, unwrapped.
        site: Where its loop is, and what it gives as A̅.
        training: The autocast under which training calls the model; None where that is not known.

    >>> model = nn.ModuleDict({"mix": nn.Linear(4, 2, bias=False), "head": nn.Identity()})
    >>> from loopscope.loops.site import Part
    >>> site = LoopSite(body="mix", after="head", state_argument=Part(0, 0, 2), input_argument=Part(0, 2, 4),
    ...                 a_bar=lambda: model["mix"].weight[:, :2])
    >>> seen = SeenInjection(model, site, None)
    >>> with torch.no_grad(), seen.watched():
    ...     _ = model["mix"](torch.ones(1, 1, 4)), model["mix"](2 * torch.ones(1, 1, 4))
    >>> with torch.no_grad():
    ...     float(seen.disagreement()) < 1
    ...     _ = model["mix"].register_forward_hook(lambda module, args, output: 3 * output)
    ...     float(seen.disagreement()) > 1
    True
    True
    """

    def __init__(self, model: nn.Module, site: LoopSite, training: Autocast | None) -> None:
        self._model, self._site, self._training = model, site, training
        self._first: _FirstCall | None = None
        self._second: Tensor | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """See the calls of the injection in a block; each such block begins anew."""
        self._first = self._second = None
        if self._site.a_bar is None or self._site.state_argument is None:
            yield
            return
        module = self._model.get_submodule(self._site.body)
        handle = module.register_forward_pre_hook(Hook(self._see), prepend=True, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the arguments of the first call and the state of the second."""
        if self._second is not None or self._site.state_argument is None:
            return
        state = argument(args, kwargs, self._site.state_argument)
        if self._first is None:
            kept = tuple(_copied(value) for value in args), {name: _copied(value) for name, value in kwargs.items()}
            self._first = _FirstCall(*kept, Autocast.now(state.device.type))
        else:
            self._second = state.detach().clone()

    def disagreement(self) -> Tensor | None:
        """Return how far the module is from A̅, in units of what rounding explains: above 1 is too far.

        Calls the module twice, so it belongs into the pass, where that leaves no trace. Nothing waits for the device.

        Returns:
            One number on the device; NaN where states are not finite. None where nothing can be compared.
        """
        first, place = self._first, self._site.state_argument
        if first is None or self._second is None or place is None or self._site.a_bar is None:
            return None
        before = argument(first.args, first.kwargs, place)
        a_bar = self._site.a_bar().detach()
        if self._second.shape != before.shape or is_spread(a_bar) or a_bar.is_meta:
            return None
        module, setting = self._model.get_submodule(self._site.body), first.autocast
        if self._training is not None and self._training.enabled:
            setting = self._training
        with setting.held():
            one, other = (
                state_in(module(*args, **kwargs))
                for args, kwargs in (
                    (first.args, first.kwargs),
                    with_argument(first.args, first.kwargs, place, self._second),
                )
            )
        if one.shape != before.shape:
            return None
        with torch.autocast(before.device.type, enabled=False):
            return difference(a_bar, before, self._second, one, other, setting)


def difference(a_bar: Tensor, before: Tensor, after: Tensor, one: Tensor, other: Tensor, setting: Autocast) -> Tensor:
    """Return the difference of ``other - one`` and ``A̅ (after - before)`` in units of what rounding explains."""
    wide = torch.float32 if before.device.type == "mps" else torch.float64
    a, h, g, u, v = (tensor.to(wide) for tensor in (a_bar, before, after, one, other))

    def act(states: Tensor) -> Tensor:
        return states @ a.mT if a.ndim == 2 else a * states

    allowed = tolerance(one)
    if setting.enabled:
        allowed = max(allowed, 2 * torch.finfo(setting.dtype).eps)
    size = act(h).norm() + act(g).norm() + u.norm() + v.norm()
    difference: Tensor = (v - u - act(g - h)).norm() / (allowed * size)
    return difference


def _copied(value: Any) -> Any:
    """Return a tensor that later writes do not reach, and anything else as it is."""
    return value.detach().clone() if isinstance(value, Tensor) else value


__all__ = ["Autocast", "SeenInjection", "difference"]
