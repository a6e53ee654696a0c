"""MBR partition tables with logical partitions.

There is no specification: the reference is what Linux does, ``block/partitions/msdos.c`` (6.1), because the guest
was installed by it. Where Linux copes with nonsense, we refuse it.
"""

from __future__ import annotations

import struct

from mapper_core.errors import BadPartitionTable
from mapper_core.frozen import dataclass
from mapper_core.model import Partition, PartitionTable
from mapper_core.partitions.layout import MAX_PARTITIONS, Extent, check_inside, check_overlaps
from mapper_core.partitions.reader import ReadAt

#: Length of the sector's part that matters; on disks with larger sectors the rest is not used.
SECTOR = 512

#: Types of a partition that only holds logical ones: CHS, LBA, and the one of Linux.
EXTENDED = frozenset({0x05, 0x0F, 0x85})

#: Type of the entry that protects a GPT disk from tools that do not know GPT.
PROTECTIVE = 0xEE

#: Boot flag, CHS start, type, CHS end, first sector, number of sectors.
ENTRY = struct.Struct("<B3sB3sII")


@dataclass(frozen=True, slots=True)
class Slot:
    """One of the four entries of a sector; ``start`` and ``count`` in sectors, relative to what the sector is for."""

    index: int
    type: int
    start: int
    count: int


def read_slots(sector: bytes) -> tuple[Slot, ...] | None:
    """Read the used entries of an MBR.

    :returns: ``None`` when it is none: the signature is missing, or a boot flag is neither 0 nor 0x80, which is how
        Linux tells a boot sector of a filesystem, with code or text at this place, from a table.
    """
    if any(flag not in (0, 0x80) for flag in sector[446:510:16]):
        return None
    return _read_entries(sector)


def _read_entries(sector: bytes) -> tuple[Slot, ...] | None:
    """Read the used entries of an MBR or EBR that has the signature."""
    if len(sector) < SECTOR or sector[510:512] != b"\x55\xaa":
        return None
    entries = ((index, *ENTRY.unpack_from(sector, 446 + 16 * index)) for index in range(4))
    # Linux goes by the length alone: an entry of type 0 with a length is a partition.
    return tuple(Slot(index, kind, start, count) for index, _, _, kind, _, start, count in entries if count)


def is_protective(slots: tuple[Slot, ...]) -> bool:
    """Whether the table belongs to a GPT disk, alone or as a hybrid."""
    return any(slot.type == PROTECTIVE for slot in slots)


def parse(read: ReadAt, size: int, sector_size: int, sector: bytes, slots: tuple[Slot, ...]) -> PartitionTable:
    """Read the table whose first sector has been read.

    Extended partitions are containers without content of their own and are left out of the result.

    :param size: of the device, bytes.
    :param sector: the first sector of the device.
    :param slots: its entries.
    :raises BadPartitionTable: partitions overlap, or logical ones loop or leave their container.
    """
    signature = int.from_bytes(sector[440:444], "little")
    identifier = f"{signature:08x}" if signature else ""
    partitions: list[Partition] = []
    extents: list[Extent] = []
    extended: list[Extent] = []

    def add(number: int, kind: int, extent: Extent) -> None:
        check_inside(extent, size)
        extents.append(extent)
        partuuid = f"{identifier}-{number:02x}" if identifier else ""
        partitions.append(Partition(number, extent.start, extent.size, type=f"0x{kind:02x}", uuid=partuuid))

    for slot in slots:
        number = slot.index + 1
        extent = Extent(slot.start * sector_size, slot.count * sector_size, f"partition {number}")
        if slot.type in EXTENDED:
            check_inside(extent, size)
            extended.append(extent)
        else:
            add(number, slot.type, extent)
    check_overlaps(extents + extended)
    number = 5
    for container in extended:
        for kind, start, length in _logical(read, sector_size, container, extents):
            if len(partitions) == MAX_PARTITIONS:
                raise BadPartitionTable(f"the table has more than the {MAX_PARTITIONS} partitions that are handled")
            extent = Extent(start, length, f"partition {number}")
            if extent.end > container.end:
                raise BadPartitionTable(f"{extent.name} lies outside of the extended {container.name}")
            add(number, kind, extent)
            number += 1
    check_overlaps(extents)
    return PartitionTable("dos", sector_size, tuple(partitions), uuid=identifier)


def _logical(read: ReadAt, sector_size: int, container: Extent, extents: list[Extent]) -> list[tuple[int, int, int]]:
    """Follow the chain of EBRs of one container; each EBR is added to ``extents``, since nothing may overlap it.

    :returns: type, first byte and length in bytes of each logical partition, in the order of the chain.
    """
    found: list[tuple[int, int, int]] = []
    at = container.start
    seen = {at}
    while True:
        slots = _read_entries(read(at, SECTOR))
        if slots is None:  # an extended partition without content has no EBR
            return found
        extents.append(Extent(at, sector_size, f"the EBR at byte {at}"))
        # Linux looks at the last two entries too, but only if they fit; tools leave garbage there. We ignore them.
        found.extend(
            (slot.type, at + slot.start * sector_size, slot.count * sector_size)
            for slot in slots
            if slot.index < 2 and slot.type not in EXTENDED
        )
        links = [slot for slot in slots if slot.type in EXTENDED]
        if not links:
            return found
        # The start of a link counts from the container, the one of a partition from its EBR.
        at = container.start + links[0].start * sector_size
        if at in seen:
            raise BadPartitionTable(f"the chain of logical partitions in the extended {container.name} is a loop")
        if at >= container.end or len(seen) == MAX_PARTITIONS:
            raise BadPartitionTable(
                f"the chain of logical partitions leaves the extended {container.name}, or has more than "
                f"{MAX_PARTITIONS} links"
            )
        seen.add(at)
