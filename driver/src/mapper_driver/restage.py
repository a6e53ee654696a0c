"""Putting the disks of a container together again, from what was kept about it: after the host was booted."""

from __future__ import annotations

import contextlib
import functools
import os

from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.model import MapOptions
from mapper_core.tree import mounted
from mapper_core.tree.look import Purpose
from mapper_core.tree.mounted import TreeRequest
from mapper_core.tree.scratch import scratch_tree
from mapper_driver import inventory, iso
from mapper_driver.inventory import Inventory, KeptDisk, KeptFiles
from mapper_driver.lxd import placement
from mapper_driver.lxd.placement import Placement
from mapper_driver.storage import OWNER_PREFIX, root_of


def restage(mapper: Mapper, kept: Inventory) -> Placement:
    """Map and mount what is not mounted; returns the placement of the root, which is on record then.

    :raises MapperError: from an image or the host; what was made by then is taken away.
    """
    owner = f"{OWNER_PREFIX}:{kept.container}"
    with contextlib.ExitStack() as undo:
        for disk in kept.disks:
            _again(mapper, disk.tree, owner, undo, functools.partial(_mount, mapper, kept, disk, owner))
        for files in kept.files:
            _again(mapper, files.tree, owner, undo, functools.partial(_show, mapper, kept, files, owner))
        placed = placement.describe(kept.container, kept.rootfs, f"{mapper.runtime.mounts}/{kept.root}")
        placement.write(mapper.runtime, placed)
        undo.pop_all()
    return placed


def restage_if_needed(mapper: Mapper, container: str) -> bool:
    """Do so when the container has an inventory and its root is not mounted in this boot; whether it was done."""
    if is_staged(mapper, placement.read(placement.record_path(mapper.runtime, container))):
        return False
    kept = inventory.read(inventory.path_of(mapper.runtime, container))
    if kept is None:
        return False
    restage(mapper, kept)
    return True


def is_staged(mapper: Mapper, placed: Placement | None) -> bool:
    """Whether a placement is about a tree of this boot."""
    return placed is not None and placed.boot == mapper.boot


def _again(mapper: Mapper, tree: str, owner: str, undo: contextlib.ExitStack, make: functools.partial[None]) -> None:
    directory = f"{mapper.runtime.mounts}/{tree}"
    found = mounted.find(mapper, directory)
    if found is not None and found.complete and found.boot == mapper.boot and mountinfo.at(directory):
        return
    undo.callback(mounted.unmount_tree, mapper, directory, owner=owner)
    make()


def _mount(mapper: Mapper, kept: Inventory, disk: KeptDisk, owner: str) -> None:
    request = TreeRequest(
        disk.disk,
        MapOptions(disk.access, disk.transport),
        f"{mapper.runtime.mounts}/{disk.tree}",
        idmap=kept.idmap if disk.idmapped else None,
        owner=owner,
        purpose=Purpose.ANY if disk.tree == kept.root else Purpose.DATA,
    )
    mounted.mount_tree(mapper, request)


def _show(mapper: Mapper, kept: Inventory, files: KeptFiles, owner: str) -> None:
    real, root = os.path.realpath(files.image), root_of(kept.idmap)
    scratch_tree(
        mapper,
        files.tree,
        owner=owner,
        size=iso.size_needed(real),
        uid=root.uid,
        gid=root.gid,
        fill=functools.partial(iso.extract, real, owner=root),
    )
