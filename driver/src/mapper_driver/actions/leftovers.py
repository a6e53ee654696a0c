"""Disks that a container should not have: what an action has left that failed or was killed.

What is still written down as being handed over (:mod:`mapper_driver.unfinished`) when no action works on the container, was never
finished: oned believes that the machine does not have it. So is a tree that LXD knows nothing of, since a daemon or a driver has
died.
"""

from __future__ import annotations

import functools

from mapper_core.tree import mounted
from mapper_driver import unfinished
from mapper_driver.actions.detach_disk import release, take_out
from mapper_driver.actions.node import Node
from mapper_driver.errors import InstanceNotFound
from mapper_driver.lxd import placement
from mapper_driver.lxd.model import Instance, Status


def take_away_if_written_down(container: str, node: Node) -> None:
    """Take them away before an action begins: LXD may refuse to change the container as it is."""
    if not unfinished.written_down(node.mapper.runtime, container):
        return
    try:
        found = node.client.instance(container)
    except InstanceNotFound:
        unfinished.forget(node.mapper.runtime, container)
    else:
        take_away(found, node)


def take_away(found: Instance, node: Node) -> None:
    """Take all of them away. What cannot be is logged and stays written down."""
    for disk_id in of(found, node):
        node.log.info(f"releasing disk {disk_id}, which an interrupted call has left")
        node.try_to(functools.partial(take_one_away, found, disk_id, node))


def take_one_away(found: Instance, disk_id: int, node: Node) -> None:
    """Take one of them from its container, from the daemon's records and from the host.

    :raises DeviceBusy: naming who uses it.
    """
    pid = 0 if found.status is Status.STOPPED else node.client.state(found.name).pid
    take_out(found, pid, disk_id, node)
    release(found.name, pid, disk_id, node.storage(found.name), node)
    node.set_start_limits(found.name, disk_id, {})
    unfinished.strike_out(node.mapper.runtime, found.name, disk_id)


def of(found: Instance, node: Node) -> tuple[int, ...]:
    """Numbers of these disks, of a container on which no action works. Its root is never one of them."""
    placed = placement.read(placement.record_path(node.mapper.runtime, found.name))
    root = placed.staging if placed is not None else ""
    storage = node.storage(found.name)
    begun = {
        number
        for number in unfinished.written_down(node.mapper.runtime, found.name)
        if storage.directory(number) != root
    }
    if placed is None:  # it is being deployed, or off
        return tuple(sorted(begun))
    known = {root} | {device.get("source", "") for device in found.all_devices.values()}
    prefix = storage.directory(0).removesuffix("0")
    forgotten = {
        int(tree.directory.removeprefix(prefix))
        for tree in mounted.records(node.mapper)
        if tree.owner == storage.owner and tree.directory not in known and tree.directory.startswith(prefix)
    }
    return tuple(sorted(begun | forgotten))
