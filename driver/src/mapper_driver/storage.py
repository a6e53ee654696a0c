"""The disks of a container: mapped, mounted and ready to be handed over; and all of it taken back.

Which trees a container has is in the journal (their owner is ``lxd:<container>``), never in the XML: what was
attached later is released as well (Y-03). Nothing here knows a format.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

from mapper_core import users
from mapper_core.errors import DeviceBusy, MapperError, NotSupported, UnknownFilesystem
from mapper_core.linux import mountinfo
from mapper_core.mapping import UNDO_SECONDS, Mapper
from mapper_core.model import Access, IdMap, MapOptions
from mapper_core.tree import mounted
from mapper_core.tree.look import Purpose
from mapper_core.tree.mounted import TreeRequest
from mapper_core.tree.record import TreeRecord
from mapper_core.tree.scratch import refill_tree, scratch_tree
from mapper_driver import iso, volatile
from mapper_driver.disks import mapper_disk
from mapper_driver.lxd import lending
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
    :param daemon_pid: of the daemon; it has to see the disks in its mount namespace.
    :param home: the daemon's directory, as it sees it.
    """

    mapper: Mapper
    container: str
    config: Config
    log: Log
    daemon_pid: int
    home: str

    @property
    def owner(self) -> str:
        """In whose name trees are mounted."""
        return f"{OWNER_PREFIX}:{self.container}"

    def directory(self, disk_id: int) -> str:
        """Where the tree of a disk is, or will be."""
        return f"{self.mapper.runtime.mounts}/{self.container}.{disk_id}"

    def stage(self, vm: VirtualMachine, disk: VmDisk, idmap: IdMap | None) -> Staged:
        """Map and mount one disk, and show it to the daemon. The root is placed instead, by :mod:`~mapper_driver.lxd.placement`.

        :param idmap: of the container; ``None`` when it is privileged.
        :raises MapperError: from the image or the host; then nothing of this disk is left.
        """
        request = self.request(vm, disk, idmap)
        if disk.kind is DiskKind.VOLATILE_FS:
            wanted = disk.filesystem or self.config.filesystem
            made = volatile.ensure_filesystem(self.mapper, request, wanted, volatile.note_of(vm, disk.id))
            if made:
                self.log.info(f"disk {disk.id}: made a filesystem ({made})")
        try:
            with self.log.step(f"mount disk {disk.id}"), self._grown(request, disk):
                staged = self._mount(request, disk)
        except UnknownFilesystem:
            if disk.kind is not DiskKind.CDROM or disk.cluster is not None:
                raise  # only a file is read without the kernel's help
            staged = self._unpack(disk.id, request.disk.source, idmap)
        return staged if disk.id == vm.root_disk().id else self._lend(staged)

    def request(self, vm: VirtualMachine, disk: VmDisk, idmap: IdMap | None = None) -> TreeRequest:
        """The tree of a disk, as it is asked for."""
        return TreeRequest(
            mapper_disk(disk, vm, self.config),
            MapOptions(Access.READ_ONLY if disk.read_only else Access.READ_WRITE, self.config.transport or None),
            self.directory(disk.id),
            idmap=idmap,
            owner=self.owner,
            purpose=Purpose.ANY if disk.id == vm.root_disk().id else Purpose.DATA,
        )

    def stage_context(self, context: Context, idmap: IdMap | None) -> Staged:
        """Show the files of the contextualisation ISO."""
        with self.log.step(f"show the files of disk {context.disk_id}"):
            return self._lend(self._unpack(context.disk_id, context.location, idmap))

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
            self._dismantle(tree)

    def release(self) -> None:
        """Take back every tree of the container, the newest first. Nothing left to do is a success.

        :raises DeviceBusy: naming who still uses one.
        """
        for tree in reversed(mounted.records(self.mapper)):
            if tree.owner == self.owner:
                self._dismantle(tree)

    def lend_all_but(self, directory: str) -> None:
        """Show the daemon every mounted tree of the container but one, the root."""
        for tree in mounted.records(self.mapper):
            if tree.owner == self.owner and tree.complete and tree.directory != directory:
                lending.lend(tree.directory, self.daemon_pid)

    def _lend(self, staged: Staged) -> Staged:
        with contextlib.ExitStack() as undo:
            undo.callback(self.release_one, staged.disk_id)
            lending.lend(staged.directory, self.daemon_pid)
            undo.pop_all()
        return staged

    def _dismantle(self, tree: TreeRecord) -> None:
        was_lent = lending.withdraw(tree.directory, self.daemon_pid)
        lending.withdraw_from_home(tree.directory, self.home, self.daemon_pid)
        try:
            with self.log.step(f"release {os.path.basename(tree.directory)}"):
                self._unmount(tree)
        except DeviceBusy:
            if was_lent and mountinfo.at(tree.directory):
                lending.lend(tree.directory, self.daemon_pid)
            raise

    def _unmount(self, tree: TreeRecord) -> None:
        """Also when a daemon that was replaced has left its mounts to the monitors of other containers."""
        try:
            mounted.dismantle(self.mapper, tree)
        except DeviceBusy:
            for device in mounted.devices_of(self.mapper, tree)[:1]:
                users = lending.users_elsewhere(device, self.daemon_pid)
                if lending.withdraw_from_others(users, tree.directory, self.home):
                    break
            else:
                raise
            mounted.dismantle(self.mapper, tree)

    def let_grow(self, disk_id: int, request: TreeRequest) -> None:
        """Let the content of a disk grow that is not mounted, and say so. A failure is logged."""
        from mapper_driver import growth

        try:
            said = growth.describe(growth.grow_unmounted(self.mapper, request))
        except MapperError as error:
            self.log.warning(f"disk {disk_id} is larger than what is on it, which stays as it is: {error}")
        else:
            if said:
                self.log.info(f"disk {disk_id}: {said}")

    @contextlib.contextmanager
    def _grown(self, request: TreeRequest, disk: VmDisk) -> Iterator[None]:
        """Before a disk is mounted that OpenNebula has made larger than its image, let what is on it grow; that it cannot is no
        reason not to mount it (P-12, P-14). Nothing grows otherwise.
        """
        if not disk.is_enlarged or disk.read_only:
            yield
            return
        user = users.of_tree(request.directory)  # the tree's own: the device stays until that holds it
        with contextlib.ExitStack() as undo:
            mapped = self.mapper.map(request.disk, request.options, user=user)
            undo.callback(self.mapper.unmap, mapped.id, user=user, patience=UNDO_SECONDS)
            self.let_grow(disk.id, request)
            yield
            undo.pop_all()

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
