"""Whether a loop goes over the parts of its input, as a recurrence over positions does, and not over depth.

Every pass of such a loop takes in a part that no earlier pass did: a chunk of the sequence, a position, a frame. What
is cut out along the channels is no part of this kind, nor what is cut out of parameters or of what the loop made.

Not covered: parts that are taken by an index that is a tensor, and lists of tensors that the caller gives.
"""

from __future__ import annotations

from itertools import pairwise

from .flow import MARK
from .trace import Event, Value

OVER_PARTS = (
    "every pass takes in another part of a tensor from before the loop: it goes over positions, chunks or frames, not "
    "over depth"
)
_CUTS = frozenset({"split", "chunk", "unbind", "tensor_split", "split_with_sizes"})
_INPUT = 1  # the bit of what the model's input has made


def goes_over_parts(root: Event, name: str) -> bool:
    """Return whether every call of a module, or every mark of a name, depends on a further part of the model's input.

    Args:
        root: The model's own call.
        name: The module's, or ``"mark h"``.
    """
    behind = {id(value): _INPUT for value in root.reads}
    before: set[int] | None = None  # what there was before the loop
    parts: dict[tuple[object, ...], int] = {}
    calls: list[int] = []
    for event in root.walk():
        bits = 0
        for value in event.reads:
            bits |= behind.get(id(value), 0)
        if event.name == name and event is not root:
            calls.append(bits & ~_INPUT)
            if before is None and len(calls) == 1 + name.startswith(MARK):  # the first mark may be of the value before
                before = set(behind)
        if event.module is not None or not event.reads:
            continue
        whole = event.reads[0]
        is_there = before is None or id(whole) in before
        cuts = is_there and whole.weights is None and behind.get(id(whole), 0) & _INPUT
        for number, made in enumerate(event.writes):
            own = 0
            if cuts and (index := _part(event, number, whole, made)):
                own = parts.setdefault((id(whole), *index), 2 << len(parts))
            behind[id(made)] = behind.get(id(made), 0) | bits | own
    calls = calls[1:] if calls and not calls[0] else calls  # a mark of the value before the loop
    return len(calls) > 1 and calls[0] > 0 and all(b & ~a for a, b in pairwise(calls))


def _part(event: Event, number: int, whole: Value, made: Value) -> tuple[object, ...]:
    """Return which part of a tensor a function gives; empty where it gives none."""
    along_tokens = not whole.dtype.is_floating_point or made.shape[-1:] == whole.shape[-1:]
    if not along_tokens or made.numel() >= whole.numel():
        return ()
    if event.name in _CUTS and len(event.writes) > 1:
        return event.name, number
    return (event.name, event.index) if event.index is not None else ()
