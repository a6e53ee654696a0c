"""Logical volumes of the host as disks: activated to be mapped, deactivated after it."""

from __future__ import annotations

import contextlib
import os

from mapper_core.errors import (
    AlreadyExists,
    CommandFailed,
    DeviceBusy,
    ImageInUse,
    ImageNotFound,
    NotSupported,
    UsageError,
)
from mapper_core.linux import loop
from mapper_core.model import Access, Attachment, Disk, ImageInfo, MapOptions
from mapper_core.resources import PluginResource
from mapper_core.runtime import boot_id
from mapper_core.transports import Transports
from mapper_core.transports.base import Availability, Scope
from mapper_core.transports.blockgraph import BlockNode
from mapper_core.transports.loop import LoopTransport
from mapper_lvm import active, kept, tool
from mapper_lvm.names import VolumeName, is_name, parse

ACTIVE = "lvm-active"
#: Details of a volume: its uuids, and the snapshot to which it was being brought back when that was interrupted.
_IDENTITY = "identity"
_INTERRUPTED = "interrupted revert"
#: A whole volume is written.
_ZERO_SECONDS = 3600

#: Settings of a disk.
_POOL = "thinpool"


class LvmTransport:
    """A loop device on the volume: it has partitions, which device-mapper's own have not, and is read-only when asked for."""

    name = "lvm"

    def __init__(self, name: VolumeName) -> None:
        self._name = name

    def availability(self) -> Availability:
        """Where loop works, and the volume is active by now."""
        return LoopTransport().availability()

    def accepts(self, node: BlockNode) -> bool:
        """What :func:`attach` asks for."""
        return node.filename == self._name.device

    def attach(self, node: BlockNode, access: Access, scope: Scope) -> Attachment:
        """Bind the device of the volume."""
        flags = os.O_RDONLY if access is Access.READ_ONLY else os.O_RDWR
        try:
            # exclusive: nobody has mounted it, and it is part of nothing else
            fd = os.open(node.filename, flags | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            raise ImageInUse(
                f"cannot be opened: {error.strerror}",
                subject=str(self._name),
                hint=f"look at it with: lsblk {node.filename}",
            ) from error
        try:
            return Attachment(LoopTransport().bind(fd, access, scope).device, self.name)
        finally:
            os.close(fd)


def attach(disk: Disk, image: ImageInfo, options: MapOptions, transports: Transports) -> Attachment:
    """Activate a volume, and make a device of it.

    :param image: what :func:`inspect` has just said.
    :raises ImageInUse: somebody uses it.
    """
    name, known = parse(disk.source), dict(image.detail)
    if _INTERRUPTED in known:
        kept.settled(name)
    if active.find(known[_IDENTITY]) is None:
        transports.record(PluginResource(ACTIVE, ((_IDENTITY, known[_IDENTITY]), ("boot", boot_id()))))
        tool.lvm("lvchange", "--activate", "y", "--ignoreactivationskip", str(name), subject=str(name))
    else:
        tool.refuse_open(tool.show(name), name)
    return transports.attach(BlockNode("raw", name.device), options, (LvmTransport(name),))


def release(disk: Disk, resource: PluginResource) -> None:
    """Deactivate the volume that was activated, whatever it is called by now. After a boot the host has decided anew.

    :raises DeviceBusy: somebody uses it.
    """
    values = dict(resource.values)
    name = active.find(values[_IDENTITY]) if values["boot"] == boot_id() else None
    if name is None:
        return
    try:
        tool.lvm("lvchange", "--activate", "n", str(name), subject=disk.source)
    except CommandFailed as error:
        if tool.is_missing(error):
            return  # its disks have been taken away: LVM does not know it any more
        if " in use" not in error.stderr:
            raise
        raise DeviceBusy("the logical volume is in use", subject=disk.source, hint=f"lsblk {name.device}") from error


def identity(disk: Disk) -> str:
    """The uuids of group and volume: those are never given to another, as names are."""
    return tool.show(parse(disk.source)).identity


def inspect(disk: Disk) -> ImageInfo:
    """Look at a volume."""
    name = parse(disk.source)
    _settings(disk)
    volume = tool.usable(name)
    detail = [
        ("layout", volume.layout),
        ("active", "yes" if volume.active else "no"),
        (_IDENTITY, volume.identity),
        *([("thin pool", volume.pool)] if volume.pool else []),
        *([(_INTERRUPTED, volume.reverting)] if volume.reverting else []),
    ]
    return ImageInfo(
        disk.source, disk.format, volume.size, volume.size, variant=volume.layout.split(",")[0], detail=tuple(detail)
    )


def _settings(disk: Disk) -> str:
    """Check the settings; return the name of the thin pool, or nothing.

    :raises UsageError: there is one that is not known.
    """
    values = dict(disk.settings)
    pool = values.pop(_POOL, "")
    if values or (pool and not is_name(pool)):
        raise UsageError(
            f"does not know the setting {', '.join(values) or _POOL}",
            subject=disk.source,
            hint=f"there is: {_POOL}=NAME",
        )
    return pool


# --- making, enlarging -----------------------------------------------------------------------------------------


def create(disk: Disk, size: int) -> None:
    """Make a volume that reads as zeros: in a thin pool at once, otherwise by writing them.

    :raises AlreadyExists: there is one of that name.
    :raises UsageError: the size is no multiple of the group's extents.
    """
    name, pool = parse(disk.source), _settings(disk)
    with contextlib.suppress(ImageNotFound):
        tool.show(name)
        raise AlreadyExists("exists already", subject=str(name), hint="choose another name")
    where = ("--virtualsize", f"{size}b", "--thinpool", f"{name.group}/{pool}") if pool else ("--size", f"{size}b")
    argv = ("lvcreate", "--yes", "--wipesignatures", "n", *where, "--name", name.volume)
    tool.lvm(*argv, *(() if pool else (name.group,)), subject=str(name))
    with contextlib.ExitStack() as undo:
        undo.callback(tool.lvm, "lvremove", "--yes", str(name), subject=str(name))
        made = tool.show(name)
        if made.size != size:
            raise UsageError(
                f"{size} bytes are no multiple of {made.extent}, in which sizes of its group are counted",
                subject=str(name),
                hint=f"take {made.size} bytes",
            )
        if not pool:
            _zero(name)
        # or udev would activate it again at the next event of any device of its group
        tool.lvm("lvchange", "--setautoactivation", "n", str(name), subject=str(name))
        tool.lvm("lvchange", "--activate", "n", str(name), subject=str(name))
        undo.pop_all()


def _zero(name: VolumeName) -> None:
    from mapper_core.process import run

    run(("blkdiscard", "--zeroout", name.device), timeout=_ZERO_SECONDS, subject=str(name))


def resize(disk: Disk, size: int, attachment: Attachment | None) -> None:
    """Make a volume larger, and the loop device on it."""
    name = parse(disk.source)
    volume, own = kept.settled(name)
    if size % volume.extent:
        raise UsageError(
            f"{size} bytes are no multiple of {volume.extent}, in which sizes of its group are counted",
            subject=str(name),
            hint=f"take {-(-size // volume.extent) * volume.extent} bytes",
        )
    if volume.size < size:
        if attachment is not None and not volume.pool and own:
            raise NotSupported(
                "has a snapshot outside of a thin pool; LVM enlarges it only while nobody uses it",
                subject=str(name),
                hint="unmap it, or delete its snapshots",
            )
        tool.lvm("lvextend", "--size", f"{size}b", str(name), subject=str(name))
    if attachment is not None:
        loop.set_capacity(attachment.device)
