"""One virtual machine of OpenNebula on a real daemon, for the tests of its life."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Status

from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.testing import disks
from mapper_core.testing.disks import Part
from mapper_core.tree import mounted

from .one import One, disk_xml

CONTEXT = "<CONTEXT><DISK_ID>9</DISK_ID><TARGET>hda</TARGET></CONTEXT>"
#: Where the disks of :meth:`Machine.build` are in the container.
PLACES = ("/", "/boot", "/home", "/data", "/context")


def ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


@dataclass(frozen=True)
class Machine:
    """A machine.

    :param xml: its ``<VM>`` as oned sends it once it is deployed.
    :param lcm_state: what oned is about to do with it.
    """

    one: One
    client: LxdClient
    id: int
    xml: str
    lcm_state: int = 3

    @classmethod
    def build(cls, one: One, client: LxdClient, images: ModuleType, vm: int, raw: str = "") -> Machine:
        """Put three disks in place: a partitioned qcow2 with the system, one with data, the context."""
        directory = one.vm_dir(vm)
        images.build_system(str(directory / "disk.0"), format_="qcow2", seed=f"vm{vm}")
        disks.make_filesystem(directory / "disk.1", Part("ext4", 16, (), (("/hello", "world"),)))
        images.build_context(str(directory / "disk.9"))
        template = CONTEXT + (f"<RAW><TYPE>lxd</TYPE><DATA><![CDATA[{raw}]]></DATA></RAW>" if raw else "")
        each = disk_xml(0, kind="qcow2") + disk_xml(1, TARGET="/data")
        return cls(one, client, vm, one.vm_xml(vm, each, deployed=True, template=template))

    @property
    def name(self) -> str:
        return f"one-{self.id}"

    @property
    def checkpoint(self) -> Path:
        return self.one.vm_dir(self.id) / "checkpoint"

    def about_to(self, lcm_state: int) -> Machine:
        return replace(self, lcm_state=lcm_state)

    def on(self, one: One, client: LxdClient) -> Machine:
        """The machine on another node."""
        return replace(self, one=one, client=client)

    def call(self, action: str, *argv: str, host: str = "node", **environment: str) -> subprocess.CompletedProcess[str]:
        """Any action but ``deploy``."""
        xml = self.xml.replace("<NAME>", f"<LCM_STATE>{self.lcm_state}</LCM_STATE><NAME>", 1)
        data = f"<VMM_DRIVER_ACTION_DATA><HOST>{host}</HOST>{xml}</VMM_DRIVER_ACTION_DATA>"
        return self.one.run(action, *argv, str(self.id), host, xml=data, **environment)

    def deploy(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.one.deploy(self.id, self.xml, **environment)

    def set_up(self) -> None:
        """``deploy``, where that is not what is tested."""
        directory = self.one.directory
        ok(
            self.one.here(
                "deploy",
                f"{directory}//datastores/0/{self.id}/deployment.0",
                "node",
                str(self.id),
                "node",
                xml=self.xml,
            )
        )

    def tear_down(self) -> None:
        """``cancel``, after which nothing of it may be left."""
        data = f"<VMM_DRIVER_ACTION_DATA>{self.xml}</VMM_DRIVER_ACTION_DATA>"
        ok(self.one.here("cancel", self.name, "node", str(self.id), "node", xml=data))
        self.nothing_left()

    def power(self, action: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """``shutdown``, ``cancel``, ``reboot``, ``reset``, ``poll``."""
        return self.call(action, self.name, "node", **environment)

    def save(self, *, host: str = "node", **environment: str) -> subprocess.CompletedProcess[str]:
        return self.call("save", self.name, self._double_slash(), host, host=host, **environment)

    def restore(self, *, host: str = "node", **environment: str) -> subprocess.CompletedProcess[str]:
        return self.call("restore", self._double_slash(), host, self.name, host=host, **environment)

    def _double_slash(self) -> str:
        """The checkpoint as oned writes it."""
        return str(self.checkpoint).replace("/datastores", "//datastores")

    # --- what became of it ---

    def status(self) -> Status:
        return self.client.instance(self.name).status

    def seen(self) -> dict[str, tuple[tuple[int, int], str]]:
        """Device and root of what the first process sees, by mount point."""
        state = self.client.state(self.name)
        assert state.status is Status.RUNNING
        return {entry.target: (entry.device, entry.root) for entry in mountinfo.entries(state.pid)}

    def all_disks(self) -> dict[str, tuple[tuple[int, int], str]]:
        """Those of :data:`PLACES`; it is an error when one is missing."""
        seen = self.seen()
        return {path: seen[path] for path in PLACES}

    def inside(self, *argv: str) -> str:
        done = self.client.execute(self.name, argv, deadline_seconds=30)
        assert done.status == 0, done
        return done.stdout.decode()

    def boots(self) -> str:
        """One word for each start and each clean shutdown."""
        return " ".join(line.split()[0] for line in self.inside("cat", "/var/log/boots").splitlines())

    def nothing_left(self) -> None:
        """No container, record, device or mount."""
        mapper = Mapper.open()
        assert not self.client.exists(self.name)
        assert mapper.journal.ids() == ()
        assert mounted.records(mapper) == ()
        assert mountinfo.under(mapper.runtime.root) == ()
        for name in ("exports", "mounts", "locks", "trees", "driver", "containers"):
            path = Path(mapper.runtime.root) / name
            assert not path.exists() or list(path.iterdir()) == [], name
