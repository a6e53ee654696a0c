"""A sample of hostile disks and machines on a real daemon, deployed by OpenNebula's scripts; the corpus is in tests/security."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from mapper_driver.lxd.client import LxdClient

from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.testing import observe
from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree
from tests.security.conftest import Canary
from tests.security.corpus import FAMILIES

from .conftest import Lab
from .machine import Machine, ok
from .one import One, disk_xml

pytestmark = [pytest.mark.lxd, pytest.mark.timeout(300)]

#: Of each family what goes farthest, as the root of a machine.
SAMPLE = {
    "qcow2": ("backing file @/secret", "data file @/secret"),
    "guests": ("/home is a link to @", "fstab: at /../../../../../../@"),
}


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary.put(tmp_path / "canary")


@pytest.fixture
def one(lab: Lab, tmp_path: Path) -> One:
    return One(tmp_path, lab.socket)


def test_hostile_disks_are_refused_before_a_container_is_left(one: One, client: LxdClient, canary: Canary) -> None:
    """S-02, S-03, S-07, S-09, S-10, U-01: refused with typed errors, again and again, and nothing of them is left."""
    cases = [case for family, names in SAMPLE.items() for case in FAMILIES[family]() if case.name in names]
    assert len(cases) == sum(map(len, SAMPLE.values()))
    for number, case in enumerate(cases, start=841):
        directory = one.vm_dir(number)
        case.build(directory, canary.directory)
        (directory / "disk").rename(directory / "disk.0")
        xml = one.vm_xml(number, disk_xml(0, kind=case.format))
        for _ in range(2 if number == 841 else 1):
            done = one.deploy(number, xml)
            assert done.returncode in range(1, 15) and not done.stdout, (case.name, done)
            assert "internal error" not in done.stderr and canary.secret not in done.stderr, (case.name, done.stderr)
            assert not client.exists(f"one-{number}")
        shutil.rmtree(directory)
    assert Mapper.open().journal.ids() == ()
    assert canary.harm() == []


@pytest.fixture
def machine(one: One, client: LxdClient, images: ModuleType, canary: Canary) -> Iterator[Machine]:
    """A machine with three disks, whose owner likes shells."""
    built = Machine.build(one, client, images, 849)
    yield replace(built, xml=built.xml.replace("test 849", f"<![CDATA[$(touch {canary.directory}/x);`id`]]>"))
    if client.exists(built.name):
        built.power("cancel")


def spoil(machine: Machine, change: Callable[[Path], None]) -> None:
    """Change the root filesystem as its guest could."""
    work = machine.one.directory / "work"
    work.mkdir(exist_ok=True)
    mapper = Mapper.open()
    root = Disk(str(machine.one.vm_dir(machine.id) / "disk.0"), "qcow2")
    mount_tree(mapper, TreeRequest(root, MapOptions(), str(work)))
    change(work)
    unmount_tree(mapper, str(work))


def test_a_guest_that_points_everywhere_gets_nowhere(machine: Machine, canary: Canary, client: LxdClient) -> None:
    """S-07, S-08, S-10, S-12, S-22: the host's files are neither read nor covered nor changed."""

    def links(work: Path) -> None:
        (work / "rootfs").symlink_to(canary.directory)
        (work / "etc/fstab").unlink()
        (work / "etc/fstab").symlink_to(canary.directory / "fstab")

    def mount_points(work: Path) -> None:
        for place in ("data", "context"):
            shutil.rmtree(work / place, ignore_errors=True)
            (work / place).symlink_to(canary.directory)

    spoil(machine, links)
    ok(machine.deploy())
    iso = str(machine.one.vm_dir(849) / "disk.9")
    touching = [item.text for item in observe.block_devices() if iso in item.touches]
    assert touching == [], "the context never becomes a device that a service of the host could see"
    seen = client.execute(machine.name, ("cat", "/etc/fstab", "/rootfs/secret"), deadline_seconds=30)
    assert canary.secret.encode() not in seen.stdout
    check_mounts(machine, canary)
    ok(machine.power("cancel"))

    spoil(machine, mount_points)
    done = machine.deploy()  # LXD looks for the places of disks inside of the container, and may find none
    assert canary.secret not in done.stdout + done.stderr
    assert "internal error" not in done.stderr
    if done.returncode == 0:
        check_mounts(machine, canary)
        ok(machine.power("cancel"))
    assert canary.harm() == []
    machine.nothing_left()


def check_mounts(machine: Machine, canary: Canary) -> None:
    """Nothing of the host is in the container, and nothing of the container on the host's files."""
    for entry in mountinfo.entries(machine.client.state(machine.name).pid):
        assert not any(str(canary.directory) in text for text in (entry.source, entry.root, entry.target))
    assert canary.harm() == []
