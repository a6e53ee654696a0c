"""Mapper plugin for RBD images of a Ceph cluster, and for their snapshots.

The cluster is asked through its own Python bindings, which are the operating system's and loaded when they are first needed.
"""

from __future__ import annotations

from mapper_core import Attachment, Disk, ImageInfo, MapOptions, Snapshot, Transports, hookimpl
from mapper_core.frozen import replace
from mapper_core.resources import PluginResource

MAPPER_API = (1, 1)


@hookimpl
def identify(disk: Disk) -> str:
    """Ask the cluster for the numbers of the image."""
    from mapper_rbd import cluster, image, names, session

    with session.open_volume(names.parse(disk.source), cluster.from_settings(disk.settings)) as volume:
        return image.identity(volume)


@hookimpl
def inspect(disk: Disk) -> ImageInfo:
    """Read the image's header."""
    from mapper_rbd import cluster, image, names, session

    with session.open_volume(names.parse(disk.source), cluster.from_settings(disk.settings)) as volume:
        return image.inspect(volume)


@hookimpl
def map(disk: Disk, options: MapOptions, transports: Transports) -> Attachment:
    """Claim the image, then attach it by the kernel's client, by rbd-nbd or by qemu's driver."""
    from mapper_rbd import attaching

    return attaching.attach(disk, options, transports)


@hookimpl
def unmap(transports: Transports) -> None:
    """Take away what ``map`` made."""
    transports.release()


@hookimpl
def check_answers(disk: Disk, attachment: Attachment) -> None:
    """Flush the device, or open the image again: one of them shows that the cluster is there (C-08)."""
    from mapper_rbd import attaching

    attaching.check_answers(disk, attachment)


@hookimpl
def release(disk: Disk, resource: PluginResource) -> None:
    """Take away a device, the claim, or the configuration file."""
    from mapper_rbd import attaching

    attaching.release(disk, resource)


@hookimpl
def owns(device: str, resources: tuple[PluginResource, ...]) -> bool:
    """Compare the device with what the kernel says of it."""
    from mapper_rbd import attaching

    return attaching.owns(device, resources)


@hookimpl
def create(disk: Disk, size: int) -> None:
    """Make an image, with the features that the cluster's configuration names."""
    from mapper_core.errors import AlreadyExists, UsageError
    from mapper_rbd import cluster, names, session

    name = names.parse(disk.source)
    if name.snapshot:
        raise UsageError("a snapshot is made of an image, not from nothing", subject=disk.source)
    with session.connect(name, cluster.from_settings(disk.settings)) as connection:
        try:
            connection.rbd.RBD().create(connection.ioctx, name.image, size, old_format=False)
        except connection.rbd.ImageExists:
            raise AlreadyExists("exists already", subject=disk.source, hint="choose another name") from None


@hookimpl
def resize(disk: Disk, size: int, attachment: Attachment | None, transports: Transports) -> None:
    """Enlarge the image; what serves the device follows, or is told."""
    from mapper_core.transports import NAMES
    from mapper_rbd import cluster, names, session

    if attachment is not None and attachment.transport in NAMES:
        transports.resize(size)
        return
    with session.open_volume(names.parse(disk.source), cluster.from_settings(disk.settings), writable=True) as volume:
        volume.image.resize(size, allow_shrink=False)
    if attachment is not None:
        from mapper_rbd import attaching

        attaching.wait_for_size(attachment.device, size)


@hookimpl
def snapshots(disk: Disk) -> tuple[Snapshot, ...]:
    """List the snapshots."""
    from mapper_rbd import cluster, names, session, snapshot_list

    name = replace(names.parse(disk.source), snapshot="")
    with session.open_volume(name, cluster.from_settings(disk.settings)) as volume:
        return snapshot_list.list_all(volume)


@hookimpl
def snapshot_create(disk: Disk, name: str) -> None:
    """Make a snapshot, also while the image is in use."""
    from mapper_rbd import cluster, names, session

    with session.open_volume(names.parse(disk.source), cluster.from_settings(disk.settings), writable=True) as volume:
        volume.image.create_snap(name)


@hookimpl
def snapshot_revert(disk: Disk, name: str) -> None:
    """Bring the image back to a snapshot, while nobody else has it."""
    from mapper_rbd import attaching

    attaching.revert(disk, name)


@hookimpl
def snapshot_delete(disk: Disk, name: str) -> None:
    """Remove a snapshot on which no clone stands, with its protection."""
    from mapper_rbd import cluster, names, session, snapshot_list

    with session.open_volume(names.parse(disk.source), cluster.from_settings(disk.settings), writable=True) as volume:
        snapshot_list.delete(volume, name)


@hookimpl
def break_lock(disk: Disk) -> None:
    """Shut out the clients of the host that has the image, and take its locks away."""
    from mapper_rbd import claims, cluster, names, session

    with session.open_volume(names.parse(disk.source), cluster.from_settings(disk.settings)) as volume:
        claims.break_all(volume)
