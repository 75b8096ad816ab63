"""Seeing the states that a forward marks: the other side of `mark`, for who watches or steers a loop.

Not covered: which model a mark is in. A watcher hears of every mark of the process and knows by itself whether the
forward under way is its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from . import mark as front
from .compiled import in_operator

Seen = Callable[[str, Tensor, Tensor | None], Tensor | None]
"""Takes a mark's name, state and input. What it returns takes the state's place, if it is not None."""


class MarkWatcher:
    """Hears of marks from when it is made until `close`.

    Args:
        seen: Called with every mark outside of compiled graphs.
        shown: Called with every mark inside of one, whose state cannot be exchanged; default: ``seen``.

    >>> from loopscope.loops.mark import mark
    >>> names = []
    >>> watcher = MarkWatcher(lambda name, state, given: names.append(name))
    >>> _ = mark(torch.ones(1, 2), "h")
    >>> watcher.close()
    >>> _ = mark(torch.ones(1, 2), "h")
    >>> names
    ['h']
    """

    def __init__(self, seen: Seen, shown: Seen | None = None) -> None:
        self.seen, self.shown = seen, shown or seen
        _WATCHERS.add(self)
        _count()

    def close(self) -> None:
        """Hear no more; a second call changes nothing."""
        _WATCHERS.discard(self)
        _count()


_log = logging.getLogger("loopscope")
_refused: set[str] = set()  # names of such marks, each said once
_WATCHERS: WeakSet[MarkWatcher] = WeakSet()
_ORDER = torch.zeros(1, dtype=torch.int64)  # keeps the marks of a compiled graph in order, and is not changed


def _count() -> None:
    """Let `mark` know whether anybody looks on: 1 or 0, so that a second watcher makes no graph anew."""
    front.show, front.watchers = _show, int(len(_WATCHERS) > 0)


@torch.library.custom_op(
    "loopscope::mark",
    mutates_args=("order",),
    schema="(Tensor(a!) order, Tensor[] seen, str name) -> ()",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _mark(order: Tensor, seen: list[Tensor], name: str) -> None:
    """Show a state that a compiled graph marks."""
    # Memory of a graph may be used again before the forward is over.
    state, given = seen[0].clone(), seen[1] if len(seen) > 1 else None
    for watcher in list(_WATCHERS):
        watcher.shown(name, state, given)


def has_norms(h: Any) -> bool:
    """Return whether a tensor, or what a trace knows of one, can be a state: floating point numbers in rows.

    >>> has_norms(torch.ones(4, 2)), has_norms(torch.ones(4, 2) > 0), has_norms(torch.ones(4))
    (True, False, False)
    """
    return bool((h.dtype.is_floating_point or h.dtype.is_complex) and h.ndim > 1)


def _refuse(h: Tensor, name: str) -> None:
    """Say once of a mark that what it names is no state."""
    if name not in _refused:
        _refused.add(name)
        _log.warning(
            "loopscope: the mark %r is not recorded: it names a tensor of %d axes in %s, which has no norm per token; "
            "mark the states (…, D) of the loop only",
            name,
            h.ndim,
            str(h.dtype).removeprefix("torch."),
        )


def _show(h: Any, name: str, given: Any) -> Any:
    """Show a state to all watchers; return it, or what one of them puts in its place."""
    if not isinstance(h, Tensor) or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return h
    if not has_norms(h):
        if not torch.compiler.is_dynamo_compiling():
            _refuse(h, name)
        return h
    if torch.compiler.is_dynamo_compiling():
        if not torch.compiler.is_exporting() and not in_operator():
            _mark(_ORDER, [h.detach()] if given is None else [h.detach(), given.detach()], name)
        return h
    for watcher in list(_WATCHERS):
        other = watcher.seen(name, h, given)
        h = h if other is None else other
    return h
