"""Superblocks as bytes: the smallest images that ``blkid`` recognises, for tests without the tools that make them."""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable

UUID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
LABEL = "a label"
SIZE = 2 << 20  # libblkid looks for no RAID on what could be a floppy disk (1440 KiB)

_RAW = uuid.UUID(UUID).bytes
_LABEL = LABEL.encode()
_SERIAL = b"\xcd\xab\x34\x12"


def place(*pieces: tuple[int, bytes], size: int = SIZE) -> bytes:
    """Build an image of zeros with these bytes at these offsets."""
    image = bytearray(size)
    for offset, piece in pieces:
        image[offset : offset + len(piece)] = piece
    return bytes(image)


def ext(*, compat: int = 0, incompat: int = 0x2, ro_compat: int = 0x1) -> bytes:
    """Build ext2, 3 or 4, as the features say; without metadata_csum, so that no checksum is needed."""
    features = struct.pack("<III", compat, incompat, ro_compat)
    return place((1024 + 56, b"\x53\xef"), (1024 + 92, features), (1024 + 104, _RAW), (1024 + 120, _LABEL))


def xfs() -> bytes:
    """Build XFS."""
    return place(
        (0, b"XFSB" + struct.pack(">IQ", 4096, 64)),
        (32, _RAW),
        (80, struct.pack(">III", 1, 64, 1)),
        (100, struct.pack(">HH", 0xB4A5, 512)),
        (104, struct.pack(">HH", 512, 8) + _LABEL),
        (120, bytes((12, 9, 9, 3, 6))),
    )


def btrfs() -> bytes:
    """Build btrfs."""
    at = 65536
    return place(
        (at + 32, _RAW), (at + 48, struct.pack("<QQ", at, 1) + b"_BHRfS_M"), (at + 144, struct.pack("<II", 4096, 16384)),
        (at + 299, _LABEL),
    )  # fmt: skip


def squashfs() -> bytes:
    """Build squashfs 4."""
    return place((0, b"hsqs"), (28, struct.pack("<HH", 4, 0)))


def erofs() -> bytes:
    """Build EROFS."""
    return place((1024, b"\xe2\xe1\xf5\xe0"), (1024 + 12, b"\x0c"), (1024 + 48, _RAW + _LABEL))


def f2fs() -> bytes:
    """Build F2FS."""
    return place(
        (1024, b"\x10\x20\xf5\xf2" + struct.pack("<HH", 1, 15)), (1024 + 108, _RAW + LABEL.encode("utf-16-le"))
    )


def fat16(label: bytes = b"A LABEL    ") -> bytes:
    """Build FAT16, with the label in the root directory."""
    boot = b"\xeb\x3c\x90mkfs.fat" + struct.pack("<HBHBHHBH", 512, 4, 4, 2, 512, 0, 0xF8, 64)
    entry = label + b"\x08"
    return place(
        (0, boot), (32, struct.pack("<I", 32768)), (38, b"\x29" + _SERIAL + b"NO NAME    FAT16   "), (510, b"\x55\xaa"),
        ((4 + 2 * 64) * 512, entry), size=32768 * 512,
    )  # fmt: skip


