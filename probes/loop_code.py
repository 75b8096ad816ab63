"""Where in the user's project the code of a loop is, so that a reviewer of a change knows where to look.

Nothing is imported, read or run for it: parameters come from the graph behind A̅, files and lines from the code objects
that Python has anyway. Only files of the project that training runs in are named, relative to its root: a run file is
made to be shared.

Not covered: which line of the code is at fault; a rule knows the loop and not its cause.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..loops.site import LoopSite, uncompiled
from ..runfile.commit import root_of

log = logging.getLogger("loopscope")

MOST_PARAMETERS: Final = 8  # named
MOST_NODES: Final = 2000  # of a graph that are looked at
MOST_FRAMES: Final = 100
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})


def loop_code(model: nn.Module, site: LoopSite | None, a_bar: Tensor | None) -> dict[str, Any]:
    """Return the parameters that A̅ is made of, and file and line of the loop's code.

    Args:
        model: The user's module.
        site: Where its loop is.
        a_bar: A̅ as it was read; None where it is not known.
    """
    try:
        return {"a_bar_parameters": parameters_behind(model, a_bar), "loop_code": _place(model, site)}
    except Exception as error:  # nice to know, and nothing that a training should end for
        log.debug("loopscope: where the code of the loop is could not be seen: %s", error)
        return {"a_bar_parameters": [], "loop_code": None}


def parameters_behind(model: nn.Module, value: Tensor | None) -> list[str]:
    """Return the names of the parameters that a tensor was worked out from, a few of them, in the model's order.

    >>> model = nn.ModuleDict({"mix": nn.Linear(4, 2)})
    >>> parameters_behind(model, model["mix"].weight[:, :2].exp())
    ['mix.weight']
    """
    if value is None:
        return []
    leaves = {id(leaf) for leaf in _leaves(value)}
    return [name for name, each in model.named_parameters() if id(each) in leaves][:MOST_PARAMETERS]


def _leaves(value: Tensor) -> Iterator[Tensor]:
    """Yield the leaves of the graph that a tensor came from."""
    if value.grad_fn is None:
        yield value
        return
    waiting, seen = [value.grad_fn], {value.grad_fn}
    while waiting and len(seen) < MOST_NODES:
        node: Any = waiting.pop()
        leaf = getattr(node, "variable", None)  # only of the nodes that keep a leaf's gradient
        if isinstance(leaf, Tensor):
            yield leaf
        later = [each for each, _ in node.next_functions if each is not None and each not in seen]
        seen.update(later)
        waiting += later


def _place(model: nn.Module, site: LoopSite | None) -> dict[str, Any] | None:
    """Return file and line of the forward that holds the loop; else of the project's line that led here."""
    root = root_of(Path.cwd()) or Path.cwd()
    forward = None if site is None else _forward(model, site)
    if forward is not None and (file := _inside(root, forward)):
        return {"file": file, "line": forward.co_firstlineno, "holds_loop": True}
    frame = sys._getframe(1)
    for _ in range(MOST_FRAMES):
        ours = str(frame.f_globals.get("__name__", "")).partition(".")[0] == __name__.partition(".")[0]
        if not ours and (file := _inside(root, frame.f_code)):
            return {"file": file, "line": frame.f_lineno, "holds_loop": False}
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def _forward(model: nn.Module, site: LoopSite) -> CodeType | None:
    """Return the code of the innermost ``forward`` around the loop's body that is not torch's own."""
    path = site.body or next((name for name in site.modules.values() if name), "")
    while True:
        path = path.rpartition(".")[0]
        code = getattr(inspect.unwrap(type(uncompiled(model.get_submodule(path))).forward), "__code__", None)
        if isinstance(code, CodeType) and not code.co_filename.startswith(os.path.dirname(torch.__file__)):  # noqa: PTH120
            return code
        if not path:
            return None


def _inside(root: Path, code: CodeType) -> str:
    """Return the file of some code relative to the project's root; empty where it belongs to somebody else."""
    path = Path(os.path.abspath(code.co_filename))  # noqa: PTH100 - links of folders stay as the user named them
    if code.co_filename.startswith("<") or _INSTALLED & set(path.parts) or not path.is_relative_to(root):
        return ""
    return path.relative_to(root).as_posix()
