"""Superblocks of the filesystems of Linux: ext2/3/4, XFS, btrfs, squashfs, EROFS, F2FS."""

from __future__ import annotations

import struct
from functools import cache

from mapper_core.model import Filesystem
from mapper_core.partitions.reader import ReadAt, dashed, escape_controls, text

# ext: Documentation/filesystems/ext4/super.rst
_HAS_JOURNAL = 0x4  # compatible
_JOURNAL_DEVICE = 0x8  # incompatible
_TEST_FILESYSTEM = 0x4  # s_flags
_METADATA_CSUM = 0x400  # read-only compatible
#: Features that the drivers of ext2 and ext3 knew. Others, and no journal or one, make it ext4: the rule of libblkid.
_EXT3_RO_COMPAT = 0x1 | 0x2 | 0x4  # sparse_super, large_file, btree_dir
_EXT2_INCOMPAT = 0x2 | 0x10  # filetype, meta_bg
_EXT3_INCOMPAT = _EXT2_INCOMPAT | 0x4  # recover


def ext(read: ReadAt, size: int) -> Filesystem | None:
    """ext2, ext3, ext4, and ``jbd``, an external journal."""
    raw = read(1024, 1024)
    if len(raw) < 1024 or raw[56:58] != b"\x53\xef":
        return None
    compat, incompat, ro_compat = struct.unpack_from("<III", raw, 92)
    (flags,) = struct.unpack_from("<I", raw, 352)
    if ro_compat & _METADATA_CSUM and crc32c(raw[:1020]) ^ 0xFFFFFFFF != int.from_bytes(raw[1020:], "little"):
        return None
    beyond_ext3 = bool(ro_compat & ~_EXT3_RO_COMPAT or incompat & ~_EXT3_INCOMPAT)
    if incompat & _JOURNAL_DEVICE:
        kind = "jbd"
    elif beyond_ext3:
        kind = "ext4dev" if flags & _TEST_FILESYSTEM else "ext4"
    elif compat & _HAS_JOURNAL:
        kind = "ext3"
    elif incompat & ~_EXT2_INCOMPAT:
        return None
    else:
        kind = "ext2"
    return Filesystem(kind, dashed(raw[104:120]), label(raw[120:136]))


def xfs(read: ReadAt, size: int) -> Filesystem | None:
    """XFS: xfs_filesystem.pdf, "Superblocks"."""
    raw = read(0, 512)
    if len(raw) < 512 or raw[:4] != b"XFSB":
        return None
    block_size, data_blocks = struct.unpack_from(">IQ", raw, 4)
    (ag_blocks, ag_count) = struct.unpack_from(">II", raw, 84)
    (sector_size,) = struct.unpack_from(">H", raw, 102)
    sane = _power(block_size, 512, 65536) and _power(sector_size, 512, 32768) and ag_blocks and ag_count and data_blocks
    return Filesystem("xfs", dashed(raw[32:48]), label(raw[108:120])) if sane else None


def btrfs(read: ReadAt, size: int) -> Filesystem | None:
    """btrfs: the first of its superblocks, which lies at 64 KiB and says so."""
    raw = read(65536, 1024)
    if len(raw) < 1024 or raw[64:72] != b"_BHRfS_M" or int.from_bytes(raw[48:56], "little") != 65536:
        return None
    return Filesystem("btrfs", dashed(raw[32:48]), label(raw[299:555]))


def squashfs(read: ReadAt, size: int) -> Filesystem | None:
    """squashfs; version 3 and older has a type of its own, no driver is left for it."""
    raw = read(0, 96)
    order = {b"hsqs": "<", b"sqsh": ">"}.get(raw[:4])
    if order is None or len(raw) < 96:
        return None
    (major,) = struct.unpack_from(f"{order}H", raw, 28)
    return Filesystem("squashfs" if major >= 4 else "squashfs3")


def erofs(read: ReadAt, size: int) -> Filesystem | None:
    """EROFS."""
    raw = read(1024, 128)
    if len(raw) < 128 or raw[:4] != b"\xe2\xe1\xf5\xe0":
        return None
    return Filesystem("erofs", dashed(raw[48:64]), label(raw[64:80]))


def f2fs(read: ReadAt, size: int) -> Filesystem | None:
    """F2FS."""
    raw = read(1024, 1024)
    if len(raw) < 1024 or raw[:4] != b"\x10\x20\xf5\xf2":
        return None
    if struct.unpack_from("<HH", raw, 4) == (1, 0):  # had neither
        return Filesystem("f2fs")
    name = raw[124:636].decode("utf-16-le", "replace").split("\0", 1)[0]
    return Filesystem("f2fs", dashed(raw[108:124]), escape_controls(name.rstrip()))


def label(raw: bytes) -> str:
    """Decode a label of fixed length: up to the first NUL, without trailing white space."""
    return text(raw.split(b"\0", 1)[0].rstrip())


def _power(value: int, least: int, most: int) -> bool:
    return least <= value <= most and value & (value - 1) == 0


#: The generator of CRC-32C, bit-reflected, and how many bits are left to be divided by it one by one.
_CRC32C = 0x82F63B78
_CRC32C_LAST = 64


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720) of a short block.

    The block is a polynomial over GF(2), and its CRC the remainder of a division. Read as a little-endian integer, bit 0
    has the highest power. It is folded: its first half, times the remainder of the power of x that it stands before, is
    added to its second half. Done with whole integers this takes a tenth of the time of going from byte to byte.
    """
    rest = int.from_bytes(data + bytes(4), "little") ^ 0xFFFFFFFF
    for half, shifts in _crc32c_folds(8 * len(data) + 32):
        first = rest & ((1 << half) - 1)
        rest >>= half
        for shift in shifts:
            rest ^= first << shift
    for _ in range(min(8 * len(data), _CRC32C_LAST - 32)):
        rest = (rest >> 1) ^ (_CRC32C if rest & 1 else 0)
    return rest ^ 0xFFFFFFFF


@cache
def _crc32c_folds(length: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Return, for each fold of a polynomial of ``length`` bits, how many bits go, and by how much they are shifted when
    they are added to those that stay.
    """
    folds = []
    while length > _CRC32C_LAST:
        stay = max((length + 32) // 2, _CRC32C_LAST)
        half = length - stay
        power = _power_of_x(stay)
        folds.append((half, tuple(stay - half - 31 + bit for bit in range(32) if power >> bit & 1)))
        length = stay
    return tuple(folds)


def _power_of_x(exponent: int) -> int:
    """Return the remainder of a power of x, bit-reflected."""
    power = 1 << 31
    for _ in range(exponent):
        power = (power >> 1) ^ (_CRC32C if power & 1 else 0)
    return power
