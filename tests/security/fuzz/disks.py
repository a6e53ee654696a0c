"""Sparse disks as short byte strings: what a fuzzer changes should be what a reader looks at, not holes.

An input is the size of the disk in sectors (u32, little-endian), then sectors: their number (u32) and 512 bytes. The last
one may be cut off. Sectors beyond the size are left out; the rest reads as zeros.
"""

from __future__ import annotations

import os
import struct

SECTOR = 512
_HEAD = struct.Struct("<I")


def encode(image: bytes) -> bytes:
    """Return the short form of a disk."""
    zero = bytes(SECTOR)
    pieces = [_HEAD.pack(-(-len(image) // SECTOR))]
    for offset in range(0, len(image), SECTOR):
        sector = image[offset : offset + SECTOR]
        if sector != zero[: len(sector)]:
            pieces.append(_HEAD.pack(offset // SECTOR) + sector.ljust(SECTOR, b"\0"))
    return b"".join(pieces)


class SparseDisk:
    """A disk read from the short form.

    :param data: any bytes at all; what is missing is zero.
    """

    def __init__(self, data: bytes) -> None:
        (sectors,) = _HEAD.unpack(data[:4].ljust(4, b"\0"))
        self.size = sectors * SECTOR
        self._sectors: dict[int, bytes] = {}
        for at in range(4, len(data) - 4, SECTOR + 4):
            (number,) = _HEAD.unpack_from(data, at)
            if number < sectors:
                self._sectors[number] = data[at + 4 : at + 4 + SECTOR].ljust(SECTOR, b"\0")

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the disk, fewer only at its end."""
        length = max(0, min(length, self.size - offset))
        first, last = offset // SECTOR, -(-(offset + length) // SECTOR)
        if last - first > 1 << 16:
            raise AssertionError(f"a reader wants {length} bytes at once")
        data = b"".join(self._sectors.get(number, bytes(SECTOR)) for number in range(first, last))
        return data[offset - first * SECTOR :][:length]

    def write_to(self, fd: int) -> None:
        """Make an empty file this disk."""
        os.ftruncate(fd, self.size)
        for number, sector in self._sectors.items():
            os.pwrite(fd, sector, number * SECTOR)
