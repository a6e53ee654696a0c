"""A partition of a GPT grows, and the backup table moves to the end of a disk that has grown. Pure.

The order of the writes is that of the UEFI specification (2.10, 5.3.2): the backup first, then the primary table. Until the
primary is written, the old one is valid; while it is being written, its checksum is wrong and the new backup, in the last
sector, counts.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib

from mapper_core.errors import BadPartitionTable, NoRoomToGrow, NotSupported
from mapper_core.grow.extent import Growth, Write, new_end
from mapper_core.model import Partition, PartitionTable
from mapper_core.partitions import mbr
from mapper_core.partitions.gpt import SIGNATURE, Header, read_header
from mapper_core.partitions.layout import Extent
from mapper_core.partitions.reader import ReadAt

# Offsets in a header.
_HEADER_SIZE, _HEADER_CRC, _MY_LBA, _OTHER_LBA, _LAST_USABLE, _ENTRIES_LBA, _ENTRIES_CRC = 12, 16, 24, 32, 48, 72, 88
_LAST_LBA = 40  # in an entry
_ALL = 0xFFFFFFFF  # sectors in an MBR entry: so many, or more


def extend(read: ReadAt, size: int, table: PartitionTable, partition: Partition) -> Growth:
    """Plan the growth of a partition.

    :param read: reads the device.
    :param size: of the device, bytes.
    :param table: what was found on it.
    :raises BadPartitionTable: the primary table is damaged.
    :raises NotSupported: the table has a hybrid MBR, which would have to be changed too.
    :raises NoRoomToGrow: another partition is in the way, or one reaches so far that the backup has no room.
    """
    sector = table.sector_size
    header = read_header(read, size, sector, 1) or _interrupted(read, size, sector)
    if header is None:
        raise BadPartitionTable(
            "the primary GPT is damaged, and a disk is not enlarged on the strength of its backup alone",
            hint="repair it first, for example with gdisk",
        )
    protective = read(0, sector)
    slots = mbr.read_slots(protective) or ()
    if len(slots) != 1:
        raise NotSupported("the disk has a hybrid MBR beside its GPT", hint="make the MBR protective first (gdisk)")
    last = size // sector - 1
    last_usable = last - -(-len(header.entries) // sector) - 1
    others = tuple(
        Extent(item.start, item.size, f"partition {item.number}")
        for item in table.partitions
        if item.number != partition.number
    )
    end = new_end(partition, others, (last_usable + 1) * sector, size)
    grown = dataclasses.replace(partition, size=end - partition.start)
    cover = Write(0, _protective(protective, slots[0].index, last))
    if end == partition.start + partition.size and header.other_lba == last:
        return Growth(grown, () if cover.data == protective else (cover,))
    _check_room_for_backup(table, header, last_usable + 1)
    entries = bytearray(header.entries)
    struct.pack_into("<Q", entries, (partition.number - 1) * header.entry_size + _LAST_LBA, end // sector - 1)
    raw = read(sector, sector)
    primary = _header(raw, lba=1, other=last, entries_lba=header.entries_lba, last_usable=last_usable, entries=entries)
    backup_entries = last_usable + 1
    backup = _header(raw, lba=last, other=1, entries_lba=backup_entries, last_usable=last_usable, entries=entries)
    padded = bytes(entries).ljust(-(-len(entries) // sector) * sector, b"\0")
    return Growth(
        grown,
        (
            Write(backup_entries * sector, padded + backup),
            Write(header.entries_lba * sector, padded),
            Write(sector, primary),
            cover,
        ),
    )


def _check_room_for_backup(table: PartitionTable, header: Header, first: int) -> None:
    """Check that nothing is where the backup will be: an image that was cut off behind its last partition has no room there.

    :param first: sector of the backup's entries.
    """
    sector = table.sector_size
    used = [(item.start + item.size, f"partition {item.number}") for item in table.partitions]
    used.append((header.entries_lba * sector + len(header.entries), "the array of GPT entries"))
    end, name = max(used)
    if end > first * sector:
        needed = -(-end // sector) * sector + -(-len(header.entries) // sector) * sector + sector
        raise NoRoomToGrow(
            f"there is no room for the backup GPT behind {name}", hint=f"make the disk larger: at least {needed} bytes"
        )


def _interrupted(read: ReadAt, size: int, sector: int) -> Header | None:
    """Return the table when a crash has left the primary with its new entries and its old header."""
    raw = read(sector, sector)
    if not raw.startswith(SIGNATURE):
        return None
    (length, checksum), (entries_lba,) = (
        struct.unpack_from("<II", raw, _HEADER_SIZE),
        struct.unpack_from("<Q", raw, _ENTRIES_LBA),
    )
    backup = read_header(read, size, sector, size // sector - 1)
    if backup is None or length > sector or zlib.crc32(raw[:16] + bytes(4) + raw[20:length]) != checksum:
        return None
    if not 2 <= entries_lba < backup.lba or read(entries_lba * sector, len(backup.entries)) != backup.entries:
        return None
    return dataclasses.replace(backup, lba=1, other_lba=0, entries_lba=entries_lba)


def _header(
    raw: bytes, *, lba: int, other: int, entries_lba: int, last_usable: int, entries: bytes | bytearray
) -> bytes:
    """Return a header with new places; what it says besides (disk GUID, first usable sector ...) stays."""
    header = bytearray(raw)
    for offset, value in (
        (_MY_LBA, lba),
        (_OTHER_LBA, other),
        (_LAST_USABLE, last_usable),
        (_ENTRIES_LBA, entries_lba),
    ):
        struct.pack_into("<Q", header, offset, value)
    struct.pack_into("<I", header, _ENTRIES_CRC, zlib.crc32(entries))
    struct.pack_into("<I", header, _HEADER_CRC, 0)
    (length,) = struct.unpack_from("<I", header, _HEADER_SIZE)
    struct.pack_into("<I", header, _HEADER_CRC, zlib.crc32(header[:length]))
    return bytes(header)


def _protective(sector: bytes, slot: int, last: int) -> bytes:
    """Let the entry that protects the disk from other tools cover all of it."""
    changed = bytearray(sector)
    at = 446 + 16 * slot + 8
    start, count = struct.unpack_from("<II", changed, at)
    if start > last:
        raise BadPartitionTable(
            "the protective MBR does not cover the disk", hint="make it anew, for example with gdisk"
        )
    if count != _ALL:
        struct.pack_into("<I", changed, at + 4, min(last - start + 1, _ALL))
    return bytes(changed)
