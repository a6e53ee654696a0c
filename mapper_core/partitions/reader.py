"""How the parsers read a device, and how they turn the bytes of an image into text."""

from __future__ import annotations

import os
from collections.abc import Callable

#: ``read(offset, length)``, both in bytes, returns exactly those bytes, fewer only at the end of the device.
ReadAt = Callable[[int, int], bytes]

#: Bytes at the start with the superblocks of most, and of all (btrfs) filesystems; at the end with those of RAID and the GPT.
FIRST = 8 << 10
_HEAD = 72 << 10
TAIL = 72 << 10


def file_reader(fd: int) -> ReadAt:
    """Return a reader of an open file or block device. It keeps no position and does not close ``fd``.

    What it returns raises :class:`KernelError` where the disk cannot be read: its tables lead nowhere, or its storage is broken.
    """

    def read(offset: int, length: int) -> bytes:
        pieces = []
        while length > 0:
            try:
                piece = os.pread(fd, length, offset)
            except OSError as error:
                from mapper_core.linux.syscalls import kernel_error

                raise kernel_error(
                    error, "the disk cannot be read", subject=os.readlink(f"/proc/self/fd/{fd}")
                ) from error
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    return read


def fetch_ends(fd: int, size: int) -> None:
    """Let the kernel fetch both ends of an open file or device, so that there is one wait for both, or none.

    Partition tables and superblocks are there.
    """
    for start in (max(0, size - TAIL), 0):
        os.posix_fadvise(fd, start, FIRST if start == 0 else TAIL, os.POSIX_FADV_WILLNEED)


def window(read: ReadAt, start: int, size: int) -> ReadAt:
    """Return a reader of ``size`` bytes from ``start``: a partition, read through the whole device."""

    def read_inside(offset: int, length: int) -> bytes:
        length = min(length, size - offset)
        return read(start + offset, length) if offset >= 0 and length > 0 else b""

    return read_inside


def with_start_in_memory(read: ReadAt, size: int) -> ReadAt:
    """Return a reader that reads the first bytes at most twice: that is where nearly everything is probed for.

    :param size: of what is read, bytes.
    """
    start = b""

    def read_start(offset: int, length: int) -> bytes:
        nonlocal start
        end = offset + length
        if offset < 0 or end > min(_HEAD, size):
            return read(offset, length)
        if end > len(start):
            start = read(0, min(FIRST if end <= FIRST else _HEAD, size))
        return start[offset:end]

    return read_start


def text(raw: bytes) -> str:
    r"""Decode a name found in an image for printing: bytes that are not UTF-8, and controls, become ``\xNN``."""
    return escape_controls(raw.decode("utf-8", "backslashreplace"))


def escape_controls(name: str) -> str:
    r"""Replace what could steer a terminal, or cannot be encoded, by ``\xNN`` and ``\uNNNN``."""
    return name if name.isprintable() else "".join(map(_escape, name))


def _escape(char: str) -> str:
    code = ord(char)
    if char.isprintable() or (code > 0x9F and char.isspace()):
        return char
    if 0xDC80 <= code <= 0xDCFF:  # a byte kept by surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def guid(raw: bytes) -> str:
    """Format a GUID as GPT stores it: the first three groups little-endian (UEFI 2.10, appendix A)."""
    return dashed(raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:16])


def dashed(raw: bytes) -> str:
    """Format 16 bytes as ``xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx``; empty when all are zero, as libblkid does."""
    if not any(raw):
        return ""
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:32]))
