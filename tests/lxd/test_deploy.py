"""deploy, shutdown and cancel on a real LXD, by OpenNebula's own scripts, judged by what the container sees."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd.client import LxdClient
from mapper_driver.lxd.model import InstanceSpec, Status

from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.model import Disk
from mapper_core.reconcile import reconcile
from mapper_core.testing import disks
from mapper_core.testing.disks import Part
from mapper_core.tree import mounted

from .conftest import Lab, lxd_is_enough
from .one import One, disk_xml

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(240)]

CONTEXT = "<CONTEXT><DISK_ID>9</DISK_ID><TARGET>hda</TARGET></CONTEXT>"


@dataclass
class World:
    """One node and the machines a test has on it."""

    one: One
    client: LxdClient
    images: ModuleType

    def machine(self, vm: int, *, kind: str = "qcow2", extra: str = "", template: str = "", user: str = "") -> str:
        """Put a system disk in place; return the XML."""
        path = self.one.vm_dir(vm) / "disk.0"
        self.images.build_system(str(path), format_=kind, seed=f"vm{vm}")
        return self.one.vm_xml(vm, disk_xml(0, kind=kind) + extra, template=template, user=user)

    def seen(self, vm: int) -> dict[str, mountinfo.MountEntry]:
        """What the first process of a container sees, by mount point."""
        state = self.client.state(f"one-{vm}")
        assert state.status is Status.RUNNING
        return {entry.target: entry for entry in mountinfo.entries(state.pid)}

    def inside(self, vm: int, *argv: str) -> str:
        """Run a command in a container."""
        done = self.client.execute(f"one-{vm}", argv, deadline_seconds=30)
        assert done.status == 0, done
        return done.stdout.decode()

    def nothing_left(self) -> None:
        """No container, record, device or mount of ours."""
        mapper = Mapper.open()
        assert self.client.instances() == ()
        assert mapper.journal.ids() == ()
        assert mounted.records(mapper) == ()
        assert mountinfo.under(mapper.runtime.root) == ()
        for name in ("exports", "mounts", "locks", "trees", "driver"):
            path = Path(mapper.runtime.root) / name
            assert not path.exists() or os.listdir(path) == [], name


@pytest.fixture
def world(lab: Lab, client: LxdClient, images: ModuleType, tmp_path: Path) -> Iterator[World]:
    yield World(One(tmp_path, lab.socket), client, images)
    for instance in client.instances():
        client.stop(instance.name)
        subprocess.run(["true"], check=True)
        xml = f"<VM><ID>{instance.name[4:]}</ID><DEPLOY_ID>{instance.name}</DEPLOY_ID></VM>"
        One(tmp_path, lab.socket).end(int(instance.name[4:]), xml)


def _ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


def test_the_main_job(world: World) -> None:
    """A qcow2 with GPT, a read-only data disk, a volatile disk, swap and context; deploy, look, shutdown, nothing left.

    L-04, L-06, P-01, M-02. U-02: with the context mounted too, nothing keeps the directory of the machine.
    """
    extra = (
        disk_xml(1, TARGET="/data", READONLY="YES")
        + disk_xml(2, TYPE="fs", FS="ext4", SOURCE="")
        + disk_xml(3, TYPE="swap")
        + disk_xml(4, kind="vmdk")
    )
    xml = world.machine(1, extra=extra, template=CONTEXT)
    directory = world.one.vm_dir(1)
    disks.make_filesystem(directory / "disk.1", Part("ext4", 16, (), (("/hello", "world"),)))
    with (directory / "disk.2").open("wb") as file:
        file.truncate(32 << 20)
    piece = disks.make_filesystem(directory / "piece", Part("ext4", 16, (), (("/vmdk", "yes"),)))
    disks.convert(piece, "vmdk", directory / "disk.4")
    world.images.build_context(str(directory / "disk.9"), {"NAME": "value"})

    done = _ok(world.one.deploy(1, xml))
    assert done.stdout == "one-1\n"
    seen = world.seen(1)
    for path in ("/", "/boot", "/home", "/data", "/media/2", "/media/4", "/context"):
        assert path in seen, path
    assert {"ro"} <= set(seen["/data"].options)
    assert {"ro"} <= set(seen["/context"].options)
    assert "/media/3" not in seen
    assert "nosuid" not in seen["/"].options, "sudo has to work inside (L-09)"
    assert (
        world.inside(1, "stat", "-c", "%u:%g", "/etc/fstab", "/home", "/data/hello", "/context/context.sh").split()
        == ["0:0"] * 4
    )
    assert world.inside(1, "cat", "/data/hello") == "world"
    assert world.inside(1, "cat", "/media/4/vmdk") == "yes"
    assert "NAME" in world.inside(1, "cat", "/context/context.sh")
    assert world.inside(1, "cat", "/proc/self/uid_map").split()[1] != "0", "unprivileged by default (S-27)"
    world.inside(1, "sh", "-c", "echo kept > /home/kept; echo kept > /media/2/kept; echo kept > /kept")
    config = world.client.instance("one-1").config
    assert config["limits.memory"] == "128MiB"
    assert config["limits.cpu.allowance"] == "50%"
    assert config["security.privileged"] == "false"
    assert "user.one_status" not in config

    _ok(world.one.end(1, xml, "shutdown"))
    world.nothing_left()

    # poweroff and resume: the same disks are deployed again, the volatile one is not formatted twice (C-10)
    _ok(world.one.deploy(1, xml))
    assert world.inside(1, "cat", "/home/kept", "/media/2/kept", "/kept") == "kept\n" * 3
    _ok(world.one.end(1, xml, "cancel"))
    world.nothing_left()
    # nothing was shifted on the disk: root's files are root's
    mapper = Mapper.open()
    plan = mounted.plan_tree(mapper, Disk(str(directory / "disk.0"), "qcow2"))
    assert plan.mounts[0].target == "/"


@lxd_is_enough
@pytest.mark.parametrize("kind", ["raw", "vmdk"])
def test_other_formats_as_root(world: World, kind: str) -> None:
    xml = world.machine(2, kind=kind)
    _ok(world.one.deploy(2, xml))
    assert {"/", "/boot", "/home"} <= world.seen(2).keys()
    _ok(world.one.end(2, xml, "cancel"))
    world.nothing_left()


def test_a_bare_filesystem_as_root(world: World, tmp_path: Path) -> None:
    """L-15: the datastores are reached by a link, and the daemon gets no path with a link in it."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "datastores").symlink_to("volume")
    world.images.build_bare(str(world.one.vm_dir(3) / "disk.0"))
    disks.make_filesystem(world.one.vm_dir(3) / "disk.1", Part("ext4", 16, (), (("/hello", "world"),)))
    xml = world.one.vm_xml(3, disk_xml(0) + disk_xml(1, TARGET="/data"))
    _ok(world.one.deploy(3, xml))
    assert world.inside(3, "stat", "-c", "%u", "/sbin/init").strip() == "0"
    assert world.inside(3, "cat", "/data/hello") == "world"
    source = world.client.instance("one-3").devices["disk1"]["source"]
    assert os.path.realpath(source) == source and str(tmp_path) not in source
    _ok(world.one.end(3, xml, "shutdown"))
    world.nothing_left()


