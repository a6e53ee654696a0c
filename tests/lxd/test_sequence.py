"""A machine's whole life, call after call as OpenNebula makes them, and what each of them changes in the container."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd import cgroups, placement
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Status
from mapper_driver.poweroff import OFF_SECONDS

from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part

from .conftest import Lab, run
from .frontend import NODE, Answer, Frontend, Way
from .machine import Machine
from .one import One

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(400)]

VM = 94
MACS = {number: f"02:00:0a:5e:00:{number:02x}" for number in range(4)}
#: Where the disks are after ``deploy``; disk 3 is swap, which a container has no use for.
PLACES = {0: "/", 1: "/media/1", 2: "/media/2", 4: "/media/4", 5: "/context"}


@dataclass
class Life:
    """The play: front-end, container, and the storage drivers' part."""

    one: Frontend
    seen: Machine
    images: ModuleType
    bridge: str

    # --- the storage drivers' part ---

    def place(self, number: int, kind: str, **elements: object) -> dict[str, object]:
        """Write the image of a disk and its elements."""
        path = self.one.vm_dir / f"disk.{number}"
        size = self.fill(path, kind)
        common = {
            "DISK_ID": number,
            "DEV_PREFIX": "sd",
            "TARGET": f"sd{chr(97 + number)}",
            "READONLY": "NO",
            "TM_MAD": "ssh",
        }
        form = {"FORMAT": "raw" if kind in ("cdrom", "swap") else "qcow2", "DISK_TYPE": "FILE", "SIZE": size}
        own = {
            "ORIGINAL_SIZE": size,
            "SOURCE": f"{self.one.directory}//datastores/1/{number}",
            "CLONE": "YES",
            "TYPE": "FILE",
        }
        if kind in ("volatile", "swap"):
            own = {"TYPE": "swap" if kind == "swap" else "fs", "FS": "ext4"}
        elif kind == "cdrom":
            own |= {"TYPE": "CDROM", "READONLY": "YES", "CLONE": "NO"}
        self.one.disks[number] = {**common, **form, "DRIVER": form["FORMAT"], "DATASTORE_ID": 1, **own, **elements}
        return self.one.disks[number]

    def fill(self, path: Path, kind: str) -> int:
        """Make an image; returns its size in MiB."""
        if kind == "cdrom":
            self.images.build_context(str(path), {"NAME": "cdrom"})
            return 1
        if kind == "swap":
            with path.open("wb") as file:
                file.truncate(8 * MIB)
            return 8
        if kind == "volatile":
            disks.run("qemu-img", "create", "-q", "-f", "qcow2", str(path), "32M")
            return 32
        raw = path.with_name(f"{path.name}.raw")
        if kind == "system":
            tree = path.with_name("tree")
            tree.mkdir()
            self.images.write_system(str(tree))
            disks.make_disk(raw, (Part("ext4", 8), Part("btrfs", 128, ("--rootdir", str(tree)))))
        else:
            disks.make_filesystem(raw, Part("ext4", 16, (), (("/number", path.name),)))
        size = raw.stat().st_size // MIB
        disks.convert(raw, "qcow2", path)
        raw.unlink()
        return size

    def context(self) -> None:
        """Make the context ISO anew, with an address for each interface."""
        values = {f"ETH{number}_MAC": str(nic["MAC"]) for number, nic in self.one.nics.items()}
        values |= {
            f"ETH{nic['PARENT_ID']}_ALIAS{nic['ALIAS_ID']}_MAC": str(nic["MAC"]) for nic in self.one.aliases.values()
        }
        path = self.one.vm_dir / f"disk.{self.one.context_id}"
        path.unlink(missing_ok=True)
        self.images.build_context(str(path), {**values, "MEMORY": str(self.one.size["MEMORY"])})

    def move_away_and_back(self) -> None:
        """Nothing may use the images then: the storage driver has moved them to the front-end."""
        self.seen.nothing_left()
        away = self.one.directory / "front-end"
        self.one.vm_dir.rename(away)
        away.rename(self.one.vm_dir)

    def nic(self, number: int, **elements: object) -> dict[str, object]:
        plain = {
            "BRIDGE": self.bridge,
            "BRIDGE_TYPE": "linux",
            "IP": f"10.94.0.{number}",
            "MAC": MACS[number],
            "NETWORK": "lan",
        }
        target = {
            "NETWORK_ID": 0,
            "NIC_ID": number,
            "TARGET": f"one-{VM}-{number}",
            "VN_MAD": "dummy",
            "SECURITY_GROUPS": 0,
        }
        return {**plain, **target, **elements}

    # --- calls ---

    def act(self, script: str, *parameters: str, lcm_state: int = 3, **paths: str) -> str:
        answer = self.one.act(script, self.one.deploy_id, *parameters, lcm_state=lcm_state, **paths)
        assert answer.status == 0, answer.stderr
        return answer.info

    def deploy(self) -> None:
        self.context()
        answer = self.one.deploy()
        assert (answer.status, answer.info) == (0, f"one-{VM}"), answer.stderr

    def restore(self) -> None:
        checkpoint = self.one.path("checkpoint")
        answer = self.one.act("restore", checkpoint, NODE, self.one.deploy_id, lcm_state=21, checkpoint=checkpoint)
        assert (answer.status, answer.info) == (0, ""), answer.stderr

    def save(self, lcm_state: int) -> None:
        checkpoint = self.one.path("checkpoint")
        assert self.act("save", checkpoint, NODE, lcm_state=lcm_state, checkpoint=checkpoint) == ""

    def attach(self, number: int) -> None:
        disk, path = self.one.disks[number], self.one.path(f"disk.{number}")
        disk["ATTACH"] = "YES"
        self.act("attach_disk", path, str(disk["TARGET"]), str(number), "COPY", lcm_state=17, disk=path)
        del disk["ATTACH"]

    def renew_context(self, lcm_state: int) -> None:
        """Both calls, and the ISO that is made between them."""
        iso = self.one.path(f"disk.{self.one.context_id}")
        self.act("prereconfigure", "hdb", lcm_state=lcm_state, disk=iso)
        self.context()
        self.act("reconfigure", "hdb", iso, lcm_state=lcm_state, disk=iso)

    def snapshot(self, what: str, argument: str, **element: object) -> str:
        self.one.snapshots[0] = {
            "SNAPSHOT_ID": 0,
            "NAME": "a",
            "ACTIVE": "YES",
            "ACTION": what.upper(),
            "TIME": 1,
            **element,
        }
        return self.act(f"snapshot_{what}", argument, lcm_state=24)

    # --- what is seen in the container ---

    def mounted(self) -> set[str]:
        """The machine's disks among what its first process has mounted."""
        found = self.seen.seen()
        return {place for place in found if place in ("/", "/context") or place.startswith("/media/")}

    def write(self, text: str) -> None:
        for place in ("/", "/media/1", "/media/2"):
            self.seen.inside("sh", "-c", f"echo {text} > {place}/word")

    def words(self) -> list[str]:
        return [self.seen.inside("cat", f"{place}/word").strip() for place in ("/", "/media/1", "/media/2")]

    def interfaces(self) -> dict[str, str]:
        """Addresses of the interfaces."""
        names = self.seen.inside("sh", "-c", "for i in /sys/class/net/eth*; do echo ${i##*/} $(cat $i/address); done")
        return {line.split()[0]: line.split()[1] for line in names.splitlines()}

    def memory(self) -> int:
        """The limit, MiB."""
        return (cgroups.memory_limit(cgroups.group_of("memory", self.pid())) or 0) // MIB

    def pid(self) -> int:
        return self.seen.client.state(self.seen.name).pid

    def processors(self, wanted: int) -> None:
        _wait(lambda: int(self.seen.inside("busybox", "nproc")) == wanted)

    def context_says(self, text: str) -> bool:
        return text in self.seen.inside("cat", "/context/context.sh")

    def room(self) -> int:
        """Of the root, MiB."""
        return int(self.seen.inside("df", "-P", "-k", "/").splitlines()[-1].split()[1]) // 1024


