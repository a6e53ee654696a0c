"""Every kind of call OpenNebula makes, as a fixture: what is understood, and for ``deploy`` the container it becomes.

The XML has the structure that OpenNebula 6.10.5 sends (``deploy-5.12``: of 5.12), with values of our own.
``MAPPER_REGENERATE_GOLDEN=1`` writes the golden files anew; read the difference before you commit it.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import os
from pathlib import Path
from typing import Any

import pytest
from mapper_driver.instance import HostFacts, build_instance
from mapper_driver.opennebula.argv import ACTIONS, Common, arguments_of, check_same_machine, parse_argv
from mapper_driver.opennebula.config import Config
from mapper_driver.opennebula.parse import parse_identity, parse_vm
from mapper_driver.opennebula.vm import DiskKind, VirtualMachine
from mapper_driver.opennebula.xml import read_document

pytestmark = pytest.mark.unit

FIXTURES = Path(__file__).parent / "fixtures"
CALLS = sorted(path.name for path in FIXTURES.iterdir())
LOCATION = "/var/lib/one/datastores"
HOST = HostFacts(pool="default", hook="/usr/bin/mapper-driver hook", limit_hook="/usr/bin/mapper-driver limits")


def load(name: str) -> tuple[Common, VirtualMachine]:
    call = json.loads((FIXTURES / name / "call.json").read_text(encoding="utf-8"))
    data = (FIXTURES / name / "stdin.xml").read_bytes()
    encoded = base64.b64encode(data)
    argv = [encoded.decode() if word == "@stdin" else word for word in call["argv"]]
    document = read_document(encoded if call["stdin"] == "base64" else data)
    arguments = parse_argv(arguments_of(call["action"]), call["action"], argv)
    vm = parse_vm(document, LOCATION)
    assert dataclasses.asdict(vm).items() >= dataclasses.asdict(parse_identity(document, LOCATION)).items()
    check_same_machine(arguments, vm)
    return arguments, vm


def plain(value: object) -> Any:
    """The value as JSON has it; what is empty or unset is left out, so that a person can read the rest."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return {name: item for name, item in items.items() if item or (item == 0 and item is not False)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def understood(name: str) -> dict[str, Any]:
    arguments, vm = load(name)
    result = {
        "arguments": plain(arguments),
        "container": vm.container,
        "directory": vm.directory,
        "root_disk": vm.root_disk().id,
        "vm": plain(vm),
    }
    if name.startswith("deploy"):
        sources = {disk.id: f"/run/mapper/trees/{vm.container}/disk.{disk.id}" for disk in vm.disks}
        if vm.context is not None:
            sources[vm.context.disk_id] = f"/run/mapper/trees/{vm.container}/context"
        for disk in vm.disks:
            if disk.kind is DiskKind.SWAP or disk.id == vm.root_disk().id:
                del sources[disk.id]  # neither has a device with a source
        result["instance"] = plain(build_instance(vm, Config(), HOST, sources))
    return result


@pytest.mark.parametrize("name", CALLS)
def test_golden(name: str) -> None:
    golden = FIXTURES / name / "golden.json"
    found = understood(name)
    if os.environ.get("MAPPER_REGENERATE_GOLDEN") == "1":
        golden.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert found == json.loads(golden.read_text(encoding="utf-8"))


def test_every_action_has_a_fixture() -> None:
    called = {json.loads((FIXTURES / name / "call.json").read_text(encoding="utf-8"))["action"] for name in CALLS}
    same = {"migrate_local", "exec_cancel"}  # as migrate, on the front-end; as exec, without the command
    assert called == set(ACTIONS) - same


def test_base64_and_raw_are_the_same_machine() -> None:
    ssh, local = load("deploy-ssh")[1], load("deploy-local")[1]
    assert ssh == local


def test_same_keys_and_devices_whatever_the_order_of_the_document() -> None:
    """OpenNebula sorts a template by name in one version and not in another."""
    spec = understood("deploy-ssh")["instance"]["spec"]
    assert list(spec["config"]) == sorted(spec["config"])
    assert list(spec["devices"]) == ["root", "disk1", "disk2", "disk4", "context", "eth0", "eth1"]
