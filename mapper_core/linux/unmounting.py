"""Unmounting (:manpage:`umount2(2)`), here and in the mount namespace of another process.

The kernel answers EBUSY also when somebody is only passing: a process that is ending, or df(1) and monitoring agents within
statfs(2). None of them is to be seen afterwards. So what nobody visible uses is tried again for a moment before it is an error.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mapper_core.errors import DeviceBusy, NotMapped, UsageError
from mapper_core.linux.namespaces import in_mount_namespace
from mapper_core.linux.syscalls import call, kernel_error

if TYPE_CHECKING:
    from mapper_core.linux.holders import Holder

#: How long to try what nobody visible uses, seconds.
PASSING_SECONDS = 3.0
_AGAIN_SECONDS = 0.02  # the kernel does not announce that a mount is used no more
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8


def unmount(path: str, *, parent_fd: int | None = None, detach: bool = False) -> None:
    """Unmount the topmost mount of a directory. A symbolic link is not followed.

    :param path: mount point; with ``parent_fd`` a single name in that directory.
    :param parent_fd: descriptor of the directory that has the mount point, so that nothing above it can be exchanged.
    :param detach: take it out of the tree at once with all mounts below, and let the kernel finish when it is no longer
        used. The device may still be held afterwards.
    :raises NotMapped: when nothing is mounted there.
    :raises DeviceBusy: naming the holders; after :data:`PASSING_SECONDS` when none is to be seen.
    :raises KernelError: for all else.
    """
    full = _full_name(path, parent_fd)
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0)

    def users() -> tuple[Holder, ...]:
        from mapper_core.linux import holders  # only needed on failure

        return holders.mount_holders(os.path.join(os.path.realpath(os.path.dirname(full)), os.path.basename(full)))

    _when_nobody_passes(path, lambda: call("umount2", os.fsencode(full), flags), users)


def unmount_in(pid: int, target: str) -> None:
    """Unmount the topmost mount of a directory in the mount namespace of another process, and in those that get its
    mounts. It is refused, and nothing changes, when any of them is in use.

    :param target: mount point as that process sees it; a final symbolic link is not followed.
    :raises NotMapped: when nothing is mounted there.
    :raises DeviceBusy: naming the holders; after :data:`PASSING_SECONDS` when none is to be seen.
    :raises KernelError: for all else.
    """

    def attempt() -> None:
        failure: OSError | None = None
        with in_mount_namespace(pid):
            try:
                call("umount2", os.fsencode(target), _UMOUNT_NOFOLLOW)
            except OSError as error:  # not one of the way there
                failure = error
        if failure is not None:
            raise failure

    def users() -> tuple[Holder, ...]:
        from mapper_core.linux import holders  # only needed on failure

        return holders.mount_holders(target, pid)

    _when_nobody_passes(target, attempt, users)


def try_unmount(path: str, *, parent_fd: int | None = None) -> bool:
    """As :func:`unmount`, but ``False`` at once when the mount is in use, or has others below it."""
    full = _full_name(path, parent_fd)
    try:
        call("umount2", os.fsencode(full), _UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise _failure(error, path) from error
    return True


def unmount_fd(mount_fd: int) -> None:
    """Unmount the mount that a descriptor is the root of, and everything below it, wherever it is attached now.

    Always lazily: the descriptor itself keeps the mount in use. The filesystem is released when the descriptor is
    closed and nobody else uses it.

    :raises NotMapped: when it is not attached.
    :raises KernelError: for all else.
    """
    path = f"/proc/self/fd/{mount_fd}"
    try:
        # Without UMOUNT_NOFOLLOW: the magic link has to be followed, and leads to the descriptor's own mount.
        call("umount2", path.encode(), _MNT_DETACH)
    except OSError as error:
        raise _failure(error, path) from error


def _full_name(path: str, parent_fd: int | None) -> str:
    if parent_fd is None:
        return path
    if "/" in path or path in ("", ".", ".."):
        raise UsageError("is not a single name", subject=path)
    return f"/proc/self/fd/{parent_fd}/{path}"


def _when_nobody_passes(path: str, attempt: Callable[[], object], users: Callable[[], tuple[Holder, ...]]) -> None:
    """Unmount at once, or as soon as those are gone whom nobody can see.

    :param attempt: calls umount2(2).
    :param users: those who can be seen.
    """
    until = time.monotonic() + PASSING_SECONDS
    while True:
        try:
            attempt()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise _failure(error, path) from error
            found = users()
            if found or time.monotonic() >= until:
                raise _busy(path, found) from error
        else:
            return
        time.sleep(_AGAIN_SECONDS)


def _busy(path: str, found: tuple[Holder, ...]) -> DeviceBusy:
    from mapper_core.linux import holders  # only needed on failure

    return DeviceBusy(f"{path} is in use: {holders.describe(found)}", subject=path, hint=holders.advise(found))


def _failure(error: OSError, path: str) -> Exception:
    """The error for any answer but EBUSY."""
    if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
        return NotMapped("nothing is mounted there", subject=path)
    return kernel_error(error, "cannot unmount", subject=path)
