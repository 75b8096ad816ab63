"""`loopscope report`: runs in, one HTML file out. The bodies of its pages are in `dashboard.report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..dashboard.report import report_html


def write_report(runs: Sequence[Path], out: Path, *, force: bool = False) -> str:
    """Write a report about runs.

    Args:
        runs: Run files, and folders whose ``*.h5`` files are runs, as that of a sweep.
        out: The HTML file.
        force: Replace the file where there is one.

    Returns:
        What was written, for a person.

    Raises:
        RunFileError: A run cannot be read.
        FileExistsError: The file is there already.
        ValueError: A folder holds no run.
    """
    if out.exists() and not force:
        raise FileExistsError(f"{out}: exists; replace it with --force")
    files = [file for path in runs for file in files_of(path)]
    html = report_html(files)
    out.write_text(html, encoding="utf-8")
    count = f"{len(files)} run{'s' if len(files) > 1 else ''}"
    return f"{out}: {count}, {len(html.encode()) / 1e6:.1f} MB, open it in a browser"


def files_of(path: Path) -> list[Path]:
    """Return a run file, or the run files of a folder in the order of their names."""
    if not path.is_dir():
        return [path]
    files = sorted(path.rglob("*.h5"))
    if not files:
        raise ValueError(f"{path}: holds no run file (*.h5)")
    return files
