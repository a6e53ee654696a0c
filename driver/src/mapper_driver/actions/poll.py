"""``poll``: the state of one machine, in one request and without waiting for anybody."""

from __future__ import annotations

import time

from mapper_core.mapping import Mapper
from mapper_driver import monitor, ownership
from mapper_driver.errors import InstanceNotFound
from mapper_driver.lxd.client import LxdClient
from mapper_driver.monitor import MachineState, Work


def poll(container: str, mapper: Mapper, client: LxdClient) -> str:
    """The line to be printed. A container that is not there is switched off: so ends every shutdown."""
    work = Work.UNDER_WAY if ownership.is_locked(mapper, container) else Work.NONE
    try:
        found, state = client.instance_and_state(container)
    except InstanceNotFound:
        return monitor.poll_line(None if work is Work.UNDER_WAY else MachineState.POWEROFF, monitor.Usage())
    return monitor.poll_line(monitor.machine_state(found, work, time.time()), monitor.usage(state))
