"""Physical volumes: where on the device the metadata of their volume group are.

Read from the device, no tool of LVM is started: it would trust the names in an image, and those may be the host's.
The layout is that of LVM2's text format (lib/format_text/layout.h and lib/label/label.h in its sources, pvcreate(8)).
"""

from __future__ import annotations

import struct
import zlib

from mapper_core.errors import BadPartitionTable
from mapper_core.frozen import dataclass
from mapper_core.partitions import ReadAt

#: The label is in one of the first four sectors; they have 512 bytes on all disks.
SECTOR = 512
LABEL_SECTORS = 4

#: Longest metadata that are read, all different ones of a device together, bytes. pvcreate(8) makes room for one MiB; a volume
#: takes about 300 bytes.
MAX_TEXT = 4 << 20
#: Most areas that one physical volume may list; LVM itself makes two.
MAX_AREAS = 8

_MAGIC = b"\x20LVM2\x20x[5A%r0N*>"
#: Header of a metadata area: checksum, magic, version, start, size; then the places of the text.
_AREA = struct.Struct("<I16sIQQ")
#: Place of a text in the area: offset, size, checksum, flags.
_PLACE = struct.Struct("<QQII")
_IGNORED = 1


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """A label.

    :param uuid: 32 characters, without dashes.
    :param start: first byte on the device.
    :param size: of the partition that it is in, bytes.
    :param texts: the metadata of its group, as each area has them; empty when another volume keeps them.
    """

    uuid: str
    start: int
    size: int
    texts: tuple[bytes, ...] = ()


def checksum(data: bytes) -> int:
    """CRC-32 with LVM's starting value, and without the inversions."""
    return zlib.crc32(data, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def read(inside: ReadAt, start: int, size: int) -> PhysicalVolume | None:
    """Read the label of a physical volume; ``None`` when there is none.

    :param inside: reads the partition.
    :param start: of the partition on the device, bytes.
    :param size: of the partition, bytes.
    :raises BadPartitionTable: there is a label, and what it leads to is damaged.
    """
    head = inside(0, LABEL_SECTORS * SECTOR)
    for number in range(len(head) // SECTOR):
        sector = head[number * SECTOR : (number + 1) * SECTOR]
        if _is_label(sector, number):
            offset = int.from_bytes(sector[20:24], "little")
            if not 32 <= offset <= SECTOR - 40:
                raise BadPartitionTable(f"the label of the LVM physical volume at byte {start} is damaged")
            return _volume(sector, offset, inside, start, size)
    return None


def _is_label(sector: bytes, number: int) -> bool:
    return (
        sector[:8] == b"LABELONE"
        and sector[24:32] == b"LVM2 001"
        and struct.unpack_from("<QI", sector, 8) == (number, checksum(sector[20:]))
    )


def _volume(sector: bytes, offset: int, inside: ReadAt, start: int, size: int) -> PhysicalVolume:
    """Read the header behind a label: the uuid, its own size, and two lists of places, each ended by zeros."""
    uuid = sector[offset : offset + 32].decode("ascii", "replace")
    lists: list[list[tuple[int, int]]] = [[], []]
    position = offset + 40
    for places in lists:
        while position + 16 <= SECTOR:
            place = struct.unpack_from("<QQ", sector, position)
            position += 16
            if place[0] == 0:
                break
            places.append(place)
    areas = lists[1]
    if len(areas) > MAX_AREAS:
        raise BadPartitionTable(f"the LVM physical volume at byte {start} lists {len(areas)} metadata areas")
    texts = [text for place in areas if (text := _text(inside, *place, size=size)) is not None]
    if areas and not texts and not any(_is_empty(inside, *place) for place in areas):
        raise BadPartitionTable(
            f"the metadata of the LVM physical volume at byte {start} are damaged",
            hint="repair them with vgcfgrestore inside of a virtual machine",
        )
    return PhysicalVolume(uuid, start, size, tuple(texts))


def _header(inside: ReadAt, start: int) -> bytes | None:
    """The header of a metadata area; ``None`` when it is damaged."""
    raw = inside(start, SECTOR)
    if len(raw) < SECTOR:
        return None
    stored, magic, version, own_start, _ = _AREA.unpack_from(raw)
    good = stored == checksum(raw[4:]) and magic == _MAGIC and version == 1 and own_start == start
    return raw if good else None


def _is_empty(inside: ReadAt, start: int, _length: int) -> bool:
    """Whether an area is intact and has no text: the volume belongs to no group, or another one keeps the text."""
    raw = _header(inside, start)
    return raw is not None and (_PLACE.unpack_from(raw, _AREA.size)[:2] == (0, 0) or _is_ignored(raw))


def _is_ignored(raw: bytes) -> bool:
    return bool(_PLACE.unpack_from(raw, _AREA.size)[3] & _IGNORED)


def _text(inside: ReadAt, start: int, length: int, *, size: int) -> bytes | None:
    """Read the text of one area; ``None`` when it has none, or is damaged. The text may go round its end."""
    if start + length > size or length <= SECTOR:
        return None
    raw = _header(inside, start)
    if raw is None or _is_ignored(raw):
        return None
    offset, text_size, stored, _ = _PLACE.unpack_from(raw, _AREA.size)
    if not SECTOR <= offset < length or not 0 < text_size <= min(MAX_TEXT, length - SECTOR):
        return None
    first = min(text_size, length - offset)
    text = inside(start + offset, first) + (inside(start + SECTOR, text_size - first) if first < text_size else b"")
    return text if len(text) == text_size and checksum(text) == stored else None
