"""The binary header of sparse vmdk files ("hosted sparse extents"), and whether the file is as long as its tables say.

Source: "Virtual Disk Format 5.0" (VMware), section "Hosted Sparse Extents". All numbers are little-endian; offsets and
sizes are in sectors of 512 bytes. The limits are those of qemu, where it has a reasonable one.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array

from mapper_core.frozen import dataclass
from mapper_core.imagefile import ImageFile

MAGIC = b"KDMV"
SECTOR = 512

_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")  # up to compressAlgorithm
_MARKER = struct.Struct("<QII")
_GD_AT_END = 0xFFFF_FFFF_FFFF_FFFF
_MARKER_FOOTER = 3

_NEWLINES_VALID = 1 << 0
_REDUNDANT_TABLE = 1 << 1
_COMPRESSED_GRAINS = 1 << 16
_NEWLINES = b"\n \r\n"

_ENTRIES_PER_TABLE = 512
_TABLE_BYTES = _ENTRIES_PER_TABLE * 4
_MAX_GRAIN = 0x20_0000
#: A directory of 8 MiB, for 64 TiB with the usual grain size. qemu holds it in memory, and would allow 128 MiB.
_MAX_TABLES = 2 << 20
_MAX_CAPACITY = (1 << 63) // SECTOR - 1

#: qemu takes the embedded descriptor from here, whatever the header says, and writes 20 sectors back when it updates the CID.
DESCRIPTOR_SECTOR, DESCRIPTOR_SECTORS = 1, 20

#: No more of a grain directory is read, bytes: enough for 2 TiB with the usual grain size.
_DIRECTORY_LIMIT = 256 << 10
#: No more grain tables are read; with the usual grain size these are all of 16 GiB.
_TABLES_LIMIT = 512


@dataclass(frozen=True, slots=True)
class SparseHeader:
    """A header whose fields are consistent with each other and with the size of the file. Units: sectors.

    :param descriptor_sectors: 0 without an embedded descriptor.
    :param writable: whether qemu can write to it without damage.
    """

    version: int
    capacity: int
    grain: int
    directory: int
    descriptor_sectors: int
    compressed: bool
    writable: bool
    clean: bool

    @property
    def tables(self) -> int:
        """Entries of the grain directory."""
        return -(-self.capacity // (self.grain * _ENTRIES_PER_TABLE))


def read_header(image: ImageFile) -> SparseHeader:
    """Read and check the header, and the grain directory.

    :param image: a file that begins with :data:`MAGIC`.
    :raises UnsupportedFormat, TruncatedImage, CorruptImage: it is a variant that is not handled, too short, or contradicts
        itself.
    """
    raw = image.read(0, SECTOR, "header")
    fields = _HEADER.unpack_from(raw)
    if fields[9] == _GD_AT_END:
        footer = _read_footer(image)
        # what describes the disk is written twice; qemu believes the footer, other readers may not
        if (footer[:8], footer[13]) != (fields[:8], fields[13]):
            raise image.corrupt("header and footer contradict each other")
        fields = footer
    (
        _magic, version, flags, capacity, grain, descriptor, descriptor_sectors, entries, redundant, directory, overhead,
        unclean, newlines, compression,
    ) = fields  # fmt: skip
    if version not in (1, 2, 3):
        raise image.unsupported(f"vmdk version {version} is not supported")
    if flags & _NEWLINES_VALID and newlines != _NEWLINES:
        raise image.corrupt(
            "line ends were converted: the file was transferred as text", "transfer it again, as binary"
        )
    if not 0 < capacity <= _MAX_CAPACITY:
        # with 0 qemu would take the embedded text for a descriptor file, and open what it names
        raise image.corrupt(f"the capacity of {capacity} sectors is out of range")
    if grain & (grain - 1) or not 0 < grain <= _MAX_GRAIN:
        raise image.corrupt(f"the grain size of {grain} sectors is out of range")
    if entries != _ENTRIES_PER_TABLE:
        raise image.unsupported(f"grain tables with {entries} entries are not supported")
    if compression not in (0, 1):
        raise image.unsupported(f"the compression method {compression} is not known")
    if (compression == 1) != bool(flags & _COMPRESSED_GRAINS):
        raise image.corrupt("the compression method and its flag contradict each other")
    if descriptor and (descriptor != DESCRIPTOR_SECTOR or not descriptor_sectors):
        raise image.unsupported(f"an embedded descriptor at sector {descriptor} is not supported")
    tables_at = [directory, redundant] if flags & _REDUNDANT_TABLE else [directory]
    header = SparseHeader(
        version=version,
        capacity=capacity,
        grain=grain,
        directory=directory,
        descriptor_sectors=descriptor_sectors if descriptor else 0,
        compressed=compression == 1,
        # qemu opens version 3 (changed block tracking) only for reading, and fails on writes to compressed grains
        writable=compression == 0
        and version != 3
        and not (descriptor and min(*tables_at, overhead) < DESCRIPTOR_SECTOR + DESCRIPTOR_SECTORS),
        clean=not unclean,
    )
    if header.tables > _MAX_TABLES:
        raise image.unsupported("the grain directory is too large")
    if overhead * SECTOR > image.size:
        raise image.truncated("metadata", overhead * SECTOR)
    for sector in tables_at:
        if sector < DESCRIPTOR_SECTOR + header.descriptor_sectors:
            raise image.corrupt(f"the grain directory at sector {sector} overlaps the header or the descriptor")
        end = sector * SECTOR + header.tables * 4
        if end > image.size:
            raise image.truncated("grain directory", end)
    _check_length(image, header)
    return header


def read_descriptor(image: ImageFile, header: SparseHeader) -> bytes:
    """Return the text of the embedded descriptor, up to the first NUL byte."""
    length = min(header.descriptor_sectors, DESCRIPTOR_SECTORS) * SECTOR
    text = image.read(DESCRIPTOR_SECTOR * SECTOR, length, "descriptor")
    return text.split(b"\0", 1)[0]


def rename_extent(fd: int, old: bytes, new: bytes) -> None:
    """Write the name that a new image will have into its embedded descriptor; qemu-img has made it under another one."""
    length = DESCRIPTOR_SECTORS * SECTOR
    text = os.pread(fd, length, DESCRIPTOR_SECTOR * SECTOR).rstrip(b"\0")
    text = text.replace(b'SPARSE "%b"' % old, b'SPARSE "%b"' % new, 1)
    os.pwrite(fd, text.ljust(length, b"\0"), DESCRIPTOR_SECTOR * SECTOR)


def _read_footer(image: ImageFile) -> tuple[int | bytes, ...]:
    """Read the footer of a stream: three sectors at the end of the file, the second is a copy of the header."""
    start = image.size // SECTOR * SECTOR - 3 * SECTOR
    end = image.read(start, 3 * SECTOR, "footer") if start > 0 and image.size % SECTOR == 0 else b""
    footer = _HEADER.unpack_from(end, SECTOR) if end else ()
    if not footer or footer[0] != MAGIC or _MARKER.unpack_from(end)[1:] != (0, _MARKER_FOOTER):
        raise image.truncated("footer of the stream", image.size + 1)
    if _MARKER.unpack_from(end, 2 * SECTOR) != (0, 0, 0) or footer[9] == _GD_AT_END:
        raise image.corrupt("the footer of the stream is damaged")
    return footer


def _check_length(image: ImageFile, header: SparseHeader) -> None:
    """Find out whether the file is truncated: no table, and no grain, may start behind its end.

    All tables are looked at, but only the grains of some, evenly spread, so that the cost has a limit.
    """
    size = min(header.tables * 4, _DIRECTORY_LIMIT)
    if not image.affords(size):
        return
    tables = sorted(set(_numbers(image.read(header.directory * SECTOR, size, "grain directory"))))
    if tables[-1] and tables[-1] * SECTOR + _TABLE_BYTES > image.size:
        raise image.truncated("grain table", tables[-1] * SECTOR + _TABLE_BYTES)
    for sector in tables[:: -(-len(tables) // _TABLES_LIMIT)]:
        if not image.affords(_TABLE_BYTES):
            return
        if sector:
            furthest = max(_numbers(image.read(sector * SECTOR, _TABLE_BYTES, "grain table")))
            if furthest * SECTOR >= image.size:
                raise image.truncated("grain", furthest * SECTOR + 1)


def _numbers(data: bytes) -> array[int]:
    numbers = array("I")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
