"""attach_disk and detach_disk on a running container, judged by what it sees."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver import unfinished
from mapper_driver.lxd import cgroups, limits
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import InstanceSpec, Status

from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.reconcile import reconcile
from mapper_core.testing import disks
from mapper_core.testing.disks import Part

from .conftest import Lab, lxd_is_enough
from .dying import Door, Moment
from .machine import Machine, ok
from .one import One, disk_xml
from .plug import Plug

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

VM = 60


def test_every_kind_of_disk(plug: Plug, images: ModuleType) -> None:
    """L-04, L-06, L-01, Y-03: seen inside, owned by root inside, there after a restart, released at the end."""
    machine, path = plug.machine, plug.path
    ok(plug.attach(10, plug.make(10).replace("sdx", "/ten")))
    ok(plug.attach(2, plug.make(2, kind="qcow2")))
    ok(plug.attach(3, plug.make(3, kind="vmdk")))
    disks.make_disk(path(4), (Part("ext4", 16, (), (("/number", "4"),)),))
    ok(plug.attach(4, disk_xml(4, ATTACH="YES", TARGET="/srv/a/b")))
    with path(5).open("wb") as file:
        file.truncate(32 << 20)
    ok(plug.attach(5, disk_xml(5, TYPE="fs", FS="ext4", SOURCE="", ATTACH="YES")))
    images.build_context(str(path(6)), {"NAME": "cdrom"})
    ok(plug.attach(6, disk_xml(6, TYPE="CDROM", DISK_TYPE="CDROM", READONLY="YES", ATTACH="YES")))
    ok(plug.attach(7, plug.make(7).replace("<READONLY><![CDATA[NO", "<READONLY><![CDATA[YES")))
    with path(8).open("wb") as file:
        file.truncate(1 << 20)
    ok(plug.attach(8, disk_xml(8, TYPE="swap", SOURCE="", ATTACH="YES")))

    places = {2: "/media/2", 3: "/media/3", 4: "/srv/a/b", 7: "/media/7", 10: "/media/10"}
    for number, place in places.items():
        assert machine.inside("cat", f"{place}/number") == str(number)
        assert machine.inside("stat", "-c", "%u:%g", place, f"{place}/number").split() == ["0:0", "0:0"]
    assert "cdrom" in machine.inside("cat", "/media/6/context.sh")
    assert "/media/8" not in machine.seen()
    entries = {entry.target: entry for entry in mountinfo.entries(machine.client.state(machine.name).pid)}
    assert "ro" in entries["/media/7"].options and "ro" in entries["/media/6"].options
    assert {"nosuid", "nodev"} <= set(entries["/media/2"].options)
    machine.inside("sh", "-c", "echo kept > /media/5/kept; echo kept > /media/2/kept")

    before = machine.seen()
    machine.client.restart(machine.name)
    after = machine.seen()
    wanted = [*places.values(), "/media/5", "/media/6", *machine.all_disks()]
    assert {place: after[place] for place in wanted} == {place: before[place] for place in wanted}

    ok(plug.detach(5))
    assert "/media/5" not in machine.seen()
    ok(plug.attach(5, disk_xml(5, TYPE="fs", FS="ext4", SOURCE="", ATTACH="YES")))
    assert machine.inside("cat", "/media/5/kept") == "kept\n", "formatted once only (C-10)"


def test_disk_1_beside_disk_10(plug: Plug) -> None:
    """U-14: the number of one is the beginning of the other's; a number is used again for another image."""
    machine = plug.machine
    ok(plug.attach(10, plug.make(10)))
    ok(plug.attach(20, plug.make(20)))
    ok(plug.detach(1))  # deployed with the machine
    assert "/data" not in machine.seen() and "/media/10" in machine.seen()
    assert Mapper.open().find(str(plug.path(1))) is None
    ok(plug.attach(2, plug.make(2)))
    ok(plug.detach(20))
    assert machine.inside("cat", "/media/2/number", "/media/10/number") == "210"

    plug.path(20).unlink()
    ok(plug.attach(20, plug.make(20, text="another")))
    assert machine.inside("cat", "/media/20/number") == "another"
    plug.path(20).rename(plug.path(21))  # still attached; the name is given to a third image
    done = ok(plug.attach(20, plug.make(20, text="a third")))
    assert machine.inside("cat", "/media/20/number") == "a third", done.stderr