def fat32(label: bytes = b"A LABEL    ", next_cluster: int = 0x0FFFFFFF) -> bytes:
    """Build FAT32; the root directory is cluster 2, the label in it comes after a long name and a deleted file."""
    boot = b"\xeb\x58\x90mkfs.fat" + struct.pack("<HBHBHHBH", 512, 1, 32, 2, 0, 0, 0xF8, 0)
    large = struct.pack("<IIHHIHH", SIZE // 512, 32, 0, 0, 2, 1, 6)
    entries = b"B" * 11 + b"\x0f" + bytes(20) + b"\xe5GONE   TXT\x08" + bytes(20) + label + b"\x08" + bytes(20)
    return place(
        (0, boot), (32, large), (66, b"\x29" + _SERIAL + b"NO NAME    FAT32   "), (510, b"\x55\xaa"),
        (512, b"RRaA"), (512 + 484, b"rrAa"), (32 * 512, struct.pack("<III", 0x0FFFFFF8, 0xFFFFFFF, next_cluster)),
        ((32 + 2 * 32) * 512, entries),
    )  # fmt: skip


def exfat(next_cluster: int = 0xFFFFFFFF) -> bytes:
    """Build exFAT with one-sector clusters; the root directory is cluster 4."""
    boot = bytearray(512)
    boot[:11] = b"\xeb\x76\x90EXFAT   "
    sectors = SIZE // 512
    struct.pack_into("<QQIIIII4sHH", boot, 64, 0, sectors, 24, 16, 64, sectors - 64, 4, _SERIAL, 0x100, 0)
    boot[108:113] = bytes((9, 0, 1, 0x80, 0))
    boot[510:512] = b"\x55\xaa"
    region = bytes(boot) + (bytes(510) + b"\x55\xaa") * 8 + bytes(512 * 2)
    checksum = 0
    for index, byte in enumerate(region):
        if index not in (106, 107, 112):
            checksum = ((checksum << 31 | checksum >> 1) + byte) & 0xFFFFFFFF
    name = LABEL.encode("utf-16-le")
    return place(
        (0, region + struct.pack("<I", checksum) * 128),
        (24 * 512 + 16, struct.pack("<I", next_cluster)),
        ((64 + 2) * 512, b"\x81" + bytes(31) + bytes((0x83, len(LABEL))) + name),
    )


def ntfs() -> bytes:
    """Build NTFS: a master file table with the label in its fourth record."""
    boot = b"\xeb\x52\x90NTFS    " + struct.pack("<HB", 512, 8)
    name = LABEL.encode("utf-16-le")
    attribute = struct.pack("<IIBBHHHIH", 0x60, 24 + len(name), 0, 0, 0, 0, 0, len(name), 24) + bytes(2) + name
    record = (
        b"FILE"
        + bytes(16)
        + struct.pack("<HHII", 56, 1, 1024, 1024)
        + bytes(24)
        + attribute
        + b"\xff\xff\xff\xff"
        + bytes(4)
    )
    numbers = struct.pack(
        "<QQQbbbbbbbb8s", SIZE // 512 - 1, 4, 128, -10, 0, 0, 0, 1, 0, 0, 0, bytes.fromhex(UUID[:8] * 2)
    )
    return place(
        (0, boot), (21, b"\xf8"), (40, numbers), (510, b"\x55\xaa"), (16384, b"FILE"), (16384 + 3 * 1024, record),
    )  # fmt: skip


def iso9660(*, joliet: str = "", size: int = SIZE) -> bytes:
    """Build the volume descriptors of an ISO 9660 image."""
    primary = bytearray(2048)
    primary[:7] = b"\x01CD001\x01"
    primary[40:72] = LABEL.upper().encode().ljust(32)
    primary[813:830] = b"2024010203040506\0"
    primary[830:847] = b"2025010203040506\0"
    pieces = [(32768, bytes(primary)), (32768 + 2048, b"\xffCD001\x01")]
    if joliet:
        second = bytearray(2048)
        second[:7] = b"\x02CD001\x01"
        second[40:72] = joliet.encode("utf-16-be").ljust(32, b"\0")
        second[88:91] = b"%/E"
        pieces = [pieces[0], (32768 + 2048, bytes(second)), (32768 + 4096, b"\xffCD001\x01")]
    return place(*pieces, size=size)


def swap(magic: bytes = b"SWAPSPACE2", page: int = 4096) -> bytes:
    """Build a swap area."""
    header = struct.pack("<III", 1, SIZE // page - 1, 0) + _RAW + _LABEL
    return place((1024, header), (page - 10, magic))


def luks(version: int = 2) -> bytes:
    """Build the header of a LUKS partition."""
    header = b"LUKS\xba\xbe" + struct.pack(">HQQ", version, 16384, 1)
    return place((0, header), *([(24, _LABEL)] if version == 2 else []), (168, UUID.encode()))


def lvm() -> bytes:
    """Build the label of an LVM physical volume."""
    body = struct.pack("<I", 32) + b"LVM2 001" + b"abcdefghijklmnopqrstuvwxyz012345" + bytes(512 - 64)
    crc = zlib.crc32(body, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    return place((512, b"LABELONE" + struct.pack("<QI", 1, crc) + body))


def raid(offset: int) -> bytes:
    """Build the metadata of Linux RAID, version 1.x, at an offset."""
    block = struct.pack("<IIII", 0xA92B4EFC, 1, 0, 0) + _RAW + _LABEL
    return place((offset, block), (offset + 144, struct.pack("<Q", offset >> 9)))


def raid_090() -> bytes:
    """Build the metadata of Linux RAID, version 0.90."""
    words = struct.unpack(">IIII", _RAW)
    block = struct.pack("<IIIIIIIIIIIIIIII", 0xA92B4EFC, 0, 90, 0, 0, words[0], *(0,) * 7, *words[1:])
    return place((SIZE - 65536, block))


def zfs() -> bytes:
    """Build four uberblocks."""
    return place(*((131072 + 1024 * index, struct.pack("<QQ", 0x00BAB10C, 5000)) for index in range(4)))


#: Each by the type it must be recognised as, and a name.
CORPUS: tuple[tuple[str, str, Callable[[], bytes]], ...] = (
    ("ext2", "ext2", ext),
    ("ext3", "ext3", lambda: ext(compat=0x4)),
    ("ext4", "ext4 with a journal", lambda: ext(compat=0x4, incompat=0x42)),
    ("ext4", "ext4 without a journal", lambda: ext(incompat=0x42)),
    ("ext4", "ext4 by a read-only feature", lambda: ext(compat=0x4, ro_compat=0x9)),
    ("jbd", "external journal", lambda: ext(incompat=0x8)),
    ("xfs", "xfs", xfs),
    ("btrfs", "btrfs", btrfs),
    ("squashfs", "squashfs", squashfs),
    ("erofs", "erofs", erofs),
    ("f2fs", "f2fs", f2fs),
    ("vfat", "fat16", fat16),
    ("vfat", "fat32", fat32),
    ("exfat", "exfat", exfat),
    ("ntfs", "ntfs", ntfs),
    ("iso9660", "iso9660", iso9660),
    ("iso9660", "joliet", lambda: iso9660(joliet="a label")),
    ("iso9660", "joliet with another label", lambda: iso9660(joliet="täglich")),
    ("swap", "swap", swap),
    ("swap", "swap with pages of 64 KiB", lambda: swap(page=65536)),
    ("swap", "old swap", lambda: swap(magic=b"SWAP-SPACE")),
    ("swsuspend", "hibernated", lambda: swap(magic=b"S1SUSPEND\0")),
    ("crypto_LUKS", "luks1", lambda: luks(1)),
    ("crypto_LUKS", "luks2", luks),
    ("LVM2_member", "lvm", lvm),
    ("linux_raid_member", "raid 1.0", lambda: raid(SIZE - 8192)),
    ("linux_raid_member", "raid 1.1", lambda: raid(0)),
    ("linux_raid_member", "raid 1.2", lambda: raid(4096)),
    ("linux_raid_member", "raid 0.90", raid_090),
    ("zfs_member", "zfs", zfs),
)
