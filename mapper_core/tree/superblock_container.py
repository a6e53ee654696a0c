"""What is on a partition instead of a filesystem: RAID members, LVM volumes, LUKS, swap, ZFS.

None of them is ever mounted; they are recognised to say so, and because some show a filesystem at their start.
"""

from __future__ import annotations

import itertools
import struct
import zlib

from mapper_core.model import Filesystem
from mapper_core.partitions.reader import ReadAt, dashed, text

_RAID_MAGIC = 0xA92B4EFC

#: Page sizes of the architectures that Linux runs on.
_PAGES = (4096, 8192, 16384, 32768, 65536)

_SUSPENDED = frozenset({b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001"})


def raid(read: ReadAt, size: int) -> Filesystem | None:
    """A member of a Linux software RAID: md(4), metadata versions 1.0 to 1.2 and 0.90."""
    for offset in (((size & ~511) - 8192) & ~4095, 0, 4096):
        raw = read(offset, 256) if offset >= 0 else b""
        if len(raw) < 256 or struct.unpack_from("<II", raw) != (_RAID_MAGIC, 1):
            continue
        # The block says where it is; otherwise it is the end of another device seen through this one.
        if int.from_bytes(raw[144:152], "little") == offset >> 9:
            name = raw[32:64].split(b"\0", 1)[0].rstrip()
            return Filesystem("linux_raid_member", dashed(raw[16:32]), text(name))
    offset = (size & ~65535) - 65536
    raw = read(offset, 256) if offset >= 0 else b""
    for order in "<>":
        if len(raw) == 256 and struct.unpack_from(f"{order}II", raw) == (_RAID_MAGIC, 0):
            words = struct.unpack_from(f"{order}I", raw, 20) + struct.unpack_from(f"{order}III", raw, 52)
            return Filesystem("linux_raid_member", dashed(struct.pack(">IIII", *words)))
    return None


def lvm(read: ReadAt, size: int) -> Filesystem | None:
    """A physical volume of LVM2: the label is in one of the first four sectors."""
    area = read(0, 2048)
    for sector in range(len(area) // 512):
        raw = area[sector * 512 : sector * 512 + 512]
        if raw[:8] != b"LABELONE" or raw[24:32] != b"LVM2 001":
            continue
        number, crc = struct.unpack_from("<QI", raw, 8)
        if number == sector and zlib.crc32(raw[20:], 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF == crc:
            name = raw[32:64].decode("ascii", "replace")
            return Filesystem("LVM2_member", _lvm_uuid(name) if name.isascii() and name.isalnum() else "")
    return None


def _lvm_uuid(name: str) -> str:
    ends = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(name[start:end] for start, end in itertools.pairwise(ends))


def luks(read: ReadAt, size: int) -> Filesystem | None:
    """An encrypted partition: LUKS version 1 or 2."""
    raw = read(0, 256)
    if len(raw) < 256 or raw[:6] != b"LUKS\xba\xbe":
        return None
    (version,) = struct.unpack_from(">H", raw, 6)
    name = raw[24:72] if version == 2 else b""
    uuid = raw[168:208]
    return Filesystem("crypto_LUKS", text(uuid.split(b"\0", 1)[0]), text(name.split(b"\0", 1)[0].rstrip()))


def swap(read: ReadAt, size: int) -> Filesystem | None:
    """A swap area: ``swap``, or ``swsuspend`` when a hibernated system is in it."""
    for page in _PAGES:
        magic = read(page - 10, 10)
        if magic in _SUSPENDED:
            return Filesystem("swsuspend", *_swap_names(read(1024, 44)))
        if magic == b"SWAP-SPACE":
            return Filesystem("swap")
        if magic == b"SWAPSPACE2":
            header = read(1024, 44)
            if any(struct.unpack_from(f"{order}I", header) == (1,) for order in "<>") and any(header[4:8]):
                return Filesystem("swap", *_swap_names(header))
    return None


def _swap_names(header: bytes) -> tuple[str, str]:
    return dashed(header[12:28]), text(header[28:44].split(b"\0", 1)[0].rstrip())


def zfs(read: ReadAt, size: int) -> Filesystem | None:
    """A member of a ZFS pool: uberblocks in its first label. Neither UUID nor name are read."""
    area = read(128 << 10, 128 << 10)
    found = 0
    for offset in range(0, len(area), 1024):
        if area[offset : offset + 8] in (b"\x0c\xb1\xba\0\0\0\0\0", b"\0\0\0\0\0\xba\xb1\x0c"):
            found += 1
    return Filesystem("zfs_member") if found >= 4 else None
