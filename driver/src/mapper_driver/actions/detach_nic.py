"""``detach_nic``: a container gives a network interface back."""

from __future__ import annotations

from mapper_driver.actions.node import Node
from mapper_driver.errors import InstanceNotFound, LxdFailed
from mapper_driver.lxd import links
from mapper_driver.opennebula.argv import DetachNic
from mapper_driver.opennebula.vm import VmIdentity


def detach_nic(given: DetachNic, vm: VmIdentity, node: Node) -> None:
    """Take the interface with an address from a container. One that it does not have is detached already.

    :raises LxdFailed: LXD refuses, or reports success and it is still there.
    """
    container = given.deploy_id
    try:
        found = node.client.instance(container)
    except InstanceNotFound:
        node.log.info(f"there is no container {container}")
        return
    nics = [
        name
        for name, device in found.devices.items()
        if device.get("type") == "nic" and device.get("hwaddr", "").lower() == given.mac
    ]
    if nics:
        node.client.set_devices(container, dict.fromkeys(nics))
    state = node.client.state(container)
    if given.mac not in state.interfaces.values():
        if not nics:
            node.log.info(f"the container has no interface with the address {given.mac}")
    elif nics or not state.host_ends.get(given.mac):
        raise LxdFailed(f"LXD says that {given.mac} is gone, but the container still has it", subject=container)
    else:  # the daemon died when it had given it to the container and before it wrote that down
        node.log.info(f"removing {state.host_ends[given.mac]}, which LXD knows nothing of")
        links.remove(state.host_ends[given.mac])
