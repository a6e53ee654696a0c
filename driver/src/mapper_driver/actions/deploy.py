"""``deploy``: a machine's disks become the tree of a container, and it starts.

Order of work: check everything, create an empty container, mount its disks with its id map, hand them over, start,
and look whether it really runs on them. What an earlier step made is undone when a later one fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os

from mapper_core.model import IdMap
from mapper_driver import pci, reverting
from mapper_driver.actions.node import Node
from mapper_driver.actions.start import start
from mapper_driver.errors import InstanceNotFound, InstanceRunning
from mapper_driver.instance import STATUS_KEY, HostFacts, build_instance
from mapper_driver.lxd import cgroups, hook, limits, placement
from mapper_driver.lxd.model import InstanceSpec, Status
from mapper_driver.opennebula.vm import DiskKind, VirtualMachine
from mapper_driver.storage import Staged, root_of


def deploy(vm: VirtualMachine, node: Node) -> str:
    """Start a machine; return the name of its container.

    :raises InstanceRunning: it runs already; nothing was touched.
    :raises MapperError: afterwards no container, device or mount of it is left.
    """
    container = vm.container
    storage = node.storage(container)
    with node.log.step("check the description"):
        built = build_instance(vm, node.config, _facts(vm, node), _directories(vm, node))
    for warning in built.warnings:
        node.log.warning(warning)
    with node.log.step("look for leftovers"):
        _remove_leftovers(container, node)
    if reverting.snapshot_of(vm):
        from mapper_driver import snapshots

        snapshots.finish(vm, node.mapper, snapshots.disks_of(vm, node.config), node.log.warning)
    with contextlib.ExitStack() as undo:
        undo.callback(node.undo, container)
        with node.log.step("create the container"):
            node.client.create(_without_disks(built.spec))
        idmap = node.client.idmap(container)
        root = storage.stage(vm, vm.root_disk(), idmap)
        others = [
            storage.stage(vm, disk, idmap)
            for disk in vm.disks
            if disk.id != root.disk_id and disk.kind is not DiskKind.SWAP
        ]
        if vm.context is not None:
            others.append(storage.stage_context(vm.context, idmap))
        with node.log.step("hand over the disks"):
            _hand_over(built.spec, root, others, idmap, node)
        with node.log.step("start the container"):
            start(container, node)
        node.client.set_config(container, {STATUS_KEY: None})
        undo.pop_all()
    return container


def _facts(vm: VirtualMachine, node: Node) -> HostFacts:
    pool = node.config.pool or node.client.default_pool(node.config.profile)
    whose = (node.mapper.runtime, vm.container, node.client.daemon_pid())
    return HostFacts(
        pool=pool,
        hook=hook.command(*whose),
        limit_hook=limits.command(*whose),
        interfaces=pci.interfaces(vm.pci),
        cpuset=cgroups.version_of("cpuset") if vm.memory_nodes else cgroups.Version.V2,
    )


def _directories(vm: VirtualMachine, node: Node) -> dict[int, str]:
    """Where the trees will be; known before they are, so that the whole container can be checked first."""
    ids = [disk.id for disk in vm.disks] + ([vm.context.disk_id] if vm.context else [])
    return {disk_id: node.storage(vm.container).directory(disk_id) for disk_id in ids}


def _remove_leftovers(container: str, node: Node) -> None:
    """Make room: a stopped container of that name is what a failed action left, its disks hold all that matters. So is one
    that runs and is marked as not yet deployed: the daemon was away when its start should have been undone.
    """
    with contextlib.suppress(InstanceNotFound):
        found = node.client.instance(container)
        if found.status is not Status.STOPPED:
            if found.config.get(STATUS_KEY) != "0":
                raise InstanceRunning(
                    f"the container exists and is {found.status.name.lower()}",
                    subject=container,
                    hint="shut it down first",
                )
            node.log.info("it runs, but the call that started it did not finish, and could not undo it; stopping it")
            node.client.stop(container)
        node.log.info(f"removing the stopped container {container} and what is left of its disks")
    node.remove(container)


def _without_disks(spec: InstanceSpec) -> InstanceSpec:
    """The container as it can be created: LXD wants the sources of disks to exist, and their owners need its id map
    first.
    """
    devices = {name: device for name, device in spec.devices.items() if "source" not in device}
    return dataclasses.replace(spec, devices=devices)


def _hand_over(spec: InstanceSpec, root: Staged, others: list[Staged], idmap: IdMap | None, node: Node) -> None:
    container = spec.name
    rootfs = node.client.rootfs(node.client.instance(container))
    daemon = node.client.daemon_pid()
    placement.prepare_rootfs(rootfs, daemon)
    record = placement.describe(container, rootfs, root.directory)
    placement.write(node.mapper.runtime, record)
    if idmap is not None and (not root.shift or _is_shifted(root, idmap)):
        node.client.keep_owners(container)
        placement.place(record, daemon)
    elif idmap is not None:
        placement.place_twice(record, daemon)
    finish = {staged.directory: staged.finish for staged in others}
    devices = {name: finish[device["source"]](device) for name, device in spec.devices.items() if "source" in device}
    if devices:
        node.client.set_devices(container, devices)


def _is_shifted(root: Staged, idmap: IdMap) -> bool:
    """Whether LXD has shifted the owners on the disk in an earlier deployment; twice would be wrong (L-07)."""
    return os.stat(root.directory).st_uid == root_of(idmap).uid