def _wait(reached: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def life(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> Iterator[Life]:
    options = ":save:\n  :suspend: freeze\n  :stop: shutdown\n"
    one = Frontend(tmp_path, lab.socket, VM, options=options, size={"CPU": "0.2", "MEMORY": 192, "VCPU": 1})
    one.vm_dir.mkdir(parents=True)
    (tmp_path / "datastores" / "1").mkdir()
    found = Life(one, Machine(One(tmp_path, lab.socket), client, VM, ""), images, lab.variables["MAPPER_LAB_BRIDGE"])
    with ExitStack() as undo:
        undo.callback(found.one.act, "cancel", one.deploy_id, NODE)
        for number, kind in enumerate(("system", "data", "volatile", "swap", "cdrom")):
            found.place(number, kind)
        one.nics |= {0: found.nic(0, INBOUND_AVG_BW=1000), 1: found.nic(1)}
        yield found


def test_from_deploy_to_terminate(life: Life) -> None:
    """Over ssh until the machine is undeployed, then on the front-end itself. L-01, L-04, L-06, Y-02, Y-03."""
    one, seen = life.one, life.seen

    # a disk is missing: the deployment fails, and works when it is there
    (one.vm_dir / "disk.1").rename(one.vm_dir / "elsewhere")
    life.context()
    _failed(one.deploy(), 3, "disk.1")
    seen.nothing_left()
    (one.vm_dir / "elsewhere").rename(one.vm_dir / "disk.1")
    life.deploy()
    assert life.mounted() == set(PLACES.values())
    assert seen.inside("stat", "-c", "%u:%g", "/etc/passwd", "/media/1/number").split() == ["0:0", "0:0"]
    assert seen.inside("cat", "/media/1/number") == "disk.1"
    assert "cdrom" in seen.inside("cat", "/media/4/context.sh")
    assert life.interfaces() == {"eth0": MACS[0], "eth1": MACS[1]}
    assert "rate 8Mbit" in run("tc", "class", "show", "dev", f"one-{VM}-0")
    assert life.memory() == 192 and life.context_says(MACS[1])
    assert cgroups.group_of("pids", life.pid()).read("pids.max").strip() == "100"
    life.processors(1)

    pid, disks_before = life.pid(), {place: seen.seen()[place] for place in PLACES.values()}
    for action in ("reboot", "reset"):
        life.act(action, NODE)
        assert life.pid() != pid
        assert {place: seen.seen()[place] for place in PLACES.values()} == disks_before
        pid = life.pid()
    assert seen.boots() == "boot shutdown boot boot"

    # disks come and go; the last is a link to an image that is kept
    life.place(6, "data")
    life.place(7, "volatile")
    kept = one.directory / "datastores" / "1" / "kept"
    life.place(8, "data", CLONE="NO", SAVE="YES", SOURCE=str(kept))
    (one.vm_dir / "disk.8").rename(kept)
    (one.vm_dir / "disk.8").symlink_to(kept)
    for number in (6, 7, 8):
        life.attach(number)
        assert f"/media/{number}" in life.mounted()
    assert seen.inside("cat", "/media/6/number", "/media/8/number") == "disk.6disk.8"
    seen.inside("sh", "-c", "echo written > /media/8/written")
    one.disks[8]["ATTACH"] = "YES"
    life.act("detach_disk", one.path("disk.8"), "sdi", "8", lcm_state=17, disk=one.path("disk.8"))
    del one.disks[8]
    (one.vm_dir / "disk.8").unlink()
    assert life.mounted() == {*PLACES.values(), "/media/6", "/media/7"}
    assert Mapper.open().find(str(kept)) is None
    life.write("first")

    room, size = life.room(), int(str(one.disks[0]["SIZE"]))
    one.disks[0] |= {"SIZE": size + 200, "SIZE_PREV": size, "RESIZE": "YES"}
    life.act("resize_disk", "0", str(size + 200), "COPY", NODE, lcm_state=62, disk=one.path("disk.0"))
    del one.disks[0]["RESIZE"], one.disks[0]["SIZE_PREV"]
    assert life.room() - room > 160 and life.pid() == pid

    # an interface, an alias of it, and both away again; each time the context is made anew
    one.nics[2] = life.nic(2, ATTACH="YES")
    life.act("attach_nic", MACS[2], life.bridge, "-", "dummy", f"one-{VM}-2", lcm_state=25)
    life.renew_context(25)
    assert life.interfaces()["eth2"] == MACS[2] and life.context_says(MACS[2])
    assert f"master {life.bridge}" in run("ip", "link", "show", f"one-{VM}-2")
    del one.nics[2]["ATTACH"]
    one.aliases[3] = life.nic(3, ALIAS_ID=0, PARENT="NIC0", PARENT_ID=0, ATTACH="YES")
    life.renew_context(25)
    assert len(life.interfaces()) == 3 and life.context_says(f"ETH0_ALIAS0_MAC='{MACS[3]}'")
    del one.aliases[3]
    life.renew_context(25)
    assert not life.context_says(MACS[3])
    life.act("detach_nic", MACS[2], lcm_state=25)
    del one.nics[2]
    life.renew_context(25)
    assert set(life.interfaces()) == {"eth0", "eth1"} and not life.context_says(MACS[2])

    # a system snapshot of all disks
    name = life.snapshot("create", "0", HYPERVISOR_ID="")
    assert name and len(name.split()) == 1 and life.pid() == pid
    life.write("second")
    assert life.words() == ["second"] * 3
    life.snapshot("revert", name, HYPERVISOR_ID=name)
    assert life.words() == ["first"] * 3
    assert life.mounted() == {*PLACES.values(), "/media/6", "/media/7"}
    life.snapshot("delete", name, HYPERVISOR_ID=name)
    one.snapshots.clear()
    assert name not in disks.run("qemu-img", "snapshot", "-U", "-l", str(one.vm_dir / "disk.1"))

    # more memory and processors, and a context that says so
    pid, one.before = life.pid(), dict(one.size)
    one.size |= {"CPU": "0.4", "MEMORY": 256, "VCPU": 2}
    life.act("resize", lcm_state=66)
    assert life.memory() == 256 and life.pid() == pid
    life.processors(2)
    one.before = {}
    life.renew_context(17)
    assert life.context_says("MEMORY='256'")

    # live migration is refused and changes nothing
    _failed(one.act("migrate", one.deploy_id, "node2", NODE, lcm_state=4), 6, f"one-{VM}")
    assert life.pid() == pid

    # suspend and resume, stop and resume
    life.save(6)
    assert seen.status() is Status.FROZEN
    life.restore()
    assert life.pid() == pid and life.words() == ["first"] * 3
    life.save(5)
    life.move_away_and_back()
    life.context()
    life.restore()
    assert life.mounted() == {*PLACES.values(), "/media/6", "/media/7"} and life.memory() == 256

    # power off, softly and hard, undeploy; the disk that was attached is in the description now
    for action, away in (("shutdown", False), ("cancel", False), ("shutdown", True)):
        life.act(action, NODE, lcm_state=18)
        seen.nothing_left()
        if away:
            life.move_away_and_back()
            one.way = Way.LOCAL
        life.deploy()
        assert life.mounted() == {*PLACES.values(), "/media/6", "/media/7"}
        assert life.words() == ["first"] * 3 and life.room() - room > 160
        assert life.interfaces() == {"eth0": MACS[0], "eth1": MACS[1]}

    # the guest powers itself off: oned hears of it, and its disks are free a while later
    assert one.act("poll", one.deploy_id, NODE).info.startswith("STATE=a MEMORY=")
    seen.inside("poweroff")
    _wait(lambda: seen.status() is Status.STOPPED)
    assert one.act("poll", one.deploy_id, NODE).info == "STATE=d"
    _age(seen.name)
    assert one.act("poll", one.deploy_id, NODE).info == "STATE=d"
    assert Mapper.open().journal.ids() == () and mountinfo.under(Mapper.open().runtime.mounts) == ()
    life.deploy()
    assert life.words() == ["first"] * 3

    # terminate; what oned does to be sure when a machine is deleted finds nothing left to do
    life.act("shutdown", NODE, lcm_state=12)
    seen.nothing_left()
    assert one.act("cancel", one.deploy_id, NODE, lcm_state=69).status == 0
    assert not list(Path("/sys/class/net").glob(f"one-{VM}-*"))


def _failed(answer: Answer, status: int, word: str) -> None:
    """One line that says why, and nothing besides."""
    assert answer.status == status, answer
    assert answer.info == "" and word in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1 and "Traceback" not in answer.stderr


def _age(container: str) -> None:
    """As if it had been seen stopped a while ago."""
    mark = Path(placement.off_path(placement.record_path(Mapper.open().runtime, container)))
    found = json.loads(mark.read_text(encoding="utf-8"))
    mark.write_text(json.dumps({**found, "since": found["since"] - OFF_SECONDS}), encoding="utf-8")
