"""Detach a loop device completely, or leave it as it was.

LOOP_CLR_FD answers success on a device that somebody holds and only sets "autoclear"; the device then vanishes at a
moment nobody expects, under whoever uses it. And it keeps the partitions that BLKPG made for the next image. So there
is more to do than one ioctl.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from mapper_core.errors import DeviceBusy, NotFound
from mapper_core.linux import blkpg, block
from mapper_core.linux.loop_status import (
    AUTOCLEAR,
    INFO,
    INFO_FLAGS,
    carries,
    read_info,
    read_tag,
    refuse_other,
    status,
)
from mapper_core.linux.syscalls import kernel_error

_LOOP_CLR_FD = 0x4C01
_LOOP_SET_STATUS64 = 0x4C04
_RECHECK_SECONDS = 0.02  # closes by the kernel itself (a filesystem that ends) are not announced


class _Held(Exception):
    """The device cannot be detached now: somebody else has it open."""


def detach(path: str, *, tag: str, deadline_seconds: float = 10) -> bool:
    """Detach a loop device, and return when the kernel shows that it is detached.

    A device that is free, or carries another tag (its number has been reused), counts as detached already. A device
    that is in use stays attached and complete: LOOP_CLR_FD alone would answer success and only set "autoclear", and
    the device would vanish at a moment nobody expects.

    :param tag: the tag it was attached with.
    :param deadline_seconds: how long to wait for those who only look at the device for a moment, such as udev.
    :returns: whether it was attached with this tag.
    :raises DeviceBusy: naming the holders.
    :raises UsageError: when it is not a loop device.
    :raises KernelError: EIO when it is detached, but its last writes could not be stored.
    """
    until = time.monotonic() + deadline_seconds
    lost: OSError | None = None
    ours = waited = False
    while True:
        try:
            was_ours, lost = _clear(path, tag)
            ours |= was_ours
            break
        except _Held:
            if not carries(path, tag):
                break
            ours = True
            left = until - time.monotonic()
            if left <= 0 or (not waited and not _may_go_away(path)):
                raise block.busy(path) from None
            waited = True
            block.wait_for_close(path, min(_RECHECK_SECONDS, left))
    _wait_unbound(path, tag, until)
    if lost is not None:
        raise kernel_error(
            lost,
            "the device is detached, but its last writes could not be stored",
            subject=path,
            hint="check the storage below the image, then the filesystems in it",
        )
    return ours


def _clear(path: str, tag: str) -> tuple[bool, OSError | None]:
    """Flush, delete the partitions, detach; all of it or nothing.

    :returns: whether it was attached with this tag; and the error of the flush, when data was lost.
    :raises _Held: when it is in use, with whatever tag; it is as it was then.
    """
    try:
        refuse_other(path)
        fd = block.try_exclusive(path)  # from here on nobody can mount it
    except (FileNotFoundError, NotFound):
        return False, None
    if fd is None:
        raise _Held
    lost: OSError | None = None
    try:
        if read_tag(fd, path) != tag:
            return False, None
        try:
            block.flush(fd)
        except OSError as error:
            lost = error  # a dead server below the image: it must be possible to clean up all the same
        try:
            held = not _clear_open(fd)
        except OSError as error:
            raise kernel_error(error, "cannot detach the loop device", subject=path) from error
    finally:
        os.close(fd)
    if held:
        raise _Held
    return True, lost


def _clear_open(fd: int) -> bool:
    """Detach the device behind an exclusive descriptor; False, and unchanged, when somebody else has it open too."""
    try:
        # The kernel keeps partitions of BLKPG when it detaches, and the next image would get them.
        partitions = blkpg.delete_all(fd)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    try:
        fcntl.ioctl(fd, _LOOP_CLR_FD)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return True
        blkpg.restore(fd, partitions)
        if error.errno == errno.EBUSY:
            return False
        raise
    info = read_info(fd)
    if info is None:
        return True  # detached, or (kernel 6.11 and later) it will be when we close it, with no new openers allowed
    # Still attached: CLR_FD found other openers and only set "autoclear". Take that back.
    fields = list(INFO.unpack(info))
    fields[INFO_FLAGS] &= ~AUTOCLEAR
    fcntl.ioctl(fd, _LOOP_SET_STATUS64, INFO.pack(*fields))
    blkpg.restore(fd, partitions)
    return False


def _may_go_away(path: str) -> bool:
    """Whether the holders of a device may let it go in a moment by themselves.

    A process may close it (udev probes every new device), and a filesystem without a visible mount is on its way out
    when a mount namespace has just ended. A mount, a swap area or a device on top stays until somebody takes it away.
    """
    from mapper_core.linux import holders

    lasting = (holders.HolderKind.MOUNT, holders.HolderKind.DEVICE, holders.HolderKind.SWAP)
    try:
        return not any(holder.kind in lasting for holder in holders.holders(path))
    except NotFound:
        return True


def _wait_unbound(path: str, tag: str, until: float) -> None:
    """The kernel detaches in the last close, and some (5.17) in a worker thread after it; sysfs tells when it is done."""
    name = os.path.basename(path)
    while os.path.isdir(f"/sys/block/{name}/loop"):
        state = status(path)
        if state is not None and state.tag != tag:
            return
        if time.monotonic() > until:
            raise DeviceBusy("the kernel does not finish to detach the device", subject=path)
        block.wait_for_close(path, _RECHECK_SECONDS)
