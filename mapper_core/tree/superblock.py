"""What kind of filesystem is on a partition: its type, UUID and label, spelled as ``blkid -p`` of util-linux 2.38 does.

The probes read a few fixed places, believe no size or count without a limit, and never raise because of what
they find: a superblock that contradicts itself is none. They are advice for the plan; whether a filesystem is
sound is for the kernel to say when it mounts it.
"""

from __future__ import annotations

from collections.abc import Callable

from mapper_core.model import Filesystem
from mapper_core.partitions.reader import ReadAt, with_start_in_memory
from mapper_core.tree import superblock_container, superblock_exchange, superblock_native

__all__ = ["probe"]

#: In the order of trust. What wraps other filesystems comes first: a member of a RAID 1 shows the filesystem inside
#: at its start as well, and must not be mounted on its own. The weak signatures (FAT has none to speak of, a swap
#: area is ten bytes) come last, since they survive a later mkfs of another type.
_PROBES: tuple[Callable[[ReadAt, int], Filesystem | None], ...] = (
    superblock_container.raid,
    superblock_container.lvm,
    superblock_container.luks,
    superblock_native.xfs,
    superblock_native.squashfs,
    superblock_native.ext,
    superblock_native.f2fs,
    superblock_native.erofs,
    superblock_native.btrfs,
    superblock_exchange.ntfs,
    superblock_exchange.exfat,
    superblock_exchange.vfat,
    superblock_exchange.iso9660,
    superblock_container.swap,
    superblock_container.zfs,
)


def probe(read: ReadAt, size: int) -> Filesystem:
    """Recognise the filesystem of a partition or bare device.

    :param read: reads it.
    :param size: of it, bytes.
    :returns: with an empty type when nothing is recognised.
    """
    read = with_start_in_memory(read, size)
    for recognise in _PROBES:
        if filesystem := recognise(read, size):
            return filesystem
    return Filesystem()
