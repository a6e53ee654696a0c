"""Tell the kernel about partitions, one by one (BLKPG ioctl, include/uapi/linux/blkpg.h).

The nodes exist when the call returns (devtmpfs makes them synchronously), whether or not udev runs and whether or not the
kernel can parse partition tables itself. Loop devices need no LO_FLAGS_PARTSCAN for it (seen on 6.1 and 6.18), so the
kernel's own parsers never read the image. Partitions made here stay when a loop device is detached without deleting them.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct

from mapper_core.linux import block

_BLKPG = 0x1269
_ADD_PARTITION = 1
_DELETE_PARTITION = 2
_RESIZE_PARTITION = 3

# struct blkpg_partition { long long start, length; int pno; char devname[64]; char volname[64]; }; the names are
# ignored.
_PARTITION = struct.Struct("=qqi64s64s4x")
# struct blkpg_ioctl_arg { int op, flags, datalen; void *data; } with the padding of 64-bit machines.
_ARGUMENT = struct.Struct("=iii4xQ")


def _blkpg(device_fd: int, operation: int, number: int, start: int, size: int) -> None:
    data = array.array("B", _PARTITION.pack(start, size, number, b"", b""))
    address, _ = data.buffer_info()
    fcntl.ioctl(device_fd, _BLKPG, _ARGUMENT.pack(operation, 0, len(data), address))


def _refuse_beyond_device(device_fd: int, start: int, size: int) -> None:
    """Kernel 6.1 takes partitions that end behind the device (then I/O fails inside of the filesystem); 6.18 does not."""
    if start + size > block.size(device_fd):
        raise OSError(errno.EINVAL, "the partition ends behind the device")


def add(device_fd: int, number: int, start: int, size: int) -> None:
    """Add a partition.

    :param device_fd: the whole disk, opened in any mode.
    :param number: partition number, from 1.
    :param start: first byte, a multiple of the logical sector size.
    :param size: length in bytes, a multiple of the logical sector size.
    :raises OSError: EBUSY when the number exists or the extent overlaps another partition; EINVAL when the extent is
        not aligned or ends behind the device.
    """
    _refuse_beyond_device(device_fd, start, size)
    _blkpg(device_fd, _ADD_PARTITION, number, start, size)


def delete(device_fd: int, number: int) -> None:
    """Delete a partition.

    :raises OSError: ENXIO when there is none; EBUSY when it is open.
    """
    _blkpg(device_fd, _DELETE_PARTITION, number, 0, 0)


def resize(device_fd: int, number: int, start: int, size: int) -> None:
    """Change the length of a partition, in use or not.

    :param start: its present first byte; it cannot be moved.
    :raises OSError: EBUSY when it would overlap another partition; ENXIO when there is none; EINVAL when it moved, or
        would end behind the device.
    """
    _refuse_beyond_device(device_fd, start, size)
    _blkpg(device_fd, _RESIZE_PARTITION, number, start, size)


def partition_node(device: str, number: int) -> str:
    """The node name of a partition: ``p`` stands before the number when the disk name ends in a digit.

    The rule is the kernel's (block/partitions/core.c): ``/dev/sda``, 1 -> ``/dev/sda1``; ``/dev/loop0``, 1 -> ``/dev/loop0p1``.
    """
    return f"{device}p{number}" if device[-1:].isdigit() else f"{device}{number}"


def ensure_partition_node(device: str, number: int) -> str:
    """The node of an existing partition, made when ``/dev`` is no devtmpfs.

    :param device: node of the whole disk under its kernel name, such as ``/dev/loop0``.
    :raises NotFound: when the kernel has no such partition.
    :raises Refused: when something else has that name.
    """
    return block.ensure_node(partition_node(device, number))


def delete_all(device_fd: int) -> tuple[block.KernelPartition, ...]:
    """Delete every partition of a disk; on failure put those back that were deleted already.

    :returns: what was deleted.
    :raises OSError: EBUSY when a partition is in use.
    """
    deleted: list[block.KernelPartition] = []
    for partition in block.partitions_in(block.sysfs_directory(os.fstat(device_fd).st_rdev)):
        try:
            delete(device_fd, partition.number)
        except OSError:
            restore(device_fd, tuple(deleted))
            raise
        deleted.append(partition)
    return tuple(deleted)


def restore(device_fd: int, partitions: tuple[block.KernelPartition, ...]) -> None:
    """Add partitions that :func:`delete_all` deleted."""
    for partition in partitions:
        add(device_fd, partition.number, partition.start, partition.size)
