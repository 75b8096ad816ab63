"""How a model is called: what the probe runs beside training is called as training calls it.

Models take tokens by position or by name, alone or with targets, masks and more. A `Call` keeps the arguments of one
call, a small part of the batch, and runs the model on them at another depth.

Tensors may stand in lists, tuples, dictionaries, named tuples and dataclasses (the carry of TRM), nested in any way.

Not covered: arguments that are none of these and no plain values (a cache, say): they may be changed by a run, and a
run on the side must change nothing.
"""

# Shapes: B sequences, S positions.

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .nested import changed, tensors_in
from .site import LoopSite, LoopSiteError

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of a model.

    Args:
        args: By position.
        kwargs: By name.

    >>> model = nn.Linear(3, 2)
    >>> import torch
    >>> Call.of(model, torch.ones(4, 3)).run(model).shape, Call.of(model, {"input": torch.ones(4, 3)}).run(model).shape
    (torch.Size([4, 2]), torch.Size([4, 2]))
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, given: Input) -> Call:
        """Turn a user's example into a call.

        A tensor is the first argument. A tuple and a mapping are all arguments, where the forward takes them as such;
        where it does not, as ``forward(batch)``, they are the first argument too.
        """
        if isinstance(given, Call):
            return given
        if isinstance(given, Mapping) and _binds(model, (), dict(given)):
            return cls((), dict(given))
        if isinstance(given, tuple) and _binds(model, given, {}):
            return cls(given, {})
        first = next(iter(inspect.signature(model.forward).parameters.values()), None)
        if first is not None and first.kind is inspect.Parameter.KEYWORD_ONLY:
            return cls((), {first.name: given})
        return cls((given,), {})

    @property
    def tokens(self) -> Tensor:
        """The first tensor, nested ones among them, whose first two axes are those of the batch.

        Raises:
            LoopSiteError: There is none.
        """
        tensors = tensors_in([self.args, self.kwargs])
        if not tensors:
            raise LoopSiteError("the model is called without a tensor; give attach() a probe_batch that holds one")
        return tensors[0]

    def run_at(self, model: nn.Module, site: LoopSite, depth: int) -> Any:
        """Call the model at a depth of its loop, where the site says how that is set; else as it is."""
        if site.depth_argument is not None:
            return self.run(model, **{site.depth_argument: depth})
        with _depth_set(model, site.depth_attribute, depth):
            return self.run(model)

    def run(self, model: nn.Module, **others: Any) -> Any:
        """Call the model, some arguments exchanged for others of these names."""
        args = list(self.args)
        if others and args:
            named = [
                p.name
                for p in inspect.signature(model.forward).parameters.values()
                if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            ]
            for place, name in enumerate(named[: len(args)]):
                if name in others:
                    args[place] = others.pop(name)
        return model(*args, **{**self.kwargs, **others})

    def cut(self, sequences: int, positions: int | None = None) -> Call:
        """Return the same call on the first sequences, and the first positions of each.

        A tensor is cut along an axis where it is as long as the batch there.
        """
        tokens = self.tokens
        batch, length = tokens.shape[0], tokens.shape[1] if tokens.ndim > 1 else None

        def part(tensor: Tensor) -> Tensor:
            if tensor.ndim == 0 or tensor.shape[0] != batch:
                return tensor
            tensor = tensor[:sequences]
            return tensor[:, :positions] if tensor.ndim > 1 and tensor.shape[1] == length else tensor

        return self._changed(part)

    def kept(self) -> Call:
        """Return a copy that nobody else holds, for later.

        Raises:
            LoopSiteError: An argument is neither a tensor nor a plain value.
        """
        return self._changed(lambda tensor: tensor.detach().clone())

    def to(self, device: Any) -> Call:
        """Return the same call with its tensors on a device."""
        return self._changed(lambda tensor: tensor.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Call:
        """Return the same call with every tensor changed."""
        args: tuple[Any, ...] = tuple(_changed(value, change) for value in self.args)
        return Call(args, {name: _changed(value, change) for name, value in self.kwargs.items()})


def _binds(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[Any, Any]) -> bool:
    """Return whether a forward takes these arguments; nothing is run.

    >>> _binds(nn.Linear(3, 2), (), {"input": 0}), _binds(nn.Linear(3, 2), (), {"inputs": 0})
    (True, False)
    """
    if not all(isinstance(name, str) for name in kwargs):
        return False
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


@contextmanager
def _depth_set(model: nn.Module, path: str | None, depth: int) -> Iterator[None]:
    """Return a block in which the attribute that holds the depth has another value."""
    if path is None:
        yield
        return
    *parents, name = path.split(".")
    holder: Any = model
    for parent in parents:
        holder = holder[parent] if isinstance(holder, dict) else getattr(holder, parent)
    usual = holder[name] if isinstance(holder, dict) else getattr(holder, name)
    change = holder.__setitem__ if isinstance(holder, dict) else partial(setattr, holder)
    change(name, depth)
    try:
        yield
    finally:
        change(name, usual)


Input: TypeAlias = Tensor | Mapping[str, Any] | tuple[Any, ...] | Call
"""What a user gives as an example of a model's input."""


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a value with the tensors in it changed."""
    return changed(value, change, _plain)


def _plain(value: Any) -> Any:
    """Return a value that a run on the side cannot change."""
    if isinstance(value, PLAIN):
        return value
    raise LoopSiteError(
        f"an argument of the model is a {type(value).__name__}, which a run on the side might change; "
        "runs on the side take tensors and plain values, also in lists, tuples, dictionaries and dataclasses"
    )
