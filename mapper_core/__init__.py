"""Mapper: disk images become block devices, trees and containers.

This package's names are the API for authors of plugins; start at :mod:`mapper_core.hookspecs`. Programs that map disks use
:class:`mapper_core.mapping.Mapper`.
"""

from mapper_core.errors import MapperError
from mapper_core.hookspecs import API_VERSION, hookimpl
from mapper_core.model import (
    Access,
    Attachment,
    Disk,
    ImageInfo,
    MapOptions,
    MappedDisk,
    Partition,
    PartitionTable,
    Reference,
    ReferenceKind,
    Snapshot,
)
from mapper_core.transports import Transports
from mapper_core.transports.blockgraph import BlockNode

__all__ = [
    "API_VERSION",
    "Access",
    "Attachment",
    "BlockNode",
    "Disk",
    "ImageInfo",
    "MapOptions",
    "MappedDisk",
    "MapperError",
    "Partition",
    "PartitionTable",
    "Reference",
    "ReferenceKind",
    "Snapshot",
    "Transports",
    "hookimpl",
]
