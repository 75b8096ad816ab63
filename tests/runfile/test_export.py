"""Exports: the same numbers, strictly valid, whole or not at all."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopscope.runfile import export as export_module
from loopscope.runfile.export import TABLE_NAMES, columns, export
from loopscope.runfile.layout import Event, RunFileError
from loopscope.runfile.open import open_run
from loopscope.runfile.reader import Run
from loopscope.runfile.writer import RunWriter


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with RunWriter.create(
        tmp_path / "a.h5", info={"lr": 0.1, "odd": float("nan")}, scalars=("mine",), eigenvalues=2
    ) as writer:
        for step in range(20):
            rows = np.arange(4.0 * (2 + step % 3)).reshape(-1, 4) + step
            rows[-1, 1:3] = np.nan
            loss = {3: np.nan, 4: np.inf}.get(step, step / 3)
            writer.append_step({"step": step, "loss": loss, "mine": -1e-300, "time": 1.7e9 + step}, rows)
        writer.append_probe(5, rows)
        writer.append_spectrum(5, [0.5 + 0.25j])
        writer.append_event(Event(5, 1.0, "loss_spike", "error", np.inf, np.nan, 'said "no", twice\nρ'))
    with open_run(writer.path) as opened:
        yield opened


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def same(text: str, value: Any) -> bool:
    """Whether a CSV field says exactly this number; a NaN stands where it was given, else the field is empty."""
    return text in ("", "nan") if value != value else float(text) == value


def test_csv_holds_every_number_exactly(run: Run, tmp_path: Path) -> None:
    path = export(run, tmp_path / "a.csv")
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(run) == 20
    for i, row in enumerate(rows):
        assert row["step"] == str(i) and row["generation"] == "0"
        for name in run.history():
            assert same(row[name], run[name][i])
        for t in range(run.loops("state_norm").shape[1]):
            assert same(row[f"state_norm[{t}]"], run.loops("state_norm")[i, t])
    assert rows[3]["loss"] == "nan" and rows[4]["loss"] == "inf" and rows[3]["tokens"] == ""


def test_given_never_recorded_and_infinite_stay_apart_in_every_format(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    nan, inf = math.nan, math.inf
    rows: list[dict[str, float]] = [
        {"loss": 2.0, "lr": 0.1, "mine": 1.0},
        {"loss": nan, "lr": 0.1, "mine": 1.0},
        {"loss": -inf, "lr": 0.1},  # one number that is not finite, and that is the infinite one
        {"loss": 2.0, "lr": nan, "mine": inf},
        {"loss": 2.0, "lr": 0.1, "mine": nan},
        {"lr": 0.1, "mine": 1.0},
    ]
    with RunWriter.create(tmp_path / "a.h5", info={}, scalars=("mine",)) as writer:
        for step, row in enumerate(rows):
            writer.append_step({"step": step} | row)
    with open_run(writer.path) as run:
        text = list(csv.DictReader(export(run, tmp_path / "a.csv").read_text().splitlines()))
        plain = json.loads(export(run, tmp_path / "a.json").read_text(), parse_constant=refuse)["steps"]
        stored = parquet.read_table(export(run, tmp_path / "a.parquet")).to_pydict()
    assert [row["loss"] for row in text] == ["2.0", "nan", "-inf", "2.0", "2.0", ""]
    assert [row["lr"] for row in text] == ["0.1", "0.1", "0.1", "nan", "0.1", "0.1"]
    assert [row["mine"] for row in text] == ["1.0", "1.0", "", "inf", "nan", "1.0"]
    assert plain["loss"] == [2.0, "NaN", "-Infinity", 2.0, 2.0, None]
    assert plain["mine"] == [1.0, 1.0, None, "Infinity", "NaN", 1.0]
    assert plain["tokens"] == plain["grad_norm"] == plain["a_bar_radius"] == [None] * 6
    assert [repr(value) for value in stored["loss"]] == ["2.0", "nan", "-inf", "2.0", "2.0", "None"]
    assert stored["tokens"] == [None] * 6


def test_the_loops_table_is_tidy(run: Run, tmp_path: Path) -> None:
    with export(run, tmp_path / "a.csv", table="loops").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == sum(2 + step % 3 for step in range(20))
    state = run.loops("state_norm")
    for row in rows:
        assert float(row["state_norm"]) == state[int(row["step"]), int(row["loop"])]


def test_json_is_strict_and_holds_every_table(run: Run, tmp_path: Path) -> None:
    report = json.loads(export(run, tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert report["state"] == "finished" and report["info"] == {"lr": 0.1, "odd": "NaN"}
    assert set(TABLE_NAMES) <= set(report)
    assert report["steps"]["loss"][3:6] == ["NaN", "Infinity", 5 / 3] and report["steps"]["mine"] == [-1e-300] * 20
    assert report["steps"]["nonfinite"][3:5] == [1, 1]
    assert report["probe"]["step"] == [5] * len(report["probe"]["loop"])
    assert (report["spectra"]["real"], report["spectra"]["imag"]) == ([0.5], [0.25])
    assert report["spectra"]["modulus"] == [pytest.approx(np.sqrt(0.3125), rel=1e-15)]  # one rounding of hypot
    assert report["events"]["message"] == ['said "no", twice\nρ'] and report["events"]["value"] == ["Infinity"]
    one = json.loads(export(run, tmp_path / "b.json", table="events").read_text(), parse_constant=refuse)
    assert "events" in one and "steps" not in one


@pytest.mark.parametrize("table", TABLE_NAMES)
def test_parquet_holds_every_number_and_tells_its_run(run: Run, tmp_path: Path, table: Any) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    exported = parquet.read_table(export(run, tmp_path / "a.parquet", table=table))
    assert json.loads(exported.schema.metadata[b"loopscope"])["lr"] == 0.1
    for name, values in columns(run, table).items():
        back = [np.nan if value is None else value for value in exported[name].to_pylist()]
        if isinstance(values, list):
            assert back == [
                pytest.approx(value, nan_ok=True) if isinstance(value, float) else value for value in values
            ]
        else:
            assert np.array_equal(np.array(back, dtype=float), values, equal_nan=True)


def test_parquet_without_pyarrow_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RunFileError, match=r"install loopscope\[parquet\]"):
        export(run, tmp_path / "a.parquet")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5"]


def test_an_existing_file_is_only_replaced_when_asked(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("precious")
    with pytest.raises(RunFileError, match="exists already"):
        export(run, path)
    assert path.read_text() == "precious"
    export(run, path, force=True)
    assert path.read_text().startswith("step,")


def test_a_failed_export_leaves_what_was_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("precious")

    def full(table: object, target: Path) -> None:
        target.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "_write_csv", full)
    with pytest.raises(RunFileError, match="No space left on device"):
        export(run, path, force=True)
    assert path.read_text() == "precious" and sorted(entry.name for entry in tmp_path.iterdir()) == ["a.csv", "a.h5"]


def test_a_run_without_rows_exports_headers(tmp_path: Path) -> None:
    RunWriter.create(tmp_path / "a.h5", info={}).seal()
    with open_run(tmp_path / "a.h5") as empty:
        for table in TABLE_NAMES:
            lines = export(empty, tmp_path / f"{table}.csv", table=table).read_text().splitlines()
            assert len(lines) == 1 and lines[0].startswith("step,")


@pytest.mark.parametrize(("name", "table"), [("a.xlsx", None), ("a", None), ("a.csv", "everything")])
def test_unknown_formats_and_tables_are_told(run: Run, tmp_path: Path, name: str, table: Any) -> None:
    with pytest.raises(ValueError, match=r"\.csv, \.parquet|no table"):
        export(run, tmp_path / name, table=table)


def test_a_folder_that_is_not_there_is_one_line(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="cannot be written"):
        export(run, tmp_path / "nowhere" / "a.csv")