def test_restarts_of_three_kinds_come_back_with_every_disk(world: World, lab: Lab) -> None:
    """L-01: stop and start, lxc restart, and reboot inside of the guest."""
    xml = world.machine(4, extra=disk_xml(1, TARGET="/data"), template=CONTEXT)
    directory = world.one.vm_dir(4)
    disks.make_filesystem(directory / "disk.1", Part("ext4", 16))
    world.images.build_context(str(directory / "disk.9"))
    _ok(world.one.deploy(4, xml))
    wanted = {path: world.seen(4)[path].device for path in ("/", "/boot", "/home", "/data", "/context")}

    def all_there() -> None:
        seen = world.seen(4)
        assert {path: seen[path].device for path in wanted} == wanted

    for _ in range(5):
        world.client.stop("one-4")
        world.client.start("one-4")
        all_there()
    for _ in range(3):
        done = lab.lxc("restart", "-f", "one-4")
        assert done.returncode == 0, done.stderr
        all_there()
    for _ in range(2):
        before = world.client.state("one-4").pid
        world.client.execute("one-4", ("reboot", "-f"), deadline_seconds=30)
        deadline = time.monotonic() + 30
        while world.client.state("one-4").pid in (before, 0):
            assert time.monotonic() < deadline, "the guest did not come back"
            time.sleep(0.05)
        all_there()
    _ok(world.one.end(4, xml, "cancel"))
    world.nothing_left()


@lxd_is_enough
def test_boot_order_chooses_the_root(world: World) -> None:
    """disk1 and not the last character of anything."""
    world.images.build_bare(str(world.one.vm_dir(5) / "disk.1"))
    disks.make_filesystem(world.one.vm_dir(5) / "disk.0", Part("ext4", 16))
    xml = world.one.vm_xml(5, disk_xml(0) + disk_xml(1), template="<OS><BOOT>disk1</BOOT></OS>")
    _ok(world.one.deploy(5, xml))
    assert "/media/0" in world.seen(5)
    _ok(world.one.end(5, xml))
    world.nothing_left()


