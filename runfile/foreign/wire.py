"""Just enough of two wire formats to read scalars without their libraries: Protocol Buffers, and CRC-32C.

Everything is bounded by the bytes at hand: a length that reaches beyond them is an error, and nothing is recursive.

Not covered: writing; groups of protobuf, which were given up long ago.

Source: Protocol Buffers encoding specification; CRC-32C: Castagnoli et al., IEEE Trans. Commun. 41 (1993) 883.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL: Final = 0x82F63B78
_FIXED: Final = {1: 8, 5: 4}  # bytes of wire types of fixed length

Field = tuple[int, int | bytes]
"""Number and content of a field: an integer of a varint, the bytes of anything else."""


class WireError(ValueError):
    """Bytes are no message."""


def fields(message: bytes) -> Iterator[Field]:
    """Yield the fields of a message.

    Raises:
        WireError: The bytes are none.

    >>> list(fields(bytes([0x08, 0x96, 0x01, 0x12, 0x02, 0x68, 0x69])))
    [(1, 150), (2, b'hi')]
    """
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        number, kind = key >> 3, key & 7
        if not number:
            raise WireError("field 0")
        if kind == 0:
            value, at = varint(message, at)
            yield number, value
            continue
        if kind == 2:
            size, at = varint(message, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise WireError(f"wire type {kind}")
        if size > len(message) - at:
            raise WireError("a field ends behind its message")
        yield number, message[at : at + size]
        at += size


def varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the variable-length integer at a place, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise WireError("a number ends behind its message")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise WireError("a number of more than ten bytes")


def signed(value: int) -> int:
    """Return a varint as the signed 64-bit integer that it stands for."""
    return value - (1 << 64) if value >= 1 << 63 else value


def double(content: int | bytes) -> float:
    """Return a field of eight bytes as a number."""
    return _unpack("<d", content)


def single(content: int | bytes) -> float:
    """Return a field of four bytes as a number."""
    return _unpack("<f", content)


def _unpack(form: str, content: int | bytes) -> float:
    if not isinstance(content, bytes) or len(content) != struct.calcsize(form):
        raise WireError("a number of another length")
    value: float = struct.unpack(form, content)[0]
    return value


@cache
def _table() -> NDArray[np.uint32]:
    """Return the CRC of every byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


def crc32c(block: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the CRC-32C of several stretches of one length at once, which makes Python quick enough for a log.

    Args:
        block: ``(count, length)`` bytes.

    >>> hex(int(crc32c(np.frombuffer(b"123456789", np.uint8)[None])[0]))
    '0xe3069283'
    """
    table = _table()
    crc = np.full(len(block), 0xFFFFFFFF, dtype=np.uint32)
    for column in np.ascontiguousarray(block.T):
        crc = table[(crc ^ column) & 0xFF] ^ (crc >> 8)
    return crc ^ np.uint32(0xFFFFFFFF)


def masked(crc: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return CRCs as TensorFlow's record files store them."""
    rotated = (crc >> np.uint32(15)) | (crc << np.uint32(17))
    return (rotated.astype(np.uint64) + 0xA282EAD8).astype(np.uint32)
