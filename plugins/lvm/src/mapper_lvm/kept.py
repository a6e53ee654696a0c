"""Snapshots of volumes of the host: volumes themselves, which are told by their names.

To bring a volume back, LVM dissolves the snapshot in it, and another one is made of what the volume is then. What a crash
interrupts in between is known by a tag on the volume, and finished before anything else is done with that.
"""

from __future__ import annotations

import contextlib

from mapper_core.errors import CommandFailed, Refused
from mapper_core.frozen import replace
from mapper_core.model import Disk, Snapshot
from mapper_lvm import tool
from mapper_lvm.names import VolumeName, is_name, parse

#: Between the name of a volume and that of a snapshot of it.
_SNAPSHOT = "_snap_"
_MERGE_SECONDS = 3600


def listed(disk: Disk) -> tuple[Snapshot, ...]:
    """List the snapshots that were made here."""
    origin = parse(disk.source)
    volume, own = tool.family(origin)
    prefix = f"{origin.volume}{_SNAPSHOT}"
    found = [
        Snapshot(item.name.removeprefix(prefix), item.size, item.created)
        for item in own
        if item.name.startswith(prefix)
    ]
    if volume.reverting and all(item.name != volume.reverting for item in found):
        found.append(Snapshot(volume.reverting, volume.size))  # dissolved already, and not yet made anew
    return tuple(found)


def create(disk: Disk, name: str) -> None:
    """Make a snapshot: in a thin pool of no size, otherwise with room for all that can change."""
    origin = parse(disk.source)
    _check_name(origin, name)
    volume, _ = settled(origin)
    _make(origin, volume, name)
    if not volume.active:  # outside of thin pools both are active by now
        _deactivate(origin)


def revert(disk: Disk, name: str) -> None:
    """Bring the volume back.

    :raises ImageInUse: the volume is open: LVM would wait with it for the next activation.
    """
    origin = parse(disk.source)
    volume, own = tool.family(origin)
    tool.refuse_open(volume, origin)
    if volume.reverting:
        is_back = volume.reverting == name and not _is_there(origin, own, name)
        volume, _ = settled(origin)
        if is_back:
            return
    snapshot = _snapshot(origin, name)
    with contextlib.ExitStack() as undo:
        undo.callback(_tag, "--deltag", origin, name)
        _tag("--addtag", origin, name)
        tool.lvm("lvconvert", "--yes", "--merge", str(snapshot), subject=str(snapshot), timeout=_MERGE_SECONDS)
        undo.pop_all()
    _dissolve(origin, volume, name)


def delete(disk: Disk, name: str) -> None:
    """Remove a snapshot."""
    origin = parse(disk.source)
    volume = tool.show(origin)
    if volume.reverting:
        settled(origin)
    snapshot = _snapshot(origin, name)
    tool.lvm("lvremove", "--yes", str(snapshot), subject=str(snapshot))


def settled(origin: VolumeName) -> tuple[tool.LogicalVolume, tuple[tool.LogicalVolume, ...]]:
    """Finish what was interrupted; return the volume and the volumes that are snapshots of it.

    :raises ImageInUse: that is not possible, since somebody uses it.
    """
    volume, own = tool.family(origin)
    if not volume.reverting:
        return volume, own
    tool.refuse_open(volume, origin)
    _finish(origin, volume, own)
    return tool.family(origin)


def _finish(origin: VolumeName, volume: tool.LogicalVolume, own: tuple[tool.LogicalVolume, ...]) -> None:
    """Go on where a revert was interrupted. That may have activated the volume: it is inactive afterwards."""
    if not _is_there(origin, own, volume.reverting):
        _dissolve(origin, replace(volume, active=False), volume.reverting)
        return
    if volume.active:  # the revert had not begun, or was done
        _deactivate(origin)
    _tag("--deltag", origin, volume.reverting)


def _dissolve(origin: VolumeName, volume: tool.LogicalVolume, name: str) -> None:
    """Let the copying go on, which happens while the origin is active, to its end; then make the snapshot anew.

    The tag goes last: who finds it knows that something of this is to be done.
    """
    tool.lvm("lvchange", "--activate", "y", "--ignoreactivationskip", str(origin), subject=str(origin))
    poll = ("lvpoll", "--polloperation", "merge", "--interval", "1", str(origin))
    try:
        tool.lvm(*poll, subject=str(origin), timeout=_MERGE_SECONDS)
    except CommandFailed as error:
        if "No snapshot to merge" not in error.stderr and "not found" not in error.stderr:
            raise
    _make(origin, volume, name)
    if not volume.active:
        _deactivate(origin)
    _tag("--deltag", origin, name)


def _make(origin: VolumeName, volume: tool.LogicalVolume, name: str) -> None:
    snapshot = _snapshot(origin, name)
    room = () if volume.pool else ("--extents", "100%ORIGIN")
    tool.lvm("lvcreate", "--yes", "--snapshot", *room, "--name", snapshot.volume, str(origin), subject=str(origin))


def _deactivate(origin: VolumeName) -> None:
    tool.lvm("lvchange", "--activate", "n", str(origin), subject=str(origin))


def _tag(option: str, origin: VolumeName, name: str) -> None:
    tool.lvm("lvchange", option, f"{tool.REVERTING}{name}", str(origin), subject=str(origin))


def _is_there(origin: VolumeName, own: tuple[tool.LogicalVolume, ...], name: str) -> bool:
    return any(item.name == _snapshot(origin, name).volume for item in own)


def _snapshot(origin: VolumeName, name: str) -> VolumeName:
    return VolumeName(origin.group, f"{origin.volume}{_SNAPSHOT}{name}")


def _check_name(origin: VolumeName, name: str) -> None:
    if not is_name(_snapshot(origin, name).volume):
        raise Refused("the name of the snapshot is too long for LVM", subject=str(origin))
