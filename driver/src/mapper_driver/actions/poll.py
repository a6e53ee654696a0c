"""``poll``: the state of one machine, in one request and without waiting for anybody."""

from __future__ import annotations

import time

from mapper_driver import monitor, ownership, poweroff
from mapper_driver.actions.node import Node
from mapper_driver.errors import InstanceNotFound
from mapper_driver.monitor import MachineState, Work


def poll(container: str, node: Node) -> str:
    """The line to be printed. A container that is not there is switched off: so ends every shutdown. The disks of one that has
    been off for a while are released.
    """
    work = Work.UNDER_WAY if ownership.is_locked(node.mapper, container) else Work.NONE
    try:
        found, state = node.client.instance_and_state(container)
    except InstanceNotFound:
        return monitor.poll_line(None if work is Work.UNDER_WAY else MachineState.POWEROFF, monitor.Usage())
    now = time.time()
    poweroff.look(found, node, now)
    return monitor.poll_line(monitor.machine_state(found, work, now), monitor.usage(state))
