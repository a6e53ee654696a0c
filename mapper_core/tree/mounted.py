"""Mounted trees: a disk's filesystems, put together as the image's own fstab says, on a directory of the host.

Planning (:mod:`mapper_core.tree.plan`) is pure; this module looks at the disk, asks for the plan, and carries it out
(:mod:`mapper_core.tree.mounting`) with one stack of undo steps.
"""

from __future__ import annotations

import contextlib
import os

from mapper_core import users
from mapper_core.errors import (
    ImageInUse,
    KernelError,
    MapperError,
    NotMapped,
    StateCorrupt,
    UsageError,
)
from mapper_core.frozen import dataclass, replace
from mapper_core.linux import locks, mountinfo
from mapper_core.linux.files import real_path
from mapper_core.mapping import UNDO_SECONDS, Mapper
from mapper_core.model import Access, Attachment, Disk, IdMap, MapOptions, MappedDisk, Mount, MountPlan
from mapper_core.tree import look, mounting, record, staging
from mapper_core.tree.look import Purpose
from mapper_core.tree.record import TreeRecord


@dataclass(frozen=True, slots=True)
class TreeRequest:
    """A tree as the caller wants it.

    :param directory: absolute path on which it is mounted. Below ``<runtime>/mounts`` it is made, and removed with
        the tree.
    :param idmap: show the owners of files by this map (idmapped mounts, Linux 5.12); the image is not changed.
    :param root_hint: which partition is the root, see :func:`mapper_core.tree.plan.choose_root`.
    :param owner: who asked; the tree goes away when :mod:`mapper_core.reconcile` finds that it is gone.
    :param purpose: a system (root filesystem, fstab) or a data disk.
    """

    disk: Disk
    options: MapOptions
    directory: str
    idmap: IdMap | None = None
    root_hint: str = ""
    owner: str = "cli"
    purpose: Purpose = Purpose.ANY


@dataclass(frozen=True, slots=True)
class MountedTree:
    """A tree that is mounted."""

    directory: str
    disk: MappedDisk
    plan: MountPlan
    owner: str


def mount_tree(mapper: Mapper, request: TreeRequest) -> MountedTree:
    """Map a disk and mount its filesystems.

    :raises UsageError: the directory is missing, relative, or a mount point already.
    :raises NotSupported: an id map is asked for and a filesystem cannot do it; nothing is mounted then.
    :raises MapperError: from the image, the plan or the kernel; afterwards everything is as it was.
    """
    directory = _real_directory(mapper, request.directory)
    is_own = staging.is_one(mapper.runtime, directory)
    with lock(mapper, directory), contextlib.ExitStack() as undo:
        if (old := find(mapper, directory)) is not None:
            if old.complete and old.boot == mapper.boot and mountinfo.at(directory):
                raise ImageInUse(
                    "a tree is mounted here already",
                    subject=directory,
                    hint="unmount it first: mapper-cli umount",
                )
            dismantle_locked(mapper, old)
        if not mountinfo.is_clear(directory):  # also below: what we cover there could never be told from our own mounts
            raise UsageError("something else is mounted here", subject=directory, hint="choose another directory")
        identity = mapper.identify_to_map(request.disk)
        tree = TreeRecord(directory, identity.id, request.owner, mapper.boot, own_directory=is_own)
        undo.callback(lambda: dismantle_locked(mapper, find(mapper, directory), patience=UNDO_SECONDS))
        record.write(mapper.runtime.trees, tree)
        if is_own:
            staging.make(mapper.runtime, directory)
        user = users.of_tree(directory)
        with mapper.map_open(request.disk, identity, request.options, user=user) as opened:
            volumes = look.volumes(opened.disk.table, opened.reader.read)
        disk = opened.disk
        plan = look.plan_for(volumes, disk.access, request.purpose, request.root_hint, disk.disk.source)
        mounting.carry_out(plan, directory, request.idmap)
        record.mark(mapper.runtime.trees, directory, complete=True)
        undo.pop_all()
    return MountedTree(directory, disk, plan, request.owner)


def plan_tree(
    mapper: Mapper,
    disk: Disk,
    *,
    access: Access = Access.READ_WRITE,
    root_hint: str = "",
    purpose: Purpose = Purpose.ANY,
) -> MountPlan:
    """Return what :func:`mount_tree` would do. Meanwhile the disk is mapped read-only, and nothing is mounted on the host."""
    before = mapper.find(disk.source)
    options = MapOptions(Access.READ_ONLY) if before is None else MapOptions(before.access, before.transport)
    user = users.this_process()
    with contextlib.ExitStack() as undo:
        with mapper.map_open(disk, mapper.identify_to_map(disk), options, user=user) as opened:
            undo.callback(mapper.unmap, opened.disk.id, user=user, patience=UNDO_SECONDS)
            volumes = look.volumes(opened.disk.table, opened.reader.read)
        plan = look.plan_for(volumes, access, purpose, root_hint, disk.source)
    return plan if before is not None else _without_devices(plan)


def _without_devices(plan: MountPlan) -> MountPlan:
    """A plan whose devices are gone does not name them."""

    def strip(mount: Mount) -> Mount:
        partition = replace(mount.volume.partition, device="")
        return replace(mount, volume=replace(mount.volume, partition=partition))

    return replace(plan, mounts=tuple(strip(mount) for mount in plan.mounts))


