"""Mounted filesystems grow to the size of their device, by the ioctl of their own driver.

No program reads the image for it, and no path is involved: :manpage:`resize2fs(8)`, :manpage:`xfs_growfs(8)` and
``btrfs filesystem resize`` use the same ioctls.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from mapper_core.errors import CorruptImage, MapperError, NeedsRoot, NotSupported, ReadOnlyImage
from mapper_core.linux.syscalls import kernel_error

#: The types that can.
GROWABLE = ("ext2", "ext3", "ext4", "xfs", "btrfs")

_EXT4_IOC_RESIZE_FS = 0x40086610  # fs/ext4/ext4.h: _IOW('f', 16, __u64)
_XFS_IOC_FSGEOMETRY_V1 = 0x80705864  # fs/xfs/libxfs/xfs_fs.h
_XFS_IOC_FSGROWFSDATA = 0x4010586E
_BTRFS_IOC_RESIZE = 0x50009403  # include/uapi/linux/btrfs.h
_BTRFS_IOC_FS_INFO = 0x8400941F
#: Less is EINVAL (fs/btrfs/ioctl.c, btrfs_ioctl_resize(), Linux 6.18), bytes.
_BTRFS_MIN_RESIZE = 256 << 20

_CAP_SYS_RESOURCE = 24  # include/uapi/linux/capability.h

#: struct xfs_fsop_geom_v1: blocksize, rtextsize, agblocks, agcount, logblocks, sectsize, inodesize, imaxpct, datablocks.
_XFS_GEOMETRY = struct.Struct("=8IQ")
_XFS_GEOMETRY_SIZE = 112
#: The smallest allocation group, blocks (XFS_MIN_AG_BLOCKS).
_XFS_MIN_AG_BLOCKS = 64


def grow(fd: int, kind: str, size: int, device: str) -> None:
    """Let a mounted filesystem grow to the size of its device. One that has that size is a success.

    :param fd: its root directory, opened for reading through a writable mount.
    :param kind: its type, one of :data:`GROWABLE`.
    :param size: of the device, bytes.
    :param device: for errors.
    :raises NotSupported: this filesystem cannot, as it was made; or it spans several devices.
    :raises CorruptImage: the driver has found errors in it.
    :raises NeedsRoot: the driver of ext4 wants CAP_SYS_RESOURCE, which root in a container often lacks.
    :raises KernelError: for all else.
    """
    try:
        if kind == "xfs":
            _grow_xfs(fd, size)
        elif kind == "btrfs":
            _grow_btrfs(fd, size, device)
        else:
            fcntl.ioctl(fd, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", size // os.fstatvfs(fd).f_bsize))
    except OSError as error:
        raise _error(error, kind, device) from error


def capacity(fd: int) -> int:
    """What ``df`` says: bytes for data, without what the filesystem needs for itself."""
    status = os.fstatvfs(fd)
    return status.f_blocks * status.f_frsize


def _grow_xfs(fd: int, size: int) -> None:
    answer = fcntl.ioctl(fd, _XFS_IOC_FSGEOMETRY_V1, bytes(_XFS_GEOMETRY_SIZE))
    block, _, group, _, _, _, _, inodes_percent, present = _XFS_GEOMETRY.unpack_from(answer)
    wanted = size // block
    if wanted % group < _XFS_MIN_AG_BLOCKS:  # the rest is too small for an allocation group: EINVAL
        wanted -= wanted % group
    if wanted > present:
        fcntl.ioctl(fd, _XFS_IOC_FSGROWFSDATA, struct.pack("=QI4x", wanted, inodes_percent))


def _grow_btrfs(fd: int, size: int, device: str) -> None:
    answer = fcntl.ioctl(fd, _BTRFS_IOC_FS_INFO, bytes(1024))
    largest_id, devices = struct.unpack_from("=QQ", answer)
    if devices != 1:
        raise NotSupported(f"the btrfs filesystem spans {devices} devices", subject=device)
    if size < _BTRFS_MIN_RESIZE:
        raise NotSupported(
            f"btrfs cannot be enlarged to less than {_BTRFS_MIN_RESIZE >> 20} MiB, the partition has {size >> 20}",
            subject=device,
            hint="make the disk larger",
        )
    # struct btrfs_ioctl_vol_args: what to do as text, "DEVICE-ID:SIZE"; ids only grow, so the only device has the largest
    fcntl.ioctl(fd, _BTRFS_IOC_RESIZE, bytearray(struct.pack("=q4088s", 0, b"%d:max" % largest_id)))


def may_grow_ext4() -> bool:
    """Whether this process has CAP_SYS_RESOURCE, without which the driver of ext4 refuses."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        effective = next((line for line in file if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)


def _error(error: OSError, kind: str, device: str) -> MapperError:
    if error.errno == errno.EROFS:
        return ReadOnlyImage(f"the {kind} filesystem is mounted read-only", subject=device, hint="remount it writable")
    if error.errno == errno.EPERM and not may_grow_ext4():
        return NeedsRoot(
            f"the kernel enlarges a mounted {kind} only for processes with CAP_SYS_RESOURCE, which this one lacks",
            subject=device,
            hint="do it outside of this container, or unmount the filesystem first",
        )
    if error.errno == errno.EPERM and kind.startswith("ext"):
        return CorruptImage(
            f"the {kind} filesystem has errors, and cannot be enlarged", subject=device, hint="e2fsck has to repair it"
        )
    if error.errno in (errno.EUCLEAN, errno.EBADMSG, errno.EIO):
        return CorruptImage(
            f"the {kind} filesystem is damaged, and cannot be enlarged: {os.strerror(error.errno)}", subject=device
        )
    if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
        return NotSupported(
            f"this {kind} filesystem cannot be enlarged while it is mounted: {os.strerror(error.errno)}",
            subject=device,
            hint="the kernel log says why",
        )
    return kernel_error(error, f"cannot enlarge the {kind} filesystem", subject=device, hint="see the kernel log")
