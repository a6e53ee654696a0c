"""The core's own implementation of the partition hook; registered first, so pluggy asks it last."""

from __future__ import annotations

from mapper_core.hookspecs import hookimpl
from mapper_core.model import PartitionTable
from mapper_core.partitions import ReadAt
from mapper_core.partitions.discover import discover


@hookimpl
def discover_partitions(read: ReadAt, size: int, sector_size: int) -> PartitionTable:
    """GPT, MBR with logical partitions, or a bare filesystem."""
    return discover(read, size, sector_size)
