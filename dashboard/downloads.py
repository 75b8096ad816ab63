"""What is taken along from a page: the numbers of a plot as CSV, and a report about runs as one HTML file.

Not covered: what a report holds (`report`), pictures of plots, which the browser makes (`assets/plots.js`).
"""

import csv
import io
from collections.abc import Iterator
from typing import Any, Final

from flask import Flask, Response, abort, request

from ..runfile.layout import RunFileError
from .index import current_index
from .panel import Ask, Columns, batch_of, table
from .panels import PANELS
from .report import report_html
from .text import shown

CSV_ROWS: Final = 4096
REPORTED: Final = 60
"""Runs in one report."""


def register(server: Flask) -> None:
    """Answer the addresses of what can be taken along."""
    server.add_url_rule("/csv/<run_id>/<name>", "csv", _csv)
    server.add_url_rule("/report", "report", _report)


def report_address(run_ids: list[str]) -> str:
    """Return the address of a report about some runs.

    >>> report_address(["a-12345678", "b-12345678"])
    '/report?runs=a-12345678,b-12345678'
    """
    return f"/report?runs={','.join(run_ids[:REPORTED])}"


def _report() -> Response:
    """Answer with a report about the runs that the address names, as a file to keep."""
    run_ids = [one for one in request.args.get("runs", "").split(",") if one][:REPORTED]
    entries = [entry for entry in map(current_index().find, run_ids) if entry is not None]
    if not entries:
        abort(404, "None of these runs is among those served here.")
    try:
        text = report_html([entry.path for entry in entries])
    except RunFileError as error:
        abort(409, shown(error))
    name = entries[0].id if len(entries) == 1 else f"{len(entries)}-runs"
    headers = {"Content-Disposition": f'attachment; filename="loopscope-{name}.html"'}
    return Response(text, mimetype="text/html; charset=utf-8", headers=headers)


def _csv(run_id: str, name: str) -> Response:
    """Answer with the numbers of a panel, unthinned, in the range of steps that the address asks for."""
    entry, panel = current_index().find(run_id), PANELS.get(name)
    if entry is None or panel is None:
        abort(404)
    first, last = request.args.get("from", type=float), request.args.get("to", type=float)
    view = (first, last) if first is not None and last is not None else None
    selected = request.args.get("step", type=int)
    try:
        ask = Ask(current_index().open(entry), view, selected, batch_of(request.args.get("batch", "")), run_id)
        columns = table(panel, ask)
    except RunFileError as error:
        abort(409, shown(error))
    return Response(_csv_lines(columns), mimetype="text/csv; charset=utf-8")


def _csv_lines(columns: Columns) -> Iterator[str]:
    """Yield columns as text, some thousand rows at a time; no cell can be read as a formula by a spreadsheet."""
    buffer = io.StringIO()
    write = csv.writer(buffer)
    write.writerow(list(columns))
    values = list(columns.values())
    count = min((len(one) for one in values), default=0)
    for start in range(0, count + 1, CSV_ROWS):
        block = [one[start : start + CSV_ROWS].tolist() for one in values]
        write.writerows([[_cell(value) for value in row] for row in zip(*block, strict=False)])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _cell(value: Any) -> Any:
    """Return a cell of a CSV: text that begins as a formula does gets an apostrophe before it.

    >>> _cell("=cmd()"), _cell(-1.5)
    ("'=cmd()", -1.5)
    """
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t"):
        return f"'{value}"
    return value
