"""Questions to block devices: sizes, flags, partitions known to the kernel, exclusive use."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from mapper_core.errors import DeviceBusy, NotFound, Refused
from mapper_core.linux.files import read_bytes
from mapper_core.linux.syscalls import kernel_error

# include/uapi/linux/fs.h; _IOR() encodes the size of a pointer, so the value holds for 64-bit machines.
BLKROGET = 0x125E
BLKFLSBUF = 0x1261
BLKSSZGET = 0x1268
BLKGETSIZE64 = 0x80081272

SYSFS_SECTOR = 512  # sysfs counts sectors of 512 bytes whatever the sector size of the device is


#: Drivers whose devices are made for one image; others have the host's own disks as well.
_MADE_FOR_IMAGES = ("loop", "nbd", "rbd")


class KernelPartition(NamedTuple):
    """A partition the kernel knows: number, first byte, length in bytes."""

    number: int
    start: int
    size: int


def is_made_for_an_image(number: str) -> bool:
    """Whether a device is one of those that are made when an image is mapped, and serves no other purpose.

    :param number: ``major:minor`` of a whole disk.
    """
    return os.path.basename(os.path.realpath(f"/sys/dev/block/{number}")).startswith(_MADE_FOR_IMAGES)


def size(fd: int) -> int:
    """Size of a block device, bytes."""
    return int(struct.unpack("=Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0])


def size_of(path: str) -> int:
    """Size of the block device at a path, bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return size(fd)
    finally:
        os.close(fd)


def logical_sector_size(fd: int) -> int:
    """Logical sector size of a block device, bytes."""
    return int(struct.unpack("=i", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))[0])


def is_read_only(fd: int) -> bool:
    """Whether the kernel refuses writes to a block device."""
    return bool(struct.unpack("=i", fcntl.ioctl(fd, BLKROGET, bytes(4)))[0])


def flush(fd: int) -> None:
    """Write what the page cache holds for the device, and make the device store it.

    :raises OSError: EIO when data could not be stored (the server of the device may be gone).
    """
    os.fsync(fd)


