"""What is attached to the loop devices of the host (LOOP_GET_STATUS64, include/uapi/linux/loop.h)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from mapper_core.errors import NotFound, UsageError
from mapper_core.frozen import dataclass
from mapper_core.linux import block
from mapper_core.linux.syscalls import kernel_error

MAJOR = 7
_LOOP_GET_STATUS64 = 0x4C05

# Flags of struct loop_info64 (LO_FLAGS_*).
READ_ONLY = 1
AUTOCLEAR = 4
DIRECT_IO = 16

# struct loop_info64: device, inode, rdevice, offset, sizelimit; number, encrypt_type, encrypt_key_size, flags;
# file_name[64], crypt_name[64], encrypt_key[32], init[2].
INFO = struct.Struct("=QQQQQIIII64s64s32s16x")
INFO_FLAGS = 8  # position of the flags among the fields
_INFO_NAME = 9

#: Name of the file that a storage daemon exports, in the directory of the mapping.
_EXPORT = "disk"


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """An attached loop device.

    :param path: device node, such as ``/dev/loop3``.
    :param number: 3
    """

    path: str
    number: int


@dataclass(frozen=True, slots=True)
class LoopStatus:
    """What the kernel says about an attached loop device.

    :param tag: text given to :func:`attach`; for devices of other programs usually the name of the file.
    :param backing_device: ``st_dev`` of the backing file.
    :param backing_inode: ``st_ino`` of the backing file.
    :param offset: first byte of the file that is visible.
    :param size_limit: bytes visible, 0 for all.
    """

    device: LoopDevice
    tag: str
    backing_device: int
    backing_inode: int
    offset: int
    size_limit: int
    read_only: bool
    direct_io: bool
    autoclear: bool


def status(path: str) -> LoopStatus | None:
    """What is attached to a loop device; ``None`` when it is free or does not exist.

    :raises UsageError: when it is not a loop device.
    """
    fd = open_device(path)
    if fd is None:
        return None
    try:
        return read_status(fd, path)
    finally:
        os.close(fd)


def carries(path: str, tag: str) -> bool:
    """Whether a loop device is attached with this tag.

    :raises UsageError: when it is not a loop device.
    """
    fd = open_device(path)
    if fd is None:
        return False
    try:
        return read_tag(fd, path) == tag
    finally:
        os.close(fd)


def find(tag: str) -> tuple[LoopDevice, ...]:
    """All devices attached with this tag, by number."""
    return tuple(status.device for status in list_devices() if status.tag == tag)


def list_devices() -> tuple[LoopStatus, ...]:
    """All attached loop devices of the host, by number."""
    # Opening a free device and asking it is three times faster than to look for /sys/block/loopN/loop first; with
    # hundreds of images mapped this is most of the cost of a map.
    numbers = sorted(int(n[4:]) for n in os.listdir("/sys/block") if n.startswith("loop") and n[4:].isdigit())
    found = []
    for number in numbers:
        path = f"/dev/loop{number}"
        fd = _open_node(path)
        if fd is None:
            continue
        try:
            state = read_status(fd, path)
        finally:
            os.close(fd)
        if state is not None:
            found.append(state)
    return tuple(found)


def backing_file(path: str) -> str:
    """The present path of the file behind a loop device, also after a rename.

    :raises NotFound: when nothing is attached, or the file has been deleted.
    """
    try:
        name = block.read_attribute(f"{block.sysfs_directory(block.device_number(path))}/loop/backing_file")
    except FileNotFoundError:
        raise NotFound("nothing is attached to it", subject=path) from None
    if name.endswith(" (deleted)") and not os.path.lexists(name):
        raise NotFound("the image has been deleted", subject=name.removesuffix(" (deleted)"))
    return name


def open_device(path: str) -> int | None:
    """Open a loop device for reading; ``None`` when there is no such device, or it is just being detached.

    :raises UsageError: when it is not a loop device.
    """
    try:
        refuse_other(path)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            return None  # ENXIO: being detached, or removed while the static node stayed
        raise kernel_error(error, "cannot open the device", subject=path) from error


def refuse_other(path: str) -> None:
    """Make sure that something is a loop device, before it is opened.

    :raises UsageError: it is something else.
    :raises OSError: it cannot be looked at.
    """
    found = os.stat(path)
    if not stat.S_ISBLK(found.st_mode) or os.major(found.st_rdev) != MAJOR:
        raise UsageError("this is not a loop device", subject=path)


def read_info(fd: int) -> bytes | None:
    """The ``struct loop_info64`` of an open device; ``None`` when nothing is attached.

    :raises OSError: for all else.
    """
    try:
        return fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(INFO.size))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def read_tag(fd: int, path: str) -> str | None:
    """The tag of an open device; ``None`` when nothing is attached."""
    info = _info_or_dead(fd, path)
    if isinstance(info, bytes):
        return _tag(INFO.unpack(info)[_INFO_NAME])
    return info.tag if info is not None else None


def read_status(fd: int, path: str) -> LoopStatus | None:
    """As :func:`status`, of an open device."""
    info = _info_or_dead(fd, path)
    if not isinstance(info, bytes):
        return info
    device, inode, _, offset, limit, number, _, _, flags, name, _, _ = INFO.unpack(info)
    return LoopStatus(
        device=LoopDevice(path, number),
        tag=_tag(name),
        backing_device=device,
        backing_inode=inode,
        offset=offset,
        size_limit=limit,
        read_only=bool(flags & READ_ONLY),
        direct_io=bool(flags & DIRECT_IO),
        autoclear=bool(flags & AUTOCLEAR),
    )


def _info_or_dead(fd: int, path: str) -> bytes | LoopStatus | None:
    """As :func:`read_info`; of a device whose answer would come from a server, what is known otherwise."""
    if _is_on_export(path):
        return _status_of_served(path)
    try:
        return read_info(fd)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return _status_of_served(path)
        raise kernel_error(error, "cannot read the state of the loop device", subject=path) from error


def _tag(name: bytes) -> str:
    return name.split(b"\0", 1)[0].decode(errors="replace")


def _is_on_export(path: str) -> bool:
    """Whether a device is on a file that is a mount of its own, as the exports of storage daemons are."""
    try:
        file = block.read_attribute(f"/sys/block/{os.path.basename(path)}/loop/backing_file")
        if os.path.basename(file) != _EXPORT:
            return False
        from mapper_core.linux import mountinfo

        return mountinfo.device_on(file) is not None
    except OSError:  # nothing is attached, or its file has no name here
        return False


def _status_of_served(path: str) -> LoopStatus | None:
    """What sysfs says of a device on a file of FUSE.

    LOOP_GET_STATUS64 asks the server for the file's attributes first (loop_get_status(), Linux 6.18): it fails when that is
    dead, and waits for ever when that hangs. So the tag is not read; for a device of ours it follows from the file, which is
    ``KEY/disk`` for the tag ``mapper:KEY``.
    """
    directory = f"/sys/block/{os.path.basename(path)}"
    try:
        file = block.read_attribute(f"{directory}/loop/backing_file")
        flags = {
            name: block.read_attribute(f"{directory}/{name}") == "1" for name in ("ro", "loop/dio", "loop/autoclear")
        }
    except FileNotFoundError:
        return None
    mapping, name = os.path.split(file)
    return LoopStatus(
        device=LoopDevice(path, int(os.path.basename(path).removeprefix("loop"))),
        tag=f"mapper:{os.path.basename(mapping)}" if name == _EXPORT else "",
        backing_device=0,
        backing_inode=0,
        offset=0,
        size_limit=0,
        read_only=flags["ro"],
        direct_io=flags["loop/dio"],
        autoclear=flags["loop/autoclear"],
    )


def _open_node(path: str) -> int | None:
    """Open a device that sysfs has; ``None`` when it has been removed since."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):
            return None
        if error.errno != errno.ENOENT:
            raise kernel_error(error, "cannot open the device", subject=path) from error
    try:
        return open_device(block.ensure_node(path))
    except NotFound:
        return None
