"""Repair: killed, cut-off and corrupted files, and the promise to keep the original of what it cannot keep whole."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopscope.runfile.disk.repair import repair
from loopscope.runfile.disk.superblock import Superblock, lookup3
from loopscope.runfile.layout import DamagedRun, NotARun, RunFileError, RunInUse
from loopscope.runfile.open import open_run
from loopscope.runfile.writer import RunWriter

STEPS = 6100  # so that the last chunk of the file is one of steps, mostly free
KILLED = f"""
STEPS = {STEPS}
import os, signal, sys
import numpy as np
from loopscope.runfile.writer import RunWriter
writer = RunWriter.create(sys.argv[1], info={{"name": "killed"}})
for step in range(STEPS):
    writer.append_step({{"step": step, "loss": 0.5 * step}}, np.full((1 + step % 4, 4), step))
    if step % 100 == 99:
        writer.append_probe(step, np.full((5, 4), step))
    if step % 10 == 9:
        assert writer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("killed") / "a.h5"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment)
    assert done.returncode == -9
    return path


@pytest.fixture
def killed(killed_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(killed_run, tmp_path / "a.h5"))


def make_sealed(path: Path, rows: int = 60_000) -> Path:
    """A sealed run of several chunks per column."""
    with RunWriter.create(path, info={}) as writer:
        for step in range(rows):
            writer.append_step({"step": step, "loss": 0.5 * step}, np.full((2, 4), step))
    return path


def check_beginning(path: Path, rows: int) -> None:
    """The first ``rows`` steps are there and right."""
    with open_run(path) as run:
        assert np.array_equal(run["step"], np.arange(rows)) and np.array_equal(run["loss"], 0.5 * np.arange(rows))
        assert np.array_equal(run["last_state_norm"], np.arange(rows))


def test_a_killed_run_is_closed_cleanly_and_keeps_everything(killed: Path) -> None:
    assert Superblock.read(killed).flags == 5
    with pytest.raises(OSError):
        h5py.File(killed, "r+")
    report = repair(killed, in_place=True)
    assert (report.found, report.rows, report.rows_lost, report.backup) == ("unclosed", STEPS, 0, None)
    with h5py.File(killed, "r") as file:  # an ordinary HDF5 tool can open it now
        assert file["steps"].shape[0] >= STEPS
    check_beginning(killed, STEPS)
    assert repair(killed, in_place=True).found == "whole"
    assert [entry.name for entry in killed.parent.iterdir()] == ["a.h5"]


def test_repair_leaves_the_original_alone_unless_told(killed: Path) -> None:
    before = killed.read_bytes()
    report = repair(killed)
    assert killed.read_bytes() == before and report.path == killed.with_name("a.repaired.h5")
    check_beginning(report.path, STEPS)
    with pytest.raises(RunFileError, match="exists already"):
        repair(killed)


@pytest.mark.parametrize("keep", [0.9, 0.8, 0.5, 0.3])
def test_a_cut_off_killed_run_keeps_its_readable_beginning_and_the_original(killed: Path, keep: float) -> None:
    os.truncate(killed, int(killed.stat().st_size * keep))
    cut = killed.read_bytes()
    with pytest.raises(DamagedRun, match="loopscope repair"):
        open_run(killed)
    report = repair(killed, in_place=True)
    assert report.found == "damaged" and report.rows + report.rows_lost == STEPS
    assert report.backup is not None and report.backup.read_bytes() == cut
    assert report.rows > (keep - 0.1) * STEPS  # the tables grow side by side, a chunk each ahead of one another
    check_beginning(killed, report.rows)
    with open_run(killed) as run:
        assert run.state == "interrupted" and run.info == {"name": "killed"}
        assert np.array_equal(run.probe("state_norm")[:, :1].ravel(), run.probe_steps)
    with RunWriter.resume(killed) as writer:
        assert writer.rows == report.rows


def test_a_cut_through_room_not_yet_used_costs_nothing(killed: Path) -> None:
    os.truncate(killed, killed.stat().st_size - 2048)  # the last chunk, of steps, has more free rows than that
    check_beginning(killed, STEPS)
    with RunWriter.resume(killed) as writer:
        for step in range(STEPS, STEPS + 3000):
            writer.append_step({"step": step, "loss": 0.5 * step}, np.full((2, 4), step))
    check_beginning(killed, STEPS + 3000)


