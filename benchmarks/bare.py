"""The floor: a loop device, a mount, and both away again, in one process with nothing around the system calls."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path

LOOP_CTL_GET_FREE, LOOP_CONFIGURE, LOOP_CLR_FD = 0x4C82, 0x4C0A, 0x4C01
LO_FLAGS_DIRECT_IO = 16

_libc = ctypes.CDLL(None, use_errno=True)


def loop_mount_and_back(image: Path, target: Path) -> None:
    """Attach (LOOP_CONFIGURE, linux/loop.h), mount(2), umount2(2), detach. Nothing else may look for loop devices."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    file = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    device = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
    loop = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    # struct loop_config: fd, block_size, struct loop_info64 (lo_flags at 52 of its 232 bytes), 64 reserved bytes
    fcntl.ioctl(loop, LOOP_CONFIGURE, struct.pack("=II52xI176x64x", file, 0, LO_FLAGS_DIRECT_IO))
    _check(_libc.mount(os.fsencode(device), os.fsencode(target), b"ext4", 0, None))
    _check(_libc.umount2(os.fsencode(target), 0))
    fcntl.ioctl(loop, LOOP_CLR_FD)
    for fd in (loop, file, control):
        os.close(fd)


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
