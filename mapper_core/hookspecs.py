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
    from mapper_core.model import Attachment, Disk, ImageInfo, MapOptions, PartitionTable
    from mapper_core.partitions import ReadAt
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
    :param transports: makes block devices, and writes the journal before each step.
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

    Example::

        @hookimpl
        def unmap(transports):
            transports.release()
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
