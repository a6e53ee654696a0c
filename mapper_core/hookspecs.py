"""The hooks of Mapper: the page for authors of format plugins.

A plugin is a module with an entry point in the group ``mapper``; the name of the entry point is the name of the
format. A complete plugin is a version window and two functions::

    # mapper_vhdx/__init__.py
    from mapper_core import Attachment, BlockNode, Disk, MapOptions, Transports, hookimpl

    MAPPER_API = (1, 1)  # oldest and newest hook API this plugin works with

    @hookimpl
    def map(disk: Disk, options: MapOptions, transports: Transports) -> Attachment:
        return transports.attach(BlockNode("vhdx", disk.source), options)

    @hookimpl
    def unmap(disk: Disk, attachment: Attachment | None, transports: Transports) -> None:
        transports.release()

    # pyproject.toml
    [project.entry-points.mapper]
    vhdx = "mapper_vhdx"

The core asks exactly the plugin whose name the caller gave; it never tries one after the other. It also does
everything that must not be got wrong: it resolves and checks paths, takes the lock, writes the journal before
each step, checks what comes back, adds the partitions, and undoes a map that failed half-way.

A hook may take any subset of the arguments below (pluggy passes them by name), so that new ones can be added
without breaking old plugins. A hook raises the classes of :mod:`mapper_core.errors`; anything else is reported as a
fault of the plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from mapper_core.model import Attachment, Disk, ImageInfo, MapOptions, PartitionTable, Snapshot
    from mapper_core.partitions import ReadAt
    from mapper_core.resources import PluginResource
    from mapper_core.transports import Transports

#: Name of the pluggy project and of the entry-point group.
PROJECT = "mapper"

#: Version of the hooks on this page. It grows when a plugin may have to change.
API_VERSION = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def map(  # type: ignore[empty-body]
    disk: Disk, image: ImageInfo | None, options: MapOptions, transports: Transports
) -> Attachment:
    """Load a disk into a system block device. Required.

    Called once for a mapping, with the disk locked, after ``inspect`` (if the plugin has it) and after the core has
    checked the result against the caller's limits.

    :param disk: the disk; for files ``source`` is the real path, all symbolic links resolved.
    :param image: what this plugin's ``inspect`` returned, else ``None``.
    :param options: access and transport as asked for; ``transports.attach`` obeys them.
    :param transports: makes block devices, and writes the journal before each step. A plugin with a way of its own hands it
        to ``attach(node, options, own=...)`` (:class:`mapper_core.transports.base.OwnTransport`), and writes down all it makes
        by ``record``; then it has the hook ``release`` too. What is made before anything is recorded, nobody finds after a
        crash.
    :returns: the whole-disk device. The core refuses one that is no block device, is in use already, or differs in
        size from ``image.virtual_size``.

    Example::

        @hookimpl
        def map(disk, options, transports):
            return transports.attach(BlockNode("vhdx", disk.source), options)
    """


@hookspec
def unmap(disk: Disk, attachment: Attachment | None, transports: Transports) -> None:
    """Revert ``map``. Required.

    Called with the partitions already removed, also after a crash or a failed ``map``: then ``attachment`` is
    ``None`` and whatever exists must go. Must succeed when there is nothing left to do. The image may be gone.

    :param transports: ``release()`` takes away all that ``attach`` made for this mapping, as recorded in the journal.
    :raises MapperError: the core goes on by itself, but for ``DeadlineExceeded``: then the device stays.

    Example::

        @hookimpl
        def unmap(transports):
            transports.release()
    """


@hookspec
def check_answers(disk: Disk, attachment: Attachment) -> None:
    """Make sure that the storage behind a mapped disk answers. Optional, for storage that can be away.

    Called before the filesystems of the disk are unmounted, and before ``unmap``: the kernel would wait for the storage, in a
    state in which nothing ends it, and so would everybody who calls sync(2).

    :raises DeadlineExceeded: it does not answer. All stays as it is, to be done again when the storage is back.

    Example::

        @hookimpl
        def check_answers(disk):
            my_cluster.ping(disk.source, seconds=10)
    """


@hookspec
def release(disk: Disk, resource: PluginResource) -> None:
    """Take away one thing that this plugin has recorded by ``transports.record``. Required to record anything.

    Called by ``transports.release()``, the newest first, also after a crash, after which it may not have been made, and after a
    reboot, which devices do not outlive. Must succeed when it is gone already.

    :param disk: as it was mapped.
    :raises MapperError: it cannot be taken away now; the journal keeps it, and ``reconcile`` tries again.

    Example::

        @hookimpl
        def release(disk, resource):
            my_cluster.unlock(disk.source, dict(resource.values)["cookie"])
    """


@hookspec
def owns(disk: Disk, device: str, resources: tuple[PluginResource, ...]) -> bool:  # type: ignore[empty-body]
    """Say whether a device that a transport of this plugin made is still that of the disk. Optional.

    Asked often; must be quick and not wait for anything. Without the hook, a device with a size is taken for it.

    :param resources: what the plugin has recorded for the mapping.

    Example::

        @hookimpl
        def owns(device, resources):
            return my_volumes.name_of(device) == dict(resources[0].values)["volume"]
    """


@hookspec
def inspect(disk: Disk) -> ImageInfo:  # type: ignore[empty-body]
    """Read the header of an image without any external program. Optional.

    With it the core refuses, before any other program opens the file: other formats, damaged and truncated images,
    sizes over the limit, and references to files outside of ``disk.allowed_dirs`` and the image's own directory.

    Example::

        @hookimpl
        def inspect(disk):
            return mapper_vhdx.header.inspect_image(disk.source, disk.allowed_dirs)
    """


@hookspec
def recognize(header: bytes) -> bool:  # type: ignore[empty-body]
    """Say whether a file that begins like this has the plugin's format. Optional.

    Advice for ``mapper-cli`` when no ``--format`` is given, never used for OpenNebula's disks.

    :param header: the first 4096 bytes of the file, fewer if it is shorter.

    Example::

        @hookimpl
        def recognize(header):
            return header.startswith(b"vhdxfile")
    """


@hookspec
def identify(disk: Disk) -> str:  # type: ignore[empty-body]
    """Name a disk that is no file so that no other disk ever has the same name. Optional.

    Files and block devices need none: the kernel numbers them. For a volume in a cluster it is, for example, the id
    of the cluster, of the pool and of the image: a name may be given to another image, and two names may lead to one.
    Without the hook the name and the settings of the disk are its identity.

    Example::

        @hookimpl
        def identify(disk):
            return f"{cluster.fsid}/{pool.id}/{image.id}"
    """


@hookspec
def create(disk: Disk, size: int) -> None:
    """Make a new, empty disk that reads as zeros. Optional.

    Called with the name locked. Must fail when there is a disk of that name, and leave nothing behind when it fails.

    :param disk: for files ``source`` is a path that does not exist yet; its directory is resolved.
    :param size: of the disk, bytes; a multiple of 512.

    Example::

        @hookimpl
        def create(disk, size):
            run(["qemu-img", "create", "-q", "-f", "vhdx", disk.source, str(size)])
    """


@hookspec
def resize(
    disk: Disk, image: ImageInfo | None, size: int, attachment: Attachment | None, transports: Transports
) -> None:
    """Make a disk larger, also while it is mapped and in use. Optional.

    Called with the disk locked. The core refuses to make a disk smaller, does nothing when it has the size already,
    and afterwards checks that image and device have it. Partitions and filesystems are left alone.

    :param image: what this plugin's ``inspect`` returned; ``None`` without it, and while the disk is mapped, when its
        metadata change all the time.
    :param size: of the disk, bytes; a multiple of 512.
    :param attachment: the device when the disk is mapped, else ``None``.
    :param transports: ``resize(size)`` enlarges what ``attach`` made, image and device.
    :raises NotSupported: it cannot be done in this state, for example not while it is mapped.

    Example::

        @hookimpl
        def resize(disk, size, attachment, transports):
            if attachment is not None:
                transports.resize(size)
            else:
                run(["qemu-img", "resize", "-q", "-f", "vhdx", disk.source, str(size)])
    """


@hookspec
def snapshots(disk: Disk) -> tuple[Snapshot, ...]:  # type: ignore[empty-body]
    """List the snapshots of a disk, the oldest first. Required with any of the other hooks on snapshots.

    Example::

        @hookimpl
        def snapshots(disk):
            return tuple(Snapshot(entry.name, entry.size) for entry in my_header.read(disk.source).snapshots)
    """


@hookspec
def snapshot_create(disk: Disk, name: str, attachment: Attachment | None, transports: Transports) -> None:
    """Keep the present state of a disk under a name. Optional.

    Called with the disk locked and, when it is mapped, with its filesystems flushed and frozen. The core has checked
    that the name is free and sane (letters, digits and ``._-``, at most 128 characters).

    :param attachment: the device when the disk is mapped, else ``None``.
    :raises NotSupported: it cannot be done in this state.

    Example::

        @hookimpl
        def snapshot_create(disk, name):
            run(["qemu-img", "snapshot", "-q", "-c", name, disk.source])
    """


@hookspec
def snapshot_revert(disk: Disk, name: str) -> None:
    """Bring the disk back to a snapshot; what was written since is lost. Optional.

    Called with the disk locked and not mapped.

    Example::

        @hookimpl
        def snapshot_revert(disk, name):
            run(["qemu-img", "snapshot", "-q", "-a", name, disk.source])
    """


@hookspec
def snapshot_delete(disk: Disk, name: str, attachment: Attachment | None, transports: Transports) -> None:
    """Forget a snapshot; the present state of the disk stays. Optional.

    Called with the disk locked.

    :param attachment: the device when the disk is mapped, else ``None``.
    :raises NotSupported: it cannot be done in this state, or something depends on the snapshot.

    Example::

        @hookimpl
        def snapshot_delete(disk, name):
            run(["qemu-img", "snapshot", "-q", "-d", name, disk.source])
    """


@hookspec
def break_lock(disk: Disk) -> None:
    """Take the disk away from a host that holds it and is known to be dead. Optional.

    Called with the disk locked and not mapped on this host, only when a person asked for just this: if the other host
    lives, both write and the disk is destroyed. Makes sure that the other host can write no more, if the storage
    can do that.

    Example::

        @hookimpl
        def break_lock(disk):
            for holder in my_cluster.lock_holders(disk.source):
                my_cluster.fence(holder)
    """


@hookspec(firstresult=True)
def discover_partitions(device: str, read: ReadAt, size: int, sector_size: int) -> PartitionTable | None:
    """Find the partitions on a mapped device. Optional; all plugins are asked, the first answer that is not ``None``
    counts.

    The core's own implementation (GPT, MBR with logical partitions, bare filesystem) is asked last, so a plugin
    can add what it knows: LVM, LUKS, RAID inside of the image.

    :param device: the block device node.
    :param read: ``read(offset, length)`` returns bytes of the device, fewer only at its end.
    :param size: of the device, bytes.
    :param sector_size: logical sector size of the device, bytes.

    Example::

        @hookimpl
        def discover_partitions(device, read, size):
            return my_volumes(device) if read(512, 8) == b"LABELONE" else None
    """
