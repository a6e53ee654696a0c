"""``save``: OpenNebula wants the memory of a machine in a file and its disks free, for suspend, stop and cold migration.

The memory of a container cannot be written to a file (CRIU cannot, see docs/opennebula.md). The administrator chooses what is
done instead (:class:`mapper_driver.opennebula.config.Save`); by default nothing is, and the reason is said at once.
"""

from __future__ import annotations

import contextlib

from mapper_core.errors import NotSupported
from mapper_driver import checkpoint
from mapper_driver.actions.node import Node
from mapper_driver.checkpoint import Checkpoint, Kind
from mapper_driver.errors import InstanceNotFound
from mapper_driver.lxd.model import Status
from mapper_driver.opennebula.argv import Save
from mapper_driver.opennebula.config import SaveAs
from mapper_driver.opennebula.lcm import Saving
from mapper_driver.opennebula.vm import VmIdentity


def save(vm: VmIdentity, given: Save, saving: Saving, node: Node) -> None:
    """Put a machine aside as its node allows. One that is saved already stays as it is.

    :raises NotSupported: the node allows nothing of that kind; the container runs on.
    :raises DeadlineExceeded: the guest does not shut down in time; force would lose data, so it runs on.
    :raises InstanceNotFound: there is no container, and it was not saved.
    """
    allowed = node.config.save.suspend if saving is Saving.SUSPEND else node.config.save.stop
    checkpoint.check_path(given.checkpoint, vm.id)
    if allowed is SaveAs.REFUSE:
        raise _refusal(vm.container, saving)
    if allowed is SaveAs.FREEZE:
        _freeze(vm, given, node)
    else:
        _shut_down(vm, given, node)


def _freeze(vm: VmIdentity, given: Save, node: Node) -> None:
    status = node.client.instance(vm.container).status
    with contextlib.ExitStack() as undo:
        if status is not Status.FROZEN:
            undo.callback(checkpoint.remove, given.checkpoint)
        checkpoint.write(given.checkpoint, Checkpoint(vm.id, Kind.FROZEN, given.on_host))
        node.client.freeze(vm.container)
        undo.pop_all()
    node.log.info("the container is frozen; its memory and its disks stay in use on this node")


def _shut_down(vm: VmIdentity, given: Save, node: Node) -> None:
    try:
        status = node.client.instance(vm.container).status
    except InstanceNotFound:
        checkpoint.read(given.checkpoint, vm.id)
        node.log.info("the machine was shut down already")
        node.remove(vm.container)
        return
    with contextlib.ExitStack() as undo:
        undo.callback(checkpoint.remove, given.checkpoint)
        checkpoint.write(given.checkpoint, Checkpoint(vm.id, Kind.SHUT_DOWN, given.on_host))
        if status is not Status.STOPPED:
            node.client.shutdown(vm.container, grace_seconds=node.config.stop_timeout)
        undo.pop_all()  # from here on it is true, also when a disk is still in use and the call is repeated
    if not vm.is_wild:
        node.remove(vm.container)
    node.log.warning("the guest was shut down, its memory is not kept; it will start anew from its disks")


def _refusal(container: str, saving: Saving) -> NotSupported:
    if saving is Saving.SUSPEND:
        hint = "power the virtual machine off instead; or see the option save.suspend in the lxdrc of the node"
    else:
        hint = "power the virtual machine off and then migrate or undeploy it; or see the option save.stop in the lxdrc"
    return NotSupported("the memory of a container cannot be saved, it runs on", subject=container, hint=hint)
