"""``prereconfigure``: the context ISO is about to be written anew."""

from __future__ import annotations

from mapper_driver.actions.node import Node
from mapper_driver.opennebula.argv import Prereconfigure
from mapper_driver.opennebula.vm import VmIdentity


def prereconfigure(given: Prereconfigure, vm: VmIdentity, node: Node) -> None:
    """See that there is a container. Nothing has to be taken away: it has copies of the files, nobody has the ISO open.

    :raises InstanceNotFound: there is none.
    """
    node.client.instance(given.deploy_id)
