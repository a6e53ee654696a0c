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
from dataclasses import dataclass

from mapper_core.errors import (
    DeviceBusy,
    MapperError,
    NoFreeDevice,
    NotFound,
    ReadOnlyImage,
    TransportUnavailable,
    UsageError,
)
from mapper_core.linux import blkpg, block
from mapper_core.linux.syscalls import kernel_error
from mapper_core.model import Access

_MAJOR = 7
_LOOP_CLR_FD = 0x4C01
_LOOP_SET_STATUS64 = 0x4C04
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_SET_CAPACITY = 0x4C07
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_ADD = 0x4C80
_LOOP_CTL_GET_FREE = 0x4C82

_READ_ONLY = 1
_AUTOCLEAR = 4
_DIRECT_IO = 16

# struct loop_info64: device, inode, rdevice, offset, sizelimit; number, encrypt_type, encrypt_key_size, flags;
# file_name[64], crypt_name[64], encrypt_key[32], init[2].
_INFO = struct.Struct("=QQQQQIIII64s64s32s16x")
# struct loop_config: fd, block_size, struct loop_info64, reserved[8].
_CONFIG_HEAD = struct.Struct("=II")
_CONFIG_TAIL = bytes(64)

TAG_LENGTH = 63
_CONTROL = "/dev/loop-control"
_LOST_RACES = 8  # so often the same free number may be busy before a new device is made
_RECHECK_SECONDS = 0.02  # closes by the kernel itself (a filesystem that ends) are not announced


class _Held(Exception):
    """The device cannot be detached now: somebody else has it open."""


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
    flags = _READ_ONLY if access is Access.READ_ONLY else 0
    info = _INFO.pack(0, 0, 0, offset, size_limit, 0, 0, 0, flags, name, b"", b"")
    info_direct = _INFO.pack(0, 0, 0, offset, size_limit, 0, 0, 0, flags | _DIRECT_IO, name, b"", b"")
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


def find(tag: str) -> tuple[LoopDevice, ...]:
    """All devices attached with this tag, by number."""
    return tuple(status.device for status in list_devices() if status.tag == tag)


def list_devices() -> tuple[LoopStatus, ...]:
    """All attached loop devices of the host, by number."""
    numbers = sorted(
        int(name[4:])
        for name in os.listdir("/sys/block")
        if name.startswith("loop") and name[4:].isdigit() and os.path.isdir(f"/sys/block/{name}/loop")
    )
    found = []
    for number in numbers:
        path = f"/dev/loop{number}"
        with contextlib.suppress(NotFound):  # removed since the listing
            state = status(path if os.path.exists(path) else block.ensure_node(path))
            if state is not None:
                found.append(state)
    return tuple(found)


def status(path: str) -> LoopStatus | None:
    """What is attached to a loop device; ``None`` when it is free or does not exist.

    :raises UsageError: when it is not a loop device.
    """
    fd = _open(path)
    if fd is None:
        return None
    try:
        return _status(fd, path)
    finally:
        os.close(fd)


def detach(path: str, *, tag: str, deadline_seconds: float = 10) -> None:
    """Detach a loop device, and return when the kernel shows that it is detached.

    A device that is free, or carries another tag (its number has been reused), counts as detached already. A device
    that is in use stays attached and complete: LOOP_CLR_FD alone would answer success and only set "autoclear", and
    the device would vanish at a moment nobody expects.

    :param tag: the tag it was attached with.
    :param deadline_seconds: how long to wait for those who only look at the device for a moment, such as udev.
    :raises DeviceBusy: naming the holders.
    :raises UsageError: when it is not a loop device.
    :raises KernelError: EIO when it is detached, but its last writes could not be stored.
    """
    until = time.monotonic() + deadline_seconds
    lost: OSError | None = None
    waited = False
    while True:
        fd = _open(path)
        if fd is None:
            break
        try:
            state = _status(fd, path)
        finally:
            os.close(fd)
        if state is None or state.tag != tag:
            break
        try:
            lost = _clear(path, tag) or lost
        except _Held:
            left = until - time.monotonic()
            if left <= 0 or (not waited and not _may_go_away(path)):
                raise block.busy(path) from None
            waited = True
            block.wait_for_close(path, min(_RECHECK_SECONDS, left))
    _wait_unbound(path, tag, until)
    if lost is not None:
        raise kernel_error(
            lost,
            "the device is detached, but its last writes could not be stored",
            subject=path,
            hint="check the storage below the image, then the filesystems in it",
        )


