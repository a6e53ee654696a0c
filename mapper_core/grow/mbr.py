"""A primary or logical partition of an MBR table grows; a logical one with the extended partition around it. Pure.

Every write is one sector, and after each of them the table is valid: containers grow before what is in them.
"""

from __future__ import annotations

import dataclasses
import struct

from mapper_core.errors import BadPartitionTable
from mapper_core.frozen import dataclass
from mapper_core.grow.extent import Growth, Write, new_end
from mapper_core.model import Partition, PartitionTable
from mapper_core.partitions.layout import MAX_PARTITIONS, Extent
from mapper_core.partitions.mbr import EXTENDED, Slot, read_slots
from mapper_core.partitions.reader import ReadAt

#: Sectors are counted in 32 bits.
_MAX_SECTORS = 1 << 32

#: The geometry that all systems pretend, and the last cylinder that can be written in it.
_HEADS, _SECTORS, _MAX_CYLINDER = 255, 63, 1023


@dataclass(frozen=True, slots=True)
class _Ebr:
    """A link of a chain of logical partitions.

    :param at: byte of its sector.
    """

    at: int
    sector: bytes
    slots: tuple[Slot, ...]


def extend(read: ReadAt, size: int, table: PartitionTable, partition: Partition) -> Growth:
    """Plan the growth of a partition; parameters and errors as :func:`mapper_core.grow.gpt.extend`."""
    sector = table.sector_size
    first = read(0, sector)
    slots = read_slots(first) or ()
    limit = min(size, _MAX_SECTORS * sector) // sector * sector
    if partition.number <= 4:
        others = tuple(_extent(slot, 0, sector) for slot in slots if slot.index != partition.number - 1)
        end = new_end(partition, others, limit, size)
        grown = dataclasses.replace(partition, size=end - partition.start)
        if end == partition.start + partition.size:
            return Growth(grown, ())
        return Growth(grown, (Write(0, _with_end(first, partition.number - 1, end // sector, 0, sector)),))
    for container in (slot for slot in slots if slot.type in EXTENDED):
        inside = _extent(container, 0, sector)
        if inside.start < partition.start < inside.end:
            primaries = tuple(_extent(slot, 0, sector) for slot in slots if slot.index != container.index)
            return _extend_logical(read, size, table, partition, first, container, primaries, limit)
    raise BadPartitionTable(f"partition {partition.number} is in no extended partition")


def _extend_logical(
    read: ReadAt, size: int, table: PartitionTable, partition: Partition,
    first: bytes, container: Slot, primaries: tuple[Extent, ...], limit: int,
) -> Growth:  # fmt: skip
    sector = table.sector_size
    base = container.start * sector
    chain = _chain(read, base, sector)
    own = next(
        (ebr for ebr in chain if any(ebr.at + slot.start * sector == partition.start for slot in _data(ebr))), None
    )
    if own is None:
        raise BadPartitionTable(f"partition {partition.number} is in no chain of logical partitions")
    others = [*primaries, *(Extent(ebr.at, sector, "the next logical partition") for ebr in chain)]
    others += [
        Extent(item.start, item.size, f"partition {item.number}")
        for item in table.partitions
        if item.number not in (partition.number, *range(1, 5))
    ]
    end = new_end(partition, tuple(others), limit, size)
    grown = dataclasses.replace(partition, size=end - partition.start)
    if end == partition.start + partition.size:
        return Growth(grown, ())
    writes = []
    if end > base + container.count * sector:
        writes.append(Write(0, _with_end(first, container.index, end // sector, 0, sector)))
    writes.extend(
        Write(ebr.at, _with_end(ebr.sector, link.index, end // sector, base // sector, sector))
        for ebr in chain
        for link in ebr.slots
        if link.type in EXTENDED and base + link.start * sector == own.at
    )
    slot = next(slot for slot in _data(own) if own.at + slot.start * sector == partition.start)
    writes.append(Write(own.at, _with_end(own.sector, slot.index, end // sector, own.at // sector, sector)))
    return Growth(grown, tuple(writes))


def _chain(read: ReadAt, base: int, sector: int) -> list[_Ebr]:
    """Read the chain of a container; whoever has found the partitions has checked it, so it is short and ends."""
    found: list[_Ebr] = []
    at = base
    while len(found) <= MAX_PARTITIONS:
        raw = read(at, sector)
        # unlike in an MBR, boot flags mean nothing here
        slots = read_slots(_without_flags(raw)) or ()
        found.append(_Ebr(at, raw, slots))
        links = [slot for slot in slots if slot.type in EXTENDED]
        if not links:
            break
        at = base + links[0].start * sector
    return found


def _without_flags(raw: bytes) -> bytes:
    plain = bytearray(raw)
    for offset in range(446, 510, 16):
        plain[offset] = 0
    return bytes(plain)


def _data(ebr: _Ebr) -> list[Slot]:
    return [slot for slot in ebr.slots if slot.index < 2 and slot.type not in EXTENDED]


def _extent(slot: Slot, base: int, sector: int) -> Extent:
    name = "the extended partition" if slot.type in EXTENDED else f"partition {slot.index + 1}"
    return Extent(base + slot.start * sector, slot.count * sector, name)


def _with_end(raw: bytes, index: int, end: int, base: int, sector: int) -> bytes:
    """Return a sector with an entry that ends elsewhere.

    :param end: the first sector behind it, on the device.
    :param base: the sector from which the entry counts its start.
    """
    changed = bytearray(raw)
    at = 446 + 16 * index
    (start,) = struct.unpack_from("<I", changed, at + 8)
    changed[at + 5 : at + 8] = _chs(end - 1)
    struct.pack_into("<I", changed, at + 12, end - base - start)
    return bytes(changed)


def _chs(lba: int) -> bytes:
    """The last sector in cylinders, heads and sectors; what is too far has the largest values that there are."""
    cylinder, rest = divmod(lba, _HEADS * _SECTORS)
    head, sector = divmod(rest, _SECTORS)
    if cylinder > _MAX_CYLINDER:
        cylinder, head, sector = _MAX_CYLINDER, _HEADS - 1, _SECTORS - 1
    return bytes((head, (cylinder >> 8) << 6 | sector + 1, cylinder & 0xFF))
