"""The headers of a VHDX image, and whether the file is as long as its block allocation table says.

Source: "Virtual Hard Disk v2 (VHDX) File Format", [MS-VHDX]; where the specification leaves a
choice, that of qemu's `block/vhdx.c`, which reads the image afterwards. All numbers are
little-endian.
"""

from __future__ import annotations

import struct
import sys
import uuid
from array import array

from mapper_core import Disk, ImageInfo
from mapper_core.imagefile import Budget, ImageFile, open_image

from mapper_vhdx.crc32c import crc32c

SIGNATURE = b"vhdxfile"
KIB, MIB = 1 << 10, 1 << 20
TIB = 1 << 40

HEADERS_AT, HEADER_SIZE = (64 * KIB, 128 * KIB), 4 * KIB
REGIONS_AT, METADATA_SIZE, TABLE_SIZE = 192 * KIB, 64 * KIB, 64 * KIB
MAX_ENTRIES = 2047

_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_TABLE = struct.Struct("<4sII4x")
_REGION = struct.Struct("<16sQII")
_METADATA = struct.Struct("<8s2xH20x")
_ITEM = struct.Struct("<16sIII4x")


def _guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


BAT = _guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA = _guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")
PARAMETERS = _guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
DISK_SIZE = _guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
SECTOR_SIZE = _guid("8141bf1d-a96f-4709-ba47-f233a8faab5f")

_HAS_PARENT = 1 << 1
_PRESENT = (6, 7)  # states of a block that has a place in the file


def inspect_image(disk: Disk) -> ImageInfo:
    """Read and check an image.

    :raises MapperError: it is no VHDX, a variant that is not handled, damaged, or too short.
    """
    with open_image(disk.source, Budget()) as image:
        if image.read_start(len(SIGNATURE)) != SIGNATURE:
            raise image.corrupt("is no VHDX image: the signature is missing")
        _check_headers(image)
        regions = _regions(image)
        items = _items(image, *regions[METADATA])
        block, flags = struct.unpack("<II", items[PARAMETERS])
        (size,) = struct.unpack("<Q", items[DISK_SIZE])
        (sector,) = struct.unpack("<I", items[SECTOR_SIZE])
        if flags & _HAS_PARENT:
            raise image.unsupported(
                "is a difference to another image",
                "make one image of both: Convert-VHD, or qemu-img convert",
            )
        if sector != 512:
            raise image.unsupported(f"sectors of {sector} bytes are not supported")
        if not MIB <= block <= 256 * MIB or block & (block - 1):
            raise image.corrupt(f"the block size of {block} bytes is out of range")
        if not 0 < size <= 64 * TIB or size % sector:
            raise image.corrupt(f"the size of {size} bytes is out of range")
        _check_table(image, *regions[BAT], size=size, block=block, sector=sector)
        return ImageInfo(
            path=image.path,
            format="vhdx",
            virtual_size=size,
            file_size=image.size,
            detail=(("block size", str(block)),),
        )


def _check_headers(image: ImageFile) -> None:
    """One of the two headers must be whole: a writer changes them in turn."""
    newest: tuple[int, int] | None = None
    for at in HEADERS_AT:
        raw = image.read(at, HEADER_SIZE, "header")
        (
            signature,
            checksum,
            sequence,
            _file,
            _data,
            _log,
            _log_version,
            version,
            _length,
            _offset,
        ) = _HEADER.unpack_from(raw)
        if signature == b"head" and checksum == _checksum(raw):
            newest = max(newest or (sequence, version), (sequence, version))
    if newest is None:
        raise image.corrupt("both headers are damaged")
    if newest[1] != 1:
        raise image.unsupported(f"VHDX version {newest[1]} is not supported")


def _regions(image: ImageFile) -> dict[bytes, tuple[int, int]]:
    """Offset and length of the regions; read from the first table, as qemu does."""
    raw = image.read(REGIONS_AT, TABLE_SIZE, "region table")
    signature, checksum, count = _TABLE.unpack_from(raw)
    if signature != b"regi" or checksum != _checksum(raw) or count > MAX_ENTRIES:
        raise image.corrupt("the region table is damaged")
    found: dict[bytes, tuple[int, int]] = {}
    for number in range(count):
        kind, offset, length, required = _REGION.unpack_from(
            raw, _TABLE.size + number * _REGION.size
        )
        if kind not in (BAT, METADATA):
            if required & 1:
                raise image.unsupported(
                    f"it needs a region that is not known: {uuid.UUID(bytes_le=kind)}"
                )
            continue
        if kind in found or offset < MIB or offset % MIB or not length or length % MIB:
            raise image.corrupt("the region table makes no sense")
        if offset + length > image.size:
            raise image.truncated("region", offset + length)
        found[kind] = offset, length
    if len(found) != 2:
        raise image.corrupt("the block allocation table or the metadata are missing")
    (first, length), (second, _) = sorted(found.values())
    if first + length > second:
        raise image.corrupt("regions overlap")
    return found


def _items(image: ImageFile, at: int, length: int) -> dict[bytes, bytes]:
    """The metadata that are needed."""
    wanted = {PARAMETERS: 8, DISK_SIZE: 8, SECTOR_SIZE: 4}
    raw = image.read(at, METADATA_SIZE, "metadata")
    signature, count = _METADATA.unpack_from(raw)
    if signature != b"metadata" or count > MAX_ENTRIES:
        raise image.corrupt("the metadata are damaged")
    found: dict[bytes, bytes] = {}
    for number in range(count):
        kind, offset, size, _flags = _ITEM.unpack_from(raw, _METADATA.size + number * _ITEM.size)
        if kind not in wanted:
            continue
        if (
            kind in found
            or size != wanted[kind]
            or offset < METADATA_SIZE
            or offset + size > length
        ):
            raise image.corrupt("the metadata make no sense")
        found[kind] = image.read(at + offset, size, "metadata")
    if len(found) != len(wanted):
        raise image.corrupt("metadata are missing")
    return found


def _check_table(
    image: ImageFile, at: int, length: int, *, size: int, block: int, sector: int
) -> None:
    """Make sure that the file has all blocks that the table names, and each once."""
    ratio = (1 << 23) * sector // block
    blocks = -(-size // block)
    entries = blocks + (blocks - 1) // ratio
    if entries * 8 > length:
        raise image.corrupt("the block allocation table is too short for the disk")
    if not image.affords(entries * 8):
        return  # of a disk of many TiB; qemu finds out when it reads a block that is not there
    table = array("Q", image.read(at, entries * 8, "block allocation table"))
    if sys.byteorder == "big":
        table.byteswap()
    places = [
        entry >> 20
        for number, entry in enumerate(table)
        if entry & 7 in _PRESENT
        and number % (ratio + 1) != ratio  # that one is for bitmaps of differences
    ]
    if len(set(places)) < len(places) or 0 in places:
        raise image.corrupt(
            "two blocks of the disk have the same place in the file, or one has none"
        )
    if places and max(places) * MIB + block > image.size:
        raise image.truncated("last block", max(places) * MIB + block)


def _checksum(raw: bytes) -> int:
    """CRC-32C of a structure whose own checksum, in bytes 4 to 7, counts as zero."""
    return crc32c(raw[:4] + bytes(4) + raw[8:])
