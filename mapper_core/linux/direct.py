"""Direct I/O on block devices: what is read is what is on the device, and what is written touches nothing beside it.

The page cache of a whole disk and those of its partitions do not know of each other. A table that ends in the middle of a
page, beside a mounted partition, must not be written through the cache: that would write back an old copy of the
partition's first or last sectors with it.
"""

from __future__ import annotations

import mmap
import os

from mapper_core.errors import KernelError


def open_device(path: str) -> int:
    """Open a block device for direct reading and writing.

    :raises OSError: with the errno of the call.
    """
    return os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)


def read(fd: int, offset: int, length: int) -> bytes:
    """Read whole sectors.

    :param offset: a multiple of the logical sector size, as ``length``.
    :returns: fewer bytes at the end of the device.
    """
    if length <= 0:
        return b""
    with mmap.mmap(-1, length) as buffer:  # page-aligned, as direct I/O needs it
        count = os.preadv(fd, [buffer], offset)
        return buffer[:count]


def write(fd: int, offset: int, data: bytes) -> None:
    """Write whole sectors; they are on the device when the call returns.

    :param offset: a multiple of the logical sector size, as the length of ``data``.
    :raises KernelError: not all could be written.
    :raises OSError: with the errno of the call.
    """
    with mmap.mmap(-1, len(data)) as buffer:
        buffer[:] = data
        written = os.pwritev(fd, [buffer], offset)
    if written != len(data):
        raise KernelError(f"only {written} of {len(data)} bytes could be written at {offset}")
    os.fsync(fd)
