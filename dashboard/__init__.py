"""The dashboard: run files in, pages in a browser out, all of it on this machine.

It reads runs through `loopscope.probes.reader` and takes every verdict from `loopscope.probes.diagnose`; it computes no
regime of its own. It does not authenticate anybody: it binds to the loopback address and answers to loopback names
only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import create_app, serve

_EXPORTS = {"create_app": "app", "serve": "app"}

__all__ = ["create_app", "serve"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that importing the package stays light."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