def device_number(path: str) -> int:
    """The device number (``st_rdev``) behind a block device node.

    :raises NotFound: when there is no such node.
    :raises Refused: when it is not a block device.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound("there is no such device", subject=path) from error
    if not stat.S_ISBLK(status.st_mode):
        raise Refused("this is not a block device", subject=path)
    return status.st_rdev


def number_without_asking(path: str) -> int:
    """The device number of a block device, without any request to a file server that may be dead; -1 for other files.

    :raises OSError: when there is no such file.
    """
    from mapper_core.linux.syscalls import statx_without_sync

    status = statx_without_sync(path)
    (mode,) = struct.unpack_from("=H", status, 0x1C)
    major, minor = struct.unpack_from("=II", status, 0x80)
    return os.makedev(major, minor) if stat.S_ISBLK(mode) else -1


def sysfs_directory(number: int) -> str:
    """The sysfs directory of a block device, such as ``/sys/devices/virtual/block/loop0``.

    :param number: device number (``st_rdev``).
    :raises NotFound: when the kernel has no such device.
    """
    name = f"{os.major(number)}:{os.minor(number)}"
    try:
        link = os.readlink(f"/sys/dev/block/{name}")  # ../../devices/...
    except FileNotFoundError as error:
        raise NotFound("the kernel has no such block device", subject=name) from error
    return "/sys/" + link.removeprefix("../../")


def kernel_name(path: str) -> str:
    """The name the kernel uses for the device behind a node: ``/dev/disk/by-id/x`` -> ``sda``."""
    return os.path.basename(sysfs_directory(device_number(path)))


def kernel_partitions(device: str) -> tuple[KernelPartition, ...]:
    """The partitions that the kernel knows for a whole-disk device, by number.

    :param device: device node, such as ``/dev/loop0``.
    :raises NotFound: when there is no such device.
    """
    return partitions_in(sysfs_directory(device_number(device)))


def partitions_in(directory: str) -> tuple[KernelPartition, ...]:
    """The partitions below the sysfs directory of a disk, by number."""
    disk = os.path.basename(directory)
    found = []
    for name in [name for name in os.listdir(directory) if name.startswith(disk)]:  # the kernel's rule: sda1, loop0p1
        # A partition may vanish between the listing and the reads.
        with contextlib.suppress(OSError):
            number = int(read_attribute(f"{directory}/{name}/partition"))
            start = int(read_attribute(f"{directory}/{name}/start")) * SYSFS_SECTOR
            length = int(read_attribute(f"{directory}/{name}/size")) * SYSFS_SECTOR
            found.append(KernelPartition(number, start, length))
    return tuple(sorted(found))


def read_attribute(path: str) -> str:
    """One sysfs attribute, without the newline."""
    return os.fsdecode(read_bytes(path)).rstrip("\n")


def ensure_node(path: str) -> str:
    """Make sure that the node ``/dev/NAME`` of an existing device is there and is that device.

    devtmpfs makes nodes by itself; a container or chroot with a plain ``/dev`` has only those that somebody made.

    :returns: ``path``.
    :raises NotFound: when the kernel has no device of this name.
    :raises Refused: when ``path`` is no block device node.
    :raises KernelError: when the node cannot be made.
    """
    name = os.path.basename(path)
    try:
        major, minor = read_attribute(f"/sys/class/block/{name}/dev").split(":")
    except OSError as error:
        raise NotFound("the kernel has no such block device", subject=path) from error
    wanted = os.makedev(int(major), int(minor))
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        try:
            os.mknod(path, stat.S_IFBLK | 0o660, wanted)
        except FileExistsError:  # devtmpfs or another process was faster
            return ensure_node(path)
        except OSError as error:
            raise kernel_error(error, "cannot create the device node", subject=path) from error
        return path
    if not stat.S_ISBLK(status.st_mode):
        raise Refused(f"is not the node of block device {major}:{minor}", subject=path)
    if status.st_rdev != wanted:
        # Left over from a device that had this name before: only devtmpfs removes nodes, and the numbers of partitions
        # (major 259) are given out anew each time.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return ensure_node(path)
    return path


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[int]:
    """Hold a block device exclusively: no mount, no device-mapper table, no other exclusive opener.

    Without ``O_CREAT``, ``O_EXCL`` on a block device claims it and all its partitions (:manpage:`open(2)`). Plain
    readers and writers are not kept out.

    :returns: a read-only descriptor, closed at the end of the block.
    :raises DeviceBusy: naming those who hold it.
    :raises NotFound: when there is no such device.
    """
    fd = open_exclusive(path)
    try:
        yield fd
    finally:
        os.close(fd)


def open_exclusive(path: str) -> int:
    """As :func:`exclusive`, for callers that keep the descriptor themselves."""
    fd = try_exclusive(path)
    if fd is None:
        raise busy(path)
    return fd


def try_exclusive(path: str) -> int | None:
    """As :func:`open_exclusive`, but ``None`` when somebody holds the device; does not look for who that is."""
    try:
        return os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return None
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            raise NotFound("there is no such device", subject=path) from error
        raise kernel_error(error, "cannot open the device", subject=path) from error


def busy(path: str) -> DeviceBusy:
    """The error for a device that somebody holds, with the names of the holders."""
    from mapper_core.linux import holders  # only needed on failure

    found = holders.holders(path)
    return DeviceBusy(f"{path} is in use: {holders.describe(found)}", subject=path, hint=holders.advise(found))


def wait_for_close(path: str, seconds: float) -> None:
    """Wait until some process closes the device node, at most ``seconds``.

    The kernel tells nobody when the last opener of a device is gone; inotify reports closes through this inode only
    (not those of another ``/dev``, not those of the kernel). So this shortens a wait, and callers look again
    afterwards.
    """
    import select

    from mapper_core.linux.syscalls import call

    in_close = 0x08 | 0x10  # IN_CLOSE_WRITE | IN_CLOSE_NOWRITE
    watch = call("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        call("inotify_add_watch", watch, os.fsencode(path), in_close)
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        poll.poll(max(1, int(seconds * 1000)))
    finally:
        os.close(watch)
