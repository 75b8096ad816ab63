"""`loopscope report`: runs in, one HTML file out. The bodies of its pages are in `dashboard.report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..dashboard.report import report_html


def write_report(runs: Sequence[Path], out: Path, *, force: bool = False) -> str:
    """Write a report about runs.

    Args:
        runs: Run files.
        out: The HTML file.
        force: Replace the file where there is one.

    Returns:
        What was written, for a person.

    Raises:
        RunFileError: A run cannot be read.
        FileExistsError: The file is there already.
    """
    if out.exists() and not force:
        raise FileExistsError(f"{out}: exists; replace it with --force")
    html = report_html(runs)
    out.write_text(html, encoding="utf-8")
    return (
        f"{out}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {len(html.encode()) / 1e6:.1f} MB, open it in a browser"
    )
