"""The ``dash`` command: serve the dashboard and say where it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..dashboard.app import serve
from ..dashboard.example import example_runs
from .output import complain, say

THIS_MACHINE: Final = ("127.0.0.1", "localhost", "::1")


def dash(paths: Sequence[Path], *, host: str = "127.0.0.1", port: int | None = None, example: bool = False) -> None:
    """Serve the dashboard until Ctrl-C.

    Args:
        paths: Run files, or folders of them.
        host: Address to listen on.
        port: Default: the first free one from 8050.
        example: Show the recorded runs that ship with the package too.

    Raises:
        ValueError: There is nothing to show.
    """
    if not paths and not example:
        raise ValueError("name run files or a folder of them, or look at recorded runs with --example")

    def ready(address: str) -> None:
        say(f"dashboard at {address}  (Ctrl-C ends it)")
        if host not in THIS_MACHINE:
            complain(f"listening on {host}: whoever has this link can read these runs")

    serve([*paths, *([example_runs()] if example else [])], host=host, port=port, on_ready=ready)