def test_the_same_call_twice_and_two_at_once(plug: Plug) -> None:
    """U-09, Y-05."""
    machine, disk = plug.machine, plug.make(2)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: plug.attach(2, disk), range(2)))
    assert 0 in [done.returncode for done in results]
    for done in results:
        assert done.returncode in (0, 5), done.stderr
    before = plug.state()
    assert "already" in ok(plug.attach(2, disk, MAPPER_ONE_VERSION="7.0.0")).stderr
    assert plug.state() == before
    assert machine.inside("cat", "/media/2/number") == "2"
    for _ in range(2):
        ok(plug.detach(2))
    assert "/media/2" not in machine.seen()
    ok(plug.detach(33))  # never attached


def test_a_disk_that_is_in_use_stays(plug: Plug) -> None:
    """The holder is named, and nothing has changed; LXD alone would take it away and leave the device in use."""
    machine = plug.machine
    ok(plug.attach(2, plug.make(2)))
    before = plug.state()

    def refused(*words: str) -> None:
        done = plug.detach(2)
        assert done.returncode == 5, done
        for word in words:
            assert word in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert plug.state() == before
        assert machine.inside("cat", "/media/2/number") == "2"

    plug.start_inside("sh", "-c", "cd /media/2; echo $$ > /tmp/pid; exec sleep 1000")
    _wait(lambda: machine.inside("sh", "-c", "cat /tmp/pid 2>/dev/null; true") != "")
    refused("(sleep)", "/media/2")
    machine.inside("sh", "-c", "kill $(cat /tmp/pid)")

    machine.inside("sh", "-c", "mkdir /media/2/sub /elsewhere; mount -t tmpfs none /media/2/sub")
    before = plug.state()
    refused("/media/2/sub")
    machine.inside("umount", "/media/2/sub")
    machine.inside("mount", "-o", "bind", "/media/2/sub", "/elsewhere")
    before = plug.state()
    refused("/elsewhere")
    machine.inside("umount", "/elsewhere")

    plug.start_inside("unshare", "-m", "sh", "-c", "echo $$ > /tmp/apart; exec sleep 1000")
    _wait(lambda: machine.inside("sh", "-c", "cat /tmp/apart 2>/dev/null; true") != "")
    before = plug.state()
    done = plug.detach(2)
    if done.returncode:  # busybox makes the new namespace private; a copy in it would keep the device
        assert done.returncode == 5 and "mount namespace" in done.stderr
        devices, seen = plug.state()[1:3], machine.seen()  # type: ignore[index]
        assert "disk2" in devices[0] and "/media/2" in seen, "attached again"
        machine.inside("sh", "-c", "kill $(cat /tmp/apart)")
        _wait(lambda: plug.detach(2).returncode == 0)
    assert "/media/2" not in machine.seen()


def _wait(reached: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.05)


