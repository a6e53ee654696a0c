"""The calls that change a machine while it runs: from arguments and XML to the function of an action.

The module :mod:`mapper_driver.actions` has for each is named like the action, and so is its function.
"""

from __future__ import annotations

import importlib

from mapper_driver.opennebula.argv import Common, check_same_machine
from mapper_driver.opennebula.config import Config
from mapper_driver.opennebula.framing import Log
from mapper_driver.opennebula.parse import parse_vm
from mapper_driver.opennebula.vm import VmIdentity
from mapper_driver.opennebula.xml import Document
from mapper_driver.session import identify, open_node


def add(given: Common, document: Document, config: Config, log: Log) -> tuple[str, float]:
    """``attach_disk``, ``attach_nic``, ``reconfigure``, ``resize``, ``resize_disk``, ``snapshot_*``: they need the whole
    description.
    """
    vm = parse_vm(document, config.datastore_location, config.default_format)
    check_same_machine(given, vm)
    return _act(given, vm, config, log)


def remove(given: Common, document: Document, config: Config, log: Log) -> tuple[str, float]:
    """``detach_disk``, ``detach_nic`` and ``prereconfigure``: they work also when the description is not understood."""
    return _act(given, identify(given, document, config), config, log)


def _act(given: Common, vm: VmIdentity, config: Config, log: Log) -> tuple[str, float]:
    act = getattr(importlib.import_module(f"mapper_driver.actions.{log.action}"), log.action)
    with open_node(vm, config, log) as node:
        said = act(given, vm, node)
        return said or "", node.client.api_seconds
