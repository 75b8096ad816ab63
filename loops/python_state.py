"""The Python side of a model put back: attributes, lists, counters, generators, and which memory its tensors use.

Walks over all that can be reached from the modules through attributes and containers, and keeps references; nothing is
copied but the containers themselves. What a block then changed is put back in place, so that whoever holds a list or a
configuration of the model sees it as it was.

Not covered: what functions have closed over, what a module of Python holds globally, and objects of other libraries
(an optimizer, a trainer), which are not the model's. What cannot be put back, an iterator say, is refused.
"""

from __future__ import annotations

import random
import types
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .site import LoopSiteError
from .writes import PLAIN

MOST_VALUES = 300_000  # walked over, about 0.1 s
_ATOMS: frozenset[type] = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), type(NotImplemented), type}
    | {types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, types.MappingProxyType}
    | {torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, weakref.ref, property}
)
_OTHERS = frozenset(  # packages whose objects are not the model's
    {"torch", "torchvision", "numpy", "lightning", "pytorch_lightning", "lightning_fabric", "accelerate", "wandb"}
    | {"tokenizers", "loopscope", "logging", "threading", "concurrent", "multiprocessing", "io", "_io", "pathlib"}
    | {"re", "weakref"}
)
HOOKS = frozenset(name for name, held in vars(nn.Module()).items() if "hook" in name and isinstance(held, dict))


class LookError(LoopSiteError):
    """A model was not run beside its training, because it could not be left as it was; the message says why."""


class PythonState:
    """What a model held when this was made.

    Args:
        roots: Modules, and whatever else belongs to the model.

    Raises:
        LookError: Something among it could not be put back, or it is too much.

    >>> model = nn.Linear(2, 2)
    >>> model.losses, model.calls = [], 0
    >>> state = PythonState([model])
    >>> model.losses.append(1.0)
    >>> model.calls, model.cache = 1, torch.ones(2)
    >>> model.weight.data = torch.zeros(2, 2)
    >>> changed = state.rewind()
    >>> model.losses, model.calls, hasattr(model, "cache"), bool(model.weight.any()), changed
    ([], 0, False, True, True)
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self._held: list[_Held] = []
        self._alive: dict[int, Any] = {}  # by identity; it keeps them from being reused
        self._waiting: list[tuple[Any, str]] = [(root, "") for root in roots]
        self.tensors: list[Tensor] = []
        values = 0
        while self._waiting:
            value, name = self._waiting.pop()
            if id(value) in self._alive:
                continue
            self._alive[id(value)] = value
            values += self._keep(value, name)
            if values > MOST_VALUES:
                raise LookError(
                    f"the modules of this model hold more than {MOST_VALUES} Python values (near {name!r}), too many "
                    "to watch while it is run on the side; keep data sets and vocabularies outside of the model"
                )

    def rewind(self) -> bool:
        """Put back whatever differs; return whether anything did.

        Raises:
            LookError: Something could not be compared or put back. Everything else has been put back then.
        """
        changed, failed = False, None
        for held in self._held:
            try:
                if held.differs():
                    changed = True
                    held.restore()
            except Exception as error:  # one odd object must not keep the others from being put back
                failed = error
        if failed is not None:
            raise LookError(f"a part of the model could not be put back as it was: {failed}") from failed
        return changed

    def _keep(self, value: Any, name: str) -> int:
        """Note what one value holds and list what is in it; return how much that is."""
        kind = type(value)
        if isinstance(value, dict):
            return self._add(_Mapping(value), value.values(), name)
        if isinstance(value, list):
            return self._add(_Sequence(value), value, name)
        if isinstance(value, tuple | frozenset):
            return self._queue(value, name)
        if isinstance(value, set):
            return self._add(_Set(value), value, name)
        if isinstance(value, deque):
            return self._add(_Deque(value), value, name)
        if isinstance(value, Tensor):
            return self._keep_tensor(value, name)
        if (generator := _generator(value)) is not None:
            self._held.append(generator)
            return 1
        if isinstance(value, np.ndarray | bytearray):
            self._held.append(_Array(value))
            return 1 + len(value)
        if isinstance(value, Iterator):
            raise LookError(
                f"{name or kind.__name__!r} of this model is an iterator ({kind.__name__}); what a forward takes from "
                "it cannot be put back, so the model is not run on the side"
            )
        if isinstance(value, nn.Module) or not is_of_others(kind):
            return self._keep_object(value, name)
        return 1

    def _keep_object(self, value: Any, name: str) -> int:
        """Note the attributes of an object, and of its class where that is a module's."""
        count = 1
        if isinstance(value, nn.Module):
            for kind in type(value).__mro__:
                if id(kind) not in self._alive and not is_of_others(kind) and kind is not object:
                    self._alive[id(kind)] = kind
                    held = _Class(kind)
                    count += self._add(held, held.content.values(), kind.__name__)
        if slots := slots_of(type(value)):
            held_slots = _Slots(value, slots)
            count += self._add(held_slots, held_slots.content.values(), name)
        attributes = getattr(value, "__dict__", None)
        if type(attributes) is dict:
            self._held.append(_Mapping(attributes))
            for key, item in attributes.items():
                if key in HOOKS and isinstance(value, nn.Module):  # they come and go, what they keep does not
                    self._queue(item.values(), name)
                elif type(item) not in _ATOMS:
                    self._waiting.append((item, f"{name}.{key}" if name else str(key)))
            count += len(attributes)
        return count

    def _keep_tensor(self, value: Tensor, name: str) -> int:
        """Note which memory a tensor uses, and its gradient."""
        if isinstance(value, UninitializedParameter | UninitializedBuffer):
            raise LookError(f"{name!r} of this model is not initialised yet (a lazy module): run one forward first")
        if type(value) not in PLAIN or value.layout != torch.strided:
            return 1
        self.tensors.append(value)
        held = _TensorState(value)
        self._held.append(held)
        return 1 + self._queue([held.gradient], name)

    def _add(self, held: _Held, inside: Iterable[Any], name: str) -> int:
        self._held.append(held)
        return self._queue(inside, name)

    def _queue(self, inside: Iterable[Any], name: str) -> int:
        """List values to be walked over; return how many there are, plain ones too."""
        values = list(inside)
        self._waiting += [(value, name) for value in values if type(value) not in _ATOMS]
        return 1 + len(values)


