"""Arrays of any shape: every kind comes back as it was given, from a file in any state, and memory stays bounded."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from loopscope.runfile import writer as writer_module
from loopscope.runfile.arrays import flat_bytes, from_bytes, index_row
from loopscope.runfile.disk.handle import Handle
from loopscope.runfile.disk.repair import repair
from loopscope.runfile.layout import ARRAY_DTYPES, ARRAY_INDEX_DTYPE, DamagedRun
from loopscope.runfile.open import open_run
from loopscope.runfile.reader import Run
from loopscope.runfile.tables import Tables
from loopscope.runfile.writer import RunWriter


def example(step: int) -> np.ndarray:
    """One array per step, of changing shape and kind."""
    kind = sorted(ARRAY_DTYPES)[step % len(ARRAY_DTYPES)]
    return (np.arange(step * (step % 5)) % 100).reshape(step, step % 5).astype(kind)


def check(run: Run, steps: list[int]) -> None:
    at, arrays = run.arrays("example")
    assert at.dtype == np.int64 and at.tolist() == steps
    for step, array in zip(steps, arrays, strict=True):
        assert array.dtype == example(step).dtype and array.shape == (step, step % 5)
        assert np.array_equal(array, example(step))


@given(npst.arrays(st.sampled_from(sorted(ARRAY_DTYPES)), npst.array_shapes(min_dims=0, max_dims=4, min_side=0)))
def test_any_array_survives_packing(array: np.ndarray) -> None:
    for given_as in (array, array.astype(array.dtype.newbyteorder(">")), np.array(array, order="F")):
        data, stored = flat_bytes("x", given_as)
        row = np.array([index_row(3, 1, 7, "x", stored)], dtype=ARRAY_INDEX_DTYPE)[0]
        unpacked = from_bytes(row, data.copy())
        assert unpacked.dtype == array.dtype and unpacked.shape == array.shape and unpacked.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("", [1], "1 to 64 bytes"),
        ("é" * 33, [1], "1 to 64 bytes"),
        ("a\0", [1], "1 to 64 bytes"),
        ("a", ["text"], "dtype <U4; expected one of"),
        ("a", [None], "dtype object"),
        ("a", np.zeros(2, np.longdouble), "dtype"),
        ("a", np.zeros((1,) * 5), "5 axes; expected 4 at most"),
    ],
)
def test_what_cannot_be_stored_is_said_before_anything_is_staged(
    tmp_path: Path, name: str, values: object, says: str
) -> None:
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        with pytest.raises(ValueError, match=says) as caught:
            writer.append_array(0, name, values)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with open_run(writer.path) as run:
        assert run.array_names == ()


def test_live_closed_sealed_resumed_and_repaired_files_give_the_same_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = RunWriter.create(path, info={})
    follower = open_run(path)
    for generation, end in enumerate((RunWriter.close, RunWriter.seal, RunWriter.seal)):
        for step in range(20 * generation, 20 * generation + 20):
            writer.append_step({"step": step})
            writer.append_array(step, "example", example(step))
        assert writer.flush() and follower.refresh()
        check(follower, list(range(20 * generation + 20)))
        end(writer)
        with open_run(path) as run:
            check(run, list(range(20 * generation + 20)))
        assert repair(path, in_place=True).rows_lost == 0
        follower.refresh()
        check(follower, list(range(20 * generation + 20)))
        writer = RunWriter.resume(path)
    writer.seal()
    with h5py.File(path, "r") as file:
        assert file["arrays"].compression == "gzip"
    follower.close()


def test_arrays_are_superseded_under_their_own_name_only(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer = RunWriter.create(path, info={})
    for step in range(0, 50, 10):
        writer.append_array(step, "often", [1])
        writer.append_array(step, "seldom", [[1.0, step]])
    writer.close()
    with RunWriter.resume(path) as writer, open_run(path) as run:
        writer.append_array(30, "often", [2, 2])
        writer.append_array(31, "once", True)
        assert writer.flush() and run.refresh()
        steps, arrays = run.arrays("often")
        assert steps.tolist() == [0, 10, 20, 30] and [a.tolist() for a in arrays] == [[1], [1], [1], [2, 2]]
        assert run.arrays("seldom")[0].tolist() == [0, 10, 20, 30, 40]
        steps, arrays = run.arrays("seldom", slice(-1, None))
        assert steps.tolist() == [40] and arrays[0].tolist() == [[1.0, 40.0]]
        assert run.array_names == ("often", "seldom", "once") and run.arrays("once")[1][0].shape == ()
        with pytest.raises(KeyError, match="often, seldom, once"):
            run.arrays("never")


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, slice]] = []
    rows, renewed = Tables.read, Handle.renewed

    class Watched:
        def __init__(self, dataset: h5py.Dataset) -> None:
            self.dataset = dataset

        def __getitem__(self, where: slice) -> np.ndarray:
            read.append(("arrays", where))
            rows: np.ndarray = self.dataset[where]
            return rows

    def watch(handle: Handle, name: str) -> object:
        return Watched(renewed(handle, name)) if name == "arrays" else renewed(handle, name)

    monkeypatch.setattr(Handle, "renewed", watch)
    monkeypatch.setattr(
        Tables,
        "read",
        lambda self, table, where: read.append((table, where)) or rows(self, table, where),
    )
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer, open_run(writer.path) as run:
        for step in range(100):
            writer.append_array(step, "large", np.zeros(1000, np.uint8))
            writer.append_array(step, "small", np.uint8(step))
        assert writer.flush() and run.refresh()
        read.clear()
        assert [int(a) for a in run.arrays("small", slice(5, 7))[1]] == [5, 6]
        assert read == [("array_index", slice(0, 200)), ("arrays", slice(6005, 7007))]  # near each other: one read
        writer.append_array(100, "small", np.uint8(100))
        assert writer.flush() and run.refresh()
        read.clear()
        run.arrays("small", slice(-1, None))
        assert read == [("array_index", slice(200, 201)), ("arrays", slice(100_100, 100_101))]
        read.clear()
        assert run.array_steps("small").tolist() == list(range(101)) and read == []
        assert run.array_table("small")[1][:, 0].tolist() == list(range(101))
        writer.append_array(101, "small", np.uint8(101))
        assert writer.flush() and run.refresh()
        read.clear()
        assert run.array_table("small")[1].shape == (102, 1)
        assert read == [("array_index", slice(201, 202)), ("arrays", slice(100_101, 100_102))]  # the new one only


def test_short_arrays_are_a_table_in_which_superseded_ones_are_left_out(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer, open_run(writer.path) as run:
        assert run.array_steps("norms").shape == (0,) and run.array_table("norms")[1].shape == (0, 0)
        for step in range(4):
            writer.append_step({"step": step})
            writer.append_array(step, "norms", np.arange(step + 1, dtype=np.float32))
        assert writer.flush() and run.refresh()
        steps, table = run.array_table("norms")
        assert steps.tolist() == [0, 1, 2, 3] and table.shape == (4, 4)
        assert table[2, :3].tolist() == [0, 1, 2] and np.isnan(table[2, 3])
        writer.append_step({"step": 2})
        writer.append_array(2, "norms", np.array([7, 8], np.float32))
        assert writer.flush() and run.refresh()
        steps, table = run.array_table("norms")
        assert run.array_steps("norms").tolist() == steps.tolist() == [0, 1, 2]
        assert table[1:].tolist() == [[0, 1], [7, 8]]


def test_a_row_and_bytes_that_do_not_fit_are_damage_in_one_line(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer:
        writer.append_array(0, "a", np.zeros(3))
    with h5py.File(writer.path, "r+") as file:
        row = file["array_index"][0]
        row["shape"][0] = 4
        file["array_index"][0] = row
    with open_run(writer.path) as run, pytest.raises(DamagedRun, match="loopscope repair"):
        run.arrays("a")


@pytest.mark.parametrize("keep", [0.9, 0.6, 0.3])
def test_a_cut_off_file_keeps_the_arrays_that_are_whole(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.h5"
    writer = RunWriter.create(path, info={})
    for step in range(400):
        writer.append_step({"step": step})
        writer.append_array(step, "ramp", np.arange(1000) + step)
        if step % 10 == 9:
            assert writer.flush()
    writer.close()
    os.truncate(path, int(path.stat().st_size * keep))
    assert repair(path, in_place=True).found == "damaged"
    with open_run(path) as run:
        steps, arrays = run.arrays("ramp")
        assert 0.8 * keep * 400 < len(steps) <= 400 and steps.tolist() == list(range(len(steps)))
        assert all(np.array_equal(array, np.arange(1000) + step) for step, array in zip(steps, arrays, strict=True))


def test_a_large_array_is_recorded_and_its_memory_given_back(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer, open_run(writer.path) as run:
        large = np.arange(2 << 20)
        writer.append_array(0, "large", large)  # large enough to be flushed at once
        assert run.refresh() and np.array_equal(run.arrays("large")[1][0], large)
        assert sum(table._buffer.nbytes for table in writer._tables.values()) < 1 << 20


def test_arrays_count_towards_the_room_on_the_disk_and_lost_ones_are_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_KEEP_ARRAYS", 1 << 20)
    with RunWriter.create(tmp_path / "a.h5", info={}) as writer, open_run(writer.path) as run:
        with monkeypatch.context() as patch:
            room = SimpleNamespace(f_bavail=1, f_frsize=writer_module.DISK_RESERVE + (200 << 10))
            patch.setattr(writer_module.os, "statvfs", lambda folder: room)
            writer.append_array(0, "a", np.zeros(50 << 10, np.uint8))
            assert writer.flush()
            for step in range(1, 100):
                writer.append_array(step, "a", np.zeros(150 << 10, np.uint8))
            assert not writer.flush() and not writer.failure
            assert writer.arrays_lost == 99 - 6  # six of 150 KiB fit into the 1 MiB that is kept
        writer.append_array(100, "a", np.zeros(2 << 20, np.uint8))  # never fits
        assert writer.flush() and run.refresh()
        assert run.arrays("a")[0].tolist() == list(range(7))
        assert [(event.kind, event.value) for event in run.events] == [("arrays_lost", 93.0), ("arrays_lost", 1.0)]
