"""GUID partition tables: UEFI specification 2.10, section 5.3.

A header counts only with a correct CRC of itself and of its entries. Everything else in it is still hostile: the
CRC proves that the table was written on purpose, not that it is sane.
"""

from __future__ import annotations

import struct
import zlib

from mapper_core.errors import BadPartitionTable
from mapper_core.frozen import dataclass
from mapper_core.model import Partition, PartitionTable
from mapper_core.partitions.layout import MAX_NUMBER, MAX_PARTITIONS, Extent, check_inside, check_overlaps
from mapper_core.partitions.reader import ReadAt, escape_controls, guid

SIGNATURE = b"EFI PART"

#: Signature, revision, header size, header CRC, reserved, own LBA, other LBA, first usable LBA, last usable LBA,
#: disk GUID, LBA of the entries, number of entries, size of one entry, CRC of the entries.
HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")

#: Type GUID, partition GUID, first LBA, last LBA (inclusive), attributes, name in UTF-16LE.
ENTRY = struct.Struct("<16s16sQQQ72s")

#: The largest array of entries that is read, bytes. 128 entries of 128 bytes, what every tool writes, are 16 KiB.
MAX_TABLE = 1 << 20

_UNUSED = bytes(16)


@dataclass(frozen=True, slots=True)
class Header:
    """A header whose checksums are right.

    All ``*_lba`` are counted in sectors of ``sector_size`` bytes; ``entries`` is the array as it is on disk.
    """

    sector_size: int
    lba: int
    other_lba: int
    disk_guid: str
    entries_lba: int
    entry_size: int
    entries: bytes


def parse(read: ReadAt, size: int, sector_sizes: tuple[int, ...]) -> PartitionTable | None:
    """Read the table of a device that has a protective MBR.

    The primary header is looked for with each sector size first, then the backup header in the last sector.

    :param size: of the device, bytes.
    :param sector_sizes: to try, bytes; an image of a 4Kn disk is often seen through a device with 512.
    :returns: ``None`` when neither header is intact.
    :raises BadPartitionTable: the header is intact, but the partitions make no sense.
    """
    for sector_size in sector_sizes:
        if header := read_header(read, size, sector_size, 1):
            return _table(header, size, _backup_warnings(read, size, header))
    for sector_size in sector_sizes:
        if header := read_header(read, size, sector_size, size // sector_size - 1):
            return _table(header, size, ("the primary GPT is damaged; the backup at the end of the disk is used",))
    return None


def read_header(read: ReadAt, size: int, sector_size: int, lba: int) -> Header | None:
    """Read one header and its entries.

    :returns: ``None`` unless it is there, both CRCs are right and its numbers are within our limits.
    """
    if lba < 1 or (lba + 1) * sector_size > size:
        return None
    raw = read(lba * sector_size, sector_size)
    if len(raw) < sector_size or not raw.startswith(SIGNATURE):
        return None
    (
        _,
        _,
        header_size,
        header_crc,
        _,
        my_lba,
        other_lba,
        _,
        _,
        disk_guid,
        entries_lba,
        count,
        entry_size,
        entries_crc,
    ) = HEADER.unpack_from(raw)
    if not HEADER.size <= header_size <= sector_size or my_lba != lba:
        return None
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:header_size]) != header_crc:
        return None
    # The specification allows entries of 128 * 2^n bytes only.
    if entry_size < ENTRY.size or entry_size & (entry_size - 1) or not 0 < count * entry_size <= MAX_TABLE:
        return None
    length = count * entry_size
    if entries_lba < 2 or entries_lba * sector_size + length > size:
        return None
    entries = read(entries_lba * sector_size, length)
    if len(entries) < length or zlib.crc32(entries) != entries_crc:
        return None
    return Header(sector_size, lba, other_lba, guid(disk_guid), entries_lba, entry_size, entries)


def _backup_warnings(read: ReadAt, size: int, primary: Header) -> tuple[str, ...]:
    last_lba = size // primary.sector_size - 1
    if primary.other_lba > last_lba:
        return ("the disk is smaller than its GPT says: the backup GPT is cut off",)
    backup = read_header(read, size, primary.sector_size, primary.other_lba)
    if backup is None:
        return ("the backup GPT is damaged",)
    if backup.entries != primary.entries:
        return ("the backup GPT differs from the primary one, which is used",)
    if primary.other_lba < last_lba:
        return ("the disk is larger than its GPT says: the backup GPT is not at the end",)
    return ()


def _table(header: Header, size: int, warnings: tuple[str, ...]) -> PartitionTable:
    sector = header.sector_size
    partitions: list[Partition] = []
    extents = [
        Extent(0, 2 * sector, "the primary GPT header"),
        Extent(header.entries_lba * sector, len(header.entries), "the array of GPT entries"),
    ]
    if header.lba > 1:
        extents.append(Extent(header.lba * sector, sector, "the backup GPT header"))
    # An unused entry is no end of the table: the number of a partition is its slot, gaps included.
    for slot in range(len(header.entries) // header.entry_size):
        kind, unique, first, last, _, name = ENTRY.unpack_from(header.entries, slot * header.entry_size)
        if kind == _UNUSED:
            continue
        number = slot + 1
        if number > MAX_NUMBER or len(partitions) == MAX_PARTITIONS:
            raise BadPartitionTable(
                f"the GPT has more partitions than the {MAX_PARTITIONS} that are handled, or one with a number "
                f"above {MAX_NUMBER}"
            )
        if last < first:
            raise BadPartitionTable(f"partition {number} ends at sector {last}, before its start at {first}")
        extent = Extent(first * sector, (last - first + 1) * sector, f"partition {number}")
        check_inside(extent, size)
        extents.append(extent)
        partitions.append(
            Partition(number, extent.start, extent.size, type=guid(kind), uuid=guid(unique), label=_name(name))
        )
    check_overlaps(extents)
    return PartitionTable("gpt", sector, tuple(partitions), uuid=header.disk_guid, warnings=warnings)


def _name(raw: bytes) -> str:
    return escape_controls(raw.decode("utf-16-le", "replace").split("\0", 1)[0])
