"""After a disk has grown: a partition of it grows, and the filesystem in it, also while it is mounted.

The plan (:mod:`mapper_core.grow.extent`, ``gpt``, ``mbr``) is pure. The act writes the table past the page cache, tells the
kernel, and lets the filesystem's own driver do the rest. Everything can be repeated: what a crash has interrupted is finished by
the same call.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mapper_core import capabilities, users
from mapper_core.errors import KernelError, MapperError, NotFound, NotSupported, ReadOnlyImage
from mapper_core.frozen import dataclass
from mapper_core.grow.extent import Growth
from mapper_core.grow.filesystem import grow_filesystem
from mapper_core.journal import Record
from mapper_core.linux import block, direct, filesystem_size, mountinfo
from mapper_core.mapping import UNDO_SECONDS, Mapper
from mapper_core.model import Access, Disk, Filesystem, MapOptions, MappedDisk, Partition, PartitionTable
from mapper_core.partitions import ReadAt, nodes, window
from mapper_core.tree import superblock


@dataclass(frozen=True, slots=True)
class Grown:
    """What has grown.

    :param partition: as it is now; number 0: the whole disk, without a partition table.
    :param partition_before: its size before, bytes.
    :param filesystem: what is in it; an empty type: nothing that is known, and only the partition has grown.
    :param capacity: of the filesystem now, as ``df`` says, bytes; 0 without one.
    :param capacity_before: likewise, before.
    """

    partition: Partition
    partition_before: int
    filesystem: Filesystem
    capacity: int = 0
    capacity_before: int = 0


def plan(read: ReadAt, size: int, table: PartitionTable, number: int) -> Growth:
    """Plan the growth of a partition as far as there is room. Pure.

    :param read: reads the device.
    :param size: of the device, bytes.
    :param table: what was found on it.
    :param number: of the partition; 0: the whole disk, without a table.
    :raises NotFound: there is no such partition.
    :raises NoRoomToGrow: something is in its way.
    :raises NotSupported, BadPartitionTable: this table is not changed.
    """
    partition = next((item for item in table.partitions if item.number == number), None)
    if partition is None:
        known = ", ".join(str(item.number) for item in table.partitions)
        raise NotFound(f"there is no partition {number}", hint=f"there are: {known or 'none'}")
    if partition.names:
        raise NotSupported(
            f"{partition.label or number} is a logical volume; those do not grow from outside of the guest"
        )
    if table.scheme == "none":
        return Growth(dataclasses.replace(partition, size=size), ())
    if table.scheme == "gpt":
        from mapper_core.grow import gpt

        return gpt.extend(read, size, table, partition)
    if table.scheme == "dos":
        from mapper_core.grow import mbr

        return mbr.extend(read, size, table, partition)
    raise NotSupported(f"partitions of the scheme {table.scheme} cannot grow")


def grow(mapper: Mapper, disk: Disk, number: int | None = None) -> Grown:
    """Let a partition of a disk grow as far as there is room, and the filesystem in it.

    A disk that is not mapped is mapped meanwhile; a filesystem that is not mounted is mounted meanwhile, visible to nobody.
    One that has its full size already is a success.

    :param number: of the partition; ``None``: the one with the root filesystem, or the only one.
    :raises NoRoomToGrow: something is in its way; nothing was changed.
    :raises NotSupported: what is in the partition cannot grow; nothing was changed.
    :raises ReadOnlyImage: the disk is mapped read-only, or the filesystem is mounted so.
    :raises AmbiguousRoot, NoRootFound: it is not clear which partition has the root filesystem.
    :raises MapperError: from the image, the table or the kernel.
    """
    with _mapped(mapper, disk) as mapped:
        if mapped.access is Access.READ_ONLY:
            raise ReadOnlyImage("is mapped read-only", subject=mapped.disk.source, hint="unmap it first")
        chosen = _root_number(mapped) if number is None else number
        with mapper.lock(mapped.id):
            record = mapper.settled(mapped.id)
            if record is None:
                raise KernelError("its device has gone", subject=mapped.disk.source)
            return _grow(mapper, record, chosen)


@contextmanager
def _mapped(mapper: Mapper, disk: Disk) -> Iterator[MappedDisk]:
    """Hold a mapping of the disk, whoever has made it."""
    before = mapper.find(mapper.identify(disk).id)
    options = MapOptions() if before is None else MapOptions(before.access, before.transport)
    user = users.this_process()
    mapped = mapper.map(disk, options, user=user)
    try:
        yield mapped
    finally:
        mapper.unmap(mapped.id, user=user, patience=UNDO_SECONDS)


def _grow(mapper: Mapper, record: Record, number: int) -> Grown:
    assert record.attachment is not None
    device, source = record.attachment.device, record.disk.source
    fd = direct.open_device(device)
    try:
        size, read = block.size(fd), _reader(fd)
        try:
            table = mapper.registry.discover_partitions(device, read, size, block.logical_sector_size(fd))
            growth = plan(read, size, table, number)
        except MapperError as error:
            error.subject = error.subject or source
            raise
        before = next(item for item in table.partitions if item.number == number)
        found = superblock.probe(window(read, before.start, before.size), before.size)
        if found.type and found.type not in filesystem_size.GROWABLE:
            raise NotSupported(
                f"partition {number} has {found.type}, which cannot be enlarged here",
                subject=source,
                hint=f"these can: {', '.join(filesystem_size.GROWABLE)}",
            )
        for step in growth.writes:
            direct.write(fd, step.offset, step.data)
    finally:
        os.close(fd)
    record = capabilities.reread(mapper, record)
    mapper.journal.write(record)
    assert record.table is not None
    partition = next((item for item in record.table.partitions if item.number == number), None)
    if partition is None or partition.size != growth.partition.size:
        raise KernelError(f"the kernel did not take the new size of partition {number}", subject=device)
    if not found.type:
        return Grown(partition, before.size, found)
    was, now = grow_filesystem(partition, found.type)
    return Grown(partition, before.size, found, now, was)


def _root_number(mapped: MappedDisk) -> int:
    """Return the number of the partition with the root filesystem; where a tree is mounted, it says which one that is."""
    if len(mapped.table.partitions) == 1:
        return mapped.table.partitions[0].number
    from mapper_core.tree import look

    for directory in filter(None, map(users.tree_of, mapped.users)):
        for entry in reversed(mountinfo.at(directory)):
            for partition in mapped.table.partitions:
                if partition.device == entry.source:
                    return partition.number
    with nodes.reader(mapped.device) as reader:
        volumes = look.volumes(mapped.table, reader.read)
    planned = look.plan_for(volumes, mapped.access, look.Purpose.SYSTEM, "", mapped.disk.source)
    return planned.mounts[0].volume.partition.number


def _reader(fd: int) -> ReadAt:
    """A reader of any bytes, by direct I/O of whole pages."""
    size = block.size(fd)
    unit = max(4096, block.logical_sector_size(fd))

    def read(offset: int, length: int) -> bytes:
        start = offset // unit * unit
        stop = min(-(-(offset + length) // unit) * unit, size)
        return direct.read(fd, start, stop - start)[offset - start :][:length] if stop > start else b""

    return read