def test_privileged_nested_profile_raw_and_nic(world: World, lab: Lab) -> None:
    bridge = lab.variables["MAPPER_LAB_BRIDGE"]
    nic = (
        f"<NIC><NIC_ID>0</NIC_ID><BRIDGE>{bridge}</BRIDGE><BRIDGE_TYPE>linux</BRIDGE_TYPE><MAC>02:00:0a:63:00:0a</MAC>"
        "<TARGET>one-6-0</TARGET><VN_MAD>dummy</VN_MAD><INBOUND_AVG_BW>1000</INBOUND_AVG_BW></NIC>"
    )
    guest_api = {"lxd": "security.devlxd", "incus": "security.guestapi"}[lab.product]
    raw = f"<RAW><TYPE>lxd</TYPE><DATA><![CDATA[limits.processes=100\n{guest_api}=false]]></DATA></RAW>"
    user = (
        "<LXD_SECURITY_PRIVILEGED>true</LXD_SECURITY_PRIVILEGED><LXD_SECURITY_NESTING>true</LXD_SECURITY_NESTING>"
        "<LXD_PROFILE>default</LXD_PROFILE>"
    )
    xml = world.machine(6, template=nic + raw, user=user)
    _ok(world.one.deploy(6, xml))
    assert world.inside(6, "cat", "/proc/self/uid_map").split() == ["0", "0", "4294967295"]
    assert world.inside(6, "stat", "-c", "%u", "/etc/fstab").strip() == "0"
    assert world.inside(6, "cat", "/sys/class/net/eth0/address").strip() == "02:00:0a:63:00:0a"
    assert Path("/sys/class/net/one-6-0/master").resolve().name == bridge
    instance = world.client.instance("one-6")
    assert (instance.config["limits.processes"], instance.config[guest_api]) == ("100", "false")
    assert instance.config["security.nesting"] == "true"
    assert instance.devices["eth0"]["limits.ingress"] == "8000kbit"
    assert "lxc.hook.pre-start" in instance.config["raw.lxc"]
    world.client.stop("one-6")
    world.client.start("one-6")
    assert "/home" in world.seen(6)
    _ok(world.one.end(6, xml))
    world.nothing_left()


@lxd_is_enough
def test_the_same_call_twice(world: World) -> None:
    """A deployed machine is left alone, an ended one stays ended (U-09)."""
    xml = world.machine(7)
    _ok(world.one.deploy(7, xml))
    before = world.client.state("one-7").pid
    again = world.one.deploy(7, xml)
    assert again.returncode != 0
    assert "one-7" in again.stderr and "running" in again.stderr
    assert again.stdout == ""
    assert world.client.state("one-7").pid == before
    for _ in range(3):
        _ok(world.one.end(7, xml))
    world.nothing_left()