class _Held(ABC):
    """Something that was noted."""

    __slots__ = ()

    @abstractmethod
    def differs(self) -> bool:
        """Return whether it is otherwise now."""

    @abstractmethod
    def restore(self) -> None:
        """Put it back."""


def _same(now: Iterable[Any], then: Iterable[Any]) -> bool:
    """Return whether the very same objects come in the same order; the caller has compared the numbers of them."""
    return all(a is b for a, b in zip(now, then, strict=False))


class _Mapping(_Held):
    """A dict of any kind, or the attributes of an object."""

    __slots__ = ("_keys", "_of", "_values")

    def __init__(self, of: dict[Any, Any]) -> None:
        self._of, self._keys, self._values = of, list(dict.keys(of)), list(dict.values(of))

    def differs(self) -> bool:
        of = self._of
        return len(of) != len(self._keys) or not (_same(of.values(), self._values) and _same(of, self._keys))

    def restore(self) -> None:
        kind: Any = OrderedDict if isinstance(self._of, OrderedDict) else dict  # not what a subclass makes of it
        if list(kind.keys(self._of)) != self._keys:
            kind.clear(self._of)
        for key, value in zip(self._keys, self._values, strict=True):
            kind.__setitem__(self._of, key, value)


class _Sequence(_Held):
    """A list."""

    __slots__ = ("_items", "_of")

    def __init__(self, of: list[Any]) -> None:
        self._of, self._items = of, list(of)

    def differs(self) -> bool:
        return len(self._of) != len(self._items) or not _same(self._of, self._items)

    def restore(self) -> None:
        list.__setitem__(self._of, slice(None), self._items)


class _Set(_Held):
    """A set."""

    __slots__ = ("_items", "_of")

    def __init__(self, of: set[Any]) -> None:
        self._of, self._items = of, set(of)

    def differs(self) -> bool:
        return self._of != self._items

    def restore(self) -> None:
        set.clear(self._of)
        set.update(self._of, self._items)


class _Deque(_Held):
    """A queue with two ends."""

    __slots__ = ("_items", "_of")

    def __init__(self, of: deque[Any]) -> None:
        self._of, self._items = of, list(of)

    def differs(self) -> bool:
        return len(self._of) != len(self._items) or not _same(self._of, self._items)

    def restore(self) -> None:
        self._of.clear()
        self._of.extend(self._items)


class _Array(_Held):
    """Numbers of numpy's, or bytes that can be changed."""

    __slots__ = ("_content", "_of")

    def __init__(self, of: Any) -> None:
        self._of, self._content = of, of.copy()

    def differs(self) -> bool:
        if isinstance(self._of, bytearray):
            return bool(self._of != self._content)
        return bool(self._of.tobytes() != self._content.tobytes())

    def restore(self) -> None:
        self._of[... if isinstance(self._of, np.ndarray) else slice(None)] = self._content


