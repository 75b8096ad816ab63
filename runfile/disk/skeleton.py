"""Whether the structure of an HDF5 file is the one that our writer makes: looked up here, before HDF5 sees a byte.

An HDF5 file is a program for the library that reads it. Its metadata can name other files, build one table out of
others, lead in circles, and bring down a library that trusts it. Our writer uses a small corner of the format. This
module walks that corner with its own code: superblock, root group, index of its links, one header for each table, the
header of the index of its chunks, and the heap of its strings. A file of which every such byte has a meaning that the
writer gives it is *as written*, and HDF5 may open it in this process. Anything else may still be a good run that
another program touched; `trial` opens it in a process of its own first.

Every number is bounded before it is used, and the cost does not depend on the length of the run.

Not covered: the chunks themselves, whose bytes are numbers or a gzip stream, and checksums, which HDF5 checks.

Source: The HDF Group, "HDF5 File Format Specification Version 3.0"; the names of its blocks are kept.
"""

from __future__ import annotations

import functools
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import h5py
import numpy as np

from ..layout import TABLES, table_shapes
from .superblock import SIGNATURE

UNDEFINED: Final = 0xFFFFFFFFFFFFFFFF
MOST_COLUMNS: Final = 4096  # of the table of steps: far more scalars than anybody gives
LARGEST_CHUNK: Final = 32 << 20  # bytes; the writer's largest is half of that
_ATTRIBUTES: Final = frozenset((b"format", b"version", b"layout", b"run_id", b"eigenvalues", b"info"))
_NIL, _SPACE, _LINK_INFO, _TYPE, _FILL, _LAYOUT, _GROUP_INFO, _FILTERS, _ATTRIBUTE, _ATTRIBUTE_INFO = (
    0x00, 0x01, 0x02, 0x03, 0x05, 0x08, 0x0A, 0x0B, 0x0C, 0x15
)  # fmt: skip
_NO_DENSE_ATTRIBUTES: Final = bytes(2) + b"\xff" * 16
_STRING: Final = bytes.fromhex("1901010010000000100000000100000000000800")  # UTF-8 of variable length
_INTEGER: Final = bytes.fromhex("100800000800000000004000")  # int64
_EXTENSIBLE_ARRAY: Final = bytes((32, 4, 4, 16, 10))  # parameters of the index of chunks that HDF5 uses by itself
_IN_ITS_HEADER: Final = bytes((32, 4, 16, 4, 10))  # the same there
FILTER_IDS: Final = (1, 2, 3)  # gzip, shuffle, fletcher32


class _Odd(Exception):
    """The file is not as our writer makes it."""


class _Message(NamedTuple):
    """One message of an object header."""

    kind: int
    body: bytes


Shapes = Mapping[str, tuple[int, ...]]
NOT_SEEN: Final[Shapes] = {}
"""Of a file that is not as written."""


def as_written(path: Path) -> Shapes:
    """Return the shapes of the tables of a file whose structure is the one that our writer makes, else nothing.

    Costs about half a millisecond.
    """
    try:
        with path.open("rb") as stream:
            return _File(stream.fileno()).check()
    except (_Odd, OSError, struct.error, IndexError):
        return NOT_SEEN


def _require(condition: bool) -> None:
    """Give up on a file that is not as written."""
    if not condition:
        raise _Odd


