"""Partition tables as bytes, valid ones and broken ones, for tests that have no tools and no root.

The builders write what they are told, also nonsense: overlaps, loops, partitions behind the end. Only the checksums
are always right, since a parser that stops at a wrong checksum would never reach what is tested.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass

from mapper_core.partitions.reader import ReadAt

LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
DISK_GUID = "11111111-2222-3333-4444-555555555555"


@dataclass(frozen=True, slots=True)
class Gpt:
    """An entry of a GPT, in sectors; ``last`` is part of it. ``unique`` defaults to one made from the slot."""

    slot: int
    first: int
    last: int
    type: str = LINUX
    unique: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Mbr:
    """An entry of an MBR or EBR, in sectors, ``start`` relative to whatever the table it is in counts from."""

    slot: int
    type: int
    start: int
    count: int
    flag: int = 0


def reader(image: bytes | bytearray) -> ReadAt:
    """Return a reader of an image in memory."""
    return lambda offset, length: bytes(image[offset : offset + length])


def gpt_image(
    size: int,
    entries: tuple[Gpt, ...],
    *,
    sector_size: int = 512,
    count: int = 128,
    entry_size: int = 128,
    hybrid: tuple[Mbr, ...] = (),
) -> bytearray:
    """Build a disk with a protective (or hybrid) MBR and both headers.

    :param size: of the disk, bytes, a multiple of the sector size.
    :param count: number of slots in the table.
    """
    image = bytearray(size)
    sectors = size // sector_size
    array = bytearray(count * entry_size)
    for entry in entries:
        unique = entry.unique or f"00000000-0000-0000-0000-{entry.slot:012x}"
        packed = struct.pack(
            "<16s16sQQQ72s",
            uuid.UUID(entry.type).bytes_le,
            uuid.UUID(unique).bytes_le,
            entry.first,
            entry.last,
            0,
            entry.name.encode("utf-16-le"),
        )
        at = (entry.slot - 1) * entry_size
        array[at : at + len(packed)] = packed
    length = -(-len(array) // sector_size)
    protective = Mbr(1, 0xEE, 1, min(sectors - 1, 0xFFFFFFFF))
    image[:512] = table_sector((protective, *hybrid))
    for lba, other, array_lba in ((1, sectors - 1, 2), (sectors - 1, 1, sectors - 1 - length)):
        image[array_lba * sector_size : array_lba * sector_size + len(array)] = array
        header = struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(b"EFI PART", 0x10000, 92, 0, 0, lba, other, 2 + length, sectors - 2 - length),
            *(uuid.UUID(DISK_GUID).bytes_le, array_lba, count, entry_size, 0),
        )
        image[lba * sector_size : lba * sector_size + len(header)] = header
        sign(image, lba, sector_size)
    return image


def sign(image: bytearray, lba: int, sector_size: int = 512) -> None:
    """Make both checksums of a GPT header right, after something in it or in its entries has been changed.

    Numbers that lead out of the image are left alone, as far as the checksum needs them.
    """
    at = lba * sector_size
    (header_size,) = struct.unpack_from("<I", image, at + 12)
    array_lba, count, entry_size = struct.unpack_from("<QII", image, at + 72)
    array = image[array_lba * sector_size : array_lba * sector_size + min(count * entry_size, len(image))]
    struct.pack_into("<I", image, at + 88, zlib.crc32(array))
    struct.pack_into("<I", image, at + 16, 0)
    struct.pack_into("<I", image, at + 16, zlib.crc32(image[at : at + min(header_size, sector_size)]))


def table_sector(entries: tuple[Mbr, ...], signature: int = 0) -> bytes:
    """Build an MBR (with a disk signature) or an EBR. The entries go into their slots, or the next free ones."""
    sector = bytearray(512)
    struct.pack_into("<I", sector, 440, signature)
    for entry in entries:
        at = 446 + 16 * (entry.slot - 1)
        struct.pack_into("<B3sB3sII", sector, at, entry.flag, b"", entry.type, b"", entry.start, entry.count)
    sector[510:512] = b"\x55\xaa"
    return bytes(sector)


def mbr_image(
    size: int,
    entries: tuple[Mbr, ...],
    chain: tuple[tuple[int, tuple[Mbr, ...]], ...] = (),
    *,
    signature: int = 0x1234ABCD,
    sector_size: int = 512,
) -> bytearray:
    """Build a disk with an MBR.

    :param chain: the EBRs: absolute sector of each, and its entries as they are written there.
    """
    image = bytearray(size)
    image[:512] = table_sector(entries, signature)
    for sector, inside in chain:
        image[sector * sector_size : sector * sector_size + 512] = table_sector(inside)
    return image


def logical_chain(
    container: int, logicals: tuple[tuple[int, int, int], ...]
) -> tuple[tuple[int, tuple[Mbr, ...]], ...]:
    """Build the usual chain of EBRs: one per partition, in the sector before it.

    :param container: first sector of the extended partition.
    :param logicals: type, absolute first sector and number of sectors of each.
    """
    places = [container, *(start - 1 for _, start, _ in logicals[1:])]
    chain = []
    for index, (kind, start, count) in enumerate(logicals):
        entries = [Mbr(1, kind, start - places[index], count)]
        if index + 1 < len(logicals):
            _, next_start, next_count = logicals[index + 1]
            following = places[index + 1]
            entries.append(Mbr(2, 0x05, following - container, next_start + next_count - following))
        chain.append((places[index], tuple(entries)))
    return tuple(chain)