def set_capacity(path: str) -> None:
    """Make a loop device take the present size of its backing file.

    :raises KernelError: ENXIO when nothing is attached.
    """
    fd = _open(path)
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


def _configure(device: LoopDevice, configurations: list[bytes]) -> bool:
    """Try one device, with the best configuration first. False: somebody else was faster."""
    try:
        fd = os.open(block.ensure_node(device.path), os.O_RDWR | os.O_CLOEXEC)
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


def _open(path: str) -> int | None:
    try:
        found = os.stat(path)
        if not stat.S_ISBLK(found.st_mode) or os.major(found.st_rdev) != _MAJOR:
            raise UsageError("this is not a loop device", subject=path)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            return None  # ENXIO: being detached, or removed while the static node stayed
        raise kernel_error(error, "cannot open the device", subject=path) from error


def _info(fd: int) -> bytes | None:
    try:
        return fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_INFO.size))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def _status(fd: int, path: str) -> LoopStatus | None:
    try:
        info = _info(fd)
    except OSError as error:
        raise kernel_error(error, "cannot read the state of the loop device", subject=path) from error
    if info is None:
        return None
    device, inode, _, offset, limit, number, _, _, flags, name, _, _ = _INFO.unpack(info)
    return LoopStatus(
        device=LoopDevice(path, number),
        tag=name.split(b"\0", 1)[0].decode(errors="replace"),
        backing_device=device,
        backing_inode=inode,
        offset=offset,
        size_limit=limit,
        read_only=bool(flags & _READ_ONLY),
        direct_io=bool(flags & _DIRECT_IO),
        autoclear=bool(flags & _AUTOCLEAR),
    )


def _clear(path: str, tag: str) -> OSError | None:
    """Flush, delete the partitions, detach; all of it or nothing.

    :returns: the error of the flush, when data was lost.
    :raises _Held: when it is in use; it is as it was then.
    """
    try:
        fd = block.try_exclusive(path)  # from here on nobody can mount it
    except NotFound:
        return None
    if fd is None:
        raise _Held
    lost: OSError | None = None
    try:
        state = _status(fd, path)
        if state is None or state.tag != tag:
            return None
        try:
            block.flush(fd)
        except OSError as error:
            lost = error  # a dead server below the image: it must be possible to clean up all the same
        try:
            held = not _clear_open(fd)
        except OSError as error:
            raise kernel_error(error, "cannot detach the loop device", subject=path) from error
    finally:
        os.close(fd)
    if held:
        raise _Held
    return lost


def _clear_open(fd: int) -> bool:
    """Detach the device behind an exclusive descriptor; False, and unchanged, when somebody else has it open too."""
    try:
        # The kernel keeps partitions of BLKPG when it detaches, and the next image would get them.
        partitions = blkpg.delete_all(fd)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    try:
        fcntl.ioctl(fd, _LOOP_CLR_FD)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return True
        blkpg.restore(fd, partitions)
        if error.errno == errno.EBUSY:
            return False
        raise
    info = _info(fd)
    if info is None:
        return True  # detached, or (kernel 6.11 and later) it will be when we close it, with no new openers allowed
    # Still attached: CLR_FD found other openers and only set "autoclear". Take that back.
    fields = list(_INFO.unpack(info))
    fields[8] &= ~_AUTOCLEAR
    fcntl.ioctl(fd, _LOOP_SET_STATUS64, _INFO.pack(*fields))
    blkpg.restore(fd, partitions)
    return False


def _may_go_away(path: str) -> bool:
    """Whether the holders of a device may let it go in a moment by themselves.

    A process may close it (udev probes every new device), and a filesystem without a visible mount is on its way out
    when a mount namespace has just ended. A mount, a swap area or a device on top stays until somebody takes it away.
    """
    from mapper_core.linux import holders

    lasting = (holders.HolderKind.MOUNT, holders.HolderKind.DEVICE, holders.HolderKind.SWAP)
    try:
        return not any(holder.kind in lasting for holder in holders.holders(path))
    except NotFound:
        return True


def _wait_unbound(path: str, tag: str, until: float) -> None:
    """Kernels 5.16 to 5.18 finish a detach in a worker thread; sysfs is the only sign of its end."""
    name = os.path.basename(path)
    while os.path.isdir(f"/sys/block/{name}/loop"):
        state = status(path)
        if state is not None and state.tag != tag:
            return
        if time.monotonic() > until:
            raise DeviceBusy("the kernel does not finish to detach the device", subject=path)
        block.wait_for_close(path, _RECHECK_SECONDS)
