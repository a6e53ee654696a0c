"""One call on one machine: who it is about, and the node with the machine's container locked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from mapper_core.errors import MapperError, ProcessGone
from mapper_core.mapping import Mapper
from mapper_driver.actions import leftovers
from mapper_driver.actions.keep import keep
from mapper_driver.actions.node import Node
from mapper_driver.errors import InstanceNotRunning, LxdUnavailable
from mapper_driver.lxd.client import LxdClient
from mapper_driver.opennebula.argv import Common, check_same_machine
from mapper_driver.opennebula.config import Config
from mapper_driver.opennebula.framing import Log
from mapper_driver.opennebula.parse import parse_identity
from mapper_driver.opennebula.vm import VmIdentity
from mapper_driver.opennebula.xml import Document
from mapper_driver.ownership import lock


def identify(given: Common, document: Document, config: Config) -> VmIdentity:
    """The machine that arguments and XML are about.

    :raises UsageError: they are about two.
    """
    vm = parse_identity(document, config.datastore_location)
    check_same_machine(given, vm)
    return dataclasses.replace(vm, deploy_id=getattr(given, "deploy_id", "") or vm.deploy_id)


def connect(config: Config) -> LxdClient:
    """The node's daemon.

    :raises LxdUnavailable: it does not answer.
    """
    return LxdClient.connect((config.socket,) if config.socket else None)


@contextmanager
def open_node(vm: VmIdentity, config: Config, log: Log) -> Iterator[Node]:
    """The node, with the machine's container locked against other actions; afterwards what it is made of is on disk.

    :raises Busy: another action works on it.
    :raises LxdUnavailable: the daemon does not answer, or ended while the action looked at what it sees.
    :raises InstanceNotRunning: the container ended while the action looked at what its processes see.
    """
    mapper = Mapper.open()
    with lock(mapper, vm.container):
        client = connect(config)
        client.settle(vm.container)
        node = Node(mapper, client, config, log)
        node.try_to(lambda: leftovers.take_away_if_written_down(vm.container, node))
        try:
            yield node
        except ProcessGone as error:
            hint = error.hint or "see its log, and call the action again"
            try:
                client.check_lives()
            except LxdUnavailable as gone:
                gone.hint = error.hint or gone.hint
                raise
            raise InstanceNotRunning("the container ended meanwhile", subject=vm.container, hint=hint) from error
        try:
            keep(vm, node)
        except (MapperError, OSError) as error:
            log.warning(f"after a boot of the host the container cannot be started as it is now: {error}")
