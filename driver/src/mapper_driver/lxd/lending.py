"""Disks for a daemon that has a mount namespace of its own: their trees are mounted there too, on the same paths.

A device of LXD names its disk by a path, and the daemon looks there. One in our mount namespace finds the tree. One in
another (the snap, a container) finds nothing, or an empty directory: staged trees are private mounts. So it gets a clone,
which is taken back before the disk is released.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mapper_core.errors import NotMapped, ProcessGone
from mapper_core.linux import mountinfo, namespaces, unmounting
from mapper_driver.errors import TreeNotPlaced
from mapper_driver.lxd import clones
from mapper_driver.lxd.placement import peel

if TYPE_CHECKING:
    from mapper_core.linux.holders import Holder


def lend(directory: str, daemon_pid: int) -> None:
    """Mount a staged tree in the daemon's namespace. Nothing happens when it is there, or when that is our namespace.

    :param directory: of the tree, in our mount namespace; only ours, it is cleared in the daemon's.
    :raises TreeNotPlaced: nothing is mounted there, or the daemon's side has no place for it.
    :raises ProcessGone: the daemon has ended.
    """
    if namespaces.mount_namespace_id(daemon_pid) == namespaces.mount_namespace_id():
        return
    wanted, there = mountinfo.at(directory)[-1:], mountinfo.at(directory, pid=daemon_pid)[-1:]
    if not wanted:
        raise TreeNotPlaced("no tree is mounted there", subject=directory)
    if [(entry.device, entry.root) for entry in there] == [(entry.device, entry.root) for entry in wanted]:
        return
    withdraw(directory, daemon_pid)
    with clones.detached(directory) as clone:
        clones.attach_in(daemon_pid, clone, lambda: _open_place(directory))


def _open_place(directory: str) -> int:
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        return os.open(directory, clones.DIRECTORY)
    except OSError as error:
        text = f"the daemon's mount namespace has no place for it: {error.strerror}"
        raise TreeNotPlaced(text, subject=directory) from error


def withdraw(directory: str, daemon_pid: int) -> bool:
    """Take a tree back: what was lent, and what a namespace that was made since has copied (L-18).

    :param daemon_pid: of a daemon that may have ended; then its namespace has gone with it, or is a monitor's.
    :returns: whether there was anything.
    :raises DeviceBusy: naming those who use it.
    """
    there = _namespace(daemon_pid)
    if there in (None, namespaces.mount_namespace_id()) or not mountinfo.at(directory, pid=daemon_pid):
        return False
    peel(directory, daemon_pid)
    return True


def withdraw_from_monitor(directory: str, monitor_pid: int, daemon_pid: int) -> None:
    """Take a tree back from the mount namespace that a running container's monitor has kept, when its daemon has ended or was
    replaced by one with another (L-03): no daemon comes there any more, and what is mounted there keeps the disk in use.

    :param directory: of the tree, which no process of the container uses any more.
    :param monitor_pid: LXC's monitor of the container.
    :param daemon_pid: of a daemon that may have ended.
    :raises DeviceBusy: naming those who use it.
    """
    here, daemon, kept = map(_namespace, (os.getpid(), daemon_pid, monitor_pid))
    if kept not in (here, daemon, None):
        _unmount_copies(directory, mountinfo.entries(monitor_pid), monitor_pid)


def withdraw_from_home(directory: str, home: str, daemon_pid: int) -> None:
    """Take a tree back from the daemon's own directory, where it mounts what it hands to a container. One that dies when it
    has begun to attach a disk, or when a container has ended, leaves it there.

    :param directory: of the tree, which no process of the container uses any more.
    :param home: the daemon's directory, as it sees it.
    :param daemon_pid: of a daemon that may have ended; what it has left is where we see it, or in a monitor's namespace.
    :raises DeviceBusy: naming those who use it.
    """
    pid = os.getpid() if _namespace(daemon_pid) is None else daemon_pid
    _unmount_copies(directory, mountinfo.below(home, pid=pid), pid)


def users_elsewhere(device: str, daemon_pid: int) -> tuple[Holder, ...]:
    """Where filesystems of a block device are mounted, in other mount namespaces than ours and the daemon's.

    :param daemon_pid: of a daemon that may have ended.
    """
    from mapper_core.linux import holders  # only needed when something may be in use

    known = {_namespace(os.getpid()), _namespace(daemon_pid)}
    return tuple(
        holder
        for holder in holders.holders(device)
        if holder.kind is holders.HolderKind.MOUNT and holder.namespace not in known
    )


def withdraw_from_others(users: Sequence[Holder], directory: str, home: str) -> bool:
    """Take a tree back from the mount namespaces of daemons that are no more, which the monitors of other containers keep: where it
    was lent, and where the daemon had put it for its container.

    :param users: of its disk, of :func:`users_elsewhere`. What they have mounted on paths of their own stays.
    :param home: the daemon's directory, as it sees it.
    :returns: whether there was anything.
    :raises DeviceBusy: naming those who use it.
    """
    left = [
        holder
        for holder in users
        if holder.target == directory or any(mountinfo.is_below(holder.target, place) for place in (directory, home))
    ]
    for holder in sorted(left, key=lambda holder: holder.target.count("/"), reverse=True):
        with contextlib.suppress(NotMapped, ProcessGone):
            unmounting.unmount_in(holder.pid, holder.target)
    return bool(left)


def _unmount_copies(directory: str, entries: tuple[mountinfo.MountEntry, ...], pid: int) -> None:
    """Unmount what shows the same as a tree of ours, among the mounts that a process sees."""
    wanted = {(entry.device, entry.root) for entry in mountinfo.at(directory)[-1:]}
    for entry in reversed(entries):
        if (entry.device, entry.root) in wanted:
            with contextlib.suppress(NotMapped):
                unmounting.unmount_in(pid, entry.target)


def _namespace(pid: int) -> int | None:
    """The mount namespace of a process; ``None`` when that has ended."""
    with contextlib.suppress(ProcessGone):
        return namespaces.mount_namespace_id(pid)
    return None
