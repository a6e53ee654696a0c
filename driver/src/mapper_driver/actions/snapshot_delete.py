"""``snapshot_delete``: a state that was kept is forgotten, while the machine runs or when it is powered off."""

from __future__ import annotations

from mapper_driver import snapshots
from mapper_driver.actions.node import Node
from mapper_driver.opennebula.argv import Snapshot
from mapper_driver.opennebula.vm import VirtualMachine


def snapshot_delete(given: Snapshot, vm: VirtualMachine, node: Node) -> None:
    """Forget a snapshot on every disk that has it; that none has it is a success.

    :raises Refused: something depends on it; nothing was done.
    :raises MapperError: from an image or the host; the same call forgets the rest.
    """
    done = snapshots.delete(node.mapper, snapshots.disks_of(vm, node.config), given.snapshot)
    if done:
        node.log.info(f"deleted the snapshot {given.snapshot} of the disks {', '.join(map(str, done))}")
    else:
        node.log.info(f"no disk has the snapshot {given.snapshot}")
