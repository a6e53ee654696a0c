"""The commands that make disks and make them larger: create, resize."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapper_core import capabilities
from mapper_core.cli.output import Style, human_size
from mapper_core.cli.sources import disk_from
from mapper_core.errors import UsageError
from mapper_core.mapping import Mapper

if TYPE_CHECKING:
    from mapper_core.cli.output import Output
    from mapper_core.cli.parser import Arguments
    from mapper_core.grow import Grown


def create(arguments: Arguments, output: Output) -> int:
    """Make a new, empty disk."""
    if arguments.format is None:
        raise UsageError("a new image needs a format", subject="create", hint="say which: --format raw")
    mapper = Mapper.open()
    disk = disk_from(arguments, mapper.registry, output)
    capabilities.create(mapper, disk, arguments.size)
    if output.style is Style.JSON:
        output.json({"disk": disk, "size": arguments.size})
    return 0


def resize(arguments: Arguments, output: Output) -> int:
    """Make a disk larger, and if asked for, a partition and the filesystem in it."""
    if arguments.partition is not None and not arguments.grow:
        raise UsageError("--partition says which partition --grow is for", subject="--partition", hint="add --grow")
    mapper = Mapper.open()
    disk = disk_from(arguments, mapper.registry, output)
    present = capabilities.size_of(mapper, disk)
    relative, amount = arguments.new_size
    size = present + amount if relative else amount
    capabilities.resize(mapper, disk, size)
    output.debug(f"{disk.source}: {present} bytes, now {size}")
    grown = None
    if arguments.grow:
        from mapper_core.grow import grow

        grown = grow(mapper, disk, arguments.partition)
        output.debug(_told(grown))
    if output.style is Style.JSON:
        output.json({"disk": disk, "size": size, "size_before": present, "grown": grown})
    return 0


def _told(grown: Grown) -> str:
    what = f"partition {grown.partition.number}" if grown.partition.number else "the whole disk"
    text = f"{what}: {human_size(grown.partition_before)}, now {human_size(grown.partition.size)}"
    if not grown.filesystem.type:
        return f"{text}; no filesystem"
    return f"{text}; {grown.filesystem.type}: {human_size(grown.capacity_before)}, now {human_size(grown.capacity)}"