class _Generator(_Held):
    """A stream of random numbers of the model's own."""

    __slots__ = ("_get", "_set", "state")

    def __init__(self, get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        self._get, self._set, self.state = get, put, get()

    def differs(self) -> bool:
        now = self._get()
        return not torch.equal(now, self.state) if isinstance(now, Tensor) else repr(now) != repr(self.state)

    def restore(self) -> None:
        self._set(self.state)


class _Class(_Held):
    """What a class of modules holds for all of them, methods apart."""

    __slots__ = ("_of", "content")

    def __init__(self, of: type) -> None:
        self._of, self.content = of, self._now(of)

    @staticmethod
    def _now(of: type) -> dict[str, Any]:
        kinds = (types.FunctionType, staticmethod, classmethod, property, type)
        held = {name: value for name, value in vars(of).items() if not isinstance(value, kinds)}
        return {name: value for name, value in held.items() if not name.startswith(("__", "_abc"))}

    def differs(self) -> bool:
        now = self._now(self._of)
        return now.keys() != self.content.keys() or any(now[name] is not value for name, value in self.content.items())

    def restore(self) -> None:
        for name in self._now(self._of).keys() - self.content.keys():
            delattr(self._of, name)
        for name, value in self.content.items():
            setattr(self._of, name, value)


class _Slots(_Held):
    """What an object holds in slots."""

    __slots__ = ("_names", "_of", "content")

    def __init__(self, of: Any, names: tuple[str, ...]) -> None:
        self._of, self._names = of, names
        self.content = self._now()

    def _now(self) -> dict[str, Any]:
        return {name: getattr(self._of, name) for name in self._names if hasattr(self._of, name)}

    def differs(self) -> bool:
        now = self._now()
        return now.keys() != self.content.keys() or any(now[name] is not value for name, value in self.content.items())

    def restore(self) -> None:
        for name in self._now().keys() - self.content.keys():
            object.__delattr__(self._of, name)
        for name, value in self.content.items():
            object.__setattr__(self._of, name, value)


class _TensorState(_Held):
    """Which memory a tensor uses, whether it takes gradients, and how many writes autograd has counted."""

    __slots__ = ("_alias", "_of", "_takes_gradients", "_version", "gradient")

    def __init__(self, of: Tensor) -> None:
        self._of, self._alias, self._takes_gradients = of, of.data, of.requires_grad
        self.gradient = of.grad if of.is_leaf else None
        self._version = None if of.is_inference() else of._version

    def differs(self) -> bool:
        of = self._of
        return not (
            self._same_memory()
            and of.dtype == self._alias.dtype
            and of.requires_grad == self._takes_gradients
            and (not of.is_leaf or of.grad is self.gradient)
            and (self._version is None or of._version == self._version)
        )

    def _same_memory(self) -> bool:
        """Return whether the tensor still uses its memory; one on meta has none, and its shape is all there is."""
        of = self._of
        return of.shape == self._alias.shape if of.is_meta else of.is_set_to(self._alias)

    @torch.no_grad()
    def restore(self) -> None:
        of = self._of
        if not self._same_memory() or of.dtype != self._alias.dtype:
            of.data = self._alias
        if of.requires_grad != self._takes_gradients:
            if not of.is_leaf:
                of.detach_()
            of.requires_grad_(self._takes_gradients)
        if of.is_leaf:
            of.grad = self.gradient
        if self._version is not None:  # what a graph saved of it holds the same numbers as before
            torch._C._autograd._unsafe_set_version_counter((of,), (self._version,))


def generator_state(value: Any) -> Any:
    """Return the state of a random stream; None where the value is none.

    >>> generator_state(random.Random(0)) == random.Random(0).getstate(), generator_state(3)
    (True, None)
    """
    generator = _generator(value)
    return None if generator is None else generator.state


def _generator(value: Any) -> _Generator | None:
    """Return a random stream, where the value is one."""
    if isinstance(value, torch.Generator):
        return _Generator(value.get_state, value.set_state)
    if isinstance(value, random.Random):
        return _Generator(value.getstate, value.setstate)
    if isinstance(value, np.random.RandomState):
        return _Generator(partial(value.get_state, legacy=False), value.set_state)
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return _Generator(lambda: bits.state, lambda state: setattr(bits, "state", state))
    return None


def slots_of(kind: type) -> tuple[str, ...]:
    """Return names of the slots that objects of a class have.

    >>> slots_of(nn.Linear), slots_of(type("Point", (), {"__slots__": ("x", "y")}))
    ((), ('x', 'y'))
    """
    return _slots(kind.__mro__)


@lru_cache(maxsize=4096)
def _slots(kinds: tuple[type, ...]) -> tuple[str, ...]:
    """Return names of the slots that these classes add."""
    names: list[str] = []
    for kind in kinds:
        own = vars(kind).get("__slots__", ())
        names += [own] if isinstance(own, str) else list(own)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def is_of_others(kind: type) -> bool:
    """Return whether objects of a class belong to another library than the model's."""
    package, _, inner = kind.__module__.partition(".")
    return package in _OTHERS and not (package == "loopscope" and inner.startswith("models"))
