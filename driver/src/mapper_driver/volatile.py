"""Volatile disks: the one case in which a filesystem is made, and it is made exactly once.

OpenNebula hands over an empty image and keeps it over poweroff and resume, where the disk is "deployed" again. So the
content decides: a filesystem is left alone, zeros are formatted, anything else is an error (C-10: a live volume was
re-formatted because looking at it had failed).
"""

from __future__ import annotations

import contextlib

from mapper_core import users
from mapper_core.errors import CorruptImage, NotFound, Refused, UsageError
from mapper_core.mapping import UNDO_SECONDS, Mapper
from mapper_core.partitions import nodes
from mapper_core.partitions.reader import ReadAt
from mapper_core.process import run
from mapper_core.tree import superblock
from mapper_core.tree.mounted import TreeRequest
from mapper_driver import machine_file
from mapper_driver.opennebula.vm import VmIdentity

#: Filesystems that may be asked for, and how they are made without questions. None of them formats over something it
#: recognises.
MAKERS: dict[str, tuple[str, ...]] = {
    "ext2": ("mkfs.ext2", "-q"),
    "ext3": ("mkfs.ext3", "-q"),
    "ext4": ("mkfs.ext4", "-q"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
}

#: Bytes at both ends of a disk in which all known filesystems and tables have their signatures.
SIGNATURE_AREA = 1 << 20

MKFS_SECONDS = 600

_WHAT = "note of an interrupted mkfs"


def note_of(vm: VmIdentity, disk_id: int) -> str:
    """The file that says that the filesystem of a disk is being made. It goes with the disk, to whatever node that goes."""
    return f"{vm.directory}/mapper-making-{disk_id}"


def ensure_filesystem(mapper: Mapper, request: TreeRequest, filesystem: str, note: str) -> str:
    """Make a filesystem on a volatile disk that has none yet.

    :param request: of the disk; it is mapped and unmapped here.
    :param filesystem: one of :data:`MAKERS`.
    :param note: see :func:`note_of`. Where none can be written, a disk on which this was interrupted is refused later.
    :returns: the filesystem that was made; empty when there was one already.
    :raises UsageError: nobody knows how to make it.
    :raises CorruptImage: the disk is neither empty nor has a filesystem.
    """
    if filesystem not in MAKERS:
        raise UsageError(
            f"a volatile disk cannot have the filesystem {filesystem!r}", hint=f"one of: {', '.join(MAKERS)}"
        )
    user = users.this_process()
    disk = mapper.map(request.disk, request.options, user=user)
    try:
        interrupted = machine_file.read(note, _WHAT) is not None
        with nodes.reader(disk.device) as reader:
            if not interrupted:
                if superblock.probe(reader.read, reader.size).type or disk.table.scheme != "none":
                    return ""
                if not _is_empty(reader.read, reader.size):
                    raise CorruptImage(
                        "the volatile disk is neither empty nor has a known filesystem; it is not formatted",
                        subject=request.disk.source,
                        hint="look at it; to start afresh, replace it by an empty image",
                    )
        # a kill in the middle of mkfs leaves a disk that is neither empty nor has a filesystem: the note says that this was
        # us. It lies beside the disk: one that stays on this node would format what another node has written since
        with contextlib.suppress(NotFound, Refused):
            machine_file.write(note, {"disk": request.disk.source}, _WHAT)
        force = ("-f",) if interrupted and filesystem in ("xfs", "btrfs") else ("-F",) if interrupted else ()
        run((*MAKERS[filesystem], *force, disk.device), timeout=MKFS_SECONDS, subject=request.disk.source)
        machine_file.remove(note)
        return filesystem
    finally:
        mapper.unmap(disk.id, user=user, patience=UNDO_SECONDS)


def _is_empty(read: ReadAt, size: int) -> bool:
    """Read both signature areas whole; a read error is an error, never 'empty'."""
    area = min(size, SIGNATURE_AREA)
    return not any(read(0, area)) and not any(read(size - area, area))
