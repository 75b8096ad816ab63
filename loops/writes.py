"""Tensors put back as they were, at no cost to those that nobody writes to.

Copies of all weights would not fit beside a large model, and version counters miss what is written through ``.data``.
So every operation is watched, as torch dispatches it: where one is about to write into a tensor that was there before,
what it will overwrite is copied first. Nothing is copied in a forward that only reads.

Not covered: writes that torch does not dispatch (numpy, a kernel launched by hand). `Fingerprint` sees those of them
that change a parameter or a buffer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

UNDECLARED = ("running_mean", "running_var")  # batch norms write to these without saying so in their schema
PIECE = 1 << 20  # numbers of a large tensor that are summed at a time; even, so that every second one stays so
SMALL = 1 << 20  # bytes of a tensor of which a copy is kept for comparison
PLAIN = frozenset((Tensor, nn.Parameter, nn.Buffer))  # as opposed to tensors of somebody's own kind
Key = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]


class Writes(TorchDispatchMode):
    """Keeps what is overwritten in a block, and puts it back.

    Args:
        only: Where the memory of tensors begins that are watched; None for all that are not made in the block.

    >>> weight = torch.zeros(3)
    >>> with Writes() as writes:
    ...     _ = weight.data.add_(1), torch.ones(2).mul_(2)
    >>> before, kept = weight.tolist(), writes.changed
    >>> writes.undo()
    >>> before, kept, weight.tolist(), weight._version
    ([1.0, 1.0, 1.0], True, [0.0, 0.0, 0.0], 0)
    """

    def __init__(self, only: set[int] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._only = only
        self._made: set[int] = set()  # memory of tensors made inside
        self._kept: dict[Key, tuple[Tensor, Tensor]] = {}  # place -> the tensor there, and what it held

    @property
    def changed(self) -> bool:
        """Whether anything was overwritten since the start, or since it was last put back."""
        return bool(self._kept)

    @property
    def memory(self) -> set[int]:
        """Where the memory begins that was written to."""
        return {key[0] for key in self._kept}

    def undo(self) -> None:
        """Put back what was overwritten, the last of it first."""
        with torch.no_grad():
            for tensor, content in reversed(self._kept.values()):
                tensor.copy_(content)
        self._kept.clear()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler on the first call: a look runs nothing compiled."""
        return False

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator):  # what such an operator is given must not write
            return func(*args, **(kwargs or {}))
        if not PLAIN.issuperset(types):  # it takes itself apart first, and its parts come by here
            return NotImplemented
        kwargs = kwargs or {}
        places, makes = _effects(func)
        for number, name in places:
            self._keep(args[number] if number < len(args) else kwargs.get(name))
        output = func(*args, **kwargs)
        if makes:
            self._note(output)
        return output

    def _keep(self, written: Any) -> None:
        """Copy what is about to be overwritten, once per place."""
        if isinstance(written, list | tuple):
            for tensor in written:
                self._keep(tensor)
            return
        memory = _memory(written)
        if not memory or memory in self._made or (self._only is not None and memory not in self._only):
            return
        key = (memory, written.storage_offset(), tuple(written.shape), written.stride(), written.dtype)
        if key not in self._kept:
            self._kept[key] = written.detach(), written.clone()

    def _note(self, output: Any) -> None:
        """Note the memory of a result."""
        if isinstance(output, list | tuple):
            for value in output:
                self._note(value)
        elif isinstance(output, Tensor):
            self._made.add(_memory(output))


@lru_cache(maxsize=4096)
def _effects(func: Any) -> tuple[tuple[tuple[int, str], ...], bool]:
    """Return which arguments an operation writes to, by position and name, and whether what it returns is new."""
    schema = func._schema
    written = tuple(
        (number, argument.name)
        for number, argument in enumerate(schema.arguments)
        if (argument.alias_info is not None and argument.alias_info.is_write) or argument.name in UNDECLARED
    )
    return written, all(returned.alias_info is None for returned in schema.returns)


def _memory(value: Any) -> int:
    """Return where the memory of a tensor begins; 0 for what has none."""
    if not isinstance(value, Tensor):
        return 0
    try:
        return value.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse, or a wrapper without memory of its own
        return 0


def memory_of(tensors: Iterable[Tensor]) -> set[int]:
    """Return where the memory of these tensors begins."""
    return {_memory(tensor) for tensor in tensors} - {0}


@dataclass(frozen=True, slots=True)
class _Mark:
    """What a tensor held: a copy of a small one, two sums over the bits of a large one."""

    name: str
    tensor: Tensor
    content: Tensor

    def now(self) -> Tensor:
        return _content(self.tensor)


class Fingerprint:
    """What the parameters and buffers of a model hold, to see whether something changed them out of torch's sight.

    Reads all of them once, and waits for the device.

    >>> layer = nn.Linear(2, 2)
    >>> before = Fingerprint(layer)
    >>> layer.weight.detach().numpy()[0, 0] += 1.0
    >>> before.changed()
    ['weight']
    """

    def __init__(self, model: nn.Module) -> None:
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        # A subclass has no bits of its own that could be read here, and a tensor without memory has none at all.
        plain = {name: t for name, t in named.items() if type(t) in PLAIN and _memory(t)}
        self._marks = [_Mark(name, tensor.data, _content(tensor).clone()) for name, tensor in plain.items()]

    def changed(self) -> list[str]:
        """Return names of those that hold something else now. Those of which there is a copy are put back."""
        others = [mark for mark in self._marks if not torch.equal(mark.now(), mark.content)]
        for mark in others:
            if _is_small(mark.tensor):
                mark.now().copy_(mark.content)
        return [mark.name for mark in others]

    def lost(self, names: Iterable[str]) -> list[str]:
        """Return those of these names that could not be put back."""
        return [mark.name for mark in self._marks if mark.name in set(names) and not _is_small(mark.tensor)]


def _is_small(tensor: Tensor) -> bool:
    """Return whether a copy of it is cheap."""
    return tensor.numel() * tensor.element_size() <= SMALL and tensor.is_contiguous()


@torch.no_grad()
def _content(tensor: Tensor) -> Tensor:
    """Return the bytes of a small tensor, without a copy; two sums over a large one."""
    flat = tensor.detach().reshape(-1)
    if _is_small(tensor):
        return flat.view(torch.uint8)
    size = flat.element_size()
    bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32}.get(size, torch.int64))
    # In pieces: each is widened on the way, and together they would be a copy of the weights twice as large.
    sums = [(piece.sum(dtype=torch.int64), piece[::2].sum(dtype=torch.int64)) for piece in bits.split(PIECE)]
    return torch.stack([torch.stack(pair) for pair in sums]).sum(dim=0)
