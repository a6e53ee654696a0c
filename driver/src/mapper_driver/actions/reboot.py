"""``reboot`` and ``reset``: a container stops and starts again; its disks stay where they are.

Some versions of OpenNebula call once, others twice with the network in between (:mod:`mapper_driver.opennebula.protocol`). The
first of two calls leaves a mark with the time in the container's configuration. So the second knows that it is the second,
``poll`` knows that the container is not switched off, and a mark that nobody came for is worth nothing after a while.
"""

from __future__ import annotations

import time

from mapper_driver.actions.node import Node
from mapper_driver.actions.shutdown import end
from mapper_driver.actions.start import start
from mapper_driver.lxd.model import Status
from mapper_driver.opennebula.argv import Stop
from mapper_driver.opennebula.protocol import RestartCalls
from mapper_driver.restage import restage_if_needed
from mapper_driver.restarting import RESTART_KEY, is_restarting


def reboot(container: str, stop: Stop, calls: RestartCalls, node: Node) -> None:
    """Restart a container. One that is stopped is started.

    :param stop: ask the guest to end, and use force when it does not in time; or force at once.
    :raises InstanceNotFound: there is none.
    :raises TreeNotPlaced: it does not see one of its disks afterwards.
    """
    found = node.client.instance(container)
    if found.status is Status.STOPPED:
        restage_if_needed(node.mapper, container)  # LXD changes no container whose disks are not there
    if calls is RestartCalls.TWO and not (found.status is Status.STOPPED and is_restarting(found.config, time.time())):
        if found.status is Status.STOPPED:
            node.log.info("the container is stopped already")
        node.client.set_config(container, {RESTART_KEY: str(int(time.time()))})
        end(container, stop, node)
        return
    end(container, stop, node)
    start(container, node)
    if RESTART_KEY in found.config:
        node.client.set_config(container, {RESTART_KEY: None})
