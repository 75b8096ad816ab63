"""Run files with bytes changed, cut or zeroed at random: data or one line for a person, never anything else.

``LOOPSCOPE_DAMAGES=2000`` runs the long version (about ten minutes).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from loopscope.rules.diagnosis import diagnose
from loopscope.runfile.arrays import stored_bytes
from loopscope.runfile.disk.repair import repair
from loopscope.runfile.disk.superblock import Superblock
from loopscope.runfile.flights import ALERT, read_flight
from loopscope.runfile.layout import STEP_COLUMNS, DamagedRun, Event
from loopscope.runfile.open import open_run
from loopscope.runfile.reader import Run
from loopscope.runfile.writer import RunWriter

DAMAGES = int(os.environ.get("LOOPSCOPE_DAMAGES", "12"))


def test_whatever_happens_to_a_file_gives_data_or_one_line(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("damage_worker.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, worker, tmp_path, "0", str(DAMAGES)], env=environment, text=True, stdout=subprocess.PIPE
    )
    said = done.stdout.splitlines()
    assert done.returncode == 0 and len(said) == DAMAGES
    wrong = [line for line in said if not ("]: data, " in line or ": refused, " in line or ": data, " in line)]
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """A small run, closed and not sealed."""
    writer = RunWriter.create(tmp_path / "a.h5", info={"name": "small", "world_size": 1}, scalars=("mine",))
    for step in range(20):
        rows = np.full((3, 4), 1.0 + step)
        writer.append_step({"step": step, "loss": 1.0, "mine": step}, rows)
        writer.append_probe(step, rows)
        writer.append_array(step, "map", rows)
    writer.append_event(Event(3, 1.0, "found", "warning"))
    writer.close()
    return writer.path


def change(path: Path, table: str, row: int | slice, value: object) -> None:
    """Write a wrong number into a table as a bad disk would."""
    with h5py.File(path, "r+") as file:
        file[table][row] = value


def flip(path: Path, position: int, value: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(position)
        stream.write(bytes([value]))


@pytest.mark.parametrize("wrong", [-1, 3, 10**15])
@pytest.mark.parametrize(
    ("table", "ask"), [("loop_end", lambda run: run.loops("tokens")), ("probe_index", lambda run: run.probe("tokens"))]
)
def test_rows_that_lead_nowhere_are_damage_that_repair_leaves_out(
    live: Path, table: str, ask: Callable[[Run], object], wrong: int
) -> None:
    change(live, table, 10, wrong if table == "loop_end" else [10, 0, wrong])
    with open_run(live) as run:
        with pytest.raises(DamagedRun, match="loopscope repair"):
            ask(run)
        assert len(run["loss"]) == 20
    report = repair(live, in_place=True)
    assert report.found == "damaged" and report.rows == (10 if table == "loop_end" else 20)
    with open_run(live) as run:
        ask(run)


def test_an_index_row_that_describes_no_array_is_damage_that_repair_leaves_out(live: Path) -> None:
    with h5py.File(live, "r+") as file:
        row = file["array_index"][10]
        row["shape"] = [2**40, 2**40, 0, 0]
        file["array_index"][10] = row
        assert stored_bytes(file["array_index"][9:11]).tolist() == [96.0, 2.0**83]
    with open_run(live) as run, pytest.raises(DamagedRun, match="loopscope repair"):
        run.arrays("map")
    repair(live, in_place=True)
    with open_run(live) as run:
        assert len(run.arrays("map")[0]) == 10 and len(run) == 20


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("row", [10, 19])
def test_a_row_without_a_step_hides_no_other(live: Path, wrong: float, row: int) -> None:
    with h5py.File(live, "r+") as file:
        file["steps"][row, 0] = wrong
    with open_run(live) as run:
        assert run["step"].tolist() == [step for step in range(20) if step != row] and diagnose(run)


def test_numbers_no_writer_gives_are_read_without_a_crash(live: Path) -> None:
    writer = RunWriter.resume(live)
    writer.append_step({"step": 20, "loss": 1.0})
    writer.append_event(Event(20, 1.0, "world_size", "odd", 1e300))  # type: ignore[arg-type]
    writer.append_event(Event(20, 1.0, "rank_missing", "odd"))  # type: ignore[arg-type]
    writer.append_array(20, ALERT, np.array([np.nan, 1.0, 2.0]))
    writer.append_array(20, "flight.scalars", np.array([1j]))
    writer.close()
    with h5py.File(live, "r+") as file:
        file["steps"][5, 2] = 1e18  # a generation
    with open_run(live) as run:
        assert read_flight(run) == [] and [event.severity for event in run.events] == ["warning"] * 3
        assert diagnose(run).steps == 21


def test_an_absurd_address_in_the_first_bytes_is_one_line(live: Path) -> None:
    flip(live, 22, 0x01)  # of an extension that the file does not have: now an address of 16 digits
    for attempt in (open_run, repair):
        with pytest.raises(DamagedRun):
            attempt(live)
    assert Superblock.read(live) is None


def heap_of(path: Path) -> int:
    """Where the strings of the attributes are."""
    return path.read_bytes().index(b"GCOL")


@pytest.mark.parametrize("cut", [False, True])
def test_strings_on_which_hdf5_loops_for_ever_are_one_line(live: Path, cut: bool) -> None:
    heap = heap_of(live)
    if cut:
        os.truncate(live, heap + 200)
    else:
        flip(live, heap + 8 + 2, 1)  # the collection is longer than the objects in it: zeros follow
    for attempt in (open_run, repair):
        with pytest.raises(DamagedRun, match="strings"):
            attempt(live)


def test_a_description_that_cannot_be_read_is_kept_as_text(live: Path) -> None:
    raw = live.read_bytes()
    flip(live, raw.index(json.dumps({"name": "small"})[:-1].encode()), ord("["))
    with pytest.raises(DamagedRun, match="loopscope repair"):
        open_run(live)
    report = repair(live, in_place=True)
    assert report.rows == 20 and any("description" in action for action in report.actions)
    with open_run(live) as run:
        assert run.info["damaged"].startswith('["name": "small"') and run["mine"].tolist() == list(range(20))


@pytest.mark.parametrize("lost", ["run_id", "info"])
def test_an_attribute_that_leads_nowhere_does_not_cost_the_numbers(live: Path, lost: str) -> None:
    with h5py.File(live, "r+") as file:
        del file.attrs[lost]
    with pytest.raises(DamagedRun, match="loopscope repair"):
        open_run(live)
    repair(live, in_place=True)
    with open_run(live) as run:
        assert len(run) == 20 and (run.info == {"damaged": ""}) is (lost == "info")


def test_names_of_columns_in_a_sealed_file_have_a_checksum(live: Path) -> None:
    RunWriter.resume(live).seal()
    with h5py.File(live, "r") as file:
        chunk = file["columns"].id.get_chunk_info(0)
    flip(live, chunk.byte_offset + chunk.size // 2, live.read_bytes()[chunk.byte_offset + chunk.size // 2] ^ 1)
    with pytest.raises(DamagedRun, match="loopscope repair"):
        open_run(live)
    assert repair(live, in_place=True).rows == 20
    with open_run(live) as run:
        assert run["loss"].tolist() == [1.0] * 20 and "mine" not in run


def test_a_name_that_is_no_text_does_not_stop_a_resume(live: Path) -> None:
    change(live, "columns", len(STEP_COLUMNS), b"mi\xffe")
    with RunWriter.resume(live) as writer:
        writer.append_step({"step": 20})
    with open_run(live) as run:
        assert run["mi�e"][:3].tolist() == [0.0, 1.0, 2.0]
