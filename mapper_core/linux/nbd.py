"""Network block devices: who serves them, and how to end that.

Source: include/uapi/linux/nbd.h and drivers/block/nbd.c; where nothing else is said, seen on Linux 6.1.
"""

from __future__ import annotations

import errno
import fcntl
import os

from mapper_core.linux import block

_CLEAR_SOCK = 0xAB04
_DISCONNECT = 0xAB08


def names() -> tuple[str, ...]:
    """All devices of the module, ``nbd0`` first; empty when it is not loaded."""
    found = (name for name in os.listdir("/sys/block") if name.startswith("nbd") and name[3:].isdigit())
    return tuple(sorted(found, key=lambda name: int(name[3:])))


def is_connected(device: str) -> bool:
    """Whether the kernel has a server for the device, or has not forgotten the last one.

    It forgets (the file ``pid`` goes, the size becomes 0) when the last descriptor of the device is closed, which may be udev's.
    """
    directory = f"/sys/block/{os.path.basename(device)}"
    if os.path.exists(f"{directory}/pid"):
        return True
    try:
        return block.read_attribute(f"{directory}/size") != "0"
    except OSError:
        return False


def server(device: str) -> int:
    """The thread that connected the device; 0 when there is none. It may have been killed."""
    try:
        return int(block.read_attribute(f"/sys/block/{os.path.basename(device)}/pid"))
    except (OSError, ValueError):
        return 0


def is_left_over(device: str) -> bool:
    """Whether the kernel still has a server that has ended, because somebody has the device open, or that is ending."""
    thread = server(device)
    if thread == 0:
        return False
    try:
        with open(f"/proc/{thread}/cmdline", "rb") as file:
            return not file.read(1)  # it has no memory any more; its main thread may have ended before this one
    except OSError:
        return True


def is_served_by(device: str, program: str, argument: str) -> bool:
    """Whether the server of a device is a living program with this argument (a whole one, not a part)."""
    try:
        with open(f"/proc/{server(device)}/cmdline", "rb") as file:  # threads have such a directory too
            argv = file.read().split(b"\0")
    except OSError:
        return False
    return os.path.basename(argv[0]) == os.fsencode(program) and os.fsencode(argument) in argv[1:]


def disconnect(fd: int) -> None:
    """Tell the server of a device that nothing more will come, and let go of its socket.

    Everything has to be flushed and every partition deleted before: nothing reaches the server afterwards.

    :param fd: the device, held exclusively.
    :raises OSError: the kernel refuses; a device without a server is none.
    """
    for command in (_DISCONNECT, _CLEAR_SOCK):
        try:
            fcntl.ioctl(fd, command)
        except OSError as error:
            if error.errno != errno.EINVAL:  # "not connected"
                raise
