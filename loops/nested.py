"""Tensors inside of what modules take and return: lists, tuples, mappings and dataclasses, nested in any way.

The tensors of a value are numbered in their order: a state that a module returns in a dictionary, or as the second of
a tuple, is known by its number.

Not covered: tensors in objects of other classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in a value, in order.

    >>> import torch
    >>> [tensor.item() for tensor in tensors_in({"h": torch.tensor(1), "more": (None, [torch.tensor(2)])})]
    [1, 2]
    """
    if isinstance(value, Tensor):
        return [value]
    return [tensor for _, item in _items(value) for tensor in tensors_in(item)]


def changed(value: Any, change: Callable[[Tensor], Tensor], other: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return a copy of a value with every tensor changed.

    Args:
        value: The value.
        change: What becomes of a tensor.
        other: What becomes of a value that is no tensor and holds none that are known; default: itself.
    """
    if isinstance(value, Tensor):
        return change(value)
    if type(value) is list:
        return [changed(item, change, other) for item in value]
    if isinstance(value, tuple):
        items = [changed(item, change, other) for item in value]
        if type(value) is tuple:
            return tuple(items)
        if callable(make := getattr(type(value), "_make", None)):  # a named tuple
            return make(items)
    if isinstance(value, dict):
        return {key: changed(item, change, other) for key, item in value.items()}
    if is_record(value):
        record = copy.copy(value)  # its `__init__` does not run again
        for name, held in entries(value).items():
            object.__setattr__(record, name, changed(held, change, other))  # frozen ones too
        return record
    return other(value)


def replaced(value: Any, number: int, tensor: Tensor) -> Any:
    """Return a value with another tensor in the place of one; what holds it is copied, of the same class.

    Args:
        value: A tensor, or a value with tensors inside.
        number: Of the tensor that is replaced, in the order of `tensors_in`.
        tensor: What takes its place.

    Raises:
        IndexError: There is no such tensor.

    >>> import torch
    >>> replaced({"h": torch.tensor(1), "c": torch.tensor(2)}, 1, torch.tensor(5))
    {'h': tensor(1), 'c': tensor(5)}
    """
    if isinstance(value, Tensor):
        return tensor
    for key, item in _items(value):
        count = len(tensors_in(item))
        if number < count:
            return _with(value, key, replaced(item, number, tensor))
        number -= count
    raise IndexError("there is no such tensor in it")


def _with(value: Any, key: Any, item: Any) -> Any:
    """Return a copy of a container with another item at a key."""
    if isinstance(value, tuple):
        items = (*value[:key], item, *value[key + 1 :])
        make = getattr(type(value), "_make", None)
        return items if make is None else make(items)
    other = copy.copy(value)
    if isinstance(value, list | Mapping):
        other[key] = item
    else:
        object.__setattr__(other, key, item)
    return other


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what a container holds, with the position or the name of each."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif is_record(value):
        yield from entries(value).items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def is_record(value: Any) -> bool:
    """Return whether a value is a dataclass that holds its fields and nothing else, so that copying them copies it."""
    if not is_dataclass(value) or isinstance(value, type):
        return False
    return set(getattr(value, "__dict__", ())) <= set(entries(value))


def entries(record: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that have a value, by name."""
    missing = object()
    values = {entry.name: getattr(record, entry.name, missing) for entry in fields(record)}
    return {name: value for name, value in values.items() if value is not missing}
