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
from mapper_core.mapping import Mapper
from mapper_core.model import Access, IdMap, MapOptions
from mapper_core.tree import mounted
from mapper_core.tree.look import Purpose
from mapper_core.tree.mounted import TreeRequest
from mapper_core.tree.scratch import scratch_tree
from mapper_driver import iso, volatile
from mapper_driver.disks import mapper_disk
from mapper_driver.opennebula.config import Config
from mapper_driver.opennebula.framing import Log
from mapper_driver.opennebula.vm import Context, DiskKind, VirtualMachine, VmDisk

#: Users of mappings and owners of trees that are containers.
OWNER_PREFIX = "lxd"


@dataclass(frozen=True, slots=True)
class Staged:
    """A disk that is mounted for a container.

    :param directory: where its tree is on the host.
    :param idmapped: owners are shown by the container's map; ``False``: they are as on the disk.
    """

    disk_id: int
    directory: str
    idmapped: bool


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
            return Staged(disk.id, tree.directory, idmapped=False)
        for warning in tree.plan.warnings:
            self.log.warning(f"disk {disk.id}: {warning}")
        return Staged(disk.id, tree.directory, idmapped=request.idmap is not None)

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
        return Staged(disk_id, directory, idmapped=True)


def root_of(idmap: IdMap | None) -> iso.Owner:
    """Host ids of the container's root user."""
    if idmap is None:
        return iso.Owner(0, 0)
    uid = next(item.host for item in idmap.uid if item.inside == 0)
    gid = next(item.host for item in idmap.gid if item.inside == 0)
    return iso.Owner(uid, gid)
