"""System snapshots by OpenNebula's own scripts: the disks are what they were, and the container runs on them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import Status

from mapper_core.mapping import Mapper
from mapper_core.reconcile import reconcile
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part

from .conftest import Lab, lxd_is_enough
from .machine import CONTEXT, Machine, ok
from .one import One, disk_xml
from .plug import Done, Plug

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

VM = 80
PLACES = ("/", "/home", "/data", "/media/2")


@dataclass(frozen=True)
class Kept:
    """A machine with a system in a partitioned qcow2, a data disk, a volatile one, swap, a CD-ROM and the context."""

    machine: Machine

    def path(self, number: int) -> Path:
        return self.machine.one.vm_dir(VM) / f"disk.{number}"

    def snapshot(self, what: str, argument: str, **environment: str) -> Done:
        return self.machine.about_to(24).call(f"snapshot_{what}", self.machine.name, argument, **environment)

    def write(self, text: str) -> None:
        """Leave a word on every disk, and in the cache of the guest."""
        for place in PLACES:
            self.machine.inside("sh", "-c", f"echo {text} > {place}/word")

    def words(self) -> set[str]:
        return {self.machine.inside("cat", f"{place}/word").strip() for place in PLACES}

    def names(self) -> list[list[str]]:
        """Snapshots in the images, as another program sees them."""
        found = []
        for number in range(3):
            lines = disks.run("qemu-img", "snapshot", "-U", "-l", str(self.path(number))).splitlines()
            found.append([line.split()[1] for line in lines[2:]])
        return found

    def config(self) -> tuple[object, ...]:
        found = self.machine.client.instance(self.machine.name)
        config = {key: value for key, value in found.config.items() if not key.startswith("volatile.")}
        return config, dict(found.devices), found.profiles, self.machine.client.idmap(self.machine.name)

    def killer(self, module: str, name: str, count: int, then: str) -> str:
        """A driver that comes to its end at a call of a function, or one whose function fails there."""
        path = self.machine.one.directory / "killer"
        path.write_text(KILLER.format(python=sys.executable, module=module, name=name, count=count, then=then))
        path.chmod(0o755)
        return str(path)


KILLER = """#!{python}
import importlib, os, signal, sys
from mapper_core.errors import KernelError
from mapper_driver.main import main
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
def fail():
    raise KernelError("the storage says no", subject="test")
owner = importlib.import_module("{module}")
*path, last = "{name}".split(".")
for part in path:
    owner = getattr(owner, part)
real, count = getattr(owner, last), {count}
def counted(*arguments, **named):
    global count
    count -= 1
    if count == 0:
        {then}()
    return real(*arguments, **named)
