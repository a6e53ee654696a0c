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
    KernelError,
    NotSupported,
    Refused,
    SnapshotMissing,
    UsageError,
)
from mapper_core.linux import loop
from mapper_core.model import Access, Attachment, Disk, ImageInfo, MapOptions, Snapshot
from mapper_core.resources import PluginResource
from mapper_core.runtime import boot_id
from mapper_core.transports import Transports
from mapper_core.transports.base import Availability, Scope
from mapper_core.transports.blockgraph import BlockNode
from mapper_core.transports.loop import LoopTransport
from mapper_lvm import tool
from mapper_lvm.names import VolumeName, is_name, parse

ACTIVE = "lvm-active"
#: Between the name of a volume and that of a snapshot of it.
_SNAPSHOT = "_snap_"
#: A whole volume is written.
_ZERO_SECONDS = 3600
_MERGE_SECONDS = 3600

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


def attach(disk: Disk, options: MapOptions, transports: Transports) -> Attachment:
    """Activate a volume, and make a device of it.

    :raises ImageInUse: somebody uses it.
    """
    name = parse(disk.source)
    _settings(disk)
    volume = _usable(name)
    if volume.open:
        raise ImageInUse("somebody uses it", subject=str(name), hint=f"look at it with: lsblk {name.device}")
    if not volume.active:
        transports.record(PluginResource(ACTIVE, (("identity", volume.identity), ("boot", boot_id()))))
        tool.lvm("lvchange", "--activate", "y", "--ignoreactivationskip", str(name), subject=str(name))
    return transports.attach(BlockNode("raw", name.device), options, (LvmTransport(name),))


def release(disk: Disk, resource: PluginResource) -> None:
    """Deactivate the volume, if it is still the one that was activated here. After a boot the host has decided anew.

    :raises DeviceBusy: somebody uses it.
    """
    name, values = parse(disk.source), dict(resource.values)
    try:
        if values["boot"] != boot_id() or tool.show(name).identity != values["identity"]:
            return
    except ImageNotFound:
        return
    try:
        tool.lvm("lvchange", "--activate", "n", str(name), subject=str(name))
    except CommandFailed as error:
        if " in use" not in error.stderr:
            raise
        raise DeviceBusy("the logical volume is in use", subject=str(name), hint=f"lsblk {name.device}") from error


def identity(disk: Disk) -> str:
    """The uuids of group and volume: those are never given to another, as names are."""
    return tool.show(parse(disk.source)).identity


def inspect(disk: Disk) -> ImageInfo:
    """Look at a volume."""
    name = parse(disk.source)
    _settings(disk)
    volume = _usable(name)
    detail = [("layout", volume.layout), ("active", "yes" if volume.active else "no")]
    if volume.pool:
        detail.append(("thin pool", volume.pool))
    return ImageInfo(
        disk.source, disk.format, volume.size, volume.size, variant=volume.layout.split(",")[0], detail=tuple(detail)
    )


def _usable(name: VolumeName) -> tool.LogicalVolume:
    volume = tool.show(name)
    if "pool" in volume.layout.split(","):
        raise NotSupported("is a pool for other volumes, and no disk", subject=str(name))
    return volume


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
    volume = _usable(name)
    if size % volume.extent:
        raise UsageError(
            f"{size} bytes are no multiple of {volume.extent}, in which sizes of its group are counted",
            subject=str(name),
            hint=f"take {-(-size // volume.extent) * volume.extent} bytes",
        )
    if volume.size < size:
        if attachment is not None and not volume.pool and tool.snapshots_of(name):
            raise NotSupported(
                "has a snapshot outside of a thin pool; LVM enlarges it only while nobody uses it",
                subject=str(name),
                hint="unmap it, or delete its snapshots",
            )
        tool.lvm("lvextend", "--size", f"{size}b", str(name), subject=str(name))
    if attachment is not None:
        loop.set_capacity(attachment.device)


# --- snapshots -------------------------------------------------------------------------------------------------


def snapshots(disk: Disk) -> tuple[Snapshot, ...]:
    """List the snapshots that were made here."""
    name = parse(disk.source)
    prefix = f"{name.volume}{_SNAPSHOT}"
    return tuple(
        Snapshot(volume.name.removeprefix(prefix), volume.size, volume.created)
        for volume in tool.snapshots_of(name)
        if volume.name.startswith(prefix)
    )


def snapshot_create(disk: Disk, name: str) -> None:
    """Make a snapshot: in a thin pool of no size, otherwise with room for all that can change."""
    origin = parse(disk.source)
    snapshot = _snapshot_name(origin, name)
    volume = _usable(origin)
    room = () if volume.pool else ("--extents", "100%ORIGIN")
    tool.lvm("lvcreate", "--yes", "--snapshot", *room, "--name", snapshot.volume, str(origin), subject=str(origin))
    if not volume.active:  # outside of thin pools both are active by now
        tool.lvm("lvchange", "--activate", "n", str(origin), subject=str(origin))


def snapshot_revert(disk: Disk, name: str) -> None:
    """Bring the volume back.

    LVM does that by dissolving the snapshot in its origin. It is made anew afterwards; when this is interrupted in between, the
    volume is back, and the snapshot is gone.

    :raises ImageInUse: the volume is open: LVM would wait with it for the next activation.
    """
    origin = parse(disk.source)
    if tool.show(origin).open:
        raise ImageInUse("somebody uses it", subject=str(origin), hint=f"look at it with: lsblk {origin.device}")
    snapshot = _snapshot_name(origin, name)
    _require(snapshot, name)
    tool.lvm("lvconvert", "--yes", "--merge", str(snapshot), subject=str(snapshot), timeout=_MERGE_SECONDS)
    _finish_merge(origin, snapshot)
    snapshot_create(disk, name)


def _finish_merge(origin: VolumeName, snapshot: VolumeName) -> None:
    """Let the copying go on, which happens while the origin is active, to its end."""
    was_active = tool.show(origin).active
    tool.lvm("lvchange", "--activate", "y", str(origin), subject=str(origin))
    try:
        tool.lvm(
            "lvpoll",
            "--polloperation",
            "merge",
            "--interval",
            "1",
            str(origin),
            subject=str(origin),
            timeout=_MERGE_SECONDS,
        )
    except CommandFailed as error:
        if "No snapshot to merge" not in error.stderr and "not found" not in error.stderr:
            raise
    finally:
        if not was_active:
            tool.lvm("lvchange", "--activate", "n", str(origin), subject=str(origin))
    if any(volume.name == snapshot.volume for volume in tool.snapshots_of(origin)):
        raise KernelError("LVM has not dissolved the snapshot", subject=str(snapshot))


def snapshot_delete(disk: Disk, name: str) -> None:
    """Remove a snapshot."""
    snapshot = _snapshot_name(parse(disk.source), name)
    _require(snapshot, name)
    tool.lvm("lvremove", "--yes", str(snapshot), subject=str(snapshot))


def _snapshot_name(origin: VolumeName, name: str) -> VolumeName:
    whole = f"{origin.volume}{_SNAPSHOT}{name}"
    if not is_name(whole):
        raise Refused("the name of the snapshot is too long for LVM", subject=str(origin))
    return VolumeName(origin.group, whole)


def _require(snapshot: VolumeName, name: str) -> None:
    try:
        tool.show(snapshot)
    except ImageNotFound:
        raise SnapshotMissing(f"has no snapshot {name}", subject=str(snapshot)) from None
