"""What is recovered of live files without a readable commit row: just a beginning of what was recorded."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from loopscope.runfile.disk.proven import proven_lengths
from loopscope.runfile.disk.repair import repair
from loopscope.runfile.layout import STEP_COLUMNS, TABLES, Commit, Event
from loopscope.runfile.open import open_run
from loopscope.runfile.writer import RunWriter

FILES = Path(__file__).parents[1] / "files"
Recorded = dict[str, np.ndarray]


def write_run(path: Path, first_loops: int) -> None:
    """Two generations of everything, flushed now and then; steps before ``first_loops`` have no loop rows."""
    rng = np.random.default_rng(5)

    def loops(step: int) -> np.ndarray:
        rows = rng.uniform(0.5, 2.0, (2 + step % 3, 4)).astype(np.float32)
        rows[:, 3] = 8.0
        return rows

    writer = RunWriter.create(path, info={}, scalars=("mine",), eigenvalues=3)
    for start, stop in ((0, 50), (40, 90)):
        if start:
            writer = RunWriter.resume(path)
        for step in range(start, stop):
            writer.append_step(
                {"step": step, "loss": 0.5 * step, "mine": -step}, loops(step) if step >= first_loops else None
            )
            if step % 5 == 0:
                writer.append_probe(step, loops(step))
                writer.append_spectrum(step, [0.5 + step, 0.25j])
                writer.append_event(Event(step, 1.0, "found", "warning"))
                writer.append_variable(step, step % 2, np.hstack([loops(step), np.ones((2 + step % 3, 2))]))
                writer.append_array(step, "map", rng.uniform(1.0, 2.0, (step % 4, 3)))
            if step % 7 == 0:
                writer.flush()
        writer.close()


@pytest.fixture(scope="module", params=[0, 20])
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("live") / "a.h5"
    write_run(path, request.param)
    return path


def tables(path: Path) -> Recorded:
    """Everything that is committed in a file, as it is stored."""
    with h5py.File(path, "r") as file:
        commit = Commit.unpack(file["commit"][-1])
        assert commit is not None
        return {table: file[table][: commit.lengths[table]] for table in TABLES}


def expected_lengths(recorded: Recorded, table: str, first: int) -> dict[str, int]:
    """What a run keeps whose ``table`` was not written from row ``first`` on: the slow, obvious way."""
    kept = {name: len(rows) for name, rows in recorded.items()}
    kept[table] = max(first, 19) if table == "columns" else first
    ends = recorded["loop_end"][: kept["loop_end"]]
    if table == "loop_end" and not ends.any():
        ends = ends[:0]
    steps = min(int(np.sum(ends <= kept["loops"])), kept["steps"])
    passes = int(np.sum(recorded["probe_index"][: kept["probe_index"], 2] <= kept["probe"]))
    arrays = int(np.sum(recorded["array_index"]["end"][: kept["array_index"]] <= kept["arrays"]))
    of = recorded["variable_index"][:, 3]
    updates = int(np.sum(of[: kept["variable_index"]] <= kept["variables"]))
    kept |= {"variable_index": updates, "variables": int(of[updates - 1]) if updates else 0}
    kept |= {"steps": steps, "loop_end": steps, "probe_index": passes, "array_index": arrays}
    kept["loops"] = int(recorded["loop_end"][steps - 1]) if steps else 0
    kept["probe"] = int(recorded["probe_index"][passes - 1, 2]) if passes else 0
    kept["arrays"] = int(recorded["array_index"]["end"][arrays - 1]) if arrays else 0
    return kept


def check_beginning(path: Path, recorded: Recorded, kept: dict[str, int]) -> None:
    """A repaired file holds just the first ``kept`` rows of each table and reads without complaint."""
    assert repair(path, in_place=True).found == "damaged"
    kept_rows = tables(path)
    assert {name: len(rows) for name, rows in kept_rows.items()} == kept
    for name, rows in kept_rows.items():
        wanted = recorded[name][: kept[name]].copy()
        if name == "steps":
            wanted[:, kept["columns"] :] = np.nan
        assert rows.tobytes() == wanted.tobytes(), name
    with open_run(path) as run:
        assert run["loss"].shape == run["last_state_norm"].shape == run["step"].shape
        assert run.probe("tokens").shape[0] == len(run.probe_steps) and len(run.spectra()[0]) <= len(
            kept_rows["spectra"]
        )


@pytest.mark.parametrize("unwritten", ["zeros", "fill", "grown"])
@pytest.mark.parametrize("table", TABLES)
def test_rows_that_were_never_written_are_told_from_real_ones(
    live: Path, tmp_path: Path, table: str, unwritten: str
) -> None:
    recorded = tables(live)
    length = len(recorded[table])
    rng = np.random.default_rng(len(table))
    firsts = [length] if unwritten == "grown" else [0, 1, length - 1, *rng.integers(1, length, 5)]
    for first in map(int, firsts):
        first -= first % 8 if table == "arrays" else 0  # half a number is not covered
        path = Path(shutil.copy(live, tmp_path / "a.h5"))
        with h5py.File(path, "r+") as file:
            file["commit"][:] = 0
            if table != "columns":
                file[table].resize(length + (300 if unwritten == "grown" else 0), axis=0)
            fill = file[table].fillvalue if unwritten == "fill" else np.zeros((), file[table].dtype)
            file[table][first:] = fill
        check_beginning(path, recorded, expected_lengths(recorded, table, first))


def test_an_array_without_numbers_is_kept_and_one_that_ends_in_zeros_is_not_believed(tmp_path: Path) -> None:
    with_zero = np.array([1.0, 0.0])
    for last, kept in ((np.empty((0, 3)), 2), (with_zero, 1), (np.array([0.0, 256.0]), 2)):
        path = tmp_path / f"{kept}{last.size}.h5"
        writer = RunWriter.create(path, info={})
        writer.append_array(0, "map", with_zero[::-1])
        writer.append_array(1, "map", last)
        writer.close()
        with h5py.File(path, "r+") as file:
            file["commit"][:] = 0
        repair(path, in_place=True)
        with open_run(path) as run:
            assert len(run.arrays("map")[0]) == kept


def test_a_step_of_which_only_the_beginning_was_written_is_left_out(live: Path, tmp_path: Path) -> None:
    recorded = tables(live)
    row_bytes = recorded["steps"][:1].nbytes
    for cut in (30 * row_bytes + 8, 30 * row_bytes + 100, 31 * row_bytes - 1):
        path = Path(shutil.copy(live, tmp_path / "a.h5"))
        with h5py.File(path, "r+") as file:
            file["commit"][:] = 0
            chunk = file["steps"].id.get_chunk_info(0)
        with path.open("r+b") as stream:
            stream.seek(chunk.byte_offset + cut)
            stream.write(bytes(chunk.size - cut))
        check_beginning(path, recorded, expected_lengths(recorded, "steps", 30))


def test_rows_left_behind_by_a_kill_of_an_earlier_generation_do_not_count(live: Path, tmp_path: Path) -> None:
    recorded = tables(live)
    path = Path(shutil.copy(live, tmp_path / "a.h5"))
    with h5py.File(path, "r+") as file:
        for table in ("steps", "loop_end", "probe_index", "spectra", "events", "array_index"):
            length = len(recorded[table])
            file[table].resize(length + 5, axis=0)
            file[table][length:] = file[table][5:10]  # of generation 0
        file["commit"][:] = 0
    check_beginning(path, recorded, {name: len(rows) for name, rows in recorded.items()})


def test_rows_behind_the_last_readable_commit_are_kept_when_later_ones_were_lost(live: Path, tmp_path: Path) -> None:
    recorded = tables(live)
    for lost in (2, 5):
        path = Path(shutil.copy(live, tmp_path / "a.h5"))
        with h5py.File(path, "r+") as file:
            file["commit"][-lost:] = 0
        check_beginning(path, recorded, {name: len(rows) for name, rows in recorded.items()})


def test_what_a_commit_row_counts_is_believed_even_where_it_looks_unwritten(live: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(live, tmp_path / "a.h5"))
    with h5py.File(path, "r+") as file:
        file["spectra"][3:] = 0
        file["arrays"][100:] = 0
    assert repair(path, in_place=True).found == "whole"


@pytest.mark.parametrize("lost", [1, 5, 18])
def test_names_that_every_run_begins_with_are_put_back(live: Path, tmp_path: Path, lost: int) -> None:
    recorded = tables(live)
    path = Path(shutil.copy(live, tmp_path / "a.h5"))
    with h5py.File(path, "r+") as file:
        file["columns"][lost] = b"Loss" if lost == 5 else b""
    check_beginning(path, recorded, {name: len(rows) for name, rows in recorded.items()})


def test_a_scalar_whose_name_is_lost_does_not_pass_for_one_named_later(live: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(live, tmp_path / "a.h5"))
    with h5py.File(path, "r+") as file:
        file["columns"][len(STEP_COLUMNS)] = b""
    report = repair(path, in_place=True)
    assert report.rows_lost == 0 and any("1 rows of columns" in action for action in report.actions)
    with RunWriter.resume(path) as writer:
        writer.append_step({"step": 90, "other": 1.0})
    with open_run(path) as run:
        assert np.isnan(run["other"][:-1]).all() and run["other"][-1] == 1.0


def test_events_of_the_time_when_a_note_was_called_info_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(gzip.decompress((FILES / "version1-sealed.h5.gz").read_bytes()))
    with h5py.File(path, "r") as file:
        assert set(file["events"]["severity"][:]) == {b"info"}
        bound = {table: len(file[table]) if table in file else 0 for table in TABLES}
        assert proven_lengths(file, bound, recorded=False)["events"] == bound["events"] == 10
