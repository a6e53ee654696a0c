"""Whether what a plugin returned makes sense: the types are those of the hook, and the numbers can be.

A hook that returns something else has a mistake in it. That is said as such (:class:`PluginFault`), and does not come out
as a failure of whatever works with the value next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mapper_core.errors import BadPartitionTable, PluginFault
from mapper_core.model import Attachment, ImageInfo, Partition, PartitionTable, Reference, Snapshot

if TYPE_CHECKING:
    from mapper_core.model import Disk

#: Images in a chain of backing files; more can only be a circle.
MAX_CHAIN = 1000

#: Sectors that devices have, bytes: disks 512 and 4096, CD-ROMs 2048, loop devices all.
SECTOR_SIZES = (512, 1024, 2048, 4096)


def attachment(disk: Disk, value: object) -> Attachment:
    """Check what ``map`` returned.

    :raises PluginFault: it is no attachment, or names no device or transport.
    """
    if not isinstance(value, Attachment) or not (_is_name(value.device) and _is_name(value.transport)):
        raise _fault(disk.format, "map", value, disk.source)
    return value


def image(disk: Disk, value: object) -> ImageInfo:
    """Check what ``inspect`` returned.

    :raises PluginFault: it is no description of an image, or the chain of images below it is a circle.
    """
    layer, depth = value, 0
    while layer is not None:
        if not isinstance(layer, ImageInfo) or not _is_image(layer):
            raise _fault(disk.format, "inspect", layer, disk.source)
        layer, depth = layer.backing, depth + 1
        if depth > MAX_CHAIN:
            raise _fault(disk.format, "inspect", "an endless chain of images", disk.source)
    if depth == 0:
        raise _fault(disk.format, "inspect", value, disk.source)
    assert isinstance(value, ImageInfo)
    return value


def identity(disk: Disk, value: object) -> str:
    """Check what ``identify`` returned.

    :raises PluginFault: it is no text, or an empty one.
    """
    if not isinstance(value, str) or not value:
        raise _fault(disk.format, "identify", value, disk.source)
    return value


def truth(disk_format: str, hook: str, value: object) -> bool:
    """Check what a hook returned that answers a question with yes or no.

    :raises PluginFault: it is neither ``True`` nor ``False``.
    """
    if not isinstance(value, bool):
        raise _fault(disk_format, hook, value, disk_format)
    return value


def snapshots(disk: Disk, value: object) -> tuple[Snapshot, ...]:
    """Check what ``snapshots`` returned.

    Two may have the same name: other programs that write the format allow that (qemu-img 7.2).

    :raises PluginFault: it is no tuple of snapshots.
    """
    if not isinstance(value, tuple) or not all(isinstance(item, Snapshot) and _is_snapshot(item) for item in value):
        raise _fault(disk.format, "snapshots", value, disk.source)
    return value


def table(device: str, size: int, value: object) -> PartitionTable:
    """Check what ``discover_partitions`` returned.

    :param size: of the device, bytes.
    :raises PluginFault: it is no partition table, or its partitions cannot be on this device.
    """
    if not isinstance(value, PartitionTable) or not _is_table(value):
        raise _fault("", "discover_partitions", value, device)
    if value.scheme != "none":
        from mapper_core.partitions.layout import MAX_NUMBER, Extent, check_inside, check_overlaps

        extents = [Extent(item.start, item.size, f"partition {item.number}") for item in value.partitions]
        numbers = {item.number for item in value.partitions}
        try:
            if len(numbers) < len(extents) or not all(0 < number <= MAX_NUMBER for number in numbers):
                raise BadPartitionTable("the numbers of the partitions are wrong")
            if not all(extent.size for extent in extents):
                raise BadPartitionTable("a partition is empty")
            for extent in extents:
                check_inside(extent, size)
            check_overlaps(extents)
        except BadPartitionTable as error:
            raise _fault("", "discover_partitions", error.message, device) from error
    return value


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_image(value: ImageInfo) -> bool:
    texts = (value.path, value.format, value.variant)
    return (
        all(isinstance(text, str) for text in texts)
        and _is_size(value.virtual_size)
        and _is_size(value.file_size)
        and isinstance(value.writable, bool)
        and isinstance(value.references, tuple)
        and all(isinstance(item, Reference) and _is_name(item.path) for item in value.references)
        and isinstance(value.detail, tuple)
    )


def _is_snapshot(value: Snapshot) -> bool:
    return isinstance(value.name, str) and _is_size(value.size) and _is_size(value.created)


def _is_table(value: PartitionTable) -> bool:
    return (
        _is_name(value.scheme)
        and value.sector_size in SECTOR_SIZES
        and isinstance(value.partitions, tuple)
        and all(isinstance(item, Partition) and _is_partition(item) for item in value.partitions)
        and isinstance(value.warnings, tuple)
    )


def _is_partition(value: Partition) -> bool:
    if not isinstance(value.names, tuple):
        return False
    texts = (value.type, value.uuid, value.label, value.device, *value.names)
    numbers = (value.number, value.start, value.size)
    return all(_is_size(number) for number in numbers) and all(isinstance(text, str) for text in texts)


def _fault(disk_format: str, hook: str, value: Any, subject: str) -> PluginFault:
    who = f"the plugin {disk_format}" if disk_format else "a plugin"
    shown = value if isinstance(value, str) else repr(value)
    return PluginFault(f"{who} returned from {hook} what makes no sense: {shown[:200]}", subject=subject)
