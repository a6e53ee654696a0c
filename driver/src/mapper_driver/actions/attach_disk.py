"""``attach_disk``: another disk for a container that runs."""

from __future__ import annotations

from mapper_core.errors import NotSupported, UsageError
from mapper_driver import iolimits
from mapper_driver.actions.detach_disk import disk_number, remove_disk
from mapper_driver.actions.handover import Handover, show_if_cut_off, taken_back_on_failure
from mapper_driver.actions.node import Node
from mapper_driver.devices import disk_device, disk_name
from mapper_driver.errors import InstanceConflict
from mapper_driver.lxd import idmap, inside, limits
from mapper_driver.lxd.model import Device, Instance
from mapper_driver.opennebula.argv import AttachDisk
from mapper_driver.opennebula.vm import DiskKind, VirtualMachine, VmDisk


def attach_disk(given: AttachDisk, vm: VirtualMachine, node: Node) -> None:
    """Mount a disk and show it to a container. One that is attached already is left alone.

    :raises NotSupported: the container was made by hand, its storage is left alone.
    :raises InstanceNotRunning: the container does not run.
    :raises InstanceConflict: it has another device of that name or path.
    :raises TreeNotPlaced: LXD reports success, and the container does not have it.
    :raises MapperError: from the image or the host; afterwards everything is as it was.
    """
    if vm.is_wild:
        raise NotSupported("the container was not made by OpenNebula, its storage is left alone", subject=vm.container)
    disk = _wanted(given, vm)
    if disk.kind is DiskKind.SWAP:
        node.log.info(f"disk {disk.id} is swap, which a container has no use for")
        return
    container, storage = vm.container, node.storage(vm.container)
    device = disk_device(disk, storage.directory(disk.id))
    found, pid = node.running(container)
    old = found.all_devices.get(disk_name(disk.id))
    if old is not None and storage.is_staged(disk) and inside.has_disk(pid, device["path"], device["source"]):
        node.log.info(f"disk {disk.id} is attached already")
        return
    _refuse_conflicts(found, disk, device)
    if old is not None or storage.tree(disk.id) is not None:
        node.log.info(f"removing what is left of an earlier disk {disk.id}")
        remove_disk(found, pid, disk.id, node)
    inside.check_target(pid, device["path"])
    new = Handover(disk.id, device["path"], pid, storage)
    with taken_back_on_failure(new, node):
        staged = storage.stage(vm, disk, idmap.current_map(found.all_config, subject=container))
        node.client.set_devices(container, {disk_name(disk.id): staged.finish(device)})
        if not staged.shift:
            show_if_cut_off(new, staged.directory, node)
        inside.check_disk(pid, device["path"], staged.directory, container)
        _limit(vm, disk, pid, node)


def _wanted(given: AttachDisk, vm: VirtualMachine) -> VmDisk:
    """The disk that arguments and XML agree on."""
    disk = vm.disk(disk_number(given.disk_path))
    attached = [item.id for item in vm.disks if item.attach]
    if attached not in ([], [disk.id]):
        raise UsageError(f"the arguments are about disk {disk.id}, the XML about {attached}", subject=vm.container)
    if vm.context is not None and vm.context.disk_id == disk.id:
        raise UsageError(f"disk {disk.id} is the context", subject=vm.container)
    return disk


def _refuse_conflicts(found: Instance, disk: VmDisk, device: Device) -> None:
    name = disk_name(disk.id)
    for other, options in found.all_devices.items():
        is_ours = other == name and options.get("source") == device["source"]
        if not is_ours and (other == name or options.get("path") == device["path"]):
            raise InstanceConflict(
                f"disk {disk.id} cannot be attached: the container has a device {other} on {options.get('path')}",
                subject=found.name,
                hint="choose another TARGET, or remove that device: lxc config device remove",
            )


def _limit(vm: VirtualMachine, disk: VmDisk, pid: int, node: Node) -> None:
    """Limit it now, and at every start."""
    wanted = iolimits.of_disk(disk.limits)
    number = limits.device_of(node.mapper, vm.container, disk.id) if wanted else None
    if number is None:
        return
    limits.apply(wanted, number, pid)
    node.set_start_limits(vm.container, disk.id, wanted)
