"""``snapshot_create``: the state of all disks of a machine at this moment is kept, while it runs."""

from __future__ import annotations

from mapper_core.errors import UsageError
from mapper_driver import snapshots
from mapper_driver.actions.node import Node
from mapper_driver.opennebula.argv import Snapshot
from mapper_driver.opennebula.vm import VirtualMachine


def snapshot_create(given: Snapshot, vm: VirtualMachine, node: Node) -> str:
    """Keep the present state of all disks under a name; return that.

    The filesystems stand still for the moment that it takes; the container is not stopped, and nothing of it is changed.

    :raises InstanceNotFound: there is no container.
    :raises NotSupported: naming the disk that cannot keep snapshots; nothing was done.
    :raises MapperError: from an image or the host; no disk has the snapshot then.
    """
    if not given.snapshot.isascii() or not given.snapshot.isdigit():
        raise UsageError("is not the number of a snapshot", subject=given.snapshot)
    disks = snapshots.disks_of(vm, node.config)
    node.client.instance(vm.container)
    name = snapshots.name_of(vm, int(given.snapshot))
    replaced = snapshots.create(node.mapper, disks, name)
    if replaced:
        node.log.info(f"replaced what was left of an earlier snapshot {name} (disks {_list(replaced)})")
    node.log.info(f"snapshot {name} of the disks {_list(tuple(item.id for item in disks))}")
    return name


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