class _File:
    """One walk through a file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._strings: list[bytes] = []

    def check(self) -> Shapes:
        """Return the shapes of the tables; raise `_Odd` unless everything is as written."""
        head = self._read(0, 48)
        _require(head[:11] == SIGNATURE + b"\x03\x08\x08")
        base, extension, _, root = struct.unpack_from("<4Q", head, 12)
        _require(base == 0 and extension == UNDEFINED)
        messages = list(self._header(root))
        _require({m.kind for m in messages} <= {_NIL, _LINK_INFO, _GROUP_INFO, _ATTRIBUTE, _ATTRIBUTE_INFO})
        names = [self._attribute(m.body) for m in messages if m.kind == _ATTRIBUTE]
        _require(len(names) == len(set(names)) == 6 and set(names) == _ATTRIBUTES)
        _require(all(m.body == _NO_DENSE_ATTRIBUTES for m in messages if m.kind == _ATTRIBUTE_INFO))
        _require(all(m.body == b"\0\0" for m in messages if m.kind == _GROUP_INFO))
        (links,) = (m.body for m in messages if m.kind == _LINK_INFO)
        _require(len(links) == 18 and links[:2] == b"\0\0")
        tables = self._links(*struct.unpack_from("<2Q", links, 2))
        _require(len(set(tables.values()) | {root}) == len(tables) + 1)  # no table has two names, none is the root
        shapes = {name.decode("ascii", "replace"): self._table(name, at) for name, at in tables.items()}
        _require({"commit", "columns", "steps"} <= shapes.keys())
        _require(shapes["steps"][1:] == shapes["columns"])
        self._heap_of_strings()
        return shapes

    def _read(self, at: int, count: int) -> bytes:
        """Return bytes of the file, all of them."""
        _require(at + count <= self._size)
        data = os.pread(self._fd, count, at)
        _require(len(data) == count)
        return data

    def _header(self, at: int) -> Iterator[_Message]:
        """Return the messages of an object header of one block."""
        start = self._read(at, 8)
        _require(start[:6] == b"OHDR\x02\x01")
        block, place = self._read(at + 8, int.from_bytes(start[6:8], "little")), 0
        while place + 4 <= len(block):
            kind, size, flags = struct.unpack_from("<BHB", block, place)
            body = block[place + 4 : place + 4 + size]
            _require(len(body) == size and not flags & 0x02)  # a shared message lies elsewhere
            yield _Message(kind, body)
            place += 4 + size

    def _attribute(self, body: bytes) -> bytes:
        """Return the name of an attribute that is one string or one whole number."""
        version, flags, name, kind, space = struct.unpack_from("<2B3H", body)
        charset, at = body[8], 9
        _require(version == 3 and flags == 0 and charset == 0 and space == 4)
        data = body[at + name + kind + space :]
        _require(body[at + name + kind :][:4] == b"\x02\0\0\0")  # a scalar
        said = body[at + name : at + name + kind]
        _require((said, len(data)) in ((_STRING, 16), (_INTEGER, 8)))
        if said == _STRING:
            self._strings.append(data)
        return body[at : at + name].rstrip(b"\0")

    def _links(self, heap: int, index: int) -> dict[bytes, int]:
        """Return the objects of the root group: names and addresses. All links are hard, in one leaf of the index."""
        header = self._read(heap, 142)
        _require(header[:10] == b"FRHP\0" + struct.pack("<2HB", 7, 0, 2))
        _require(header[14:30] == bytes(8) + b"\xff" * 8)  # nothing in it lies outside of its block
        width, first, largest, bits, _, block, rows = struct.unpack_from("<H2Q2HQH", header, 110)
        _require((width, first, largest, bits, rows) == (4, 512, 65536, 32, 0))
        objects = self._read(block, first)
        _require(objects[:5] == b"FHDB\0" and struct.unpack_from("<Q", objects, 5)[0] == heap)
        tree = self._read(index, 38)
        _require(tree[:5] == b"BTHD\0" and struct.unpack_from("<BIHH", tree, 5) == (5, 512, 11, 0))
        leaf_at, count, total = struct.unpack_from("<QHQ", tree, 16)
        _require(0 < count == total <= len(TABLES) + 1)
        leaf = self._read(leaf_at, 512)
        _require(leaf[:6] == b"BTLF\0\x05")
        records = (struct.unpack_from("<IBIH", leaf, 6 + 11 * i) for i in range(count))
        links = [self._link(objects, kind, at, size) for _, kind, at, size in records]
        _require(len(dict(links)) == count)
        return dict(links)

    def _link(self, objects: bytes, kind: int, at: int, size: int) -> tuple[bytes, int]:
        """Return name and address of a link in the heap's block."""
        said = objects[at : at + size]
        _require(kind == 0 and at >= 21 and len(said) == size and said[:2] == b"\x01\0" and size == said[2] + 11)
        return said[3:-8], int(struct.unpack_from("<Q", said, size - 8)[0])

    def _table(self, name: bytes, at: int) -> tuple[int, ...]:
        """Return the shape of a table, whose header says nothing but what the writer says of it."""
        messages = [m for m in self._header(at) if m.kind != _NIL]
        said = {m.kind: m.body for m in messages}
        _require(len(said) == len(messages) and {_SPACE, _TYPE, _FILL, _LAYOUT} <= said.keys())
        _require(said.keys() <= {_SPACE, _TYPE, _FILL, _LAYOUT, _FILTERS, _ATTRIBUTE, _ATTRIBUTE_INFO})
        _require(said.get(_ATTRIBUTE_INFO, _NO_DENSE_ATTRIBUTES) == _NO_DENSE_ATTRIBUTES)
        if _ATTRIBUTE in said:
            _require(self._attribute(said[_ATTRIBUTE]) == b"columns" and said[_ATTRIBUTE][9 + 8 :][:20] == _STRING)
        types, dimensions, _ = _known_types()[name.decode("ascii", "replace")] if name in _names() else (b"", 0, 0)
        _require(said[_TYPE] == types and said[_FILL] in _FILLS)
        shape = self._space(said[_SPACE], dimensions)
        filtered = _FILTERS in said
        if filtered:
            _check_filters(said[_FILTERS])
        self._layout(said[_LAYOUT], name, shape, filtered)
        return shape

    def _space(self, body: bytes, dimensions: int) -> tuple[int, ...]:
        """Return the shape that a header declares, of the number of axes that the table has."""
        _require(body[:2] == bytes((2, dimensions)) and body[2:4] == b"\x01\x01" and len(body) == 4 + 16 * dimensions)
        shape: tuple[int, ...] = struct.unpack_from(f"<{dimensions}Q", body, 4)
        _require(all(0 < n <= MOST_COLUMNS for n in shape[1:]) and shape[0] < 2**48)
        return shape

    def _layout(self, body: bytes, name: bytes, shape: tuple[int, ...], filtered: bool) -> None:
        """Check where a table lies: in one piece, in one chunk, or in chunks of an extensible array."""
        item = _known_types()[name.decode()].item
        if body[:2] in (b"\x03\x01", b"\x04\x01"):
            at, size = struct.unpack("<2Q", body[2:])
            _require(not filtered and name == b"columns" and size == math.prod(shape) * item)
            _require(at == UNDEFINED or at + size <= self._size)
            return
        _require(body[:2] == b"\x04\x02" and body[3] == len(shape) + 1 and 1 <= body[4] <= 4)
        wide, axes = body[4], len(shape)
        chunk = [int.from_bytes(body[5 + i * wide : 5 + (i + 1) * wide], "little") for i in range(axes + 1)]
        _require(all(chunk) and chunk[-1] == item and math.prod(chunk) <= LARGEST_CHUNK)
        rest = body[5 + (axes + 1) * wide :]
        if rest[0] == 1:  # one chunk
            _require(name == b"columns" and tuple(chunk[:-1]) == shape and len(rest) == 1 + (12 if filtered else 0) + 8)
            return
        _require(rest[:6] == b"\x04" + _EXTENSIBLE_ARRAY and body[2] == 0 and len(rest) == 14)
        blocks = math.prod(-(-n // c) for n, c in zip(shape, chunk[:-1], strict=True))
        self._index_of_chunks(int(struct.unpack_from("<Q", rest, 6)[0]), blocks, filtered)

    def _index_of_chunks(self, at: int, blocks: int, filtered: bool) -> None:
        """Check the header of an extensible array; its entries alone take eight bytes each."""
        _require(blocks * 8 <= self._size)
        if at == UNDEFINED:
            return
        header = self._read(at, 72)
        _require(header[:4] == b"EAHD" and header[4:6] == bytes((0, int(filtered))))
        _require(9 <= header[6] <= 20 if filtered else header[6] == 8)
        _require(header[7:12] == _IN_ITS_HEADER)
        *_, highest, _, index = struct.unpack_from("<7Q", header, 12)
        _require(highest * 8 <= self._size and (index == UNDEFINED or self._read(index, 5) == b"EAIB\0"))

    def _heap_of_strings(self) -> None:
        """Check that every string lies in a collection whose objects add up, and is as long as its object."""
        objects: dict[int, dict[int, int]] = {}
        for said in self._strings:
            length, at, number = struct.unpack("<IQI", said)
            if at not in objects:
                objects[at] = self._collection(at)
            _require(objects[at].get(number) == length)

    def _collection(self, at: int) -> dict[int, int]:
        """Return the sizes of the objects of a global heap collection by their number."""
        head = self._read(at, 16)
        _require(head[:8] == b"GCOL\x01\0\0\0")
        size = int(struct.unpack_from("<Q", head, 8)[0])
        _require(size >= 4096 and at + size <= self._size)
        sizes: dict[int, int] = {}
        place, end = at + 16, at + size
        while place + 16 <= end:
            number, _, length = struct.unpack("<H6sQ", self._read(place, 16))
            if number == 0:  # what is free reaches to the end
                _require(length >= 16 and place + length <= end)
                place += length
            else:
                _require(number not in sizes and len(sizes) < 64)
                sizes[number] = length
                place += 16 + -(-length // 8) * 8
        _require(place <= end)
        return sizes


_FILLS: Final = frozenset(
    (
        b"\x03\x0a",
        b"\x03\x0b",
        b"\x03\x2b\x04\0\0\0" + np.array(np.nan, "<f4").tobytes(),
        b"\x03\x2b\x08\0\0\0" + np.array(np.nan, "<f8").tobytes(),
    )
)


class _Known(NamedTuple):
    """What is known of a table whoever wrote it: its type as HDF5 writes it, number of axes, bytes of an item."""

    encoded: bytes
    axes: int
    item: int


@functools.cache
def _names() -> frozenset[bytes]:
    """Return the names that tables can have."""
    return frozenset(name.encode() for name in (*TABLES, "commit"))


def _check_filters(body: bytes) -> None:
    """Raise unless a table goes through filters of the list only, each once."""
    _require(body[0] == 2 and 1 <= body[1] <= len(FILTER_IDS))
    place, seen = 2, set()
    for _ in range(body[1]):
        identity, _, count = struct.unpack_from("<3H", body, place)
        _require(identity in FILTER_IDS and identity not in seen and count <= 1)
        seen.add(identity)
        place += 6 + 4 * count
    _require(place == len(body))


@functools.cache
def _known_types() -> dict[str, _Known]:
    """Return what is known of every table; the types as HDF5 itself writes them, into a file in memory."""
    known: dict[str, _Known] = {}
    with h5py.File("types", "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        shapes = table_shapes(1, 1)
        for name, (shape, dtype) in shapes.items():
            file.create_dataset(name, shape=(0, *shape), maxshape=(None, *shape), chunks=(1, *shape), dtype=dtype)
        file.flush()
        image = file.id.get_file_image()
        for name, (shape, dtype) in shapes.items():
            at = int(h5py.h5o.get_info(file[name].id).addr)
            known[name] = _Known(_type_in(image, at), 1 + len(shape), dtype.itemsize)
    return known


def _type_in(image: bytes, at: int) -> bytes:
    """Return the message that describes the type of a table, out of the bytes of a file."""
    place = at + 8
    while image[place] != _TYPE:
        place += 4 + int.from_bytes(image[place + 1 : place + 3], "little")
    return image[place + 4 : place + 4 + int.from_bytes(image[place + 1 : place + 3], "little")]
