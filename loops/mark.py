"""Naming a state inside a forward: `mark` hands a tensor on as it is, and a probe that watches sees it.

    for _ in range(depth):
        h = loopscope.mark(block(h + e), "h")

Without a probe a call costs one comparison. Nothing is imported here, so that a model may mark its states without
loading anything of loopscope. While somebody watches, `watch_marks` puts the function in place that shows the state;
in a compiled graph that is one operator, which returns nothing, so that ``h`` itself goes on and autograd, views and
aliases are as they were.

Not covered: tensors of a transform (``vmap``, ``jvp``): they are handed on, and not seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

watchers = 0  # how many look on; a compiled graph guards this number, and is made anew when it changes from 0
show: Any = None  # what shows a state to them; set by `marked`, while there are any


def mark(h: Tensor, name: str, *, input: Tensor | None = None) -> Tensor:
    """Name a state of the loop; the identity.

    Call it wherever the forward has made the next value of a variable, and once before the loop on its first value, if
    that is to be recorded too. States count in the order in which they are marked.

    Args:
        h: The state ``(B, …, D)``.
        name: Name of the variable, the same in every loop: ``"h"``, ``"z_H"``.
        input: The input ``e`` that the loop adds, where its norm is to be recorded.

    Returns:
        ``h`` itself. While a loop is linearised, the state that is put in its place.

    >>> import torch
    >>> h = torch.ones(2, 3)
    >>> mark(h, "h") is h
    True
    """
    if watchers:
        shown: Tensor = show(h, name, input)
        return shown
    return h
