"""``shutdown`` and ``cancel``: a container stops, and its disks are images again."""

from __future__ import annotations

from mapper_core.errors import DeadlineExceeded
from mapper_driver.actions.node import Node
from mapper_driver.errors import InstanceNotFound
from mapper_driver.opennebula.argv import Stop
from mapper_driver.opennebula.vm import VmIdentity


def shutdown(vm: VmIdentity, stop: Stop, node: Node) -> None:
    """Stop a machine's container, remove it and release its disks. One that is gone already only has its disks released.

    A container that was made by hand is stopped and stays: it is all there is of it.

    :param stop: ask the guest, and use force when it does not end in time; or force at once.
    :raises DeviceBusy: a disk is still in use by somebody; the container is gone by then, and the call can be
        repeated.
    """
    container = vm.container
    try:
        with node.log.step("stop the container"):
            end(container, stop, node)
    except InstanceNotFound:
        node.log.info(f"there is no container {container}; releasing what is left of its disks")
    if vm.is_wild:
        node.hide_console(container)
    else:
        with node.log.step("remove the container and release its disks"):
            node.remove(container)


def end(container: str, stop: Stop, node: Node) -> None:
    """Stop a container, as hard as asked for. Nothing happens when it is stopped.

    :raises InstanceNotFound: there is none.
    :raises DeadlineExceeded: the storage of a disk does not answer; nothing was done.
    """
    node.check_storage(container)
    if stop is Stop.HARD:
        node.client.stop(container)
        return
    try:
        node.client.shutdown(container, grace_seconds=node.config.stop_timeout)
    except DeadlineExceeded as error:
        node.log.warning(f"{error}; stopping it by force")
        node.client.stop(container)
