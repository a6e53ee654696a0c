"""Starting a container that is there, and looking whether it runs on its own disks."""

from __future__ import annotations

from mapper_core.linux import mountinfo
from mapper_driver.actions.node import Node
from mapper_driver.errors import InstanceStartFailed, TreeNotPlaced
from mapper_driver.lxd import hook, inside, placement
from mapper_driver.lxd.model import InstanceState
from mapper_driver.restage import restage_if_needed


def start(container: str, node: Node) -> InstanceState:
    """Start a container; its disks are mounted first when the host was booted since.

    :raises InstanceRunning: it runs already.
    :raises InstanceStartFailed: with LXC's reason in the log.
    :raises TreeNotPlaced: it does not see one of its disks.
    """
    if restage_if_needed(node.mapper, container):
        node.log.info("the host was booted since; mounted the disks again")
    _can_be_placed(container, node)
    node.remove_unfinished_interfaces(node.client.instance(container))
    try:
        state = node.client.start(container, deadline_seconds=node.config.start_timeout)
    except InstanceStartFailed as error:
        for line in error.log:
            node.log.debug(line)
        if reason := hook.last_failure(node.mapper.runtime, container):
            raise TreeNotPlaced(reason, subject=container) from error
        raise
    check_disks(container, state, node)
    return state


def check_disks(container: str, state: InstanceState, node: Node) -> None:
    """Look at what the container's first process sees, not at exit codes (L-01, L-04). A container that was made by hand has
    no tree of ours and is left alone.

    :raises TreeNotPlaced: its root or a disk is not what was handed over.
    """
    placed = placement.read(placement.record_path(node.mapper.runtime, container))
    if placed is None:
        return
    found = next(iter(mountinfo.at("/", pid=state.pid)[-1:]), None)
    if found is None or (found.device, found.root) != (placed.device, placed.root):
        raise TreeNotPlaced(
            f"the container runs on {found.source if found else 'nothing'} and not on its own disk", subject=container
        )
    ours = f"{node.mapper.runtime.mounts}/"
    for device in node.client.instance(container).devices.values():
        if device.get("source", "").startswith(ours):  # an administrator may have added others
            inside.check_disk(state.pid, device["path"], device["source"], container)


def _can_be_placed(container: str, node: Node) -> None:
    """Place the tree before LXD is asked, which reports what the hook refuses only after 30 s; show it the other disks, if it was
    restarted in a new mount namespace.

    :raises TreeNotPlaced: at once.
    """
    placed = placement.read(placement.record_path(node.mapper.runtime, container))
    if placed is not None:
        placement.place(placed, node.client.daemon_pid())
        node.storage(container).lend_all_but(placed.staging)
