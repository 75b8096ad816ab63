"""Texts from files and from the Hugging Face hub, one document after the other.

Not covered: cleaning, deduplication, mixing sources.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READABLE = (".txt", ".md", ".py", ".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class HubText:
    """A text data set on the hub: repository, configuration, split and the column that holds the text."""

    repository: str
    configuration: str | None = None
    split: str = "train"
    column: str = "text"


HUB: dict[str, HubText] = {
    "fineweb-edu": HubText("HuggingFaceFW/fineweb-edu", "sample-100BT"),
    "huginn": HubText("tomg-group-umd/huginn-dataset"),
}


class DocumentError(ValueError):
    """A source of text cannot be read; the message names the place and what was expected."""


def read_documents(path: str | os.PathLike[str], *, column: str = "text") -> Iterator[str]:
    """Yield the documents of a file or of all readable files below a folder, in the order of their names.

    A plain text file is one document, every line of a JSONL file and every row of a parquet file another one.

    Args:
        path: File or folder; files may end in ``.txt``, ``.md``, ``.py``, ``.jsonl`` or ``.parquet``.
        column: Field of JSONL objects and column of parquet files that holds the text.

    Raises:
        DocumentError: Nothing readable there, or a damaged file (with its line).
        ModuleNotFoundError: A parquet file, and pyarrow is not installed.
    """
    root = Path(path)
    if not root.exists():
        raise DocumentError(f"{root}: expected a file or folder with text, found nothing")
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in READABLE and p.is_file())
    if not files or (root.is_file() and root.suffix not in READABLE):
        raise DocumentError(f"{root}: expected files ending in {', '.join(READABLE)}, found none")
    for file in files:
        if file.suffix == ".jsonl":
            yield from _read_jsonl(file, column)
        elif file.suffix == ".parquet":
            yield from _read_parquet(file, column)
        else:
            yield file.read_text(encoding="utf-8", errors="replace")


def stream_documents(source: str | HubText, *, data_files: Sequence[str] | None = None) -> Iterator[str]:
    """Yield documents of a data set on the Hugging Face hub, downloaded as they are read.

    Args:
        source: A key of `HUB` or a data set of your own. With ``data_files`` the repository is a format, such as
            ``"json"`` or ``"parquet"``, and the files are read from this machine.
        data_files: Files in place of the hub's.

    Raises:
        DocumentError: Unknown name, or the data set has no such column.
        ModuleNotFoundError: ``datasets`` is not installed.
    """
    if isinstance(source, str) and source not in HUB:
        raise DocumentError(f"{source}: expected one of {', '.join(HUB)}")
    wanted = HUB[source] if isinstance(source, str) else source
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("streaming needs the datasets package: pip install loopscope[text]") from error
    files = {"data_files": list(data_files)} if data_files else {}
    rows = load_dataset(wanted.repository, wanted.configuration, split=wanted.split, streaming=True, **files)
    for number, row in enumerate(rows):
        yield _text(row, wanted.column, f"{wanted.repository}, row {number}")


def _read_jsonl(file: Path, column: str) -> Iterator[str]:
    """Yield one document per line."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{file}, line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DocumentError(f"{place}: expected a JSON object ({error})") from error
                yield _text(row, column, place)


def _read_parquet(file: Path, column: str) -> Iterator[str]:
    """Yield one document per row, read a batch at a time."""
    try:
        from pyarrow import ArrowInvalid, parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{file}: parquet files need pyarrow: pip install loopscope[parquet]") from error
    try:
        table = parquet.ParquetFile(file)
    except ArrowInvalid as error:
        raise DocumentError(f"{file}: expected a parquet file ({error})") from error
    if column not in table.schema_arrow.names:
        raise DocumentError(f"{file}: expected a column {column!r}, found {', '.join(table.schema_arrow.names)}")
    for batch in table.iter_batches(columns=[column]):
        yield from (text for text in batch.column(0).to_pylist() if text is not None)


def _text(row: Any, column: str, place: str) -> str:
    """Return the text of one row."""
    if not isinstance(row, Mapping) or not isinstance(row.get(column), str):
        columns = ", ".join(row) if isinstance(row, Mapping) else type(row).__name__
        raise DocumentError(f"{place}: expected text under {column!r}, found {columns}")
    return str(row[column])
