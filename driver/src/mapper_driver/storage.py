"""The disks of a container: mapped, mounted and ready to be handed over; and all of it taken back.

Which trees a container has is in the journal (their owner is ``lxd:<container>``), never in the XML: what was
attached later is released as well (Y-03). Nothing here knows a format.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from dataclasses import dataclass

from mapper_core.errors import NotSupported, UnknownFilesystem
from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.model import Access, IdMap, MapOptions
from mapper_core.tree import mounted
from mapper_core.tree.look import Purpose
from mapper_core.tree.mounted import TreeRequest
from mapper_core.tree.record import TreeRecord
from mapper_core.tree.scratch import refill_tree, scratch_tree
from mapper_driver import iso, volatile
from mapper_driver.disks import mapper_disk
from mapper_driver.lxd.model import Device
from mapper_driver.opennebula.config import Config
from mapper_driver.opennebula.framing import Log
from mapper_driver.opennebula.vm import Context, DiskKind, VirtualMachine, VmDisk

#: Users of mappings and owners of trees that are containers.
OWNER_PREFIX = "lxd"


@dataclass(frozen=True, slots=True)
class Staged:
    """A disk that is mounted for a container.

    :param directory: where its tree is on the host.
    :param shift: LXD has to show the owners by the container's map: the kernel cannot on this filesystem.
    """

    disk_id: int
    directory: str
    shift: bool = False

    def finish(self, device: Device) -> Device:
        """A device of LXD for this disk, with what only the mounted disk can tell."""
        return {**device, "shift": "true"} if self.shift else device


@dataclass(frozen=True, slots=True)
class Storage:
    """The disks of one container.

    :param container: its name.
    :param config: options of the node.
    :param log: where a person finds what was decided.
    """

    mapper: Mapper
    container: str
    config: Config
    log: Log

    @property
    def owner(self) -> str:
        """In whose name trees are mounted."""
        return f"{OWNER_PREFIX}:{self.container}"

    def directory(self, disk_id: int) -> str:
        """Where the tree of a disk is, or will be."""
        return f"{self.mapper.runtime.mounts}/{self.container}.{disk_id}"

    def stage(self, vm: VirtualMachine, disk: VmDisk, idmap: IdMap | None) -> Staged:
        """Map and mount one disk.

        :param idmap: of the container; ``None`` when it is privileged.
        :raises MapperError: from the image or the host; then nothing of this disk is left.
        """
        request = TreeRequest(
            mapper_disk(disk, vm, self.config),
            MapOptions(Access.READ_ONLY if disk.read_only else Access.READ_WRITE, self.config.transport or None),
            self.directory(disk.id),
            idmap=idmap,
            owner=self.owner,
            purpose=Purpose.ANY if disk.id == vm.root_disk().id else Purpose.DATA,
        )
        if disk.kind is DiskKind.VOLATILE_FS:
            made = volatile.ensure_filesystem(self.mapper, request, disk.filesystem or self.config.filesystem)
            if made:
                self.log.info(f"disk {disk.id}: made a filesystem ({made})")
        try:
            return self._mount(request, disk)
        except UnknownFilesystem:
            if disk.kind is not DiskKind.CDROM:
                raise
            return self._unpack(disk.id, request.disk.source, idmap)

    def stage_context(self, context: Context, idmap: IdMap | None) -> Staged:
        """Show the files of the contextualisation ISO."""
        return self._unpack(context.disk_id, context.location, idmap)

    def restage_context(self, context: Context, idmap: IdMap | None) -> None:
        """Replace the shown files by those of the ISO as it is now, for everybody who has them mounted.

        :raises NotMapped: the files are not shown.
        """
        real = os.path.realpath(context.location)
        refill_tree(
            self.mapper,
            os.path.basename(self.directory(context.disk_id)),
            owner=self.owner,
            size=iso.size_needed(real),
            fill=functools.partial(iso.extract, real, owner=root_of(idmap)),
        )

    def tree(self, disk_id: int) -> TreeRecord | None:
        """What the journal knows of a disk's tree; ``None`` when it has none."""
        found = mounted.find(self.mapper, self.directory(disk_id))
        return found if found is not None and found.owner == self.owner else None

    def is_staged(self, disk: VmDisk) -> bool:
        """Whether the tree of a disk is mounted, and shows just this image and not another that had its number before."""
        tree = self.tree(disk.id)
        if tree is None or not tree.complete or not mountinfo.at(tree.directory):
            return False
        if not tree.disk_id:  # files of an ISO; which one is not written down
            return True
        found = self.mapper.find(disk.location)
        return found is not None and found.id == tree.disk_id

    def release_one(self, disk_id: int) -> None:
        """Take back the tree of one disk. Nothing left to do is a success.

        :raises DeviceBusy: naming who still uses it.
        """
        tree = self.tree(disk_id)
        if tree is not None:
            mounted.dismantle(self.mapper, tree)

    def release(self) -> None:
        """Take back every tree of the container, the newest first. Nothing left to do is a success.

        :raises DeviceBusy: naming who still uses one.
        """
        for tree in reversed(mounted.records(self.mapper)):
            if tree.owner == self.owner:
                mounted.dismantle(self.mapper, tree)

    def _mount(self, request: TreeRequest, disk: VmDisk) -> Staged:
        try:
            tree = mounted.mount_tree(self.mapper, request)
        except NotSupported as error:
            if request.idmap is None or type(error) is not NotSupported:
                raise
            self.log.warning(f"disk {disk.id}: {error}; LXD shifts the owners of its files instead")
            tree = mounted.mount_tree(self.mapper, dataclasses.replace(request, idmap=None))
            return Staged(disk.id, tree.directory, shift=True)
        for warning in tree.plan.warnings:
            self.log.warning(f"disk {disk.id}: {warning}")
        return Staged(disk.id, tree.directory)

    def _unpack(self, disk_id: int, path: str, idmap: IdMap | None) -> Staged:
        real = os.path.realpath(path)
        owner = root_of(idmap)
        directory = scratch_tree(
            self.mapper,
            os.path.basename(self.directory(disk_id)),
            owner=self.owner,
            size=iso.size_needed(real),
            uid=owner.uid,
            gid=owner.gid,
            fill=functools.partial(iso.extract, real, owner=owner),
        )
        return Staged(disk_id, directory)


def root_of(idmap: IdMap | None) -> iso.Owner:
    """Host ids of the container's root user."""
    if idmap is None:
        return iso.Owner(0, 0)
    uid = next(item.host for item in idmap.uid if item.inside == 0)
    gid = next(item.host for item in idmap.gid if item.inside == 0)
    return iso.Owner(uid, gid)
