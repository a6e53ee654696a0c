"""Kernel events about devices, from a netlink socket (no udev needed).

Source: lib/kobject_uevent.c; netlink(7), NETLINK_KOBJECT_UEVENT, multicast group 1.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1

#: Some changes of sysfs come without an event (nbd's ``pid`` file up to Linux 6.18), so the question is asked again
#: at this interval while no event arrives, seconds.
RECHECK_SECONDS = 0.02


class Events:
    """A socket that wakes up when the kernel announces something."""

    def __init__(self, events: socket.socket) -> None:
        self._socket = events

    def wait_until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Ask ``done`` after each event until it says yes or the time is over; return its last answer."""
        deadline = time.monotonic() + seconds
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if select.select([self._socket], [], [], min(left, RECHECK_SECONDS))[0]:
                self._socket.recv(8192)
        return True


@contextmanager
def listen() -> Iterator[Events]:
    """Subscribe to kernel events for the length of a block."""
    import socket  # 3 ms: only paid by those who wait for a device

    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT) as events:
        events.bind((0, _KERNEL_GROUP))
        yield Events(events)