def _cases(plug: Plug) -> Iterator[tuple[str, str, str]]:
    """What cannot be attached as disk 20: what is wrong, the ``<DISK>``, words of the message."""
    machine, path = plug.machine, plug.path(20)
    raw = disk_xml(20, ATTACH="YES")
    yield "missing", raw, "does not exist"
    path.write_bytes(os.urandom(1 << 20))
    yield "no filesystem", raw, "disk.20"
    disks.convert(disks.make_filesystem(path.with_name("x"), Part("ext4", 16)), "qcow2", path)
    yield "another format than declared", raw, "qcow2"
    os.truncate(path, 70_000)
    yield "truncated", disk_xml(20, kind="qcow2", ATTACH="YES"), "disk.20"
    path.unlink()
    raw = plug.make(20)
    yield "unknown format", disk_xml(20, kind="vhdx", ATTACH="YES"), "vhdx"
    for target, word in (
        ("/proc/x", "/proc/x"),
        ("/", "cannot be mounted"),
        ("/data", "disk1"),
        ("/context", "/context"),
    ):
        yield f"target {target}", disk_xml(20, ATTACH="YES", TARGET=target), word
    machine.inside("sh", "-c", "ln -s /srv /link; echo mine > /file; mkdir -p /taken; mount -t tmpfs none /taken")
    yield "target is a link", disk_xml(20, ATTACH="YES", TARGET="/link"), "symbolic link"
    yield "target below a link", disk_xml(20, ATTACH="YES", TARGET="/link/x"), "symbolic link"
    yield "target is a file", disk_xml(20, ATTACH="YES", TARGET="/file"), "no directory"
    yield "target in use", disk_xml(20, ATTACH="YES", TARGET="/taken"), "/taken"
    machine.inside("sh", "-c", "mkdir /sealed; mount -t tmpfs -o ro none /sealed")
    yield "target that LXD cannot make", disk_xml(20, ATTACH="YES", TARGET="/sealed/x"), "change the devices"
    yield "two disks", raw + disk_xml(21, ATTACH="YES"), "disk 20"
    yield "other disk in the XML", disk_xml(21, ATTACH="YES"), "no disk 20"
    yield "cut off", raw + "<DISK><DISK_ID>", "standard input"
    yield "hostile", raw.replace("DISK_ID><![CDATA[20", "DISK_ID><![CDATA[20/../0"), "DISK_ID"


@lxd_is_enough
def test_what_cannot_be_attached_leaves_everything_as_it_was(plug: Plug) -> None:
    """L-10, U-01, U-03: one message, complete rollback, and the next call works."""
    before = plug.state()
    for case, disk, word in _cases(plug):
        if case in ("target is a link", "target that LXD cannot make"):
            before = plug.state()  # the guest has mounted something
        done = plug.attach(20, disk)
        assert done.returncode != 0, case
        assert word in done.stderr, case
        assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1, case
        assert plug.state() == before, case
    assert plug.machine.inside("cat", "/file") == "mine\n"
    ok(plug.attach(20, disk_xml(20, ATTACH="YES")))
    assert plug.machine.inside("cat", "/media/20/number") == "20"


