"""``restore``: a machine that was saved goes on, on this node or another; see :mod:`mapper_driver.actions.save`."""

from __future__ import annotations

from collections.abc import Callable

from mapper_core.errors import Refused
from mapper_driver import checkpoint
from mapper_driver.actions.node import Node
from mapper_driver.actions.start import check_disks
from mapper_driver.checkpoint import Kind
from mapper_driver.errors import InstanceNotFound
from mapper_driver.lxd.model import Status
from mapper_driver.opennebula.argv import Restore
from mapper_driver.opennebula.vm import VmIdentity


def restore(vm: VmIdentity, given: Restore, deploy: Callable[[], object], node: Node) -> None:
    """Let a frozen container go on, or start a machine that was shut down anew. One that runs is left alone.

    :param deploy: starts the machine from its disks.
    :raises NotFound: there is neither a frozen container nor a checkpoint.
    :raises Refused: it is frozen on another node.
    """
    checkpoint.check_path(given.checkpoint, vm.id)
    status = _status(vm.container, node)
    if status is Status.RUNNING:
        node.log.info("the machine runs already")
        return
    if status in (Status.FROZEN, Status.FREEZING):
        node.client.unfreeze(vm.container)
        check_disks(vm.container, node.client.state(vm.container), node)
    else:
        _start_anew(vm, given, deploy, node)
    checkpoint.remove(given.checkpoint)


def _start_anew(vm: VmIdentity, given: Restore, deploy: Callable[[], object], node: Node) -> None:
    found = checkpoint.read(given.checkpoint, vm.id)
    if found.kind is Kind.FROZEN:
        if found.node != given.on_host:
            raise Refused(
                f"the container is frozen on the node {found.node}, with its disks in use there",
                subject=vm.container,
                hint=f"migrate the virtual machine to {found.node} and resume it there",
            )
        node.log.warning("the frozen container has ended since, its memory is lost; it starts anew from its disks")
    deploy()


def _status(container: str, node: Node) -> Status | None:
    try:
        return node.client.instance(container).status
    except InstanceNotFound:
        return None
