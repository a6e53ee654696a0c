"""Mapper plugin for LVM: logical volumes of the host as disks, and those inside of images."""

from __future__ import annotations

from mapper_core import Attachment, Disk, ImageInfo, MapOptions, PartitionTable, Snapshot, Transports, hookimpl
from mapper_core.partitions import ReadAt
from mapper_core.resources import PluginResource

MAPPER_API = (1, 1)


@hookimpl
def discover_partitions(read: ReadAt, size: int, sector_size: int) -> PartitionTable | None:
    """Logical volumes take the place of the partitions that they lie in."""
    head = read(0, 2048)
    if head[510:512] != b"\x55\xaa" and b"LABELONE" not in head:
        return None  # neither a partition table nor a physical volume
    from mapper_lvm import inside

    return inside.find(read, size, sector_size)


@hookimpl
def identify(disk: Disk) -> str:
    """Ask LVM for the uuids."""
    from mapper_lvm import volumes

    return volumes.identity(disk)


@hookimpl
def inspect(disk: Disk) -> ImageInfo:
    """Ask LVM for the size."""
    from mapper_lvm import volumes

    return volumes.inspect(disk)


@hookimpl
def map(disk: Disk, image: ImageInfo, options: MapOptions, transports: Transports) -> Attachment:
    """``vg-one-100/lv-one-7-0`` is activated, and becomes ``/dev/loop0``."""
    from mapper_lvm import volumes

    return volumes.attach(disk, image, options, transports)


@hookimpl
def unmap(transports: Transports) -> None:
    """Take away what ``map`` made."""
    transports.release()


@hookimpl
def release(disk: Disk, resource: PluginResource) -> None:
    """Deactivate the volume again."""
    from mapper_lvm import volumes

    volumes.release(disk, resource)


@hookimpl
def create(disk: Disk, size: int) -> None:
    """``lvcreate``, and zeros."""
    from mapper_lvm import volumes

    volumes.create(disk, size)


@hookimpl
def resize(disk: Disk, size: int, attachment: Attachment | None) -> None:
    """``lvextend``, also while it is mapped."""
    from mapper_lvm import volumes

    volumes.resize(disk, size, attachment)


@hookimpl
def snapshots(disk: Disk) -> tuple[Snapshot, ...]:
    """List them."""
    from mapper_lvm import kept

    return kept.listed(disk)


@hookimpl
def snapshot_create(disk: Disk, name: str) -> None:
    """``lvcreate --snapshot``, also while it is mapped."""
    from mapper_lvm import kept

    kept.create(disk, name)


@hookimpl
def snapshot_revert(disk: Disk, name: str) -> None:
    """``lvconvert --merge``."""
    from mapper_lvm import kept

    kept.revert(disk, name)


@hookimpl
def snapshot_delete(disk: Disk, name: str) -> None:
    """``lvremove``."""
    from mapper_lvm import kept

    kept.delete(disk, name)
