"""A running container as its first process sees it, looked at and changed from the host.

The guest owns what is in there: nothing of it is trusted, and what is done by path is done in its own mount namespace, where
it can only meet itself.
"""

from __future__ import annotations

import os
import stat

from mapper_core.errors import DeviceBusy, Refused
from mapper_core.linux import mountinfo, namespaces, unmounting
from mapper_driver.errors import TreeNotPlaced
from mapper_driver.lxd import clones, monitors

#: Filesystems whose server is a process of the guest or another machine, so that a look at a path may never end.
_REMOTE = ("fuse", "nfs", "cifs", "smb", "9p", "autofs", "ceph")


def check_target(pid: int, path: str) -> None:
    """Make sure that a disk can be mounted on a path and taken away again without a trace of the guest's own files.

    LXD removes what is at the path when it takes a disk away, be it a file or a symbolic link of the guest (LXD 5.0).

    :param pid: first process of the container.
    :raises DeviceBusy: something is mounted there.
    :raises Refused: it is no directory, or not where it says (L-10).
    """
    entries = mountinfo.entries(pid)
    covering = max((entry for entry in entries if _covers(entry.target, path)), key=lambda entry: len(entry.target))
    if covering.target == path:
        text = f"the container has {covering.source} ({covering.fstype}) mounted on {path}"
        raise DeviceBusy(text, subject=path, hint="unmount it in the container, or choose another TARGET")
    if covering.fstype.startswith(_REMOTE):
        raise Refused(f"{path} lies in a {covering.fstype} filesystem of the guest", subject=path)
    with namespaces.in_mount_namespace(pid):
        real = os.path.realpath(path)
        is_something_else = os.path.lexists(path) and not stat.S_ISDIR(os.lstat(path).st_mode)
    if real != path:
        hint = f"use the TARGET {real}" if real.isprintable() else ""
        raise Refused("the path leads through a symbolic link of the guest", subject=path, hint=hint)
    if is_something_else:
        raise Refused("the guest has a file there that is no directory", subject=path)


def check_disk(pid: int, path: str, directory: str, subject: str) -> None:
    """Look whether a tree of the host is what the container has at a path (L-04).

    :param directory: of the tree, on the host.
    :param subject: name of the container, for the error.
    :raises TreeNotPlaced: it is not.
    """
    wanted = mountinfo.at(directory)[-1]
    found = [entry for entry in mountinfo.entries(pid) if entry.target == path][-1:]
    if any(_same(entry, wanted) for entry in found):
        return
    what = f"{found[0].source} is" if found else "nothing is"
    hint = (
        "" if found else "if the daemon was replaced while the container ran, reboot the virtual machine first"
    )  # L-03
    raise TreeNotPlaced(f"{what} at {path} in the container instead of {wanted.source}", subject=subject, hint=hint)


def has_disk(pid: int, path: str, directory: str) -> bool:
    """Whether :func:`check_disk` would be content."""
    try:
        check_disk(pid, path, directory, "")
    except (TreeNotPlaced, IndexError):
        return False
    return True


def is_cut_off(pid: int, daemon_pid: int) -> bool:
    """Whether the daemon of a running container was replaced by one in another mount namespace. Such a daemon says that it has
    attached a disk, and has not (L-03).
    """
    monitor = monitors.of_init(pid)
    return monitor is not None and (
        namespaces.mount_namespace_id(monitor.pid) != namespaces.mount_namespace_id(daemon_pid)
    )


def show_disk(pid: int, path: str, directory: str) -> None:
    """Mount a tree of the host in a running container, without its daemon.

    :param path: a directory in the container.
    :param directory: of the tree, on the host.
    :raises TreeNotPlaced: there is no such directory.
    """
    with clones.detached(directory) as clone:
        clones.attach_in(pid, clone, lambda: _open_directory(path))


def take_disk(pid: int, path: str, directory: str) -> None:
    """Unmount a tree in the container; nothing happens when the guest has done so itself.

    LXD would do it lazily: the disk would be gone from sight and stay in use.

    :param path: where it was mounted for the container; empty when LXD does not know any more: it died before it wrote that down.
    :raises DeviceBusy: naming who uses it inside; nothing is changed.
    """
    staged = mountinfo.at(directory)[-1:]
    mounted = mountinfo.entries(pid)
    found = [entry for entry in mounted if any(entry.device == top.device for top in staged)]
    path = path or next((entry.target for entry in found), "")
    others = [entry.target for entry in found if entry.target != path]
    if others:
        text = f"the guest has mounted it on {', '.join(others[:3])} too"
        raise DeviceBusy(text, subject=path, hint=f"in the container: umount {others[0]}")
    if not found:
        return
    top = [entry for entry in mounted if entry.target == path][-1]
    if top not in found:
        text = f"the guest has mounted {top.source} ({top.fstype}) over it"
        raise DeviceBusy(text, subject=path, hint=f"in the container: umount {path}")
    unmounting.unmount_in(pid, path)


def _open_directory(path: str) -> int:
    """A directory of the guest, without following a link of it."""
    found = os.open("/", clones.DIRECTORY)
    for part in path.strip("/").split("/"):
        above = found
        try:
            found = os.open(part, clones.DIRECTORY, dir_fd=above)
        except OSError as error:
            text = f"the container has no directory there: {error.strerror}"
            raise TreeNotPlaced(text, subject=path, hint="make it in the container") from error
        finally:
            os.close(above)
    return found


def _same(one: mountinfo.MountEntry, other: mountinfo.MountEntry) -> bool:
    return (one.device, one.root) == (other.device, other.root)


def _covers(target: str, path: str) -> bool:
    return target == "/" or path == target or path.startswith(f"{target}/")
