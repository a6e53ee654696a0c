"""Changing a machine while it runs, for the tests of that."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from mapper_core.mapping import Mapper
from mapper_core.testing import disks
from mapper_core.testing.disks import Part
from mapper_core.tree import mounted

from .machine import Machine
from .one import disk_xml

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Plug:
    """Attaches to a machine and takes away, as oned does it."""

    machine: Machine

    def path(self, number: int) -> Path:
        """Image of a disk."""
        return self.machine.one.vm_dir(self.machine.id) / f"disk.{number}"

    def make(self, number: int, *, kind: str = "raw", text: str = "") -> str:
        """Put an image with one filesystem in place, which says its number or ``text``; return its ``<DISK>``."""
        path = self.path(number)
        part = Part("ext4", 16, (), (("/number", text or str(number)),))
        if kind == "raw":
            disks.make_filesystem(path, part)
        else:
            disks.convert(disks.make_filesystem(path.with_name(f"piece{number}"), part), kind, path)
        return disk_xml(number, kind=kind, ATTACH="YES")

    def call(self, action: str, *argv: str, added: str = "", **environment: str) -> Done:
        """An action with more in the machine's template."""
        machine = self.machine
        xml = machine.xml.replace("<VMID>", f"{added}<VMID>", 1)
        data = f"<VMM_DRIVER_ACTION_DATA><HOST>node</HOST>{xml}</VMM_DRIVER_ACTION_DATA>"
        words = (machine.name, *argv, str(machine.id), "node")
        return machine.one.run(action, *words, xml=data, **environment)

    def attach(self, number: int, disk: str, **environment: str) -> Done:
        path = str(self.path(number)).replace("/datastores", "//datastores")
        return self.call("attach_disk", path, "sdx", "23", "copy-of-stdin", added=disk, **environment)

    def detach(self, number: int, disk: str = "", **environment: str) -> Done:
        path = str(self.path(number)).replace("/datastores", "//datastores")
        return self.call("detach_disk", path, "sdx", "23", added=disk, **environment)

    def attach_nic(self, mac: str, bridge: str, target: str, nic: str, **environment: str) -> Done:
        return self.call("attach_nic", mac, bridge, "-", "dummy", target, added=nic, **environment)

    def detach_nic(self, mac: str, nic: str = "", **environment: str) -> Done:
        return self.call("detach_nic", mac, added=nic, **environment)

    # --- what became of it ---

    def start_inside(self, *argv: str) -> None:
        """Leave a process running in the container."""
        self.machine.inside("sh", "-c", 'setsid "$@" >/dev/null 2>&1 </dev/null &', "sh", *argv)

    def state(self) -> object:
        """All that an action can change: devices, mounts inside, the journal, what was mapped."""
        mapper, found = Mapper.open(), self.machine.client.instance(self.machine.name)
        config = {key: value for key, value in found.config.items() if not key.startswith("volatile.")}
        trees = tuple(tree.directory for tree in mounted.records(mapper))
        return config, dict(found.devices), self.machine.seen(), trees, mapper.journal.ids()
