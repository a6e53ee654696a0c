"""``attach_nic``: another network interface for a container that runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from mapper_core.errors import Busy, UsageError
from mapper_driver import pci
from mapper_driver.actions.node import Node
from mapper_driver.devices import nic_device, nic_warnings, pci_device
from mapper_driver.errors import InstanceConflict, LxdFailed, LxdUnavailable
from mapper_driver.lxd import links
from mapper_driver.lxd.model import Device, Instance
from mapper_driver.opennebula.argv import AttachNic
from mapper_driver.opennebula.vm import VirtualMachine


def attach_nic(given: AttachNic, vm: VirtualMachine, node: Node) -> None:
    """Give a container an interface. One that it has already is left alone.

    An alias is an address of another interface, which the guest sets by its context: nothing is done here.

    :raises InstanceNotRunning: the container does not run.
    :raises InstanceConflict: it has another device of that name.
    :raises Busy: the host has another interface of that name.
    :raises LxdFailed: LXD refuses, or reports success and the container does not have it; all is as it was.
    """
    if given.mac in vm.alias_macs:
        node.log.info(f"{given.mac} is an alias, nothing is done")
        return
    name, device = _wanted(given, vm, node)
    found, _ = node.running(vm.container)
    if _has(found, name, device):
        if given.mac in node.client.state(vm.container).interfaces.values():
            node.log.info(f"interface {name} is attached already")
            return
        node.client.set_devices(vm.container, {name: None})  # what an interrupted call left
    elif name in found.all_devices:
        raise InstanceConflict(f"the container has another device {name}", subject=vm.container)
    target = device.get("host_name", "")
    if target and links.exists(target):
        if not _is_forgotten(target, given.mac, vm.container, node):
            raise Busy("the host has an interface of that name", subject=target, hint=f"see: ip link show {target}")
        node.log.info(f"removing {target}, which an interrupted call has left")
        links.remove(target)
    with contextlib.ExitStack() as undo:
        undo.callback(node.try_to, lambda: _take_back(name, target, vm.container, node))
        node.client.set_devices(vm.container, {name: device})
        _verify(given.mac, device, vm.container, node)
        undo.pop_all()


def _wanted(given: AttachNic, vm: VirtualMachine, node: Node) -> tuple[str, Device]:
    for nic in vm.nics:
        if nic.mac == given.mac:
            for warning in nic_warnings(nic):
                node.log.warning(warning)
            return f"eth{nic.id}", nic_device(nic)
    for card in vm.pci:
        if card.nic is not None and card.nic.mac == given.mac:
            return card.device_name, pci_device(card, pci.interfaces((card,)))
    raise UsageError(f"the machine has no interface with the address {given.mac}", subject=vm.container)


def _has(found: Instance, name: str, device: Device) -> bool:
    """Whether the container's description has the device; LXD may have added options of its own."""
    old: Mapping[str, str] = found.devices.get(name, {})
    return bool(old) and all(old.get(key) == device.get(key) for key in ("nictype", "parent", "hwaddr", "host_name"))


def _is_forgotten(target: str, mac: str, container: str, node: Node) -> bool:
    """Whether an interface of the host is what a daemon has made for this one and knows nothing of: it died meanwhile."""
    return links.is_unfinished(target) or node.client.state(container).host_ends.get(mac) == target


def _take_back(name: str, target: str, container: str, node: Node) -> None:
    """Take the interface from the container, also when there is no daemon any more that could: it was not there before."""
    try:
        node.client.set_devices(container, {name: None})
    except LxdUnavailable:
        if target:
            links.remove(target)
        raise


def _verify(mac: str, device: Device, container: str, node: Node) -> None:
    """Look into the container, and at the end that is on the host."""
    if mac not in node.client.state(container).interfaces.values():
        raise LxdFailed(
            f"LXD says that {device['name']} is there, but the container does not have it", subject=container
        )
    target = device.get("host_name", "")
    master = os.path.basename(os.path.realpath(f"{links.DIRECTORY}/{target}/master"))
    if target and os.path.isdir(f"{links.DIRECTORY}/{device['parent']}/bridge") and master != device["parent"]:
        raise LxdFailed(f"{target} is not a port of {device['parent']}", subject=container)
