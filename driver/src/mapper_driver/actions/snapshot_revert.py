"""``snapshot_revert``: all disks of a machine are as they were, and it starts anew from them."""

from __future__ import annotations

import contextlib

from mapper_core import capabilities
from mapper_driver import inventory, snapshots
from mapper_driver.actions.deploy import deploy
from mapper_driver.actions.keep import keep
from mapper_driver.actions.node import Node
from mapper_driver.actions.shutdown import end
from mapper_driver.actions.start import start
from mapper_driver.errors import InstanceNotFound
from mapper_driver.growth import MIB
from mapper_driver.inventory import Inventory
from mapper_driver.lxd import placement
from mapper_driver.lxd.model import Status
from mapper_driver.opennebula.argv import Snapshot, Stop
from mapper_driver.opennebula.vm import VirtualMachine
from mapper_driver.restage import restage
from mapper_driver.snapshots import StateDisk


def snapshot_revert(given: Snapshot, vm: VirtualMachine, node: Node) -> None:
    """Stop the container by force (what it has written since is lost anyway), revert its disks and start it again.

    It keeps its configuration and its map of ids. A machine that is powered off has no container: its disks are reverted.

    :raises SnapshotMissing: naming the disk that has not this snapshot; nothing was done.
    :raises MapperError: from an image or the host; all disks are as they were, and the container runs again.
    """
    disks = snapshots.disks_of(vm, node.config)
    snapshots.require(node.mapper, disks, given.snapshot)
    try:
        status = node.client.instance(vm.container).status
    except InstanceNotFound:
        _revert(given.snapshot, vm, disks, node)
        return
    if status is not Status.STOPPED:
        keep(vm, node)
    kept = inventory.read(inventory.path_of(node.mapper.runtime, vm.container))
    if kept is None or kept.root not in {disk.tree for disk in kept.disks}:
        node.log.info("an earlier call was interrupted when the disks were released; the container is made anew")
        node.remove(vm.container)
        _revert(given.snapshot, vm, disks, node)
        deploy(vm, node)
        return
    with contextlib.ExitStack() as undo:
        undo.callback(node.try_to, lambda: _start(kept, node))
        end(vm.container, Stop.HARD, node)
        _release(vm.container, node)
        _revert(given.snapshot, vm, disks, node)
        undo.pop_all()
    _start(kept, node)


def _release(container: str, node: Node) -> None:
    """Make images of the disks again. Until they are mounted again, nobody may start the container."""
    placed = placement.read(placement.record_path(node.mapper.runtime, container))
    if placed is not None:
        placement.unplace(placed, node.client.daemon_pid())
    node.storage(container).release()
    inventory.forget(node.mapper.runtime, container)


def _revert(name: str, vm: VirtualMachine, disks: tuple[StateDisk, ...], node: Node) -> None:
    snapshots.revert(vm, node.mapper, disks, name, node.log.warning)
    node.log.info(f"reverted the disks {', '.join(str(item.id) for item in disks)} to {name}")
    for item in disks:
        _enlarge_again(item, vm, node)


def _enlarge_again(item: StateDisk, vm: VirtualMachine, node: Node) -> None:
    """A disk that has grown since the snapshot has its old size; OpenNebula does not know that, and counts the new one."""
    disk, storage = vm.disk(item.id), node.storage(vm.container)
    wanted = (disk.size_mib or 0) * MIB
    if capabilities.size_of(node.mapper, item.disk) <= wanted - MIB:
        node.try_to(lambda: capabilities.resize(node.mapper, item.disk, wanted))
        storage.let_grow(disk.id, storage.request(vm, disk))


def _start(kept: Inventory, node: Node) -> None:
    """Mount the disks again as they were, and start."""
    restage(node.mapper, kept)
    inventory.write(node.mapper.runtime, kept)
    if node.client.state(kept.container).status is not Status.RUNNING:
        start(kept.container, node)
