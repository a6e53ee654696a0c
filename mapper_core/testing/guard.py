"""A guard for unit tests: no process, no network, no device, no mount.

The guard is an audit hook (:func:`sys.addaudithook`): it sees what really happens, whatever name it was called by.
A violation raises a :class:`BaseException`, which ``except Exception`` in the code under test does not hide; one that
is swallowed all the same is remembered.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator

#: Audit events that are always a violation (the table of audit events in Python's documentation).
FORBIDDEN = frozenset(
    {
        "subprocess.Popen",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "pty.spawn",
        "socket.getaddrinfo",
        "socket.gethostbyname",
    }
)

#: C functions that unit tests have no business with, seen when ctypes looks them up.
FORBIDDEN_FUNCTIONS = frozenset(
    {
        "chroot",
        "clone",
        "execve",
        "execveat",
        "fork",
        "fsconfig",
        "fsmount",
        "fsopen",
        "mount",
        "mount_setattr",
        "move_mount",
        "open_tree",
        "pivot_root",
        "popen",
        "posix_spawn",
        "posix_spawnp",
        "reboot",
        "setns",
        "swapoff",
        "swapon",
        "system",
        "umount",
        "umount2",
        "unshare",
        "vfork",
    }
)

#: Device nodes that are no hardware.
HARMLESS_DEVICES = (
    "/dev/fd/",
    "/dev/full",
    "/dev/null",
    "/dev/pts/",
    "/dev/random",
    "/dev/shm/",  # noqa: S108 - compared with, never written to
    "/dev/std",
    "/dev/tty",
    "/dev/urandom",
    "/dev/zero",
)

#: ioctl(2) types: 0x4C loop devices (linux/loop.h), 0xAB nbd (linux/nbd.h); and BLKPG (linux/blkpg.h).
FORBIDDEN_IOCTL_TYPES = (0x4C, 0xAB)
BLKPG = 0x1269


class GuardViolation(BaseException):
    """Is raised when a unit test starts a process, opens a device, mounts, or talks to the network."""


class Guard:
    """The guard; it does nothing until :meth:`install` and outside of :meth:`watch`."""

    def __init__(self) -> None:
        self._watching = False
        self._seen: list[str] = []

    def install(self) -> None:
        """Add the audit hook. It stays until the interpreter ends, Python cannot remove one."""
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Forbid, until the block ends.

        :raises GuardViolation: at the place of the violation, or at the end when it was swallowed there.
        """
        __tracebackhide__ = True
        self._seen.clear()
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
        if self._seen:
            raise GuardViolation(f"hidden by the code under test: {'; '.join(self._seen)}")

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        __tracebackhide__ = True
        if not self._watching:
            return
        violation = judge(event, arguments)
        if violation:
            self._seen.append(violation)
            raise GuardViolation(f"a unit test may not do this: {violation}")


def judge(event: str, arguments: tuple[object, ...]) -> str:
    """Return what is wrong with an event; empty when nothing is."""
    if event in FORBIDDEN:
        return f"{event} {arguments[0] if arguments else ''!r}"
    match event, arguments:
        case "open", (str() | bytes() as path, *_):
            name = os.fsdecode(path)
            if name.startswith("/dev/") and not name.startswith(HARMLESS_DEVICES):
                return f"open {name}"
        case "fcntl.ioctl", (_, int(request), *_):
            if (request >> 8) & 0xFF in FORBIDDEN_IOCTL_TYPES or request == BLKPG:
                return f"ioctl {request:#x}"
        case "ctypes.dlsym", (_, str(name)) if name in FORBIDDEN_FUNCTIONS:
            return f"the C function {name}()"
        case "socket.connect", (socket.socket() as connection, address) if connection.family != socket.AF_UNIX:
            return f"socket.connect {address!r}"
        case _:
            pass
    return ""
