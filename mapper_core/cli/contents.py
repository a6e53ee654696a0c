"""Partitions and filesystems of an image or a device, with as little done to the host as possible."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mapper_core import users
from mapper_core.cli.sources import disk_from, existing_target
from mapper_core.errors import BadPartitionTable, MappedDifferently
from mapper_core.mapping import UNDO_SECONDS, Mapper
from mapper_core.model import Access, Disk, Filesystem, MapOptions, PartitionTable
from mapper_core.partitions import nodes
from mapper_core.partitions.reader import window
from mapper_core.registry import Registry
from mapper_core.runtime import Runtime
from mapper_core.tree import superblock

if TYPE_CHECKING:
    from mapper_core.cli.output import Output
    from mapper_core.cli.parser import Arguments
    from mapper_core.model import MappedDisk


@dataclass(frozen=True, slots=True)
class Contents:
    """What is on a disk.

    :param source: image or device.
    :param filesystems: one for each partition of the table.
    """

    source: str
    table: PartitionTable
    filesystems: tuple[Filesystem, ...]


def contents_of(arguments: Arguments, output: Output) -> Contents:
    """Find out what is on a disk.

    A disk that is mapped is asked by its device; a device and a raw file are read as they are; anything else is mapped
    read-only for the moment.
    """
    mapper = Mapper(Runtime.from_environment(), Registry.load())  # not open(): files need no root
    target = (
        existing_target(mapper, arguments.target) if _may_read_journal(mapper) else os.path.abspath(arguments.target)
    )
    real, is_device = os.path.realpath(target), arguments.format in (None, "raw") and _is_block_device(target)
    mapped = mapper.find(target) if _may_read_journal(mapper) else None
    if mapped is not None and (not is_device or real in (mapped.device, mapped.disk.source)):
        if arguments.format not in (None, mapped.disk.format) and real != mapped.device:
            raise MappedDifferently(
                f"is mapped as {mapped.disk.format}, not as {arguments.format}",
                subject=target,
                hint=f"--format {mapped.disk.format}, or unmap it first",
            )
        return _read_mapped(mapped)
    if is_device:  # also a partition of a disk that is mapped
        return _read(mapper, real)
    disk = disk_from(arguments, mapper.registry, output, arguments.target)
    if disk.format == "raw":
        mapper.inspect(disk)  # the core's checks
        return _read(mapper, os.path.realpath(disk.source))
    return _map_and_read(disk)


def _may_read_journal(mapper: Mapper) -> bool:
    directory = mapper.runtime.disks
    return os.access(directory, os.R_OK | os.X_OK)


def _is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False  # whoever opens it says why


def _read(mapper: Mapper, path: str) -> Contents:
    with nodes.reader(path) as reader:
        try:
            table = mapper.registry.discover_partitions(path, reader.read, reader.size, reader.sector_size)
        except BadPartitionTable as error:
            error.subject = path
            raise
        return Contents(path, table, _filesystems(reader, table))


def _read_mapped(mapped: MappedDisk) -> Contents:
    with nodes.reader(mapped.device) as reader:
        return Contents(mapped.disk.source, mapped.table, _filesystems(reader, mapped.table))


def _map_and_read(disk: Disk) -> Contents:
    mapper = Mapper.open()
    user = users.this_process()
    mapped = mapper.map(disk, MapOptions(Access.READ_ONLY), user=user)
    try:
        return _read_mapped(mapped)
    finally:
        mapper.unmap(mapped.id, user=user, patience=UNDO_SECONDS)


def _filesystems(reader: nodes.DeviceReader, table: PartitionTable) -> tuple[Filesystem, ...]:
    return tuple(
        superblock.probe(window(reader.read, partition.start, partition.size), partition.size)
        for partition in table.partitions
    )
