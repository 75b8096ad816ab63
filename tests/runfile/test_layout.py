"""The names and the small packed records of a run file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loopscope.runfile import layout
from loopscope.runfile.layout import Commit, Event


def test_every_recorded_and_derived_name_has_a_unit_and_a_meaning() -> None:
    names = {*layout.STEP_COLUMNS, *layout.LOOP_COLUMNS, *layout.STEP_DERIVED, *layout.PROBE_DERIVED}
    names |= {*layout.VARIABLE_COLUMNS}
    assert names == set(layout.DESCRIPTIONS)
    assert all(meaning for _, meaning in layout.DESCRIPTIONS.values())


def test_the_commit_row_names_every_table_once() -> None:
    shapes = layout.table_shapes(step_columns=20, eigenvalues=3)
    assert set(shapes) == {*layout.TABLES, "commit"}
    assert (
        shapes["commit"][0] == (len(layout.COMMIT_COLUMNS),)
        and layout.COMMIT_COLUMNS[: len(layout.TABLES)] == layout.TABLES
    )
    assert shapes["spectra"][0] == (2 + 2 * 3,)


@pytest.mark.parametrize("position", range(len(layout.COMMIT_COLUMNS)))
def test_a_commit_row_changed_anywhere_is_refused(position: int) -> None:
    lengths = {table: 10 + i for i, table in enumerate(layout.TABLES)}
    commit = Commit(lengths, generation=3, finished=True, time_ns=1_700_000_000_000_000_000)
    row = commit.pack()
    assert Commit.unpack(row) == commit
    row[position] ^= 1
    assert Commit.unpack(row) is None


def test_rows_never_written_are_no_commits() -> None:
    assert Commit.unpack(np.zeros(len(layout.COMMIT_COLUMNS), dtype=np.int64)) is None


def test_an_event_survives_packing_and_long_text_is_cut_between_words() -> None:
    event = Event(7, 12.5, "loss_spike", "error", math.inf, 3.0, "ρ(A̅) " * 100)
    row = np.array([layout.pack_event(event, 2)], dtype=layout.EVENT_DTYPE)[0]
    unpacked = layout.unpack_event(row)
    assert (unpacked.step, unpacked.time, unpacked.kind, unpacked.severity, unpacked.value, unpacked.threshold) == (
        7, 12.5, "loss_spike", "error", math.inf, 3.0,
    )  # fmt: skip
    assert unpacked.message.endswith("ρ(A̅) …") and 228 < len(unpacked.message.encode()) <= 240
    assert event.message.startswith(unpacked.message[:-1])
    unbroken = layout.pack_event(replace(event, message="ρ" * 300), 2)[-1].decode()
    assert unbroken == "ρ" * 120  # nowhere to cut but between two characters


@pytest.mark.parametrize("name", ["", "x" * 65, "loss", "state_norm", "residual_ratio"])
def test_scalar_names_that_cannot_be_used_are_explained(name: str) -> None:
    assert layout.wrong_scalar_name(name, layout.STEP_COLUMNS)


def test_live_chunks_stay_small_whatever_the_row() -> None:
    for table, (shape, dtype) in layout.table_shapes(step_columns=200, eigenvalues=64).items():
        rows = layout.chunk_rows(table, shape, dtype)
        assert rows >= 8 and rows * math.prod(shape) * dtype.itemsize <= 128 * 1024


def test_the_format_page_names_everything_in_the_file() -> None:
    page = (Path(__file__).parents[2] / "docs" / "run-file.md").read_text(encoding="utf-8")
    for name in (*layout.TABLES, "commit", *layout.LOOP_COLUMNS, *(layout.EVENT_DTYPE.names or ()),
                 *(layout.ARRAY_INDEX_DTYPE.names or ()), *layout.ARRAY_DTYPES):  # fmt: skip
        assert f"`{name}`" in page
    for name in layout.STEP_COLUMNS:
        unit, meaning = layout.DESCRIPTIONS[name]
        assert f"| `{name}` | {unit} | {meaning} |" in page
    assert f"{len(layout.COMMIT_COLUMNS)} × int64" in page and f"{layout.EVENT_DTYPE.itemsize} bytes" in page
    assert f"compound of {layout.ARRAY_INDEX_DTYPE.itemsize} bytes" in page and f"this page: {layout.VERSION}" in page


def test_the_format_page_says_what_each_array_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "run-file.md").read_text(encoding="utf-8")
    for name, (kind, unit, meaning) in layout.ARRAY_DESCRIPTIONS.items():
        assert f"| `{name}` | {kind} | {unit} | {meaning} |" in page
