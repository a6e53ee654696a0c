"""Machines of OpenNebula whose disks are RBD images: its own scripts, a real LXD, a real Ceph."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd.client import LxdClient

from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.runtime import ENVIRONMENT
from mapper_core.testing import disks
from mapper_core.testing.disks import Part
from tests.lxd import conftest as lxd
from tests.lxd.conftest import Lab
from tests.lxd.conftest import images as systems  # noqa: F401  (the fixture labs/images.py)
from tests.lxd.machine import Machine, ok
from tests.lxd.one import One, disk_xml
from tests.lxd.plug import Plug

from .cluster import Cluster, Images

pytestmark = [pytest.mark.ceph, pytest.mark.timeout(240)]

BASE = "one/one-img-3"
VM = 77


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    yield from lxd.run_lab("lxd", "c")


@dataclass(frozen=True)
class Node:
    """A node of OpenNebula that has LXD and is a client of a cluster."""

    one: One
    client: LxdClient
    cluster: Cluster

    def rbd_xml(self, number: int, **elements: str) -> str:
        """A ``<DISK>`` in the cluster, as a datastore of the type ceph makes it."""
        values = {
            "DISK_TYPE": "RBD",
            "TYPE": "RBD",
            "TM_MAD": "ceph",
            "POOL_NAME": "one",
            "SOURCE": BASE,
            "CEPH_USER": self.cluster.user,
            "CEPH_CONF": self.cluster.conf,
            **elements,
        }
        return disk_xml(number, **values)

    def machine(self, disks_xml: str, vm: int = VM) -> Machine:
        return Machine(self.one, self.client, vm, self.one.vm_xml(vm, disks_xml, deployed=True))


def _node(lab: Lab, cluster: Cluster, directory: Path) -> Node:
    (directory / "lxdrc").write_text(
        f":datastore_location: {directory}/datastores\n:stop_timeout: 20\n:cluster_dirs: [{cluster.directory}]\n"
    )
    return Node(One(directory, lab.socket), LxdClient.connect([lab.socket]), cluster)


@pytest.fixture
def node(lab: Lab, cluster: Cluster, tmp_path: Path) -> Node:
    return _node(lab, cluster, tmp_path)


@pytest.fixture
def base(images: Images, systems: ModuleType, tmp_path: Path) -> str:  # noqa: F811
    """An image of the datastore with a partitioned system in it."""
    return _upload_system(images, systems, tmp_path)


def _upload_system(images: Images, systems: ModuleType, directory: Path) -> str:  # noqa: F811
    file = directory / "system.raw"
    systems.build_system(str(file), format_="raw", seed="ceph")
    return images.upload(BASE, file)


def test_the_root_disk_is_a_partitioned_clone(node: Node, images: Images, base: str) -> None:
    """The clone that OpenNebula's storage driver makes is mapped, with its own partitions and fstab, and let go."""
    clone = images.clone(f"{base}@snap", f"{base}-{VM}-0")
    machine = node.machine(node.rbd_xml(0))
    done = ok(machine.deploy())
    assert done.stdout == f"one-{VM}\n"
    try:
        assert {"/", "/boot", "/home"} <= set(machine.seen())
        assert machine.inside("stat", "-c", "%u:%g", "/").strip() == "0:0"
        assert Mapper.open().find(clone) is not None
        machine.inside("sh", "-c", "echo kept > /home/kept; sync -f /home/kept")
        assert images.watchers(clone)
    finally:
        ok(machine.power("shutdown"))
    machine.nothing_left()
    assert images.watchers(clone) == images.lockers(clone) == []
    assert images.watchers(base) == []
    ok(machine.deploy())  # on after poweroff: what was written is in the clone
    try:
        assert machine.inside("cat", "/home/kept") == "kept\n"
    finally:
        ok(machine.power("cancel"))
    machine.nothing_left()


