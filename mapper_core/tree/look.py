"""Looking at a mapped disk, for the plan: what is on its partitions, which one is the root, what does its fstab say.

Candidates are mounted read-only, without replaying journals, and detached: they never appear on the host.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mapper_core.errors import (
    CorruptImage,
    KernelError,
    MapperError,
    NoRootFound,
    NotFound,
    UnknownFilesystem,
    UnsafePath,
)
from mapper_core.linux import beneath, mounts
from mapper_core.model import Access, MountPlan, PartitionTable, Volume
from mapper_core.partitions import ReadAt, window
from mapper_core.tree import fstab, plan, roots, superblock
from mapper_core.tree.options import ALLOWED_FILESYSTEMS, EXT_FAMILY, driver, filter_options

#: Larger files are no fstab (S-07).
MAX_FSTAB = 1 << 20

#: Subvolumes in which distributions put the root, besides the default one.
_ROOT_SUBVOLUMES = ("@", "root", "@rootfs")

#: What may stand in for an init program, in the order in which the kernel and LXC look.
_INIT = ("/sbin/init", "/etc/init", "/bin/init", "/usr/lib/systemd/systemd")


class Purpose(enum.Enum):
    """What a disk is mounted for."""

    SYSTEM = "system"  # it has a root filesystem, and its fstab counts
    DATA = "data"  # its one filesystem becomes the tree
    ANY = "any"  # a system if it has a root, else data


def volumes(table: PartitionTable, read: ReadAt) -> tuple[Volume, ...]:
    """Read the superblocks of all partitions."""
    return tuple(
        Volume(partition, superblock.probe(window(read, partition.start, partition.size), partition.size))
        for partition in table.partitions
    )


def plan_for(found: tuple[Volume, ...], access: Access, purpose: Purpose, hint: str, source: str) -> MountPlan:
    """Plan a disk.

    :param found: its volumes.
    :param hint: which partition is the root (or the data).
    :param source: the image, for errors.
    """
    policy = plan.PlanPolicy(kernel_filesystems(found), access)
    try:
        if purpose is Purpose.DATA:
            return plan.data_disk(found, policy, hint)
        return _plan_system(found, policy, purpose, hint)
    except MapperError as error:
        if source not in error.subject:
            error.subject = f"{source}: {error.subject}" if error.subject else source
        raise


def _plan_system(found: tuple[Volume, ...], policy: plan.PlanPolicy, purpose: Purpose, hint: str) -> MountPlan:
    bare = len(found) == 1 and found[0].partition.number == 0
    contents = () if bare and found[0].filesystem.type != "btrfs" else tuple(_evidence(found, policy))
    try:
        root = roots.choose_root(found, contents, hint, architecture=os.uname().machine)
    except NoRootFound:
        if purpose is Purpose.ANY:
            return plan.data_disk(found, policy, hint)
        raise
    if bare and not contents:
        return plan.data_disk(found, policy)  # nothing else on the disk that an fstab could name
    subvolume = roots.root_subvolume(root, contents)
    with _opened(root, subvolume, policy) as root_fd:
        table = _read_fstab(root_fd)
    return plan.plan(found, table, policy, root, subvolume=subvolume)


def kernel_filesystems(found: tuple[Volume, ...]) -> frozenset[str]:
    """Return which of the filesystem types on the disk, and of those whose drivers serve them as well, this kernel can mount."""
    wanted = {volume.filesystem.type for volume in found} & ALLOWED_FILESYSTEMS
    if wanted & EXT_FAMILY:
        wanted.add("ext4")
    return frozenset(name for name in wanted if mounts.is_known(name))


def _evidence(found: tuple[Volume, ...], policy: plan.PlanPolicy) -> Iterator[roots.RootEvidence]:
    for volume in found:
        if not driver(volume.filesystem.type, policy.kernel_filesystems) or volume.filesystem.type == "vfat":
            continue
        subvolumes = ("", *_ROOT_SUBVOLUMES) if volume.filesystem.type == "btrfs" else ("",)
        for subvolume in subvolumes:
            # what cannot be mounted, or is no directory of the image, is no root
            with (
                suppress(CorruptImage, KernelError, UnknownFilesystem, NotFound),
                _opened(volume, subvolume, policy) as fd,
            ):
                yield roots.RootEvidence(
                    volume,
                    has_fstab=_exists(fd, "/etc/fstab"),
                    has_init=any(_exists(fd, path) for path in _INIT),
                    has_etc=_exists(fd, "/etc"),
                    os_release="yes" if _exists(fd, "/etc/os-release") else "",
                    subvolume=subvolume,
                )


@contextmanager
def _opened(volume: Volume, subvolume: str, policy: plan.PlanPolicy) -> Iterator[int]:
    """The root directory of a volume, mounted detached and read-only."""
    fstype = driver(volume.filesystem.type, policy.kernel_filesystems)
    options = filter_options((), volume.filesystem.type, Access.READ_ONLY).options
    if subvolume:
        options = (*options, f"subvol={subvolume}")
    flags = mounts.MountAttribute.NOSUID | mounts.MountAttribute.NODEV | mounts.MountAttribute.NOEXEC
    fd = mounts.new_filesystem(
        fstype, volume.partition.device, options=options, access=Access.READ_ONLY, attributes=flags
    )
    try:
        yield fd
    finally:
        os.close(fd)


def _exists(root_fd: int, path: str) -> bool:
    try:
        os.close(beneath.open_in_root(root_fd, path, os.O_PATH))
    except (NotFound, UnsafePath):
        return False
    return True


def _read_fstab(root_fd: int) -> fstab.FstabTable | None:
    try:
        return fstab.parse(beneath.read_file_in_root(root_fd, "/etc/fstab", MAX_FSTAB))
    except NotFound:
        return None
