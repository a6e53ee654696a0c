"""Copies of staged trees that are mounted in other mount namespaces: the daemon's, a container's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from mapper_core.linux import mounts, namespaces
from mapper_core.linux.mounts import MountAttribute, Propagation

#: How a directory on which one is mounted is opened: without following a link at its end.
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def detached(directory: str, *, clear: MountAttribute = MountAttribute.NONE) -> Iterator[int]:
    """A private clone of a tree, with all mounts in it, that is not mounted anywhere yet.

    :param clear: flags that the clone is not to have.
    """
    clone = mounts.clone_tree(directory, recursive=True)
    try:
        mounts.set_attributes(clone, clear=clear, recursive=True, propagation=Propagation.PRIVATE)
        yield clone
    finally:
        os.close(clone)


def attach_in(pid: int, clone: int, open_target: Callable[[], int]) -> None:
    """Mount a detached clone in the mount namespace of another process.

    :param open_target: opens the directory, as that process sees it.
    """
    with namespaces.in_mount_namespace(pid):
        target = open_target()
        try:
            mounts.attach(clone, target)
        finally:
            os.close(target)