setattr(owner, last, counted)
sys.exit(main())
"""


def _empty(path: Path) -> None:
    disks.run("qemu-img", "create", "-q", "-f", "qcow2", str(path), "32M")


@pytest.fixture
def kept(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> Iterator[Kept]:
    """Running; at the end nothing of it may be left but its images."""
    one = One(tmp_path, lab.socket)
    directory = one.vm_dir(VM)
    images.build_system(str(directory / "disk.0"), format_="qcow2", seed="kept")
    piece = disks.make_filesystem(directory / "piece", Part("ext4", 16))
    disks.convert(piece, "qcow2", directory / "disk.1")
    _empty(directory / "disk.2")
    images.build_context(str(directory / "disk.4"), {"NAME": "cdrom"})
    images.build_context(str(directory / "disk.9"))
    each = (
        disk_xml(0, kind="qcow2")
        + disk_xml(1, kind="qcow2", TARGET="/data", SIZE="16")
        + disk_xml(2, kind="qcow2", TYPE="fs", FS="ext4", SOURCE="", SIZE="32")
        + disk_xml(3, TYPE="swap", SOURCE="")
        + disk_xml(4, TYPE="CDROM", DISK_TYPE="CDROM", READONLY="YES")
    )
    found = Kept(Machine(one, client, VM, one.vm_xml(VM, each, deployed=True, template=CONTEXT)))
    found.machine.set_up()
    found.write("first")
    try:
        yield found
    finally:
        found.machine.tear_down()
    for number in range(3):
        disks.run("qemu-img", "check", "-q", "-f", "qcow2", str(found.path(number)))


def test_every_disk_comes_back_to_the_moment_of_the_snapshot(kept: Kept) -> None:
    """Created while it runs, twice; reverted to the older, then to the newer; deleted while it runs. L-01, L-04, L-06."""
    machine = kept.machine
    pid, before = machine.client.state(machine.name).pid, kept.config()
    assert ok(kept.snapshot("create", "0")).stdout == "mapper-80-0\n"
    kept.write("second")
    assert ok(kept.snapshot("create", "1")).stdout == "mapper-80-1\n"
    kept.write("third")
    assert kept.config() == before
    assert machine.client.state(machine.name).pid == pid, "nothing was stopped"
    assert kept.names() == [["mapper-80-0", "mapper-80-1"]] * 3
    for name, wanted in (("mapper-80-0", "first"), ("mapper-80-1", "second")):
        done = ok(kept.snapshot("revert", name))
        assert done.stdout == ""
        assert kept.words() == {wanted}
        assert machine.status() is Status.RUNNING
        assert kept.config() == before
        assert {*PLACES, "/boot", "/media/4", "/context"} <= machine.seen().keys()
        assert machine.inside("stat", "-c", "%u:%g", "/etc/fstab", "/data/word").split() == ["0:0"] * 2
        kept.write("lost")
    machine.client.restart(machine.name)
    assert kept.words() == {"lost"}
    pid = machine.client.state(machine.name).pid
    for _ in range(2):
        ok(kept.snapshot("delete", "mapper-80-0"))
    assert kept.names() == [["mapper-80-1"]] * 3
    assert machine.client.state(machine.name).pid == pid
    assert kept.words() == {"lost"}
    # a number that is used again, which oned does when it has forgotten the snapshot
    done = ok(kept.snapshot("create", "1", MAPPER_ONE_VERSION="7.0.0"))
    assert "earlier" in done.stderr
    kept.write("later")
    ok(kept.snapshot("revert", "mapper-80-1"))
    assert kept.words() == {"lost"}


@lxd_is_enough
def test_a_machine_that_is_powered_off(kept: Kept) -> None:
    """With KEEP_SNAPSHOTS oned deletes and reverts then too; there is no container, only images."""
    machine = kept.machine
    for number in "01":
        ok(kept.snapshot("create", number))
        kept.write("second")
    ok(machine.power("shutdown"))
    ok(kept.snapshot("delete", "mapper-80-1"))
    ok(kept.snapshot("revert", "mapper-80-0"))
    assert not machine.client.exists(machine.name)
    assert kept.names() == [["mapper-80-0"]] * 3
    created = kept.snapshot("create", "2")
    assert created.returncode == 3 and "one-80" in created.stderr
    ok(machine.deploy())
    assert kept.words() == {"first"}


@lxd_is_enough
def test_what_cannot_be_is_said_before_anything_is_done(kept: Kept) -> None:
    """A disk whose format keeps no snapshots, one that was attached since, a snapshot that is not there, nonsense."""
    machine = kept.machine
    plug = Plug(machine)
    ok(kept.snapshot("create", "0"))
    kept.write("second")
    raw, other = plug.make(6), plug.make(7, kind="qcow2")
    ok(plug.attach(6, raw))
    ok(plug.attach(7, other))
    before, pid = plug.state(), machine.client.state(machine.name).pid
    for action, argument, added, code, words in (
        ("create", "1", raw, 6, "disk 6"),
        ("revert", "mapper-80-0", raw, 3, "disk 6"),
        ("revert", "mapper-80-0", other, 3, "disk 7"),
        ("revert", "mapper-80-7", "", 3, "mapper-80-7"),
        ("revert", "-a", "", 2, "-a"),
        ("create", "mapper", "", 2, "mapper"),
    ):
        done = plug.call(f"snapshot_{action}", argument, added=added)
        assert done.returncode == code, (action, done)
        assert words in done.stderr and "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stdout == ""
    assert plug.state() == before
    assert machine.client.state(machine.name).pid == pid
    assert kept.names() == [["mapper-80-0"]] * 3
    # a disk that has none is no reason not to delete those of the others
    ok(plug.call("snapshot_delete", "mapper-80-0", added=raw + other))
    assert kept.names() == [[]] * 3
    data = f"<VMM_DRIVER_ACTION_DATA>{machine.xml.replace('one-80', 'by-hand')}</VMM_DRIVER_ACTION_DATA>"
    wild = machine.one.run("snapshot_create", "by-hand", "0", str(VM), "node", xml=data)
    assert wild.returncode == 6 and "made by hand" in wild.stderr


@lxd_is_enough
def test_a_disk_that_has_grown_since_keeps_its_size(kept: Kept) -> None:
    """OpenNebula does not know that the old content had another size."""
    machine = kept.machine
    ok(kept.snapshot("create", "0"))
    ok(machine.power("shutdown"))
    disks.run("qemu-img", "resize", "-q", "-f", "qcow2", str(kept.path(1)), "200M")
    larger = machine.xml.replace("<SIZE><![CDATA[16]]>", "<SIZE><![CDATA[200]]>")
    grown = Kept(Machine(machine.one, machine.client, VM, larger))
    ok(grown.machine.deploy())
    grown.write("second")
    ok(grown.snapshot("revert", "mapper-80-0"))
    assert grown.words() == {"first"}
    mapped = Mapper.open().find(str(kept.path(1)))
    assert mapped is not None and mapped.size == 200 * MIB
    room = int(grown.machine.inside("df", "-P", "-k", "/data").splitlines()[-1].split()[1])
    assert room > 150_000


@lxd_is_enough
def test_when_one_disk_cannot_be_reverted_all_stay_and_the_container_runs_again(kept: Kept) -> None:
    ok(kept.snapshot("create", "0"))
    kept.write("second")
    before = kept.config()
    driver = kept.killer("mapper_core.capabilities", "snapshot_revert", 2, "fail")
    done = kept.snapshot("revert", "mapper-80-0", MAPPER_DRIVER=driver)
    assert done.returncode != 0 and "the storage says no" in done.stderr
    assert kept.machine.status() is Status.RUNNING
    assert kept.words() == {"second"}
    assert kept.config() == before
    assert kept.names() == [["mapper-80-0"]] * 3
    kept.machine.client.freeze(kept.machine.name)
    ok(kept.snapshot("create", "1"))
    assert kept.machine.status() is Status.FROZEN
    ok(kept.snapshot("revert", "mapper-80-0"))
    assert kept.words() == {"first"}


@lxd_is_enough
def test_killed_while_a_snapshot_is_made(kept: Kept) -> None:
    """The filesystems go on by themselves; afterwards the snapshot is on all disks, or on none."""
    driver = kept.killer("mapper_core.registry", "Registry.snapshot_create", 2, "kill")
    assert kept.snapshot("create", "0", MAPPER_DRIVER=driver).returncode == -9
    kept.write("second")
    assert reconcile(Mapper.open()).problems == ()
    assert kept.names() == [[]] * 3
    assert kept.snapshot("create", "0", MAPPER_DRIVER=driver).returncode == -9
    kept.write("third")
    ok(kept.snapshot("create", "0"))
    kept.write("fourth")
    ok(kept.snapshot("revert", "mapper-80-0"))
    assert kept.words() == {"third"}


#: Where the driver is killed: before this call of this function.
REVERTING = {
    "the container is stopped": ("mapper_driver.lxd.placement", "unplace", 1),
    "one disk is released": ("mapper_core.tree.mounted", "dismantle", 3),
    "all disks are released": ("mapper_core.snapshots", "create", 1),
    "one disk is reverted": ("mapper_core.capabilities", "snapshot_revert", 2),
    "all disks are reverted": ("mapper_driver.reverting", "end", 1),
    "the disks are mounted": ("mapper_driver.actions.start", "_can_be_placed", 1),
}


@lxd_is_enough
def test_killed_while_it_is_reverted_the_next_call_finishes(kept: Kept) -> None:
    ok(kept.snapshot("create", "0"))
    for place, where in REVERTING.items():
        kept.write("second")
        killed = kept.snapshot("revert", "mapper-80-0", MAPPER_DRIVER=kept.killer(*where, "kill"))
        assert killed.returncode == -9, place
        reconcile(Mapper.open())
        ok(kept.snapshot("revert", "mapper-80-0"))
        assert kept.words() == {"first"}, place
        assert {*PLACES, "/boot", "/media/4", "/context"} <= kept.machine.seen().keys(), place
        assert kept.names() == [["mapper-80-0"]] * 3, place


def test_killed_while_it_is_reverted_the_machine_never_starts_on_disks_of_two_moments(kept: Kept) -> None:
    """oned sees a machine that is off, and somebody resumes it."""
    ok(kept.snapshot("create", "0"))
    for place, wanted in (("one disk is released", "second"), ("one disk is reverted", "first")):
        kept.write("second")
        killed = kept.snapshot("revert", "mapper-80-0", MAPPER_DRIVER=kept.killer(*REVERTING[place], "kill"))
        assert killed.returncode == -9
        ok(kept.machine.deploy())
        assert kept.words() == {wanted}
        assert kept.names() == [["mapper-80-0"]] * 3
