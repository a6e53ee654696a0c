"""Superblocks of filesystems made for exchange with other systems: FAT, exFAT, NTFS, ISO 9660."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from mapper_core.model import Filesystem
from mapper_core.partitions.reader import ReadAt, escape_controls, text

#: How much of a root directory is searched for the volume label: clusters, and bytes in all. Tools put it first.
_MAX_CLUSTERS = 100
_MAX_DIRECTORY = 1 << 20


def vfat(read: ReadAt, size: int) -> Filesystem | None:
    """FAT12, FAT16, FAT32: Microsoft FAT specification 1.03, and the sanity checks of libblkid for want of a magic."""
    boot = read(0, 512)
    if len(boot) < 512 or not _looks_like_fat(boot):
        return None
    sector, per_cluster, reserved, fats, root_entries, sectors16, media, length16 = struct.unpack_from(
        "<HBHBHHBH", boot, 11
    )
    sectors = sectors16 or int.from_bytes(boot[32:36], "little")
    length = length16 or int.from_bytes(boot[36:40], "little")
    if not (fats and reserved and (media == 0xF0 or media >= 0xF8) and sectors and length):
        return None
    if per_cluster & (per_cluster - 1) or not per_cluster or sector not in (512, 1024, 2048, 4096):
        return None
    root_sectors = (root_entries * 32 + sector - 1) // sector
    root = reserved + fats * length
    data = root + root_sectors
    clusters = (sectors - data) // per_cluster
    most = 0x0FFFFFF6 if not length16 else 0xFFF4 if clusters > 0xFF4 else 0xFF4
    if not 0 <= clusters <= most:
        return None
    if length16:
        serial = boot[39:43] if boot[38] in (0x28, 0x29) else b""
        directory: Iterator[bytes] = iter([read(root * sector, min(root_entries * 32, _MAX_DIRECTORY))])
    else:
        if not _fsinfo_sane(read, int.from_bytes(boot[48:50], "little") * sector):
            return None
        serial = boot[67:71]
        chain = _Fat(read, reserved * sector, length * sector, data * sector, per_cluster * sector, 0x0FFFFFFF)
        directory = chain.directory(int.from_bytes(boot[44:48], "little"))
    return Filesystem("vfat", _serial(serial), _fat_label(directory))


def _looks_like_fat(boot: bytes) -> bool:
    named = boot[82:90] == b"FAT32   " or boot[54:62] in (b"FAT16   ", b"FAT12   ", b"FAT     ")
    named = named or boot[82:87] == b"MSWIN" or boot[54:59] == b"MSDOS"
    # Without a name only the signature is left, which JFS and HPFS have as well.
    return named or (boot[510:512] == b"\x55\xaa" and boot[54:62] not in (b"JFS     ", b"HPFS    "))


def _fsinfo_sane(read: ReadAt, offset: int) -> bool:
    if not offset:
        return True
    info = read(offset, 512)
    return len(info) == 512 and info[:4] in (b"RRaA", b"RRav", bytes(4)) and info[484:488] in (b"rrAa", bytes(4))


def _fat_label(directory: Iterator[bytes]) -> str:
    for block in directory:
        for at in range(0, len(block) - 31, 32):
            entry = block[at : at + 32]
            if entry[0] == 0:
                return ""
            attributes = entry[11]
            # Free, with a cluster (so a file or directory), or part of a long name.
            if entry[0] == 0xE5 or any(entry[20:22]) or any(entry[26:28]) or attributes & 0x3F == 0x0F:
                continue
            if attributes & 0x18 == 0x08:
                name = entry[:11]
                return text((b"\xe5" + name[1:] if name[0] == 0x05 else name).rstrip())
    return ""


def _serial(raw: bytes) -> str:
    return f"{raw[3]:02X}{raw[2]:02X}-{raw[1]:02X}{raw[0]:02X}" if any(raw) else ""


class _Fat:
    """Follows a chain of clusters whose table has 32-bit entries: FAT32 and exFAT. All positions in bytes."""

    def __init__(self, read: ReadAt, table: int, table_size: int, heap: int, cluster_size: int, mask: int) -> None:
        self._read = read
        self._table = table
        self._entries = table_size // 4
        self._heap = heap
        self._cluster_size = cluster_size
        self._mask = mask

    def directory(self, cluster: int) -> Iterator[bytes]:
        """Yield the clusters of a directory, within limits: a chain may be a loop."""
        for index in range(_MAX_CLUSTERS):
            left = _MAX_DIRECTORY - index * self._cluster_size
            if left <= 0 or not 2 <= cluster < self._entries:
                return
            offset = self._heap + (cluster - 2) * self._cluster_size
            yield self._read(offset, min(self._cluster_size, left))
            raw = self._read(self._table + cluster * 4, 4)
            cluster = int.from_bytes(raw, "little") & self._mask if len(raw) == 4 else 0


def exfat(read: ReadAt, size: int) -> Filesystem | None:
    """exFAT: Microsoft exFAT specification, section 3."""
    boot = read(0, 512)
    if len(boot) < 512 or boot[3:11] != b"EXFAT   " or boot[510:512] != b"\x55\xaa" or any(boot[11:64]):
        return None
    fat_offset, fat_length, heap_offset, _, root = struct.unpack_from("<IIIII", boot, 80)
    sector_shift, cluster_shift = boot[108], boot[109]
    if not 9 <= sector_shift <= 12 or cluster_shift > 25 - sector_shift or not fat_offset or not heap_offset:
        return None
    chain = _Fat(
        read,
        fat_offset << sector_shift,
        fat_length << sector_shift,
        heap_offset << sector_shift,
        1 << (sector_shift + cluster_shift),
        0xFFFFFFFF,
    )
    return Filesystem("exfat", _serial(boot[100:104]), _exfat_label(chain.directory(root)))


def _exfat_label(directory: Iterator[bytes]) -> str:
    for block in directory:
        for at in range(0, len(block) - 31, 32):
            if block[at] == 0:
                return ""
            if block[at] == 0x83:
                count = min(block[at + 1], 11)
                name = block[at + 2 : at + 2 + 2 * count].decode("utf-16-le", "replace")
                return escape_controls(name.split("\0", 1)[0].rstrip())
    return ""


def ntfs(read: ReadAt, size: int) -> Filesystem | None:
    """NTFS; its label is the attribute ``$VOLUME_NAME`` of the fourth record of the master file table."""
    boot = read(0, 512)
    if len(boot) < 512 or boot[3:11] != b"NTFS    ":
        return None
    sector, per_cluster = struct.unpack_from("<HB", boot, 11)
    if sector not in (256, 512, 1024, 2048, 4096) or any(boot[14:21]) or any(boot[22:24]):
        return None
    if per_cluster >= 0xF4:  # a negative power of two, in clusters above 64 KiB
        per_cluster = 1 << (256 - per_cluster)
    if not per_cluster or per_cluster & (per_cluster - 1):
        return None
    (mft,) = struct.unpack_from("<Q", boot, 48)
    (per_record,) = struct.unpack_from("<b", boot, 64)
    record_size = per_record * per_cluster * sector if per_record > 0 else 1 << min(-per_record, 31)
    if not 512 <= record_size <= 65536:
        return None
    start = mft * per_cluster * sector
    if start > size or read(start, 4) != b"FILE":
        return None
    serial = int.from_bytes(boot[72:80], "little")
    record = read(start + 3 * record_size, record_size)
    return Filesystem("ntfs", f"{serial:016X}" if serial else "", _ntfs_label(record))


def _ntfs_label(record: bytes) -> str:
    if len(record) < 48 or record[:4] != b"FILE":
        return ""
    at = int.from_bytes(record[20:22], "little")
    while at + 24 <= len(record):
        kind, length = struct.unpack_from("<II", record, at)
        if kind == 0xFFFFFFFF or length < 24:
            return ""
        if kind == 0x60 and record[at + 8] == 0:
            value_length, value = struct.unpack_from("<IH", record, at + 16)
            raw = record[at + value : at + min(value + value_length, length)]
            return escape_controls(raw.decode("utf-16-le", "replace").split("\0", 1)[0].rstrip())
        at += length
    return ""


def iso9660(read: ReadAt, size: int) -> Filesystem | None:
    """ISO 9660 (ECMA-119, section 8.4); as for ``blkid``, the time of the last change stands for a UUID."""
    primary = read(32768, 2048)
    if len(primary) < 2048 or primary[:7] != b"\x01CD001\x01":
        return None
    uuid = _iso_time(primary[830:846]) or _iso_time(primary[813:829])
    name = primary[40:72]
    label = text(name.split(b"\0", 1)[0].rstrip())
    for index in range(1, 16):
        descriptor = read(32768 + index * 2048, 2048)
        if len(descriptor) < 2048 or descriptor[1:6] != b"CD001" or descriptor[0] == 255:
            break
        if descriptor[0] == 2 and descriptor[88:91] in (b"%/@", b"%/C", b"%/E"):
            label = _joliet_label(descriptor[40:72], name)
            break
    return Filesystem("iso9660", uuid, label)


def _iso_time(raw: bytes) -> str:
    digits = raw.decode("ascii", "replace")
    if not (digits.isascii() and digits.isdigit()) or not digits.strip("0"):
        return ""
    return "-".join((digits[:4], *(digits[at : at + 2] for at in range(4, 16, 2))))


def _joliet_label(joliet: bytes, plain: bytes) -> str:
    """Join the two labels when they agree: the one of Joliet has small letters, the plain one is twice as long."""
    wide = joliet.decode("utf-16-be", "replace")
    narrow = plain.decode("latin-1")
    # In the plain label what Joliet can say, but ISO 9660 cannot, is an underscore.
    same = all(a.upper() == b.upper() or b == "_" for a, b in zip(wide, narrow, strict=False))
    whole = wide + narrow[len(wide) :] if same else wide
    return escape_controls(whole.split("\0", 1)[0].rstrip())
