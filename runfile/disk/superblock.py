"""The first 48 bytes of a run file: whether it was closed cleanly, how long HDF5 believes it is, and their repair.

After ``kill -9`` the open flags stay set and the end of file is stale, which keeps the file from being opened for
writing. Clearing the one and correcting the other makes it writable again; readers in SWMR mode need neither.

`open_clean` looks at a file as if it had been closed cleanly, without changing it and without HDF5's SWMR retries that
take minutes on damaged metadata.

Not covered: other superblock versions than 3, the one our files have.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import h5py

from .heaps import check_heaps

if TYPE_CHECKING:
    from typing_extensions import Buffer

SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Superblock:
    """The 48 bytes at the start of our files (version 3): open flags at 11, end of file at 28, checksum at 44."""

    SWMR = 4
    raw: bytes

    @staticmethod
    def read(path: Path, *, verify: bool = True) -> Superblock | None:
        """Return the superblock, or None where the file has another version or (``verify``) a wrong checksum."""
        with path.open("rb") as stream:
            raw = stream.read(48)
        if len(raw) < 48 or raw[:8] != SIGNATURE or raw[8] != 3 or raw[9:11] != b"\x08\x08":
            return None
        if not verify:
            return Superblock(raw)
        return Superblock(raw) if lookup3(raw[:44]) == struct.unpack_from("<I", raw, 44)[0] else None

    @property
    def flags(self) -> int:
        """Open flags: 1 while open for writing, 4 while in SWMR mode, 0 after a clean close."""
        return self.raw[11]

    @property
    def end_of_file(self) -> int:
        """File size HDF5 believes in; stale after a kill."""
        return int(struct.unpack_from("<Q", self.raw, 28)[0])

    def closed(self, end_of_file: int) -> bytes:
        """Return the superblock of the same file closed cleanly with the given size."""
        raw = bytearray(self.raw)
        raw[11] = 0
        struct.pack_into("<Q", raw, 28, end_of_file)
        struct.pack_into("<I", raw, 44, lookup3(bytes(raw[:44])))
        return bytes(raw)

    def settle(self, path: Path, end_of_file: int) -> None:
        """Clear the flags and set the end of file, in one write; grows the file where chunks point past its end."""
        with path.open("r+b") as stream:
            if os.fstat(stream.fileno()).st_size < end_of_file:
                os.ftruncate(stream.fileno(), end_of_file)
            os.pwrite(stream.fileno(), self.closed(end_of_file), 0)


_BEHIND: Final = 1 << 20  # more than any chunk, so that one cut in half can be read up to the cut


class _CleanView(io.RawIOBase):
    """A file read as it is, except that its superblock says it was closed cleanly, and zeros follow its end."""

    def __init__(self, path: Path, block: Superblock) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._fd).st_size + _BEHIND
        self._head, self._position = block.closed(self._size), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Read bytes of the file, the superblock corrected, zeros behind its end."""
        target = memoryview(buffer).cast("B")
        if self._position > self._size:  # or beyond what a file can be long
            raise OSError(errno.EINVAL, "an address in it lies far behind its end")
        data = os.pread(self._fd, len(target), self._position)
        if self._position < len(self._head):
            ours = self._head[self._position : self._position + len(data)]
            data = ours + data[len(ours) :]
        data = data.ljust(len(target), b"\0")
        target[:] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


@contextlib.contextmanager
def open_clean(path: Path) -> Iterator[h5py.File]:
    """Open a file for looking at it, whatever state a kill or a cut left it in.

    What a cut took reads as zeros: compare with the file's real size (``integrity.readable_rows``).

    Raises:
        OSError: HDF5 cannot make sense of it (or RuntimeError, KeyError, ValueError: HDF5 is not consistent here).
    """
    check_heaps(path)
    block = Superblock.read(path, verify=False)
    if block is None:
        with h5py.File(path, "r", locking=False) as file:
            yield file
        return
    with _CleanView(path, block) as view, h5py.File(view, "r") as file:
        yield file


def lookup3(data: bytes) -> int:
    """Return Bob Jenkins's lookup3 hash (``hashlittle``, seed 0), HDF5's metadata checksum.

    >>> hex(lookup3(b"Four score and seven years ago"))
    '0x17770551'
    """
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & mask

    def rot(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & mask

    blocks = max(0, (len(data) - 1) // 12)
    words: tuple[int, ...] = struct.unpack(f"<{3 * (blocks + 1)}I", data.ljust(12 * (blocks + 1), b"\0"))
    for i in range(0, 3 * blocks, 3):
        a, b, c = (a + words[i]) & mask, (b + words[i + 1]) & mask, (c + words[i + 2]) & mask
        a = ((a - c) & mask) ^ rot(c, 4)
        c = (c + b) & mask
        b = ((b - a) & mask) ^ rot(a, 6)
        a = (a + c) & mask
        c = ((c - b) & mask) ^ rot(b, 8)
        b = (b + a) & mask
        a = ((a - c) & mask) ^ rot(c, 16)
        c = (c + b) & mask
        b = ((b - a) & mask) ^ rot(a, 19)
        a = (a + c) & mask
        c = ((c - b) & mask) ^ rot(b, 4)
        b = (b + a) & mask
    if not data:
        return c
    a, b, c = (v + w & mask for v, w in zip((a, b, c), words[3 * blocks :], strict=True))
    for x, y, z in ((2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24)):
        state = [a, b, c]
        state[x] = ((state[x] ^ state[y]) - rot(state[y], z)) & mask
        a, b, c = state
    return c
