"""Public names that are imported when they are first used.

A package lists its public names once, in ``__init__.pyi``, where type checkers look for them. `names` reads that list
and gives the package what it needs to import each name on first use, so that importing loopscope costs nothing and
reading a run never imports torch.
"""

from __future__ import annotations

import ast
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any


def names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names are listed in its ``__init__.pyi``.

    Args:
        package: ``__name__`` of the package.
        file: ``__file__`` of the package.

    >>> import loopscope
    >>> "attach" in dir(loopscope), loopscope.open_run.__module__
    (True, 'loopscope.runfile.open')
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    homes = {
        alias.name: "." * node.level + (node.module or "")
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with no_collection():
            value = getattr(import_module(homes[name], package), name)
        setattr(sys.modules[package], name, value)  # found at once the next time
        return value

    return get, lambda: sorted(homes), sorted(homes)


@contextmanager
def no_collection() -> Iterator[None]:
    """Return a block in which Python does not look for garbage.

    Importing makes many objects and no garbage. Yet every few hundred new ones Python looks for garbage, now and then
    among all objects there are: with torch loaded that takes as long as the imports themselves.

    >>> import gc
    >>> with no_collection():
    ...     gc.isenabled()
    False
    >>> gc.isenabled()
    True
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