def _broken(world: World, vm: int, case: str) -> str:
    """A machine that cannot be deployed; return its XML."""
    directory = world.one.vm_dir(vm)
    xml = world.machine(vm, extra=disk_xml(1, TARGET="/data") if case.startswith("data") else "")
    if case == "root missing":
        (directory / "disk.0").unlink()
    elif case == "root truncated":
        os.truncate(directory / "disk.0", 300_000)
    elif case == "root compressed":
        subprocess.run(["gzip", "-f", directory / "disk.0"], check=True)
        (directory / "disk.0.gz").rename(directory / "disk.0")
    elif case == "root is raw":
        (directory / "disk.0").write_bytes(bytes(1 << 20))
    elif case == "backing file elsewhere":
        (directory / "disk.0").unlink()
        secret = world.one.directory / "secret"
        secret.write_bytes(bytes(1 << 20))
        run = [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            str(secret),
            str(directory / "disk.0"),
            "64M",
        ]
        subprocess.run(run, check=True)
    elif case == "no init":
        raw = disks.make_filesystem(directory / "x", Part("ext4", 16, (), (("/etc/fstab", ""),)))
        disks.convert(raw, "qcow2", directory / "disk.0")
    elif case == "data missing":
        pass
    elif case == "data without filesystem":
        (directory / "disk.1").write_bytes(os.urandom(1 << 20))
    elif case == "cut off":
        xml = xml[: len(xml) // 2]
    elif case == "no profile":
        xml = xml.replace("</USER_TEMPLATE>", "<LXD_PROFILE>nowhere</LXD_PROFILE></USER_TEMPLATE>")
    elif case == "target is the system":
        xml = xml.replace("</DISK>", "</DISK>" + disk_xml(1, TARGET="/proc/x"), 1)
    return xml


CASES = [
    ("root missing", "does not exist"),
    ("root truncated", "disk.0"),
    ("root compressed", "gzip"),
    ("root is raw", "qcow2"),
    ("backing file elsewhere", "secret"),
    ("no init", "one-8"),
    ("data missing", "does not exist"),
    ("data without filesystem", "disk.1"),
    ("cut off", "standard input"),
    ("no profile", "nowhere"),
    ("target is the system", "/proc/x"),
]


def test_what_cannot_be_deployed_leaves_nothing_and_the_next_call_works(world: World) -> None:
    """U-01, U-03, M-15, L-16: each step fails once; the message names the object."""
    for case, words in CASES:
        done = world.one.deploy(8, _broken(world, 8, case))
        assert done.returncode != 0, case
        assert words in done.stderr, case
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, "6.x takes all of stderr as the message"
        assert done.stdout == ""
        world.nothing_left()
        for path in world.one.vm_dir(8).glob("disk.*"):
            path.unlink()
    xml = world.machine(8)
    _ok(world.one.deploy(8, xml))
    _ok(world.one.end(8, xml))
    world.nothing_left()


@lxd_is_enough
def test_the_error_has_the_form_of_the_version(world: World) -> None:
    xml = world.machine(9)
    (world.one.vm_dir(9) / "disk.0").unlink()
    for version, wanted in (
        ("5.12.13", "ERROR MESSAGE --8<------\n"),
        ("6.10.5", "does not exist"),
        ("7.0.0", "does not exist"),
    ):
        done = world.one.deploy(9, xml, MAPPER_ONE_VERSION=version)
        assert done.returncode == 3
        assert wanted in done.stderr
        assert ("ERROR MESSAGE" in done.stderr) == version.startswith("5")


def test_the_daemon_is_down(world: World) -> None:
    xml = world.machine(11)
    for done in (
        world.one.deploy(11, xml, LXD_SOCKET="/nonexistent/unix.socket"),
        world.one.end(11, xml, LXD_SOCKET="/nonexistent/unix.socket"),
    ):
        assert done.returncode == 11
        assert "/nonexistent/unix.socket" in done.stderr
    world.nothing_left()


def test_reconcile_leaves_a_stopped_container_whose_daemon_is_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that is being upgraded comes back, and its container is started again."""
    xml = world.machine(15)
    _ok(world.one.deploy(15, xml))
    world.client.stop("one-15")
    for socket in ("/nonexistent/unix.socket", world.one.socket):
        monkeypatch.setenv("LXD_SOCKET", socket)
        report = reconcile(Mapper.open())
        assert (report.actions, report.problems) == ((), ())
    world.client.start("one-15")
    assert "/home" in world.seen(15)
    _ok(world.one.end(15, xml))
    assert reconcile(Mapper.open()).actions == ()
    world.nothing_left()


def test_a_stranger_of_that_name_that_runs_is_not_touched(world: World) -> None:
    world.client.create(InstanceSpec("one-12"))
    xml = world.machine(12)
    _ok(world.one.deploy(12, xml))  # stopped: what a failed action leaves; replaced
    _ok(world.one.end(12, xml))
    world.nothing_left()


def test_two_calls_for_one_machine_at_once(world: World) -> None:
    """Y-05: one works, the other is told so."""
    xml = world.machine(13)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: world.one.deploy(13, xml), range(2))
    assert sorted((first.returncode == 0, second.returncode == 0)) == [False, True]
    loser = first if first.returncode else second
    assert loser.returncode in (5, 12), loser.stderr
    assert "/home" in world.seen(13)
    _ok(world.one.end(13, xml))
    world.nothing_left()


def test_deploy_killed_at_many_moments_and_reconciled(world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of the action; one reconcile later nothing is left, and the machine can be deployed."""
    xml = world.machine(14)
    monkeypatch.setenv("LXD_SOCKET", world.one.socket)
    moments = (0.3, 0.45, 0.55, 0.65, 0.75, 0.85, 1.0, 1.2, 1.5, 1.9)
    for moment in moments if lab.product == "lxd" else moments[1::2]:
        done = _deploy_killed(world, xml, moment)
        report = reconcile(Mapper.open())
        assert report.problems == (), (moment, report)
        if done:  # it was quicker than that
            _ok(world.one.end(14, xml))
        else:
            _ok(world.one.end(14, xml))  # what OpenNebula does after a failed deploy
        world.nothing_left()


def _deploy_killed(world: World, xml: str, moment: float) -> bool:
    """Kill a deploy after some seconds; True when it had ended by itself."""
    try:
        world.one.run(
            "deploy",
            "/x/deployment.0",
            "node",
            "14",
            "node",
            xml=xml,
            MAPPER_DRIVER=_killer(world.one.directory, moment),
        )
    except subprocess.TimeoutExpired:
        return False
    return world.client.exists("one-14") and world.client.state("one-14").status is Status.RUNNING


def _killer(directory: Path, moment: float) -> str:
    """A program that runs mapper-driver for so long, and then kills it."""
    import sys

    path = directory / "killer"
    driver = Path(sys.executable).parent / "mapper-driver"
    path.write_text(f'#!/bin/sh\nexec timeout -s KILL {moment} {driver} "$@"\n')
    path.chmod(0o755)
    return str(path)
