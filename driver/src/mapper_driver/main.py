"""``mapper-driver``: what OpenNebula's action scripts call.

``mapper-driver run SCRIPT_DIR ACTION ARGUMENT...`` runs one action with OpenNebula's arguments and standard input.
Standard output carries the result alone (``deploy``: the name of the container), standard error the log and the error
in the form that OpenNebula's version understands.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mapper_core.errors import MapperError, NotSupported

if TYPE_CHECKING:
    from mapper_driver.actions.node import Node
    from mapper_driver.opennebula.argv import Common
    from mapper_driver.opennebula.config import Config
    from mapper_driver.opennebula.framing import Log
    from mapper_driver.opennebula.xml import Document

USAGE = """\
usage: mapper-driver run SCRIPT_DIR ACTION ARGUMENT... <XML
       mapper-driver --version | --help

Runs an action of OpenNebula's virtual machine driver (deploy, shutdown, cancel) on this node. It is called by the scripts
in remotes/vmm/lxd and not by hand. SCRIPT_DIR is their directory; the options of the node are in
SCRIPT_DIR/../../etc/vmm/lxd/lxdrc, OpenNebula's version is in SCRIPT_DIR/../../VERSION.

Environment: LXD_SOCKET or LXD_DIR (the daemon), MAPPER_RUNTIME_DIR, MAPPER_LXDRC, MAPPER_ONE_VERSION.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--help"] or words[:1] == ["-h"]:
        print(USAGE, end="")
        return 0
    if words == ["--version"]:
        from importlib.metadata import version

        print(f"mapper-driver {version('mapper-driver')}")
        return 0
    if len(words) < 3 or words[0] != "run":
        print(USAGE, end="", file=sys.stderr)
        return 2
    return run(words[1], words[2], words[3:])


def run(script_dir: str, action: str, argv: Sequence[str]) -> int:
    """Run one action; return the exit status of its script.

    :param script_dir: directory of the action scripts.
    """
    from mapper_driver.opennebula.framing import Log, find_version, print_result

    started = time.monotonic()
    log = Log(action, find_version(script_dir, os.environ), sys.stderr)
    try:
        result, api_seconds = _carry_out(script_dir, action, argv, log)
    except MapperError as error:
        return log.failure(error)
    except KeyboardInterrupt:
        return log.failure(MapperError("interrupted; what was begun has been undone")) and 130
    except Exception as error:  # OpenNebula gets one line, the traceback would be its message
        if os.environ.get("MAPPER_DEBUG"):
            raise
        return log.failure(error)
    total = time.monotonic() - started
    log.info(f"done in {total:.2f} s, {api_seconds:.2f} s of that in the daemon")
    log.success()
    if result:
        print_result(result, sys.stdout)
    return 0


def _carry_out(script_dir: str, action: str, argv: Sequence[str], log: Log) -> tuple[str, float]:
    """Check what was asked for and do it; return what is printed and the seconds spent in the daemon."""
    from mapper_driver.opennebula.argv import arguments_of, parse_argv
    from mapper_driver.opennebula.config import find_config, load_config
    from mapper_driver.opennebula.xml import read_document, read_input

    given = parse_argv(arguments_of(action), action, argv)
    if action not in _ACTIONS:
        raise NotSupported(f"the action {action} is not supported", subject=action)
    document = read_document(read_input(sys.stdin.buffer))
    config = load_config(find_config(script_dir, os.environ))
    for warning in config.warnings:
        log.warning(warning)
    return _ACTIONS[action](given, document, config, log)


def _deploy(given: Common, document: Document, config: Config, log: Log) -> tuple[str, float]:
    from mapper_driver.actions.deploy import deploy
    from mapper_driver.opennebula.argv import check_same_machine
    from mapper_driver.opennebula.parse import parse_vm

    vm = parse_vm(document, config.datastore_location, config.default_format)
    check_same_machine(given, vm)
    with _node(config, log, vm.container) as node:
        return deploy(vm, node), node.client.api_seconds


def _shutdown(given: Common, document: Document, config: Config, log: Log) -> tuple[str, float]:
    from mapper_driver.actions.shutdown import shutdown
    from mapper_driver.opennebula.argv import ShutDown, check_same_machine
    from mapper_driver.opennebula.parse import parse_identity

    assert isinstance(given, ShutDown)
    vm = parse_identity(document, config.datastore_location)
    check_same_machine(given, vm)
    with _node(config, log, given.deploy_id) as node:
        shutdown(given.deploy_id, given.stop, node)
        return "", node.client.api_seconds


_ACTIONS = {"deploy": _deploy, "shutdown": _shutdown, "cancel": _shutdown}


@contextmanager
def _node(config: Config, log: Log, container: str) -> Iterator[Node]:
    """The node, with one container locked against other actions.

    :raises Busy: another action works on it.
    """
    from mapper_core.mapping import Mapper
    from mapper_driver.actions.node import Node
    from mapper_driver.lxd.client import LxdClient
    from mapper_driver.ownership import lock

    mapper = Mapper.open()
    with lock(mapper, container):
        client = LxdClient.connect((config.socket,) if config.socket else None)
        client.settle(container)
        yield Node(mapper, client, config, log)


if __name__ == "__main__":
    sys.exit(main())
