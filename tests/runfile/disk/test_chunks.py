"""What is picked out of chunks is what HDF5 reads, and a chunk that is not what it should be is an error."""

from __future__ import annotations

import zlib

import h5py
import numpy as np
import pytest
from loopscope.runfile.disk.chunks import can_pick, pick, read_repeating

ROWS, CHUNK = 1000, 64


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as made:
        yield made


def table(file, dtype="<f4", **packed):
    packed = {"compression": "gzip", "shuffle": True, "chunks": (CHUNK, 1)} | packed
    values = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(dtype)
    values[5, 1] = np.nan
    return file.create_dataset("t", data=values, maxshape=(None, 3), **packed), values


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_numbers_are_those_that_hdf5_reads(file, dtype):
    dataset, values = table(file, dtype)
    assert can_pick(dataset)
    rng = np.random.default_rng(1)
    wanted = [np.sort(rng.integers(0, ROWS, count)) for count in (0, 1, 7, 400)] + [np.arange(ROWS), np.array([130])]
    for column in range(3):
        for at, picked in zip(wanted, pick(dataset, column, wanted), strict=True):
            assert picked.dtype == values.dtype and picked.tobytes() == values[at, column].tobytes()


@pytest.mark.parametrize(
    "packed", [{"chunks": (CHUNK, 3)}, {"shuffle": False}, {"compression": None}, {"fletcher32": True}]
)
def test_other_tables_are_left_to_hdf5(file, packed):
    assert not can_pick(table(file, **packed)[0])


def test_a_table_in_one_piece_is_left_to_hdf5(file):
    assert not can_pick(file.create_dataset("t", data=np.zeros((9, 3))))


@pytest.mark.parametrize(
    "chunk",
    [
        zlib.compress(bytes(CHUNK * 4 - 1)),
        zlib.compress(bytes(CHUNK * 4 + 1)),
        zlib.compress(bytes(1 << 24)),
        zlib.compress(bytes(CHUNK * 4))[:-1],
        zlib.compress(bytes(CHUNK * 4))[:-4] + b"xxxx",  # the check value
        b"no stream",
    ],
)
def test_a_chunk_that_is_not_what_it_should_be_is_an_error(file, chunk):
    dataset, _ = table(file)
    dataset.id.write_direct_chunk((CHUNK, 2), chunk)
    with pytest.raises(OSError):
        pick(dataset, 2, [np.array([CHUNK])])
    assert len(pick(dataset, 2, [np.array([0])])[0]) == 1  # the others are as they were


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("same", [2 * CHUNK, 3 * CHUNK + 5, ROWS])
def test_a_column_that_repeats_itself_is_what_hdf5_reads(file, dtype, same):
    values = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(dtype)
    values[:same, 0], values[:same, 1] = np.nan, 3.0
    dataset = file.create_dataset("t", data=values, compression="gzip", shuffle=True, chunks=(CHUNK, 1))
    for length in (2 * CHUNK, ROWS - 7, ROWS):
        for column in (0, 1):
            read = read_repeating(dataset, column, length)
            assert read.dtype == values.dtype and read.tobytes() == values[:length, column].tobytes()
        assert read_repeating(dataset, 2, length) is None
    assert read_repeating(dataset, 0, 2 * CHUNK - 1) is None


def test_a_repeated_chunk_that_is_broken_is_an_error(file):
    dataset, _ = table(file)
    for first in (0, CHUNK):
        dataset.id.write_direct_chunk((first, 0), zlib.compress(bytes(CHUNK * 4 - 1)))
    with pytest.raises(OSError):
        read_repeating(dataset, 0, ROWS)


def test_a_chunk_whose_filters_were_skipped_is_read_as_hdf5_reads_it(tmp_path):
    given = np.arange(CHUNK, dtype="<f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        table(file)[0].id.write_direct_chunk((CHUNK, 0), zlib.compress(given.tobytes()), filter_mask=1)  # no shuffle
    with h5py.File(tmp_path / "a.h5", "r") as file:
        (picked,) = pick(file["t"], 0, [np.arange(CHUNK, 2 * CHUNK)])
        assert picked.tobytes() == given.tobytes()
