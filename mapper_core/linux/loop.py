"""Loop devices by ioctl (:manpage:`loop(4)`, include/uapi/linux/loop.h).

Everything needed is in one LOOP_CONFIGURE (kernel 5.8): a device is either free or completely set up, whatever moment
the process is killed at. ``tag`` is stored in ``lo_file_name``, so that :func:`find` gets a device back whose number
nobody wrote down.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time

from mapper_core.errors import MapperError, NoFreeDevice, NotFound, ReadOnlyImage, TransportUnavailable, UsageError
from mapper_core.linux import block
from mapper_core.linux.loop_detach import detach
from mapper_core.linux.loop_status import (
    DIRECT_IO,
    INFO,
    MAJOR,
    READ_ONLY,
    LoopDevice,
    LoopStatus,
    carries,
    find,
    list_devices,
    open_device,
    status,
)
from mapper_core.linux.syscalls import kernel_error
from mapper_core.model import Access

__all__ = ["LoopDevice", "LoopStatus", "attach", "carries", "detach", "find", "list_devices", "set_capacity", "status"]

_LOOP_SET_CAPACITY = 0x4C07
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_ADD = 0x4C80
_LOOP_CTL_GET_FREE = 0x4C82

# struct loop_config: fd, block_size, struct loop_info64, reserved[8].
_CONFIG_HEAD = struct.Struct("=II")
_CONFIG_TAIL = bytes(64)

TAG_LENGTH = 63
_CONTROL = "/dev/loop-control"
_LOST_RACES = 8  # so often the same free number may be busy before a new device is made


def attach(
    backing_fd: int,
    *,
    access: Access,
    tag: str,
    offset: int = 0,
    size_limit: int = 0,
    sector_size: int = 512,
    direct_io: bool,
    deadline_seconds: float = 10,
) -> LoopDevice:
    """Attach a file or block device to a free loop device.

    :param backing_fd: the file, opened read-write for read-write access. The kernel keeps its own reference.
    :param tag: at most 63 bytes of UTF-8, not empty.
    :param offset: first byte of the file to show.
    :param size_limit: how many bytes to show, 0 for all.
    :param sector_size: logical sector size of the device, bytes: a power of two from 512 to the page size.
    :param direct_io: bypass the page cache where the filesystem of the file can do that; it is a wish,
        :func:`status` tells what came out.
    :param deadline_seconds: how long to try while other processes take the same free device.
    :raises NoFreeDevice: when there is none, or all are taken away until the deadline.
    :raises ReadOnlyImage: when read-write access is asked for a descriptor that cannot write.
    :raises TransportUnavailable: when this kernel has no loop driver.
    :raises UsageError: for a bad tag.
    :raises KernelError: for all else, such as a file that cannot be used (EINVAL, EBADF).
    """
    name = _encode_tag(tag)
    mode = fcntl.fcntl(backing_fd, fcntl.F_GETFL) & os.O_ACCMODE
    if access is Access.READ_WRITE and mode != os.O_RDWR:
        # The kernel would silently give a read-only device.
        raise ReadOnlyImage("the file is not open for writing")
    flags = READ_ONLY if access is Access.READ_ONLY else 0
    info = INFO.pack(0, 0, 0, offset, size_limit, 0, 0, 0, flags, name, b"", b"")
    info_direct = INFO.pack(0, 0, 0, offset, size_limit, 0, 0, 0, flags | DIRECT_IO, name, b"", b"")
    head = _CONFIG_HEAD.pack(backing_fd, sector_size)
    wishes = (info_direct, info) if direct_io else (info,)
    until = time.monotonic() + deadline_seconds
    control = _open_control()
    try:
        number, lost_races = -1, 0
        while True:
            last, number = number, _free_number(control, add=lost_races >= _LOST_RACES)
            device = LoopDevice(f"/dev/loop{number}", number)
            if _configure(device, [head + wish + _CONFIG_TAIL for wish in wishes]):
                return device
            if time.monotonic() > until:
                raise NoFreeDevice(
                    f"every free loop device was taken by others for {deadline_seconds:g} seconds",
                    subject=device.path,
                    hint="see `losetup --list`",
                )
            lost_races = lost_races + 1 if number == last else 0
            if lost_races and os.path.exists(device.path):
                block.wait_for_close(device.path, 0.005)  # somebody is just attaching it, and closes it then
    finally:
        os.close(control)


def set_capacity(path: str) -> None:
    """Make a loop device take the present size of its backing file.

    :raises KernelError: ENXIO when nothing is attached.
    """
    fd = open_device(path)
    if fd is None:
        raise NotFound("there is no such loop device", subject=path)
    try:
        fcntl.ioctl(fd, _LOOP_SET_CAPACITY, 0)
    except OSError as error:
        raise kernel_error(error, "cannot take over the new size of the file", subject=path) from error
    finally:
        os.close(fd)


def _encode_tag(tag: str) -> bytes:
    name = tag.encode()
    if not 0 < len(name) <= TAG_LENGTH or b"\0" in name:
        raise UsageError(f"a loop tag has 1 to {TAG_LENGTH} bytes and no NUL", subject=tag)
    return name


def _open_control() -> int:
    try:
        return os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise TransportUnavailable(
                "this kernel has no loop devices", subject=_CONTROL, hint="modprobe loop"
            ) from error
        raise kernel_error(error, "cannot ask for a loop device", subject=_CONTROL) from error


def _free_number(control: int, *, add: bool) -> int:
    """The number of a free device; with ``add`` of a new one.

    GET_FREE answers the lowest device that is not attached; for ever the same, if a process holds it open with O_EXCL
    and never attaches it.
    """
    try:
        number = fcntl.ioctl(control, _LOOP_CTL_ADD, -1) if add else fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    except OSError as error:
        raise NoFreeDevice(
            f"the kernel has no free loop device: {os.strerror(error.errno or 0)}",
            subject=_CONTROL,
            hint="see `losetup --list`",
        ) from error
    return number


def _node(device: LoopDevice) -> str:
    """The node of a device, made when there is none, and replaced when it is of another device."""
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(device.path)
        # so it is on most hosts; with the parameter max_part the driver counts in larger steps, and sysfs has to be asked
        if stat.S_ISBLK(found.st_mode) and found.st_rdev == os.makedev(MAJOR, device.number):
            return device.path
    return block.ensure_node(device.path)


def _configure(device: LoopDevice, configurations: list[bytes]) -> bool:
    """Try one device, with the best configuration first. False: somebody else was faster."""
    try:
        fd = os.open(_node(device), os.O_RDWR | os.O_CLOEXEC)
    except (NotFound, FileNotFoundError):
        return False  # removed (LOOP_CTL_REMOVE) since GET_FREE
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EBUSY):
            return False
        raise NoFreeDevice(f"cannot open the free loop device: {error.strerror}", subject=device.path) from error
    except MapperError as error:
        raise NoFreeDevice(f"the free loop device cannot be used: {error}", subject=device.path) from error
    try:
        for position, configuration in enumerate(configurations, 1):
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, configuration)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    return False
                if error.errno == errno.EINVAL and position < len(configurations):
                    continue  # this filesystem cannot do direct I/O
                raise kernel_error(
                    error, "the kernel cannot attach the file to a loop device", subject=device.path
                ) from error
            return True
        return False
    finally:
        os.close(fd)