@lxd_is_enough
def test_what_the_guest_covers_cannot_be_taken_back_until_it_is_free(
    plug: Plug, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U-03: the error of attach_disk says so, and detach_disk does not unmount what is the guest's instead."""
    machine = plug.machine
    before = plug.state()
    cover = "until grep -q ' /media/20 ' /proc/mounts; do sleep 0.05; done; exec mount -t tmpfs none /media/20"
    plug.start_inside("sh", "-c", cover)
    pid, door = machine.client.state(machine.name).pid, Door(lab.socket)

    def is_covered() -> bool:
        return [entry.fstype for entry in mountinfo.entries(pid) if entry.target == "/media/20"][-1:] == ["tmpfs"]

    door.arm(Moment(when=is_covered))
    with door.open():  # the driver hears that it is attached when the guest has covered it
        done = plug.attach(20, plug.make(20), LXD_SOCKET=door.path)
    assert done.returncode == 14 and "none is at /media/20" in done.stderr
    for said in ("disk 20 is still held", "(tmpfs) over it", "umount /media/20", "mapper-cli reconcile"):
        assert said in done.stderr
    refused = plug.detach(20)
    assert refused.returncode == 5 and "(tmpfs) over it" in refused.stderr
    machine.inside("umount", "/media/20")
    monkeypatch.setenv("LXD_SOCKET", lab.socket)
    assert reconcile(Mapper.open()).problems == ()
    assert plug.state() == before


@lxd_is_enough
def test_the_root_and_the_context_cannot_be_detached(plug: Plug) -> None:
    before = plug.state()
    for number in (0, 9):
        done = plug.detach(number)
        assert done.returncode == 7, done.stderr
    assert plug.call("detach_disk", "/var/lib/one/datastores/0/60/deployment.1", "sdb", "1").returncode == 2
    assert plug.state() == before


def test_limits_of_a_disk(plug: Plug) -> None:
    """They are set at once, at each start, and do not stay on the device that another disk gets (lxd#16003)."""
    machine = plug.machine
    disk = plug.make(2).replace(
        "</DISK>", "<READ_BYTES_SEC>1048576</READ_BYTES_SEC><TOTAL_IOPS_SEC>500</TOTAL_IOPS_SEC></DISK>"
    )
    os.truncate(plug.path(2), 24 << 20)
    ok(plug.attach(2, disk))
    device = limits.device_of(Mapper.open(), machine.name, 2)
    assert device is not None

    def seen() -> str:
        group = cgroups.group_of("io", machine.client.state(machine.name).pid)
        new = group.version is cgroups.Version.V2
        files = ("io.max",) if new else ("blkio.throttle.read_bps_device", "blkio.throttle.write_iops_device")
        number = f"{device[0]}:{device[1]} "
        return " ".join(line for file in files for line in group.read(file).splitlines() if line.startswith(number))

    assert "1048576" in seen() and "500" in seen()
    machine.inside("dd", "if=/dev/zero", "of=/media/2/large", "bs=1M", "count=4")
    machine.inside("sync")
    machine.client.restart(machine.name)
    assert "1048576" in seen() and "500" in seen()
    Path("/proc/sys/vm/drop_caches").write_text("1")
    begun = time.monotonic()
    machine.inside("cat", "/media/2/large")
    assert time.monotonic() - begun > 1.5, "4 MiB at 1 MiB/s"
    ok(plug.detach(2))
    assert seen() == ""
    assert "start-host" not in machine.client.instance(machine.name).config["raw.lxc"]


def test_a_privileged_container_and_limits_of_its_root(
    lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path
) -> None:
    """No map of ids; the root lies on a partition, and its whole disk is what is limited."""
    built = Machine.build(One(tmp_path, lab.socket), client, images, VM)
    wish = "<LXD_SECURITY_PRIVILEGED>YES</LXD_SECURITY_PRIVILEGED></USER_TEMPLATE>"
    xml = built.xml.replace("</USER_TEMPLATE>", wish).replace(
        "</DISK>", "<WRITE_IOPS_SEC>700</WRITE_IOPS_SEC></DISK>", 1
    )
    machine = dataclasses.replace(built, xml=xml)
    ok(machine.deploy())
    plug = Plug(machine)
    device = limits.device_of(Mapper.open(), machine.name, 0)
    assert device is not None and device != machine.seen()["/"][0]
    group = cgroups.group_of("io", machine.client.state(machine.name).pid)
    file = "io.max" if group.version is cgroups.Version.V2 else "blkio.throttle.write_iops_device"
    assert any(line.startswith(f"{device[0]}:{device[1]} ") and "700" in line for line in group.read(file).splitlines())
    ok(plug.attach(2, plug.make(2, kind="qcow2")))
    assert machine.inside("stat", "-c", "%u:%g", "/media/2/number") == "0:0\n"
    assert machine.inside("cat", "/proc/self/uid_map").split()[1] == "0"
    ok(plug.detach(2))
    ok(machine.power("cancel"))
    machine.nothing_left()


def test_a_container_that_does_not_run(plug: Plug) -> None:
    machine, disk = plug.machine, plug.make(2)
    ok(plug.attach(2, disk))
    machine.client.stop(machine.name)
    done = plug.attach(3, plug.make(3))
    assert done.returncode == 12 and "not running" in done.stderr
    ok(plug.detach(2))
    assert Mapper.open().find(str(plug.path(2))) is None
    machine.client.start(machine.name)
    assert "/media/2" not in machine.seen()


@lxd_is_enough
def test_a_container_that_is_gone(plug: Plug) -> None:
    machine = plug.machine
    ok(plug.attach(2, plug.make(2)))
    ok(machine.power("cancel"))
    done = plug.attach(2, disk_xml(2, ATTACH="YES"))
    assert done.returncode == 3 and machine.name in done.stderr
    ok(plug.detach(2))
    machine.nothing_left()


@lxd_is_enough
def test_killed_at_any_moment(plug: Plug, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of attach and detach: the same call again finishes it. Reconcile takes away what was not attached to the end, and
    nothing that is in use.
    """
    monkeypatch.setenv("LXD_SOCKET", lab.socket)  # for reconcile
    machine, disk, runtime = plug.machine, plug.make(2), Mapper.open().runtime
    killer = tmp_path / "killer"
    driver = Path(sys.executable).parent / "mapper-driver"
    for moment in (0.25, 0.35, 0.42, 0.5):
        killer.write_text(f'#!/bin/sh\nexec timeout -s KILL {moment} {driver} "$@"\n')
        killer.chmod(0o755)
        plug.attach(2, disk, MAPPER_DRIVER=str(killer))
        begun = unfinished.written_down(runtime, machine.name)
        if moment > 0.4:
            assert reconcile(Mapper.open()).problems == ()
            there = "/media/2" in machine.seen()
            assert there == (Mapper.open().find(str(plug.path(2))) is not None)
            assert not (begun and there) and unfinished.written_down(runtime, machine.name) == ()
        ok(plug.attach(2, disk))
        assert machine.inside("cat", "/media/2/number") == "2"
        plug.detach(2, MAPPER_DRIVER=str(killer))
        if moment == 0.42:
            assert reconcile(Mapper.open()).problems == ()
        ok(plug.detach(2))
        assert "/media/2" not in machine.seen()
        assert Mapper.open().find(str(plug.path(2))) is None
    assert machine.status() is Status.RUNNING
    machine.all_disks()


@lxd_is_enough
def test_the_error_has_the_form_of_the_version(plug: Plug) -> None:
    for version in ("5.12.13", "6.10.5", "7.0.0"):
        done = plug.attach(20, disk_xml(20, ATTACH="YES"), MAPPER_ONE_VERSION=version)
        assert done.returncode == 3
        assert ("ERROR MESSAGE --8<------" in done.stderr) == version.startswith("5")
        assert "does not exist" in done.stderr


def test_storage_of_a_container_made_by_hand_is_left_alone(lab: Lab, client: LxdClient, tmp_path: Path) -> None:
    client.create(InstanceSpec("by-hand"))
    try:
        one, before = One(tmp_path, lab.socket), client.instance("by-hand").devices
        xml = one.vm_xml(66, disk_xml(2, ATTACH="YES"), deployed=True).replace(
            "one-66</DEPLOY_ID>", "by-hand</DEPLOY_ID>"
        )
        path = f"{one.vm_dir(66)}/disk.2"
        data = f"<VMM_DRIVER_ACTION_DATA>{xml}</VMM_DRIVER_ACTION_DATA>"
        done = one.run("attach_disk", "by-hand", path, "sdb", "1", "copy", "66", "node", xml=data)
        assert done.returncode == 6, done
        ok(one.run("detach_disk", "by-hand", path, "sdb", "1", "66", "node", xml=data))
        assert client.instance("by-hand").devices == before
    finally:
        client.delete("by-hand")


def test_the_daemon_is_away(plug: Plug) -> None:
    ok(plug.attach(2, plug.make(2)))
    before = plug.state()
    for done in (plug.attach(3, plug.make(3), LXD_SOCKET="/none"), plug.detach(2, LXD_SOCKET="/none")):
        assert done.returncode == 11
    assert plug.state() == before
