"""What is on a disk grows with the disk: its last partition, and the filesystem in that.

Only when OpenNebula has made the disk larger, and only what the container has: it sees no block device, so what else is on the
disk is out of its reach, and room that is left between partitions would be too.
"""

from __future__ import annotations

from collections.abc import Collection

from mapper_core import grow, users
from mapper_core.errors import NoRoomToGrow, NotSupported
from mapper_core.grow import Grown
from mapper_core.linux import mountinfo
from mapper_core.linux.filesystem_size import GROWABLE
from mapper_core.mapping import UNDO_SECONDS, Mapper
from mapper_core.model import MappedDisk, Volume
from mapper_core.partitions import nodes
from mapper_core.tree import look
from mapper_core.tree.mounted import TreeRequest

MIB = 1 << 20


def choose(volumes: Collection[Volume], mounted: Collection[int]) -> int:
    """Choose the partition that grows: the one before the room at the end of the disk. Pure.

    :param volumes: of the disk.
    :param mounted: numbers of the partitions whose filesystems are mounted for the container.
    :returns: its number; 0 for a disk without a partition table.
    :raises NoRoomToGrow: the container does not have it.
    :raises NotSupported: its filesystem cannot grow.
    """
    if not volumes:
        raise NoRoomToGrow("there is no partition on it that could grow")
    last = max(volumes, key=lambda volume: volume.partition.start)
    kind = last.filesystem.type or "nothing that is known"
    if last.partition.number not in mounted:
        raise NoRoomToGrow(
            f"partition {last.partition.number} ({kind}) is at its end, and is none of those that the container has",
            hint="let the filesystem that is to grow be the last one on the disk, or attach another disk",
        )
    if last.filesystem.type not in GROWABLE:
        raise NotSupported(f"{kind} cannot be enlarged", hint=f"these can: {', '.join(GROWABLE)}")
    return last.partition.number


def plan_mounted(mapped: MappedDisk, directory: str, size: int) -> int:
    """Look whether a disk whose tree is mounted can grow, and choose what does.

    :param directory: of its tree.
    :param size: that it will have, bytes.
    :returns: number of the partition.
    :raises NoRoomToGrow: see :func:`choose`.
    :raises NotSupported: this table or filesystem cannot grow.
    :raises BadPartitionTable: the table is damaged.
    """
    shown = {entry.source for entry in mountinfo.under(directory)}
    with nodes.reader(mapped.device) as reader:
        volumes = look.volumes(mapped.table, reader.read)
        number = choose(volumes, {item.number for item in mapped.table.partitions if item.device in shown})
        grow.plan(reader.read, size, mapped.table, number)
    return number


def grow_unmounted(mapper: Mapper, request: TreeRequest) -> Grown:
    """Let the content of a disk grow that is not mounted.

    :param request: of its tree.
    :raises MapperError: it cannot, or the image or the host fails.
    """
    user = users.this_process()
    mapped = mapper.map(request.disk, request.options, user=user)
    try:
        with nodes.reader(mapped.device) as reader:
            volumes = look.volumes(mapped.table, reader.read)
        plan = look.plan_for(volumes, mapped.access, request.purpose, request.root_hint, request.disk.source)
        number = choose(volumes, {mount.volume.partition.number for mount in plan.mounts})
    finally:
        mapper.unmap(mapped.id, user=user, patience=UNDO_SECONDS)
    return grow.grow(mapper, request.disk, number)  # it holds the disk itself, in the same name


def describe(grown: Grown) -> str:
    """What has grown, for the log; empty when nothing has."""
    where = f"partition {grown.partition.number}" if grown.partition.number else "the disk"
    if grown.capacity == grown.capacity_before and grown.partition.size == grown.partition_before:
        return ""
    return (
        f"{where} has {grown.partition.size // MIB} MiB instead of {grown.partition_before // MIB}, the {grown.filesystem.type}"
        f" on it room for {grown.capacity // MIB} MiB instead of {grown.capacity_before // MIB}"
    )
