"""``shutdown`` and ``cancel``: a container stops, and its disks are images again."""

from __future__ import annotations

from mapper_core.errors import DeadlineExceeded
from mapper_driver.actions.node import Node
from mapper_driver.errors import InstanceNotFound
from mapper_driver.opennebula.argv import Stop


def shutdown(container: str, stop: Stop, node: Node) -> None:
    """Stop a container, remove it and release its disks. One that is gone already only has its disks released.

    :param stop: ask the guest, and use force when it does not end in time; or force at once.
    :raises DeviceBusy: a disk is still in use by somebody; the container is gone by then, and the call can be
        repeated.
    """
    try:
        if stop is Stop.GRACEFUL:
            _ask(container, node)
        else:
            node.client.stop(container)
    except InstanceNotFound:
        node.log.info(f"there is no container {container}; releasing what is left of its disks")
    node.remove(container)


def _ask(container: str, node: Node) -> None:
    try:
        node.client.shutdown(container, grace_seconds=node.config.stop_timeout)
    except DeadlineExceeded as error:
        node.log.warning(f"{error}; stopping it by force")
        node.client.stop(container)
