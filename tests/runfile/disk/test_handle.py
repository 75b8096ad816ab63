"""How a file is opened: a sealed one once and for good, one that may grow in SWMR mode."""

from __future__ import annotations

import h5py
import pytest
from loopscope.runfile.disk import handle, integrity
from loopscope.runfile.layout import STEP_COLUMNS, DamagedRun, RunFileError
from loopscope.runfile.open import open_run
from loopscope.runfile.writer import RunWriter


def write(path, *, seal, steps=40, loss=2.0):
    writer = RunWriter.create(path, info={})
    for step in range(steps):
        writer.append_step({"step": float(step), "loss": loss, "depth": 4.0})
    writer.flush()
    if seal:
        writer.seal()
    writer.close()
    return path


@pytest.fixture
def opened(monkeypatch):
    """What HDF5 was asked to open, with how."""
    seen = []
    real = h5py.File

    def counted(name, mode="r", **options):
        if options.get("driver") != "core":  # a file in memory
            seen.append(options.get("swmr", False))
        return real(name, mode, **options)

    monkeypatch.setattr(handle.h5py, "File", counted)
    return seen


def test_a_sealed_file_is_opened_once_and_not_looked_at_again(tmp_path, opened):
    path = write(tmp_path / "a.h5", seal=True)
    opened.clear()
    with open_run(path) as run:
        assert run["loss"].tolist() == [2.0] * 40 and run.state == "finished"
        (held,) = (each for each in handle._HANDLES.values() if each.path == path)
        assert opened == [False] and held.sealed


def test_a_file_that_may_grow_is_opened_in_swmr_mode(tmp_path, opened):
    path = write(tmp_path / "a.h5", seal=False)
    opened.clear()
    with open_run(path) as run:
        assert len(run) == 40 and opened[-1] is True
        (held,) = (each for each in handle._HANDLES.values() if each.path == path)
        assert not held.sealed


def test_a_run_that_is_resumed_under_its_reader_is_followed(tmp_path):
    path = write(tmp_path / "a.h5", seal=True)
    with open_run(path) as run:
        assert len(run) == 40
        writer = RunWriter.resume(path)
        writer.append_step({"step": 40.0, "loss": 1.0})
        writer.flush()
        run.refresh()
        assert len(run) == 41 and run["loss"][-1] == 1.0
        writer.close()


@pytest.mark.parametrize("steps", [20, 40, 60])
def test_a_sealed_file_that_is_written_over_in_place_is_read_again_by_all(tmp_path, steps):
    path, other = write(tmp_path / "a.h5", seal=True), write(tmp_path / "b.h5", seal=True, steps=steps, loss=1.0)
    with open_run(path) as run, open_run(path) as second:
        assert run["loss"].tolist() == second["loss"].tolist() == [2.0] * 40
        path.write_bytes(other.read_bytes())  # as `cp` does
        for each in (run, second):
            each.refresh()
            assert each["loss"].tolist() == [1.0] * steps
        with open_run(path) as late:
            assert late["loss"].tolist() == [1.0] * steps


def test_the_same_run_written_over_with_other_numbers_is_read_again(tmp_path):
    path = write(tmp_path / "a.h5", seal=True)
    copy = tmp_path / "copy.h5"
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        file["steps"][3, STEP_COLUMNS.index("loss")] = 7.0
    with open_run(path) as run:
        assert run["loss"].tolist() == [2.0] * 40
        path.write_bytes(copy.read_bytes())
        run.refresh()
        assert run["loss"].tolist() == [2.0] * 3 + [7.0] + [2.0] * 36


def test_a_sealed_file_that_is_written_over_with_something_else_is_one_line(tmp_path):
    path = write(tmp_path / "a.h5", seal=True)
    with open_run(path) as run:
        path.write_bytes(b"no run at all" * 500)
        with pytest.raises(RunFileError, match=r"^[^\n]+$"):
            run.refresh()


def test_a_sealed_file_with_a_wrong_byte_in_its_metadata_is_damaged(tmp_path):
    path = write(tmp_path / "a.h5", seal=True)
    content = bytearray(path.read_bytes())
    at = content.find(b"EAHD")  # the header of an index of chunks: its last four bytes are a checksum
    assert at > 0
    content[at + 68] ^= 1
    path.write_bytes(content)
    assert integrity.screen(path)  # nothing that the walk looks at
    with pytest.raises(DamagedRun):
        open_run(path)


def test_a_cut_sealed_file_is_damaged(tmp_path):
    path = write(tmp_path / "a.h5", seal=True, steps=300)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DamagedRun):
        open_run(path)