def unmount_tree(mapper: Mapper, directory: str, *, owner: str = "cli") -> None:
    """Unmount a tree and release its disk. A directory without a tree of ours on it is a success when nothing is
    mounted there.

    :raises ImageInUse: the tree belongs to somebody else.
    :raises DeviceBusy: naming those who use it. What is unmounted by then stays so; repeat the call when they are
        gone.
    """
    try:
        real = real_path(directory)
    except OSError:  # it is gone, but there may be a record of it
        real = os.path.realpath(directory)
    with lock(mapper, real):
        tree = find(mapper, real)
        if tree is None:
            if mountinfo.at(real):
                raise NotMapped("this was not mounted by Mapper", subject=directory, hint="use umount")
            return
        if tree.owner != owner:
            raise ImageInUse(f"the tree belongs to {tree.owner}", subject=directory, hint="let its owner release it")
        dismantle_locked(mapper, tree)


def records(mapper: Mapper) -> tuple[TreeRecord, ...]:
    """All trees in the journal that can be read, by directory."""
    return record.read_all(mapper.runtime.trees)


def find(mapper: Mapper, directory: str) -> TreeRecord | None:
    """The tree on a directory (its real path), or ``None``."""
    return record.read(mapper.runtime.trees, directory)


def damaged(mapper: Mapper) -> tuple[StateCorrupt, ...]:
    """What is wrong with each record of a tree that cannot be read."""
    return record.damaged(mapper.runtime.trees)


def has_record(mapper: Mapper, directory: str) -> bool:
    """Whether the journal knows a tree on a directory (its real path), readable or not."""
    return record.exists(mapper.runtime.trees, directory)


def lock(mapper: Mapper, directory: str) -> contextlib.AbstractContextManager[None]:
    """Lock the tree of a directory. The lock file goes with the record.

    :raises Busy: another process works on it.
    """
    path = f"{mapper.runtime.locks}/tree-{record.key_of(directory)}"
    return locks.try_lock_of(path, lambda: has_record(mapper, directory))


def check_answers(mapper: Mapper, tree: TreeRecord) -> None:
    """Make sure that the storage of a tree's disk is there: who uses it when it is not, waits in a state that nothing ends.

    :raises DeadlineExceeded: it does not answer.
    """
    mapped = mapper.find(tree.disk_id) if tree.disk_id else None
    if mapped is not None:
        _check_answers(mapper, mapped)


def _check_answers(mapper: Mapper, mapped: MappedDisk) -> None:
    mapper.registry.check_answers(mapped.disk, Attachment(mapped.device, mapped.transport))


def dismantle(mapper: Mapper, tree: TreeRecord) -> None:
    """Take a tree away, however far its maker came.

    :raises DeadlineExceeded: the storage of its disk does not answer; nothing is changed.
    """
    with lock(mapper, tree.directory):
        dismantle_locked(mapper, find(mapper, tree.directory))


def dismantle_locked(mapper: Mapper, tree: TreeRecord | None, *, patience: float = 0.0) -> None:
    """As :func:`dismantle`, for those who hold the lock.

    :param patience: how long to wait for others who work on the disk, seconds.
    """
    if tree is None:
        return
    with contextlib.ExitStack() as disk:
        mapped = None
        user = users.of_tree(tree.directory)
        # the maker of one that is not complete may have ended before it got the disk, on which others may be working now
        if tree.disk_id and (tree.complete or mapper.is_held(tree.disk_id, user=user)):
            mapped = disk.enter_context(mapper.releasing(tree.disk_id, user=user, patience=patience))
            if mapped is not None:
                _check_answers(mapper, mapped)
        if tree.boot == mapper.boot:
            _unmount_marked(mapper, tree, _devices(tree, mapped))
    if tree.own_directory:
        staging.remove(mapper.runtime, tree.directory)
    record.remove(mapper.runtime.trees, tree.directory)


def _unmount_marked(mapper: Mapper, tree: TreeRecord, devices: tuple[str, ...]) -> None:
    """Unmount everything; whoever finds only a part of it still mounted, after a crash, knows by the record what was going on."""
    if tree.complete:
        with contextlib.suppress(KernelError):  # what cannot be written must not keep anybody from releasing a disk
            record.mark(mapper.runtime.trees, tree.directory, complete=False)
    unmounted: list[str] = []
    try:
        mounting.unmount_all(tree.directory, devices, unmounted)
    except MapperError:
        if tree.complete and not unmounted and mountinfo.at(tree.directory):  # it is in use, and stays as it is
            record.mark(mapper.runtime.trees, tree.directory, complete=True)
        raise


def devices_of(mapper: Mapper, tree: TreeRecord) -> tuple[str, ...]:
    """What may be mounted in a tree: the devices of its disk."""
    return _devices(tree, mapper.find(tree.disk_id) if tree.disk_id else None)


def _devices(tree: TreeRecord, disk: MappedDisk | None) -> tuple[str, ...]:
    if disk is None:
        return (tree.source,) if tree.source else ()
    return (disk.device, *(partition.device for partition in disk.table.partitions))


def _real_directory(mapper: Mapper, directory: str) -> str:
    """Return the real path of the directory; one below ``<runtime>/mounts`` is made later."""
    if not directory.startswith("/"):
        raise UsageError("the directory must be an absolute path", subject=directory)
    if staging.is_one(mapper.runtime, directory):
        return directory
    try:
        return real_path(directory, os.O_DIRECTORY)
    except (OSError, ValueError) as error:
        hint = "name a directory" if os.path.lexists(directory) else f"mkdir {directory}"
        raise UsageError("is not a directory", subject=directory, hint=hint) from error
