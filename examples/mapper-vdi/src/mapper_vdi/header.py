"""The header of a VDI image, and whether the file is as long as its block map says.

Source: VirtualBox, `VDICore.h`; the limits are those of qemu's `block/vdi.c`. All numbers are
little-endian.
"""

from __future__ import annotations

import struct
import sys
from array import array

from mapper_core import Disk, ImageInfo
from mapper_core.imagefile import Budget, ImageFile, open_image

SIGNATURE = b"\x7f\x10\xda\xbe"
SIGNATURE_AT = 0x40

HEADER_SIZE = 512
SECTOR = 512
BLOCK = 1 << 20
#: qemu keeps the whole block map in memory and refuses larger ones.
MAX_BLOCKS = (1 << 29) - 1

_TYPES = {1: "dynamic", 2: "static"}
_HEADER = struct.Struct("<4sI4xI4x256xII12xI4xQIIII32x16s16s")  # from the signature on
_FIELDS = (
    *("signature", "version", "type", "map offset", "data offset", "sector size", "disk size"),
    *("block size", "block extra", "blocks", "allocated", "linked", "parent"),
)
_NO_UUID = bytes(16)
_FIRST_UNUSED = 0xFFFFFFFE  # 0xffffffff: never written, 0xfffffffe: discarded


def inspect_image(disk: Disk) -> ImageInfo:
    """Read and check an image.

    :raises MapperError: it is no VDI, a variant that is not handled, damaged, or too short.
    """
    with open_image(disk.source, Budget()) as image:
        return _inspect(image)


def _inspect(image: ImageFile) -> ImageInfo:
    raw = image.read(0, HEADER_SIZE, "header")
    fields = dict(zip(_FIELDS, _HEADER.unpack_from(raw, SIGNATURE_AT), strict=True))
    signature, version, kind = fields["signature"], fields["version"], fields["type"]
    map_at, data_at = fields["map offset"], fields["data offset"]
    size, blocks, allocated = fields["disk size"], fields["blocks"], fields["allocated"]
    if signature != SIGNATURE:
        raise image.corrupt("is no VDI image: the signature is missing")
    if version != 0x00010001:
        raise image.unsupported(f"VDI version {version >> 16}.{version & 0xFFFF} is not supported")
    if kind not in _TYPES or fields["linked"] != _NO_UUID or fields["parent"] != _NO_UUID:
        raise image.unsupported(
            "is a difference to another image",
            "make one image of both: VBoxManage clonemedium SOURCE TARGET",
        )
    if (fields["sector size"], fields["block size"], fields["block extra"]) != (SECTOR, BLOCK, 0):
        raise image.unsupported("blocks of another size than 1 MiB are not supported")
    if map_at % SECTOR or data_at % SECTOR:
        raise image.corrupt("the offsets in the header are no multiples of a sector")
    if not 0 < blocks <= MAX_BLOCKS or not 0 < size <= blocks * BLOCK or size % SECTOR:
        raise image.corrupt(f"the size of {size} bytes does not fit to its {blocks} blocks")
    if allocated > blocks:
        raise image.corrupt(f"{allocated} of {blocks} blocks are in use")
    if map_at < SIGNATURE_AT + _HEADER.size or map_at + blocks * 4 > data_at:
        raise image.corrupt("header, block map and data overlap")
    _check_map(image, map_at, data_at, blocks, allocated)
    return ImageInfo(
        path=image.path,
        format="vdi",
        variant=_TYPES[kind],
        virtual_size=size,
        file_size=image.size,
        detail=(("blocks in use", f"{allocated} of {blocks}"),),
    )


def _check_map(image: ImageFile, map_at: int, data_at: int, blocks: int, allocated: int) -> None:
    """Make sure that each block of the disk has its own place in the file, and that it is there."""
    if map_at + blocks * 4 > image.size:
        raise image.truncated("block map", map_at + blocks * 4)
    if image.affords(blocks * 4):
        entries = array("I", image.read(map_at, blocks * 4, "block map"))
        if sys.byteorder == "big":
            entries.byteswap()
        used = [entry for entry in entries if entry < _FIRST_UNUSED]
        if len(set(used)) < len(used) or any(entry >= allocated for entry in used):
            raise image.corrupt(
                "two blocks of the disk have the same place in the file, or one has none"
            )
        needed = max(used, default=-1) + 1
    else:
        needed = allocated  # of a disk of many TiB the map is too long to be read
    # the last block may be shorter than the others, but not empty
    if needed and data_at + (needed - 1) * BLOCK >= image.size:
        raise image.truncated("data", data_at + needed * BLOCK)