def test_a_volatile_disk_is_formatted_once_and_another_is_attached(
    node: Node, images: Images, base: str, tmp_path: Path
) -> None:
    """C-10: mkfs runs on the volume that OpenNebula declares volatile, and not again when the machine comes back."""
    images.clone(f"{base}@snap", f"{base}-{VM}-0")
    volatile = images.create(f"one/one-sys-{VM}-1", 32 << 20)
    data = images.upload(
        "one/one-img-4", disks.make_filesystem(tmp_path / "data", Part("ext4", 16, (), (("/a", "b"),)))
    )
    fs = node.rbd_xml(1, TYPE="fs", FS="ext4", SOURCE="", TARGET="/scratch")
    machine = node.machine(node.rbd_xml(0) + fs)
    done = ok(machine.deploy())
    assert "made a filesystem" in done.stderr
    try:
        machine.inside("sh", "-c", "echo 1 > /scratch/one; sync -f /scratch/one")
        attached = node.rbd_xml(2, SOURCE=data, CLONE="NO", TARGET="/more", ATTACH="YES")
        ok(Plug(machine).attach(2, attached))
        assert machine.inside("cat", "/more/a") == "b"
        ok(Plug(machine).detach(2, attached))
        assert "/more" not in machine.seen()
        assert images.watchers(data) == []
    finally:
        ok(machine.power("shutdown"))
    done = ok(machine.deploy())
    try:
        assert "made a filesystem" not in done.stderr
        assert machine.inside("cat", "/scratch/one") == "1\n"
    finally:
        ok(machine.power("cancel"))
    machine.nothing_left()
    assert images.watchers(volatile) == images.lockers(volatile) == []


def test_what_cannot_be_mapped_leaves_nothing(node: Node, images: Images, base: str, tmp_path: Path) -> None:
    """Each is refused in one line that names the volume, soon; then the next deploy works."""
    clone = images.clone(f"{base}@snap", f"{base}-{VM}-0")
    foreign = tmp_path / "ceph.conf"
    foreign.write_text(Path(node.cluster.conf).read_text() + "log_file = /etc/cron.d/x\n")
    unable = node.cluster.as_user("nobody")
    bad = {
        "one/one-img-8": node.rbd_xml(0, SOURCE="one/one-img-8"),
        f"{clone} nobody": replace(node, cluster=unable).rbd_xml(0),
        "outside of the allowed directories": node.rbd_xml(0, CEPH_CONF=str(foreign)),
        "nowhere/x": node.rbd_xml(0, SOURCE="nowhere/x"),
    }
    for words, xml in bad.items():
        machine = node.machine(xml)
        started = time.monotonic()
        done = machine.deploy()
        assert done.returncode != 0
        assert words.split()[0] in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - started < 20
        machine.nothing_left()
    machine = node.machine(node.rbd_xml(0))
    ok(machine.deploy())
    ok(machine.power("cancel"))
    machine.nothing_left()


def test_the_cluster_is_away_when_the_machine_ends(
    lab: Lab,
    own_cluster: Cluster,
    systems: ModuleType,  # noqa: F811
    tmp_path: Path,
) -> None:
    """C-08: the action fails in bounded time, nothing is forced, and the next one finishes when the cluster is back."""
    node = _node(lab, own_cluster, tmp_path)
    images = Images(own_cluster)
    base = _upload_system(images, systems, tmp_path)
    clone = images.clone(f"{base}@snap", f"{base}-{VM}-0")
    machine = node.machine(node.rbd_xml(0))
    ok(machine.deploy())
    # while it is away, sync(2) waits on this host, whoever calls it: not for longer than this, whatever happens here
    back = threading.Timer(60, own_cluster.lab, ("resume", "osd"))
    back.start()
    try:
        own_cluster.lab("pause", "osd")
        started = time.monotonic()
        done = machine.power("cancel")
        took = time.monotonic() - started
        assert back.is_alive(), "it came to an end only because the cluster was there again"
        mapper = Mapper.open()
        assert len(mapper.journal.ids()) == 1, done.stderr
        assert mountinfo.at(f"{mapper.runtime.mounts}/one-{VM}.0")
    finally:
        back.cancel()
        own_cluster.lab("resume", "osd")
        again = machine.power("cancel")
        if again.returncode != 0:  # a daemon whose cluster is taken away would wait for it, and the host with it
            for path in Path(os.environ[ENVIRONMENT]).glob("exports/*/pid"):
                os.kill(int(path.read_text()), signal.SIGKILL)
    assert done.returncode != 0
    assert took < 30
    assert f"{clone}: the cluster did not answer within 10 s" in done.stderr
    ok(again)
    machine.nothing_left()
    assert images.watchers(clone) == images.lockers(clone) == []
