"""The ``export`` and ``repair`` commands: a run as a table for other programs, and a damaged file made whole."""

from __future__ import annotations

from pathlib import Path

from ..runfile.disk.repair import repair as repair_run
from ..runfile.export import TableName
from ..runfile.export import export as export_run
from ..runfile.open import open_run
from ..runfile.text import plain
from .output import say


def export(run: Path, out: Path, *, table: TableName | None, force: bool) -> None:
    """Write a run as a table and say how long it is.

    Raises:
        FileExistsError: The table exists and ``force`` was not given.
    """
    if out.exists() and not force:
        raise FileExistsError(f"{out}: exists; replace it with --force")
    with open_run(run) as opened:
        export_run(opened, out, table=table, force=force)
        say(f"{plain(out)}: {len(opened)} steps")


def repair(run: Path) -> None:
    """Make a damaged run file whole and say what was done."""
    report = repair_run(run, in_place=True)
    for action in report.actions:
        say(plain(action))
    kept = f"; the file as it was is {report.backup}" if report.backup else ""
    say(plain(f"{report.path}: was {report.found}, holds {report.rows} rows, lost {report.rows_lost}{kept}"))
