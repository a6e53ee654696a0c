"""What this kernel can do, found out by asking it and not by its version; nothing stays changed."""

from __future__ import annotations

import errno
import fcntl
import os

from mapper_core.errors import MapperError
from mapper_core.linux import beneath, mountinfo, mounts
from mapper_core.model import Access

_LOOP_CONFIGURE = 0x4C0A  # include/uapi/linux/loop.h
_NO_FILE = b"\xff" * 4 + bytes(4 + 232 + 64)  # struct loop_config with the file descriptor -1

#: Filesystems of containers that can be idmapped, the earliest kernel first: ext4 and vfat 5.12, xfs 5.12, btrfs 5.15.
_IDMAPPABLE = ("ext4", "xfs", "btrfs")


def loop_configure() -> bool | None:
    """Whether the kernel has LOOP_CONFIGURE (5.8); ``None`` when there is no free loop device to ask.

    It is called without a file, which it refuses with EBADF before it looks at the device; an older kernel does not know
    the request (EINVAL, ENOTTY).
    """
    free = (
        name
        for name in sorted(os.listdir("/sys/block"))
        if name.startswith("loop") and not os.path.isdir(f"/sys/block/{name}/loop")
    )
    for name in free:
        try:
            fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.ioctl(fd, _LOOP_CONFIGURE, _NO_FILE)
        except OSError as error:
            return error.errno in (errno.EBADF, errno.EBUSY)
        finally:
            os.close(fd)
    return None


def mount_api() -> str:
    """Try fsopen, fsmount and mount_setattr on a detached tmpfs; return why not, empty when they work."""
    try:
        fd = mounts.new_filesystem("tmpfs", "", access=Access.READ_WRITE)
        try:
            mounts.set_attributes(fd, set=mounts.MountAttribute.NOSUID)
        finally:
            os.close(fd)
    except MapperError as error:
        return str(error)
    return ""


def open_in_root() -> str:
    """Try openat2 with RESOLVE_IN_ROOT; return why not, empty when it works."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(beneath.open_in_root(root, "/", os.O_PATH | os.O_DIRECTORY))
    except MapperError as error:
        return str(error)
    finally:
        os.close(root)
    return ""


def idmapped_mounts() -> tuple[tuple[str, str, bool], ...]:
    """Try an id map on one mounted filesystem of each type that matters, else on a detached tmpfs (6.3).

    :returns: (type, mount point, whether it works); nothing is mounted.
    :raises MapperError: it cannot be tried, because user namespaces are forbidden for example.
    """
    found: dict[str, str] = {}
    for entry in mountinfo.entries():
        if entry.fstype in _IDMAPPABLE and os.path.isdir(entry.target):
            found.setdefault(entry.fstype, entry.target)
    if found:
        return tuple((fstype, target, mounts.filesystem_supports_idmap(target)) for fstype, target in found.items())
    fd = mounts.new_filesystem("tmpfs", "", access=Access.READ_WRITE)
    try:
        return (("tmpfs", "", mounts.filesystem_supports_idmap(fd)),)
    finally:
        os.close(fd)


def filesystems() -> frozenset[str]:
    """Filesystem types that the kernel knows now (:manpage:`proc_filesystems(5)`)."""
    with open("/proc/filesystems", encoding="ascii") as file:
        return frozenset(line.split()[-1] for line in file if line.strip())


def loadable_filesystems(types: frozenset[str]) -> frozenset[str]:
    """Those of ``types`` that the kernel would load as a module when they are first mounted."""
    try:
        with open(f"/lib/modules/{os.uname().release}/modules.dep", encoding="utf-8", errors="replace") as file:
            modules = {line.partition(":")[0].rsplit("/", 1)[-1].partition(".")[0] for line in file}
    except OSError:
        return frozenset()
    return types & modules
