"""The directories on which trees are staged, below ``<runtime>/mounts``; others have their tree where they want it."""

from __future__ import annotations

import contextlib
import os

from mapper_core.errors import MapperError
from mapper_core.linux import locks, mountinfo, mounts, unmounting
from mapper_core.linux.files import open_directory
from mapper_core.runtime import Runtime

#: How long another process may take to make or remove a directory.
_MOMENT_SECONDS = 60


def is_one(runtime: Runtime, directory: str) -> bool:
    """Whether a path is that of such a directory, which is made and removed with its tree."""
    return os.path.dirname(directory) == runtime.mounts


def make(runtime: Runtime, directory: str) -> None:
    """Make a directory below ``<runtime>/mounts``, which is a mount of its own from the first of them on.

    :raises Busy: another process makes or removes one, and does not come to an end.
    """
    with _alone(runtime):
        os.mkdir(directory, 0o700)
        _make_shared(runtime.mounts)


def remove(runtime: Runtime, directory: str) -> None:
    """Remove such a directory (it is empty: rmdir never removes content, U-12), and the mount around them with the
    last one.
    """
    with _alone(runtime):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(directory)
        if not os.listdir(runtime.mounts) and mountinfo.at(runtime.mounts):
            with contextlib.suppress(MapperError):
                unmounting.unmount(runtime.mounts)


def _alone(runtime: Runtime) -> contextlib.AbstractContextManager[None]:
    """Keep others from making the first tree while the last one goes: it would be hidden by the next, or not be shared."""
    mounts_of_all = runtime.mounts
    return locks.try_lock_of(f"{runtime.locks}/mounts", lambda: bool(os.listdir(mounts_of_all)), _MOMENT_SECONDS)


def _make_shared(directory: str) -> None:
    """Make a directory a mount of its own whose mount events reach the copies of it in other mount namespaces.

    Whoever makes a mount namespace while a tree is mounted (a service of systemd, a container manager) gets a copy of
    the tree, and a copy holds the device (U-11, L-18). An unmount reaches those copies only through a shared parent:
    with a private one every such service would keep our disks. In a peer group of our own nothing else is shared
    (mount_namespaces(7)).
    """
    if mountinfo.at(directory):
        return
    fd = mounts.clone_tree(directory, recursive=False)
    try:
        mounts.set_attributes(fd, propagation=mounts.Propagation.PRIVATE)  # leave the group of /run first
        mounts.set_attributes(fd, propagation=mounts.Propagation.SHARED)
        target_fd = open_directory(directory)
        try:
            mounts.attach(fd, target_fd)
        finally:
            os.close(target_fd)
    finally:
        os.close(fd)
