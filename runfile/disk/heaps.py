"""Where HDF5 keeps strings of variable length, and a look whether it can: on a damaged one it may loop for ever.

The attributes of a run file that are strings lie in *global heap collections*, which carry no checksum: the signature
``GCOL``, the size of all of it, then objects one after another, each with its index and size. An object of index 0 is
free space; one of size 0 is where HDF5 never gets any further.

Not covered: what the strings say.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

_SIGNATURE: Final = b"GCOL\x01\0\0\0"
_HEADER: Final = 16  # bytes of the collection's header, and of every object's
_REACH: Final = 1 << 20  # attributes are written before anything else


def check_heaps(path: Path) -> None:
    """Raise ``OSError`` where a collection near the beginning of a file does not add up; costs a read of it."""
    with path.open("rb") as stream:
        fd, head, end = stream.fileno(), stream.read(_REACH), os.fstat(stream.fileno()).st_size
        at = head.find(_SIGNATURE)
        while at >= 0:
            stop = at + _whole_number(fd, at + 8)
            if stop > end or not _adds_up(fd, at + _HEADER, stop):
                raise OSError("its strings are cut off or overwritten")
            at = head.find(_SIGNATURE, max(stop, at + 1))


def _adds_up(fd: int, position: int, stop: int) -> bool:
    """Return whether the objects of a collection follow one another up to its end."""
    while position + _HEADER <= stop:
        index, size = _whole_number(fd, position) & 0xFFFF, _whole_number(fd, position + 8)
        position += _HEADER + -(-size // 8) * 8 if index else size
        if not index and size < _HEADER:
            return False
    return position <= stop


def _whole_number(fd: int, position: int) -> int:
    """Return the eight bytes at a position of a file as a number, 0 where they are not all there."""
    number: int = struct.unpack("<Q", os.pread(fd, 8, position).ljust(8, b"\0"))[0]
    return number
