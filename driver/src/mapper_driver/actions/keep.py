"""After each action: what the container is made of now is written down for the next boot of the host."""

from __future__ import annotations

import functools

from mapper_core.tree import mounted
from mapper_driver import inventory
from mapper_driver.actions.detach_disk import remove_disk
from mapper_driver.actions.node import Node
from mapper_driver.errors import InstanceNotFound
from mapper_driver.lxd import idmap, placement
from mapper_driver.lxd.client import AUTOSTART
from mapper_driver.lxd.model import Instance, Status
from mapper_driver.opennebula.vm import VmIdentity


def keep(vm: VmIdentity, node: Node) -> None:
    """Write the inventory of the machine's container, unless there is none or its storage is its own. Disks that it was to have and
    that LXD knows nothing of, because it died while it attached them, are taken back first.
    """
    if vm.is_wild:
        return
    try:
        found = node.client.instance(vm.container)
    except InstanceNotFound:
        return
    for disk_id in _forgotten(found, node):
        node.log.info(f"releasing disk {disk_id}, which an interrupted call has left")
        pid = 0 if found.status is Status.STOPPED else node.client.state(found.name).pid
        node.try_to(functools.partial(remove_disk, found, pid, disk_id, node))
    kept = inventory.collect(
        node.mapper,
        vm.container,
        node.storage(vm.container).owner,
        vm.directory,
        idmap.next_map(found.all_config, subject=vm.container),
        found.all_config.get(AUTOSTART) == "true",
    )
    if kept is not None:
        inventory.write(node.mapper.runtime, kept)


def _forgotten(found: Instance, node: Node) -> tuple[int, ...]:
    """Numbers of the disks that are mounted for a container and are neither its root nor one of its devices."""
    placed = placement.read(placement.record_path(node.mapper.runtime, found.name))
    if placed is None:
        return ()
    known = {placed.staging} | {device.get("source", "") for device in found.all_devices.values()}
    owner, prefix = node.storage(found.name).owner, f"{node.mapper.runtime.mounts}/{found.name}."
    return tuple(
        int(tree.directory.removeprefix(prefix))
        for tree in mounted.records(node.mapper)
        if tree.owner == owner and tree.directory not in known and tree.directory.startswith(prefix)
    )
