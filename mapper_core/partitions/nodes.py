"""Partition device nodes: the kernel is told what userspace has parsed.

The table is parsed here and not by the kernel, so that the answer is the same on every kernel (also one without
partition support), and handed over with BLKPG ioctls: ``/dev/loop0p1`` exists when the call returns, without a race against
udev or the kernel's own asynchronous scan (M-04, M-09, M-11).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from mapper_core.errors import KernelError, NotFound
from mapper_core.frozen import dataclass, replace
from mapper_core.linux import blkpg, block, loop
from mapper_core.linux.syscalls import kernel_error
from mapper_core.model import PartitionTable
from mapper_core.partitions.reader import ReadAt, fetch_ends, file_reader
from mapper_core.resources import LoopResource, NbdResource, Resource


@dataclass(frozen=True, slots=True)
class DeviceReader:
    """An open device or file.

    :param size: bytes.
    :param sector_size: logical sector size, bytes.
    """

    read: ReadAt
    size: int
    sector_size: int


@contextmanager
def reader(device: str) -> Iterator[DeviceReader]:
    """Open a device or a regular file for reading."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield reader_of(fd)
    finally:
        os.close(fd)


def reader_of(fd: int, content: int | None = None) -> DeviceReader:
    """Return a reader of an open device or file, which it does not close.

    :param content: an open file that has the same bytes: they are read from there, where some are in memory already.
    """
    found = os.fstat(fd)
    is_device = stat.S_ISBLK(found.st_mode)
    size, sector_size = (block.size(fd), block.logical_sector_size(fd)) if is_device else (found.st_size, 512)
    if content is None:
        fetch_ends(fd, size)
    return DeviceReader(file_reader(fd if content is None else content), size, sector_size)


def add(device: str, table: PartitionTable) -> PartitionTable:
    """Make the partitions of a table known to the kernel; return the table with their nodes.

    A kernel that has scanned the device by itself (nbd with ``max_part``) may know them already; what it knows must then
    be the same, else it is replaced. A partition that has only changed its length may be in use.

    :raises DeviceBusy: a partition that is in use is elsewhere in this table, or not in it; nothing was changed.
    :raises KernelError: the kernel refuses a partition.
    """
    if table.scheme == "none":
        whole = tuple([replace(partition, device=device) for partition in table.partitions])
        return replace(table, partitions=whole)
    wanted = {partition.number: (partition.start, partition.size) for partition in table.partitions}
    known = {number: (start, size) for number, start, size in block.kernel_partitions(device)}
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        old = [number for number in known if number not in wanted or known[number][0] != wanted[number][0]]
        _delete(fd, device, tuple(block.KernelPartition(number, *known.pop(number)) for number in old))
        for number in [number for number in wanted if known.get(number) != wanted[number]]:
            try:
                (blkpg.resize if number in known else blkpg.add)(fd, number, *wanted[number])
            except OSError as error:
                raise KernelError(
                    f"the kernel refuses partition {number}: {error.strerror}", errno=error.errno or 0, subject=device
                ) from error
    finally:
        os.close(fd)
    nodes = []
    for partition in table.partitions:
        node = blkpg.ensure_partition_node(device, partition.number)
        nodes.append(replace(partition, device=node))
    return replace(table, partitions=tuple(nodes))


def _delete(fd: int, device: str, partitions: tuple[block.KernelPartition, ...]) -> None:
    """Let the kernel forget partitions: all of them, or none."""
    for position, partition in enumerate(partitions):
        try:
            blkpg.delete(fd, partition.number)
        except OSError as error:
            blkpg.restore(fd, partitions[:position])
            if error.errno == errno.EBUSY:
                raise block.busy(blkpg.partition_node(device, partition.number)) from error
            raise kernel_error(error, f"cannot delete partition {partition.number}", subject=device) from error


def is_attached(device: str, resources: tuple[Resource, ...]) -> bool:
    """Say whether a device still carries what the journal says (never judged by its name alone)."""
    for resource in resources:
        if isinstance(resource, LoopResource):
            return loop.carries(device, resource.tag)
        if isinstance(resource, NbdResource):
            from mapper_core.transports import nbd

            if resource.device == device:
                return nbd.is_ours(resource)
    return has_medium(device)


def has_medium(device: str) -> bool:
    """Say whether a block device node exists and has a size."""
    try:
        return int(block.read_attribute(f"{block.sysfs_directory(block.device_number(device))}/size")) > 0
    except (NotFound, OSError):
        return False
