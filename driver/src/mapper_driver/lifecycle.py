"""The calls that start, stop, save and watch machines: from arguments and XML to an action.

Each returns what is printed, and the seconds spent in the daemon.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from mapper_driver.opennebula import argv
from mapper_driver.opennebula.argv import Common, check_same_machine
from mapper_driver.opennebula.config import Config
from mapper_driver.opennebula.framing import Log
from mapper_driver.opennebula.parse import parse_vm
from mapper_driver.opennebula.vm import VmIdentity
from mapper_driver.opennebula.xml import Document
from mapper_driver.session import connect, identify, open_node

if TYPE_CHECKING:
    from mapper_driver.actions.node import Node
    from mapper_driver.console.definition import Console

Answer = tuple[str, float]

#: The command of each daemon for people.
_CLIENTS = {"lxd": "lxc", "incus": "incus"}


def deploy(given: Common, document: Document, config: Config, log: Log) -> Answer:
    """``deploy``: a new machine, or one that was powered off."""
    vm = identify(given, document, config)
    begin = _starter(vm, given, document, config)
    with open_node(vm, config, log) as node:
        console = _console(vm, document, node)
        begin(node)
        _show(console, node)
        return vm.container, node.client.api_seconds


def shutdown(given: Common, document: Document, config: Config, log: Log) -> Answer:
    """``shutdown`` and ``cancel``."""
    from mapper_driver.actions.shutdown import shutdown as act

    assert isinstance(given, argv.ShutDown)
    vm = identify(given, document, config)
    with open_node(vm, config, log) as node:
        act(vm, given.stop, node)
        return "", node.client.api_seconds


def reboot(given: Common, document: Document, config: Config, log: Log) -> Answer:
    """``reboot`` and ``reset``."""
    from mapper_driver.actions.reboot import reboot as act
    from mapper_driver.opennebula.protocol import restart_calls

    assert isinstance(given, argv.ShutDown)
    vm = identify(given, document, config)
    with open_node(vm, config, log) as node:
        act(vm.container, given.stop, restart_calls(log.version), node)
        return "", node.client.api_seconds


def save(given: Common, document: Document, config: Config, log: Log) -> Answer:
    """``save``: for suspend, stop and cold migration."""
    from mapper_driver.actions.save import save as act
    from mapper_driver.opennebula.lcm import saving_of

    assert isinstance(given, argv.Save)
    vm = identify(given, document, config)
    with open_node(vm, config, log) as node:
        act(vm, given, saving_of(document), node)
        return "", node.client.api_seconds


def restore(given: Common, document: Document, config: Config, log: Log) -> Answer:
    """``restore``: the opposite of ``save``, maybe on another node."""
    from mapper_driver.actions.restore import restore as act

    assert isinstance(given, argv.Restore)
    vm = identify(given, document, config)
    begin = _starter(vm, given, document, config)
    with open_node(vm, config, log) as node:
        console = _console(vm, document, node)
        act(vm, given, lambda: begin(node), node)
        _show(console, node)
        return "", node.client.api_seconds


def migrate(given: Common, document: Document, config: Config, log: Log) -> Answer:
    """``migrate`` and ``migrate_local``."""
    from mapper_driver.actions.migrate import migrate as act

    assert isinstance(given, argv.Migrate)
    identify(given, document, config)
    act(given)


def poll(given: Common, document: Document, config: Config, log: Log) -> Answer:
    """``poll``. It takes no lock: it must not stand in anybody's way."""
    from mapper_core.mapping import Mapper
    from mapper_driver.actions.node import Node
    from mapper_driver.actions.poll import poll as act

    vm = identify(given, document, config)
    node = Node(Mapper.open(), connect(config), config, log)
    return act(vm.container, node), node.client.api_seconds


def execute(given: Common, document: Document, config: Config, log: Log) -> Answer:
    """``exec``: start a command inside."""
    from mapper_driver.actions.exec import parse_command, start

    vm = identify(given, document, config)
    command = parse_command(document)
    with open_node(vm, config, log) as node:
        start(vm.container, command, node)
        return "", node.client.api_seconds


def cancel_execution(given: Common, document: Document, config: Config, log: Log) -> Answer:
    """``exec_cancel``: end it."""
    from mapper_driver.actions.exec import cancel

    vm = identify(given, document, config)
    with open_node(vm, config, log) as node:
        cancel(vm.container, node)
        return "", node.client.api_seconds


def _console(vm: VmIdentity, document: Document, node: Node) -> Console | None:
    """The console that OpenNebula wants, if any.

    :raises UsageError: its description cannot be used. So this comes before anything is started.
    """
    from mapper_driver.console.definition import console_of
    from mapper_driver.opennebula.parse import graphics_of

    environment = dict.fromkeys(("LXD_SOCKET", "INCUS_SOCKET"), node.client.socket)
    client = _CLIENTS[node.client.server.product]
    return console_of(vm.container, graphics_of(document), node.config.vnc, client, environment)


def _show(console: Console | None, node: Node) -> None:
    """Show a console. A machine that cannot have one runs all the same."""
    if console is not None:
        from mapper_driver.console.control import show

        show(node.mapper.runtime, console, node.log)


def _starter(vm: VmIdentity, given: Common, document: Document, config: Config) -> Callable[[Node], object]:
    """What starts a machine from its disks. A container that was made by hand has its own and is started as it is.

    :raises MapperError: the description cannot be used; nothing was touched.
    """
    if vm.is_wild:
        from mapper_driver.actions.start import start

        return functools.partial(start, vm.container)
    from mapper_driver.actions.deploy import deploy as act

    whole = parse_vm(document, config.datastore_location, config.default_format)
    check_same_machine(given, whole)
    return functools.partial(act, whole)
