"""A node of its own that can be booted, and whose daemon can be killed, for the tests of that.

The daemon is real and is really stopped and started. What a boot takes away (mounts, devices, the runtime directory) is
taken away by hand.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Status

from mapper_core.errors import DeviceBusy
from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.tree import mounted
from mapper_core.tree.record import TreeRecord

from .conftest import Lab, run
from .machine import Machine
from .one import One, disk_xml


class Host:
    """A node of its own that can be booted."""

    def __init__(self, lab: Lab, daemons: Any, models: Any, images: ModuleType, one: One) -> None:
        self.lab, self.one, self.images = lab, one, images
        self._daemons, self._models = daemons, models
        self.state = {"MAPPER_STATE_DIR": str(one.directory / "state")}

    @property
    def client(self) -> LxdClient:
        return LxdClient.connect([self.lab.socket])

    def machine(self, vm: int, raw: str = "") -> Machine:
        return Machine.build(self.one, self.client, self.images, vm, raw)

    def small_machine(self, vm: int, raw: str) -> Machine:
        """One disk only."""
        self.images.build_bare(str(self.one.vm_dir(vm) / "disk.0"))
        template = f"<RAW><TYPE>lxd</TYPE><DATA><![CDATA[{raw}]]></DATA></RAW>"
        return Machine(self.one, self.client, vm, self.one.vm_xml(vm, disk_xml(0), deployed=True, template=template))

    def boot(self, unit: str = "mapper-driver boot") -> str:
        """Go down and up again; returns what the unit said that runs before the daemon."""
        lab = self._models.Lab.load(self.lab.directory, self._models.PRODUCTS[self.lab.product])
        self._daemons.ask_to_end(lab)
        assert self._daemons.ended(lab.pid, 30)
        self._daemons.kill_left_over(lab)  # no monitor of LXC outlives a boot
        mapper = Mapper.open()
        for entry in reversed(mountinfo.under(lab.home)):
            run("umount", entry.target)
        for tree in mounted.records(mapper):
            _dismantle(mapper, tree)
        for entry in reversed(mountinfo.under(mapper.runtime.root)):
            run("umount", entry.target)
        shutil.rmtree(mapper.runtime.root)
        said = self.driver("boot") if unit else ""
        self._daemons.start_daemon(lab, False)
        return said

    def kill_daemon(self) -> None:
        """Its containers live on."""
        lab = self._models.Lab.load(self.lab.directory, self._models.PRODUCTS[self.lab.product])
        os.kill(lab.pid, signal.SIGKILL)
        assert self._daemons.ended(lab.pid, 10)

    def start_daemon(self) -> None:
        lab = self._models.Lab.load(self.lab.directory, self._models.PRODUCTS[self.lab.product])
        self._daemons.start_daemon(lab, False)

    def driver(self, *argv: str) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "mapper-driver"), *argv],
            env={**os.environ, **self.state, "LXD_SOCKET": self.lab.socket},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return f"{done.returncode} {done.stderr}"


def wait_for(client: LxdClient, name: str, status: Status) -> None:
    """The daemon starts containers after it has begun to answer."""
    until = time.monotonic() + 30
    while client.instance(name).status is not status:
        assert time.monotonic() < until, f"{name} is not {status}"
        time.sleep(0.1)


def _dismantle(mapper: Mapper, tree: TreeRecord) -> None:
    """The mounts of a process that was killed outlive it for a moment, and nobody is told when they have gone."""
    until = time.monotonic() + 10
    while True:
        try:
            return mounted.dismantle(mapper, tree)
        except DeviceBusy:
            if time.monotonic() > until:
                raise
        time.sleep(0.05)
