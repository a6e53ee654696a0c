"""After each action: what the container is made of now is written down for the next boot of the host."""

from __future__ import annotations

from mapper_driver import inventory
from mapper_driver.actions import leftovers
from mapper_driver.actions.node import Node
from mapper_driver.errors import InstanceNotFound
from mapper_driver.lxd import idmap
from mapper_driver.opennebula.vm import VmIdentity


def keep(vm: VmIdentity, node: Node) -> None:
    """Write the inventory of the machine's container, unless there is none or its storage is its own. What it should not have is
    taken from it first.
    """
    if vm.is_wild:
        return
    try:
        found = node.client.instance(vm.container)
    except InstanceNotFound:
        return
    leftovers.take_away(found, node)
    kept = inventory.collect(
        node.mapper,
        vm.container,
        node.storage(vm.container).owner,
        vm.directory,
        idmap.next_map(found.all_config, subject=vm.container),
        found.starts_by_itself,
    )
    if kept is not None:
        inventory.write(node.mapper.runtime, kept)
