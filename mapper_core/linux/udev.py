"""udev, as far as it gets in the way: it reads the partition table of a disk again when a writer has closed the node.

All partitions of the disk vanish and come back then (M-09). udev leaves a disk alone that somebody has locked with flock(2);
see systemd's documentation, "Locking Block Device Access" (BLOCK_DEVICE_LOCKING).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
from collections.abc import Iterator

from mapper_core.linux import block, uevents
from mapper_core.linux.syscalls import call

#: It is there while udevd runs.
CONTROL = "/run/udev/control"

_IN_CLOSE_WRITE = 0x08


def try_lock(fd: int) -> bool:
    """Keep udev away from a disk until the descriptor is closed; False while udev, or another, has the lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        raise
    return True


class Writers:
    """Tells when a writer has closed a device node.

    :param watch: inotify descriptor.
    """

    def __init__(self, watch: int) -> None:
        self._watch = watch

    def wait(self, seconds: float) -> bool:
        """Wait until one has closed it since the watch began."""
        return bool(select.select([self._watch], [], [], seconds)[0])


@contextlib.contextmanager
def kept_away(device: str, seconds: float) -> Iterator[Writers]:
    """Keep udev away from a disk for the block, and watch who closes it.

    :param seconds: how long udev may take to finish what it is doing with it now.
    :raises DeviceBusy: it does not finish.
    """
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with uevents.listen() as events:
            if not events.wait_until(lambda: try_lock(fd), seconds):
                raise block.busy(device)
        watch = call("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            call("inotify_add_watch", watch, os.fsencode(device), _IN_CLOSE_WRITE)
            yield Writers(watch)
        finally:
            os.close(watch)
    finally:
        os.close(fd)
