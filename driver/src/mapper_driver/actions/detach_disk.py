"""``detach_disk``: a container gives a disk back, and it is an image again."""

from __future__ import annotations

import os
import re

from mapper_core.errors import DeviceBusy, Refused, UsageError
from mapper_core.linux import holders, mountinfo
from mapper_driver.actions.node import Node
from mapper_driver.devices import disk_name
from mapper_driver.errors import InstanceNotFound
from mapper_driver.lxd import inside, lending, limits, monitors, placement
from mapper_driver.lxd.model import Instance
from mapper_driver.opennebula.argv import DetachDisk
from mapper_driver.opennebula.vm import VmIdentity
from mapper_driver.storage import Storage

_DISK = re.compile(r"disk\.(0|[1-9][0-9]{0,3})")


def detach_disk(given: DetachDisk, vm: VmIdentity, node: Node) -> None:
    """Take a disk from a container. One that it does not have is detached already.

    :raises DeviceBusy: naming who uses it; it is still attached then.
    :raises Refused: it is the root, or the context.
    """
    container, disk_id = given.deploy_id, disk_number(given.disk_path)
    storage = node.storage(container)
    try:
        found, state = node.client.instance(container), node.client.state(container)
    except InstanceNotFound:
        node.log.info(f"there is no container {container}; releasing what is left of disk {disk_id}")
        storage.release_one(disk_id)
        return
    if disk_name(disk_id) not in found.devices and storage.tree(disk_id) is None:
        node.log.info(f"disk {disk_id} is not attached")
    else:
        remove_disk(found, state.pid, disk_id, node)
    node.set_start_limits(container, disk_id, {})


def remove_disk(found: Instance, pid: int, disk_id: int, node: Node) -> None:
    """Take a disk from a container, as far as it has it.

    :param pid: the container's first process; 0 when it does not run.
    :raises DeviceBusy: naming who uses it; the container still has it.
    """
    name, storage = disk_name(disk_id), node.storage(found.name)
    directory = storage.directory(disk_id)
    device = found.devices.get(name)
    _refuse_parts(found, name, directory, node)
    take_out(found, pid, disk_id, node)
    try:
        release(found.name, pid, disk_id, storage, node)
    except DeviceBusy:
        if device is not None and mountinfo.at(directory):
            node.try_to(lambda: node.client.set_devices(found.name, {name: device}))
        raise


def take_out(found: Instance, pid: int, disk_id: int, node: Node) -> None:
    """Take a disk out of the container, and its device from the daemon.

    :param pid: as for :func:`remove_disk`.
    :raises DeviceBusy: naming who uses it inside; nothing is changed.
    """
    directory = node.storage(found.name).directory(disk_id)
    devices = {
        name: device
        for name, device in found.devices.items()
        if name == disk_name(disk_id) or device.get("source") == directory
    }
    if pid:
        inside.take_disk(pid, next((device["path"] for device in devices.values()), ""), directory)
    if devices:
        node.client.set_devices(found.name, dict.fromkeys(devices))


def release(container: str, pid: int, disk_id: int, storage: Storage, node: Node) -> None:
    """Give a disk back that the container does not see any more, nor a daemon knows of.

    :param pid: as for :func:`remove_disk`.
    :raises DeviceBusy: naming who uses it.
    """
    directory = storage.directory(disk_id)
    if pid:
        monitor = monitors.of_init(pid)
        if monitor is not None:
            lending.withdraw_from_monitor(directory, monitor.pid, storage.daemon_pid)
        _check_unused(directory, disk_id, storage)
    number = limits.device_of(node.mapper, container, disk_id)
    storage.release_one(disk_id)
    if pid and number is not None:
        limits.apply({}, number, pid)


def disk_number(path: str) -> int:
    """The number in ``/var/lib/one/datastores/0/42/disk.10``.

    :raises UsageError: when there is none.
    """
    match = _DISK.fullmatch(os.path.basename(path))
    if match is None:
        raise UsageError("is not the path of a disk (disk.<number>)", subject=path)
    return int(match.group(1))


def _refuse_parts(found: Instance, name: str, directory: str, node: Node) -> None:
    """Never take the root or the context away by a wrong number."""
    record = placement.read(placement.record_path(node.mapper.runtime, found.name))
    others = [other for other, options in found.devices.items() if options.get("source") == directory and other != name]
    if others or (record is not None and record.staging == directory):
        what = others[0] if others else "root"
        raise Refused(f"the disk is the container's {what}, which cannot be detached", subject=found.name)


def _check_unused(directory: str, disk_id: int, storage: Storage) -> None:
    """Look for users that an unmount in the container's own mount namespace did not reach.

    :raises DeviceBusy: naming them.
    """
    staged = mountinfo.at(directory)[-1:]
    if not staged or not staged[0].source.startswith("/dev/"):
        return
    used = lending.users_elsewhere(staged[0].source, storage.daemon_pid)
    if lending.withdraw_from_others(used, directory, storage.home):
        used = lending.users_elsewhere(staged[0].source, storage.daemon_pid)
    if used:
        text = f"disk {disk_id} is in use: {holders.describe(used)}"
        raise DeviceBusy(text, subject=storage.container, hint=holders.advise(used))
