"""System snapshots of a machine: the state that all its disks have at one moment, kept in the images themselves.

The memory is not in them, nor the configuration of the container. Disks that cannot be written (CD-ROMs, the context) and swap
have no state of the machine and are left out; volatile disks have one and are in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mapper_core import capabilities, snapshots
from mapper_core.errors import MapperError, NotSupported, Refused, SnapshotMissing
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, Snapshot
from mapper_driver import reverting
from mapper_driver.disks import mapper_disk
from mapper_driver.opennebula.config import Config
from mapper_driver.opennebula.vm import DiskKind, VirtualMachine, VmIdentity


@dataclass(frozen=True, slots=True)
class StateDisk:
    """A disk that is part of a machine's state.

    :param id: ``DISK_ID``.
    """

    id: int
    disk: Disk


def disks_of(vm: VirtualMachine, config: Config) -> tuple[StateDisk, ...]:
    """The disks that are part of a machine's state.

    :raises NotSupported: there is none, or the container was made by hand, and its storage is its own.
    """
    refuse_wild(vm)
    found = tuple(
        StateDisk(disk.id, mapper_disk(disk, vm, config))
        for disk in vm.disks
        if disk.kind is not DiskKind.SWAP and not disk.read_only
    )
    if not found:
        raise NotSupported("the machine has no disk that can be written", subject=vm.container)
    return found


def refuse_wild(vm: VmIdentity) -> None:
    """Refuse a container that was made by hand.

    :raises NotSupported: it is one.
    """
    if vm.is_wild:
        raise NotSupported(
            "the container was made by hand, its storage is its own",
            subject=vm.container,
            hint="use the daemon's own snapshots: lxc snapshot",
        )


def name_of(vm: VmIdentity, number: int) -> str:
    """What the snapshot with a number of OpenNebula's is called in the images.

    The machine is part of it: an image can have been another machine's, with snapshots of that.
    """
    return f"mapper-{vm.id}-{number}"


def undo_name(name: str) -> str:
    """What is kept under it is the state from which the machine is being brought back to a snapshot."""
    return f"{name}-undo"


# --- create -------------------------------------------------------------------------------------------


def create(mapper: Mapper, disks: Sequence[StateDisk], name: str) -> tuple[int, ...]:
    """Keep the present state of all disks, or of none.

    OpenNebula never gives a number to a second snapshot of a machine while it knows of the first. So one of that name was left
    by a call that was interrupted, or by OpenNebula, which forgets snapshots without a call: it is replaced.

    :returns: numbers of the disks of which one was replaced.
    :raises NotSupported: naming the disk that cannot; nothing was done.
    """
    old = []
    for item in disks:
        try:
            if _find(mapper, item, name):
                old.append(item)
        except NotSupported as error:
            raise NotSupported(
                f"no snapshot was made: disk {item.id} cannot keep one ({error.message})", subject=item.disk.source
            ) from error
    for item in old:
        capabilities.snapshot_delete(mapper, item.disk, name)
    snapshots.create(mapper, [item.disk for item in disks], name)
    return tuple(item.id for item in old)


# --- delete -------------------------------------------------------------------------------------------


def delete(mapper: Mapper, disks: Sequence[StateDisk], name: str) -> tuple[int, ...]:
    """Forget a snapshot on every disk that has it.

    :returns: numbers of those disks.
    :raises Refused: something depends on it; nothing was done.
    """
    having = []
    for item in disks:
        with contextlib.suppress(NotSupported):  # attached since, or never kept one
            found = _find(mapper, item, name)
            if found and found[0].protected:
                raise Refused(f"something depends on the snapshot {name!r} of disk {item.id}", subject=item.disk.source)
            if found:
                having.append(item)
    for item in having:
        capabilities.snapshot_delete(mapper, item.disk, name)
    return tuple(item.id for item in having)


# --- revert -------------------------------------------------------------------------------------------


def require(mapper: Mapper, disks: Sequence[StateDisk], name: str) -> None:
    """Make sure that every disk has a snapshot.

    :raises SnapshotMissing: naming the disk that has not.
    """
    for item in disks:
        try:
            capabilities.find_snapshot(capabilities.snapshots(mapper, item.disk), name, item.disk.source)
        except (SnapshotMissing, NotSupported) as error:
            raise SnapshotMissing(
                f"nothing was reverted: disk {item.id} has no snapshot {name!r}",
                subject=item.disk.source,
                hint="a disk that was attached since has to be detached first",
            ) from error


def revert(vm: VmIdentity, mapper: Mapper, disks: Sequence[StateDisk], name: str, warn: Callable[[str], None]) -> None:
    """Bring all disks back to a snapshot, or none. They are not mapped.

    When it is interrupted, a note in the machine's directory says so. The next revert and the next deployment (:func:`finish`) go
    on, so that the machine never runs on disks of two moments.

    :param warn: is told what could not be tidied up.
    :raises MapperError: every disk is as it was.
    """
    undo = undo_name(name)
    interrupted = bool(reverting.snapshot_of(vm))
    if not interrupted:
        for item in disks:
            _drop(mapper, item, undo)
        snapshots.create(mapper, [item.disk for item in disks], undo)
    try:
        reverting.begin(vm, name)
        try:
            _revert_each(mapper, disks, name)
        except MapperError:
            if not interrupted:
                _revert_each(mapper, disks, undo)
                reverting.end(vm)
            raise
        reverting.end(vm)
    finally:
        if not reverting.snapshot_of(vm):
            _tidy(mapper, disks, undo, warn)


def finish(vm: VmIdentity, mapper: Mapper, disks: Sequence[StateDisk], warn: Callable[[str], None]) -> None:
    """Go on with a revert that was interrupted.

    :raises MapperError: not all disks could be reverted; the machine must not start.
    """
    name = reverting.snapshot_of(vm)
    if name:
        revert(vm, mapper, disks, name, warn)
        warn(f"reverted the disks to {name}, which was begun before and interrupted")


def _revert_each(mapper: Mapper, disks: Sequence[StateDisk], name: str) -> None:
    for item in disks:
        capabilities.snapshot_revert(mapper, item.disk, name)


def _tidy(mapper: Mapper, disks: Sequence[StateDisk], name: str, warn: Callable[[str], None]) -> None:
    for item in disks:
        try:
            _drop(mapper, item, name)
        except MapperError as error:
            warn(f"disk {item.id} keeps the snapshot {name}, which nobody needs any more: {error}")


def _drop(mapper: Mapper, item: StateDisk, name: str) -> None:
    if _find(mapper, item, name):
        capabilities.snapshot_delete(mapper, item.disk, name)


def _find(mapper: Mapper, item: StateDisk, name: str) -> tuple[Snapshot, ...]:
    return tuple(found for found in capabilities.snapshots(mapper, item.disk) if found.name == name)
