"""The internal snapshots of a qcow2 image: their table, read without any external program.

Source: ``docs/interop/qcow2.txt`` of qemu, "Snapshots".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from mapper_core.errors import CorruptImage, NotSupported, SnapshotMissing
from mapper_core.frozen import dataclass
from mapper_core.imagefile import Budget, ImageFile, open_image
from mapper_core.partitions.reader import text
from mapper_qcow2.fields import MIN_SNAPSHOT_BYTES, Header, read_header

#: L1 offset, L1 entries, length of the id, length of the name, seconds, nanoseconds, guest clock, size of the machine's
#: state, length of the extra data.
_ENTRY = struct.Struct(">QIHHIIQII")
assert _ENTRY.size == MIN_SNAPSHOT_BYTES

#: Extra data is 8 bytes size of the machine's state, 8 bytes size of the disk, and what later versions add.
_EXTRA_DISK_SIZE = 16
_MAX_EXTRA = 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One snapshot.

    :param id: unique in the image; qemu's tools take it where they take a name, and before it.
    :param size: of the disk then, bytes.
    :param created: seconds since the epoch.
    """

    id: str
    name: str
    size: int
    created: int


def read_snapshots(path: str) -> tuple[Entry, ...]:
    """Read the snapshots of an image, in the order in which they were made.

    :raises MapperError: see :func:`mapper_qcow2.fields.read_header`; also for a table that makes no sense.
    """
    with open_image(path, Budget()) as image:
        return tuple(_entries(image, read_header(image)))


def snapshot_id(path: str, name: str) -> str:
    """Return the id of the snapshot of a name: another one may have this name as its id, and qemu-img would take that.

    :raises SnapshotMissing: there is none.
    """
    for entry in read_snapshots(path):
        if entry.name == name:
            return entry.id
    raise SnapshotMissing(f"has no snapshot {name!r}", subject=path)


def refuse_data_file(path: str) -> None:
    """Make sure that the data of an image is inside of it, as only then it can have snapshots.

    :raises NotSupported: it is in another file.
    """
    with open_image(path, Budget()) as image:
        if read_header(image).data_file:
            raise NotSupported("an image with an external data file cannot have snapshots", subject=path)


def _entries(image: ImageFile, header: Header) -> Iterator[Entry]:
    offset = header.snapshots_offset
    ids: set[str] = set()
    for _ in range(header.snapshots):
        fixed = image.read(offset, _ENTRY.size, "snapshot table")
        _, _, id_length, name_length, seconds, _, _, _, extra_length = _ENTRY.unpack(fixed)
        if extra_length > _MAX_EXTRA:
            raise image.corrupt(f"a snapshot has {extra_length} bytes of extra data")
        rest = image.read(offset + _ENTRY.size, extra_length + id_length + name_length, "snapshot table")
        size = header.size
        if extra_length >= _EXTRA_DISK_SIZE:
            size = int.from_bytes(rest[8:16], "big")
        identifier = text(rest[extra_length : extra_length + id_length])
        if identifier in ids:
            raise _twice(image, identifier)
        ids.add(identifier)
        yield Entry(identifier, text(rest[extra_length + id_length :]), size // 512 * 512, seconds)
        offset += -(-(_ENTRY.size + len(rest)) // 8) * 8


def _twice(image: ImageFile, identifier: str) -> CorruptImage:
    return image.corrupt(f"two snapshots have the id {identifier!r}")
