"""What differs between two models that were trained alike: parameters, buffers, and everything they hold in Python.

Walks over two objects of the same making side by side, through attributes and containers, as `PythonState` walks over
one. Hooks and graphs are left out, for they come and go, and so is what belongs to other libraries.

Not covered: what classes hold for all of their modules, and what functions have closed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from .python_state import HOOKS, MOST_VALUES, generator_state, is_of_others, slots_of

_HELD: Final = {"_parameters", "_buffers", "_modules"}  # dicts of a module whose entries are attributes of it
_COME_AND_GO: Final = HOOKS | {"_compiled_call_impl"}  # a graph, which torch does not save either
_ABSENT: Final = object()


def differences(one: Any, other: Any, *, tolerance: float = 0.0) -> list[str]:
    """Return the names of what differs between two models or other objects of the same making.

    Args:
        one: An object.
        other: The other one.
        tolerance: Relative difference of floating-point numbers that passes; 0 compares bit by bit.

    >>> one, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    >>> differences(one, other)
    []
    >>> _, other.calls = other.running_mean.add_(1), [1]
    >>> differences(one, other)
    ['calls', 'running_mean']
    """
    return sorted(set(_Comparison(tolerance).of(one, other, "")))


class _Comparison:
    """A walk over two objects."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._seen: dict[tuple[int, int], Any] = {}  # what was compared; it keeps objects from being reused

    def of(self, a: Any, b: Any, name: str) -> Iterator[str]:
        """Yield the names of what differs."""
        if (id(a), id(b)) in self._seen or len(self._seen) > MOST_VALUES:
            return
        self._seen[id(a), id(b)] = a, b
        inside = _entries(a, b) if _same_kind(a, b) else None
        if (inside is None or isinstance(a, Tensor)) and not self._equal(a, b):
            yield name or type(a).__name__
        for key, x, y in inside or ():
            at = f"{name}.{key}" if name else key
            if x is _ABSENT or y is _ABSENT:
                yield at
            else:
                yield from self.of(x, y, at)

    def _equal(self, a: Any, b: Any) -> bool:
        """Return whether two values without parts are the same."""
        if not _same_kind(a, b):
            return False
        if isinstance(a, Tensor):
            return self._equal_tensors(a, b)
        if isinstance(a, np.ndarray):
            alike = a.dtype == b.dtype and a.shape == b.shape
            return alike and bool(a.dtype.hasobject or a.tobytes() == b.tobytes())
        if isinstance(a, float) and self._tolerance:
            return repr(a) == repr(b) or bool(abs(a - b) <= self._tolerance * max(abs(a), abs(b)))
        if (state := generator_state(a)) is not None:
            other = generator_state(b)
            return torch.equal(state, other) if isinstance(state, Tensor) else repr(state) == repr(other)
        if isinstance(
            a, int | float | complex | str | bytes | bytearray | set | frozenset | torch.dtype | torch.device
        ):
            return bool(a == b) or (a != a and b != b)  # NaN is the same as NaN
        return True  # functions and what belongs to others

    def _equal_tensors(self, a: Tensor, b: Tensor) -> bool:
        """Return whether two tensors hold the same bits, or about the same numbers where that is enough."""
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.layout != b.layout:
            return False
        if a.layout != torch.strided or a.is_meta:
            return True
        a, b = a.detach(), b.detach()
        if torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
            return True
        about = self._tolerance > 0 and a.is_floating_point()
        return about and bool((a.double() - b.double()).norm() <= self._tolerance * a.double().norm())


def _same_kind(a: Any, b: Any) -> bool:
    """Return whether two objects are of one class; parametrised modules have a class each, of one name."""
    one, other = type(a), type(b)
    return one is other or (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def _entries(a: Any, b: Any) -> list[tuple[str, Any, Any]] | None:
    """Return the parts of two objects of one type, by name; None where they have none."""
    if isinstance(a, Tensor):
        return [("grad", a.grad, b.grad)] if a.is_leaf and b.is_leaf else None
    if isinstance(a, dict):
        by_name = all(isinstance(key, str) for key in (*a, *b))  # other keys may be identities: they go by their order
        return _paired(*(dict(held) if by_name else _numbered(held.values()) for held in (a, b)))
    if isinstance(a, list | tuple | deque):
        return _paired(_numbered(a), _numbered(b))
    if isinstance(a, type) or (callable(a) and not isinstance(a, nn.Module)):
        return None
    if generator_state(a) is not None or (is_of_others(type(a)) and not isinstance(a, nn.Module)):
        return None
    held = _attributes(a), _attributes(b)
    return _paired(*held) if any(held) else None


def _attributes(value: Any) -> dict[str, Any]:
    """Return what an object holds, by name; of a module its parameters, buffers and modules as attributes."""
    names = slots_of(type(value))
    held = {name: getattr(value, name) for name in names if hasattr(value, name)}
    for name, item in getattr(value, "__dict__", {}).items():
        if not isinstance(value, nn.Module):
            held[name] = item
        elif name in _HELD:
            held |= item
        elif name not in _COME_AND_GO:
            held[name] = item
    return held


def _numbered(values: Iterable[Any]) -> dict[str, Any]:
    """Return values by their place."""
    return {str(place): value for place, value in enumerate(values)}


def _paired(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the entries of two mappings side by side."""
    return [(key, a.get(key, _ABSENT), b.get(key, _ABSENT)) for key in {**a, **b}]


__all__ = ["differences"]