def test_a_cut_off_copy_is_repaired_beside_the_original(killed: Path) -> None:
    os.truncate(killed, int(killed.stat().st_size * 0.7))
    report = repair(killed)
    assert report.backup == killed and report.found == "damaged"
    check_beginning(report.path, report.rows)
    assert sorted(entry.name for entry in killed.parent.iterdir()) == ["a.h5", "a.repaired.h5"]


def test_a_sealed_run_with_a_rotten_chunk_keeps_what_comes_before(tmp_path: Path) -> None:
    path = make_sealed(tmp_path / "a.h5")
    with h5py.File(path, "r") as file:
        column = 3  # loss
        chunks = [file["steps"].id.get_chunk_info_by_coord((start, column)) for start in range(0, 60_000, 16384)]
    with path.open("r+b") as stream:
        stream.seek(chunks[2].byte_offset + chunks[2].size // 2)
        stream.write(b"\xff" * 64)
    with open_run(path) as run, pytest.raises(DamagedRun, match="loopscope repair"):
        run["loss"]
    report = repair(path, in_place=True)
    assert (report.found, report.rows) == ("damaged", 2 * 16384) and report.backup is not None
    check_beginning(path, 2 * 16384)


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1])
def test_a_cut_off_sealed_run_is_salvaged_or_refused_in_one_line(tmp_path: Path, keep: float) -> None:
    path = make_sealed(tmp_path / "a.h5", 20_000)
    os.truncate(path, int(path.stat().st_size * keep))
    before = path.read_bytes()
    try:
        report = repair(path, in_place=True)
    except DamagedRun as error:
        assert "cannot be repaired" in str(error) and "\n" not in str(error)
        originals = [path.with_name("a.h5.bak"), path]
        assert any(p.exists() and p.read_bytes() == before for p in originals)
    else:
        check_beginning(path, report.rows)
        assert report.backup is not None and report.backup.read_bytes() == before


def test_a_wrong_superblock_checksum_is_recomputed(killed: Path) -> None:
    with killed.open("r+b") as stream:
        stream.seek(44)
        stream.write(b"\0\0\0\0")
    with pytest.raises(DamagedRun):
        open_run(killed)
    report = repair(killed, in_place=True)
    assert report.rows == STEPS and report.backup is not None
    check_beginning(killed, STEPS)


def test_a_live_run_is_refused(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        for in_place in (False, True):
            with pytest.raises(RunInUse, match="live"):
                repair(writer.path, in_place=in_place)


def test_what_is_no_run_is_refused_and_untouched(tmp_path: Path) -> None:
    text, foreign = tmp_path / "a.csv", tmp_path / "b.h5"
    text.write_text("step,loss\n")
    with h5py.File(foreign, "w") as file:
        file["x"] = [1, 2]
    for path in (text, foreign):
        before = path.read_bytes()
        with pytest.raises(NotARun):
            repair(path, in_place=True)
        assert path.read_bytes() == before
    with pytest.raises(RunFileError, match="no such file"):
        repair(tmp_path / "none.h5")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.csv", "b.h5"]


def test_leftovers_of_an_interrupted_sealing_are_removed(killed: Path) -> None:
    killed.with_name("a.h5.tmp").write_bytes(b"half a file")
    killed.with_name("a.h5.lease").write_text("process 1")
    assert any("a.h5.tmp" in action for action in repair(killed, in_place=True).actions)
    assert [entry.name for entry in killed.parent.iterdir()] == ["a.h5"]


def test_the_checksum_is_the_one_hdf5_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for size in (1, 100, 10_000):
        with h5py.File(path, "w", libver=("v110", "v110")) as file:
            file["x"] = np.zeros(size)
        raw = path.read_bytes()[:48]
        assert lookup3(raw[:44]) == struct.unpack_from("<I", raw, 44)[0]


@given(st.binary(max_size=40))
def test_the_checksum_depends_on_every_byte(data: bytes) -> None:
    for i in range(len(data)):
        changed = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        assert lookup3(changed) != lookup3(data)
