"""``resize_disk``: a disk grows while its container runs: image, device, partition and filesystem.

OpenNebula's storage driver leaves the image of a running machine alone and lets this action enlarge it; of some storages it does
so before. Either way is fine: each step looks at what is there, and one that is done already is a success.
"""

from __future__ import annotations

from mapper_core import capabilities
from mapper_core.errors import MapperError, NotMapped, ReadOnlyImage, Refused, UsageError
from mapper_core.grow import grow
from mapper_driver import growth
from mapper_driver.actions.node import Node
from mapper_driver.disks import mapper_disk
from mapper_driver.growth import MIB
from mapper_driver.opennebula.argv import ResizeDisk
from mapper_driver.opennebula.vm import DiskKind, VirtualMachine, VmDisk


def resize_disk(given: ResizeDisk, vm: VirtualMachine, node: Node) -> None:
    """Enlarge a disk of a container.

    What can be known is checked before anything is changed. What has grown when a later step fails stays so: the container goes
    on with it, and the same call does the rest.

    :raises InstanceNotRunning: the container does not run; a machine that is off is enlarged by OpenNebula itself.
    :raises Refused: it would be smaller.
    :raises ReadOnlyImage: it cannot be written.
    :raises NoRoomToGrow: something that the container does not have is at its end; nothing was changed.
    :raises NotSupported: its format, its transport or its filesystem cannot grow; nothing was changed.
    :raises MapperError: from the image or the host.
    """
    disk = _wanted(given, vm)
    container, storage = vm.container, node.storage(vm.container)
    image, size = mapper_disk(disk, vm, node.config), given.size_mib * MIB
    node.running(container)
    if disk.kind is DiskKind.SWAP:
        capabilities.resize(node.mapper, image, size)
        node.log.info(f"disk {disk.id} is swap, which the container does not use; its image has {given.size_mib} MiB")
        return
    mapped = node.mapper.find(node.mapper.identify(image).id) if storage.is_staged(disk) else None
    if mapped is None:
        raise NotMapped(
            f"disk {disk.id} is not mounted for the container",
            subject=container,
            hint="attach it again, or restart the machine",
        )
    capabilities.refuse_to_shrink(image, mapped.size, size)
    number = growth.plan_mounted(mapped, storage.directory(disk.id), size)
    capabilities.resize(node.mapper, image, size)
    try:
        grown = grow(node.mapper, image, number)
    except MapperError as error:
        error.hint = "; ".join(
            filter(
                None, (error.hint, f"disk {disk.id} has {given.size_mib} MiB and works as before; then resize it again")
            )
        )
        raise
    node.log.info(f"disk {disk.id}: {growth.describe(grown) or 'it has that size already'}")


def _wanted(given: ResizeDisk, vm: VirtualMachine) -> VmDisk:
    """The disk that arguments and XML agree on, if OpenNebula may ask for that."""
    disk = vm.disk(given.disk_id)
    resized = [item.id for item in vm.disks if item.resize]
    if resized not in ([], [disk.id]):
        raise UsageError(f"the arguments are about disk {disk.id}, the XML about {resized}", subject=vm.container)
    if disk.size_mib not in (None, given.size_mib):
        raise UsageError(
            f"the arguments say {given.size_mib} MiB for disk {disk.id}, the XML {disk.size_mib}", subject=vm.container
        )
    if disk.previous_size_mib is not None and given.size_mib < disk.previous_size_mib:
        raise Refused(
            f"disk {disk.id} has {disk.previous_size_mib} MiB; a disk is never made smaller",
            subject=vm.container,
            hint="attach a smaller disk, and copy what is on this one",
        )
    if disk.read_only:
        raise ReadOnlyImage(f"disk {disk.id} is read-only", subject=vm.container)
    return disk
