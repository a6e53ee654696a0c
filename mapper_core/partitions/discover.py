"""What is on a device: a partition table, a bare filesystem, or nothing.

Several answers can be true at once: a FAT boot sector and a hybrid ISO image both carry an MBR signature, and both
may carry a GPT. The rules, in this order:

1. A filesystem whose magic is the very first bytes (XFS, squashfs, LUKS) leaves no room for boot code: it is bare.
2. GPT counts only with a protective MBR. Without that rule a forgotten backup GPT at the end of a reformatted disk
   would win.
3. An ISO 9660 descriptor *inside* of a partition is a hybrid ISO image. Outside of all partitions it is a leftover.
4. A sane table with partitions beats any other superblock: those are leftovers, or copies made by boot loaders.
5. A table that makes no sense loses against a superblock, and is an error without one. An empty MBR, which is no more
   than two bytes, loses too; an empty GPT has been made on purpose.
"""

from __future__ import annotations

from mapper_core.errors import BadPartitionTable
from mapper_core.model import Partition, PartitionTable
from mapper_core.partitions import mbr
from mapper_core.partitions.reader import ReadAt

__all__ = ["ReadAt", "discover"]

#: First bytes of XFS, squashfs (both byte orders) and LUKS.
_MAGIC_AT_ZERO = (b"XFSB", b"hsqs", b"sqsh", b"LUKS\xba\xbe")

#: Superblocks at the end of the device, which belong to the last partition as much as to the device.
_MAGIC_AT_END = frozenset({"linux_raid_member"})

#: Where ISO 9660 has its primary volume descriptor.
_ISO_DESCRIPTOR = 32768


def discover(read: ReadAt, size: int, sector_size: int = 512) -> PartitionTable:
    """Find the partitions of a device.

    :param read: reads the device.
    :param size: of the device, bytes.
    :param sector_size: logical sector size that the device claims, bytes.
    :raises BadPartitionTable: the table is damaged, overlapping, or covers itself.
    :raises PartitionBeyondDevice: a partition ends behind the end of the device.
    """
    bare = PartitionTable("none", sector_size, (Partition(0, 0, size),))
    sector = read(0, mbr.SECTOR)
    slots = mbr.read_slots(sector)
    if slots is None:
        return bare
    if sector.startswith(_MAGIC_AT_ZERO) and _has_superblock(read, size):
        return bare
    try:
        table = _read_table(read, size, sector_size, sector, slots)
    except BadPartitionTable:
        if _has_superblock(read, size):
            return bare
        raise
    if not table.partitions and table.scheme == "dos" and _has_superblock(read, size):
        return bare
    if _is_hybrid_iso(read, table):
        return bare
    return table


def _has_superblock(read: ReadAt, size: int) -> bool:
    from mapper_core.tree import superblock  # only now: most disks have a sane table, or none

    kind = superblock.probe(read, size).type
    return bool(kind) and kind not in _MAGIC_AT_END


def _is_hybrid_iso(read: ReadAt, table: PartitionTable) -> bool:
    inside = any(item.start <= _ISO_DESCRIPTOR < item.start + item.size for item in table.partitions)
    return inside and read(_ISO_DESCRIPTOR, 7) == b"\x01CD001\x01"


def _read_table(
    read: ReadAt, size: int, sector_size: int, sector: bytes, slots: tuple[mbr.Slot, ...]
) -> PartitionTable:
    if not mbr.is_protective(slots):
        return mbr.parse(read, size, sector_size, sector, slots)
    from mapper_core.partitions import gpt

    sizes = (sector_size, *(other for other in (512, 4096) if other != sector_size))
    table = gpt.parse(read, size, sizes)
    if table is None:
        raise BadPartitionTable(
            "the disk has a protective MBR, but neither of its two GPT headers is intact",
            hint="repair the table with gdisk, or restore the image",
        )
    return table
