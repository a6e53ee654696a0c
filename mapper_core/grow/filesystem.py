"""The filesystem of a partition grows: mounted or not, whoever has mounted it, wherever."""

from __future__ import annotations

import os
from collections.abc import Callable

from mapper_core.errors import CorruptImage, NeedsRoot, ReadOnlyImage
from mapper_core.linux import filesystem_size, filesystems, mounts
from mapper_core.model import Access, Partition
from mapper_core.process import run

#: resize2fs may have to move tables out of the way.
RESIZE2FS_SECONDS = 3600

_SUPERBLOCK, _STATE = 1024, 0x3A  # Documentation/filesystems/ext4/super.rst
_VALID, _ERRORS = 1, 2


def grow_filesystem(partition: Partition, kind: str) -> tuple[int, int]:
    """Let the filesystem of a partition grow to its size.

    It is done by the filesystem's own driver. One that is not mounted is mounted for it, visible to nobody.

    :param partition: with its device node.
    :param kind: one of :data:`mapper_core.linux.filesystem_size.GROWABLE`.
    :returns: its capacity before and now, as ``df`` says, bytes.
    :raises ReadOnlyImage: it is mounted read-only.
    :raises NeedsRoot: it is mounted, and the kernel wants a privilege that this process lacks.
    :raises MapperError: as :func:`mapper_core.linux.filesystem_size.grow`.
    """
    device = partition.device
    with filesystems.of_device(device) as found:
        for filesystem in found:
            if not filesystem.writable:
                raise ReadOnlyImage(
                    f"the {kind} filesystem is mounted read-only", subject=device, hint="remount it writable"
                )
            return _grow_mounted(filesystem.fd, partition, kind)
    try:
        return _mounted_meanwhile(partition, kind, _grow_mounted)
    except NeedsRoot:
        # in containers; the kernel has replayed the journal by now, and says whether the filesystem is clean
        before = _mounted_meanwhile(partition, kind, _capacity)
        _check_clean(device, kind)
        # -f: without it, it wants an e2fsck since the last mount, and that could repair what nobody asked for
        run(("resize2fs", "-f", device), timeout=RESIZE2FS_SECONDS, subject=device, writes=(device,))
        return before[0], _mounted_meanwhile(partition, kind, _capacity)[0]


def _mounted_meanwhile(
    partition: Partition, kind: str, work: Callable[[int, Partition, str], tuple[int, int]]
) -> tuple[int, int]:
    """Work on a filesystem that is mounted for it, detached: no path leads to it."""
    from mapper_core.tree.options import filter_options

    driver = "ext4" if kind.startswith("ext") else kind
    mount = mounts.new_filesystem(
        driver,
        partition.device,
        options=filter_options((), driver, Access.READ_WRITE).options,
        access=Access.READ_WRITE,
        attributes=mounts.MountAttribute.NOSUID | mounts.MountAttribute.NODEV | mounts.MountAttribute.NOEXEC,
    )
    try:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        try:
            return work(fd, partition, kind)
        finally:
            os.close(fd)
    finally:
        os.close(mount)


def _grow_mounted(fd: int, partition: Partition, kind: str) -> tuple[int, int]:
    before = filesystem_size.capacity(fd)
    filesystem_size.grow(fd, kind, partition.size, partition.device)
    return before, filesystem_size.capacity(fd)


def _capacity(fd: int, _partition: Partition, _kind: str) -> tuple[int, int]:
    found = filesystem_size.capacity(fd)
    return found, found


def _check_clean(device: str, kind: str) -> None:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        state = int.from_bytes(os.pread(fd, 2, _SUPERBLOCK + _STATE), "little")
    finally:
        os.close(fd)
    if state & _ERRORS or not state & _VALID:
        raise CorruptImage(
            f"the {kind} filesystem has errors, and cannot be enlarged", subject=device, hint="e2fsck has to repair it"
        )
