"""What stands on a mapped disk, or in it, on a kernel that has all of it: device-mapper, LVM, vfat, iso9660."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper_core.errors import DeviceBusy
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, MapOptions
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part
from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree

from .kernel import connected

pytestmark = pytest.mark.vm

RW = MapOptions()
KINDS = ("raw", "qcow2")


@pytest.fixture(params=KINDS)
def image(request: pytest.FixtureRequest, system: Path) -> Disk:
    """The system on loop, and on nbd."""
    kind: str = request.param
    return Disk(str(system if kind == "raw" else disks.convert(system, kind, system.with_suffix(f".{kind}"))), kind)


def test_device_mapper_on_a_partition_keeps_the_disk_and_is_named(mapper: Mapper, image: Disk) -> None:
    mapped = mapper.map(image, RW, user="t")
    part = mapped.table.partitions[4]
    disks.run("dmsetup", "create", "mapper-test", "--table", f"0 {part.size // 512} linear {part.device} 0")
    try:
        with pytest.raises(DeviceBusy, match="p5 is used by /dev/mapper/mapper-test") as caught:
            mapper.unmap(mapped.device, user="t")
        assert "release /dev/mapper/mapper-test" in caught.value.hint
        assert mapper.find(mapped.device) == mapped
        assert os.path.exists(mapped.table.partitions[0].device)
    finally:
        disks.run("dmsetup", "remove", "--retry", "mapper-test")
    mapper.unmap(mapped.device, user="t")


def lvm(command: str, *arguments: str, only: str) -> str:
    """An LVM command that sees one device and no other."""
    config = f'devices {{ global_filter=["a|^{only}$|","r|.*|"] use_devicesfile=0 }} backup {{ backup=0 archive=0 }}'
    return disks.run(command, "--yes", "--config", config, *arguments)


@contextlib.contextmanager
def hosts_volume_group(path: Path) -> Iterator[str]:
    """A volume group ``vg`` of the host with an active volume; its device."""
    with path.open("wb") as file:
        file.truncate(48 * MIB)
    device = disks.run("losetup", "--find", "--show", str(path)).strip()
    try:
        lvm("pvcreate", device, only=device)
        lvm("vgcreate", "vg", device, only=device)
        lvm("lvcreate", "--name", "data", "--size", "16M", "vg", only=device)
        try:
            yield device
        finally:
            lvm("vgchange", "--activate", "n", "vg", only=device)
    finally:
        disks.run("losetup", "--detach", device)


def test_lvm_on_the_disk_keeps_it_until_it_is_deactivated(mapper: Mapper, tmp_path: Path) -> None:
    """M-16: a group of the host that has the same name is not touched."""
    raw = disks.make_disk(tmp_path / "pv.raw", (Part("", 48),))
    disk = Disk(str(disks.convert(raw, "qcow2", tmp_path / "pv.qcow2")), "qcow2")
    mapped = mapper.map(disk, RW, user="t")
    part = mapped.table.partitions[0].device
    lvm("pvcreate", part, only=part)
    lvm("vgcreate", "vg", part, only=part)
    lvm("lvcreate", "--name", "root", "--size", "16M", "vg", only=part)
    try:
        with pytest.raises(DeviceBusy, match="p1 is used by /dev/mapper/vg-root"):
            mapper.unmap(mapped.device, user="t")
    finally:
        lvm("vgchange", "--activate", "n", "vg", only=part)
    mapper.unmap(mapped.device, user="t")
    assert connected() == []
    with hosts_volume_group(tmp_path / "host.raw") as device:
        mapped = mapper.map(disk, RW, user="t")
        mapper.unmap(mapped.device, user="t")
        assert connected() == []
        shown = lvm("lvs", "--noheadings", "-o", "lv_name,lv_active", "vg", only=device)
        assert shown.split() == ["data", "active"]


def test_a_tree_with_its_esp(mapper: Mapper, image: Disk) -> None:
    """The whole fstab: ext4 and vfat, with the options that the image asks for."""
    directory = f"{mapper.runtime.mounts}/one-1.0"
    mount_tree(mapper, TreeRequest(image, RW, directory))
    types = {}
    for line in disks.run("findmnt", "-R", "-n", "-r", "-o", "TARGET,FSTYPE", directory).splitlines():
        target, fstype = line.split()
        types[target.removeprefix(directory) or "/"] = fstype
    assert types == {"/": "ext4", "/boot": "ext4", "/boot/efi": "vfat", "/home": "ext4"}
    Path(directory, "boot/efi/grub.cfg").write_text("set timeout=1\n")
    unmount_tree(mapper, directory)
    mount_tree(mapper, TreeRequest(image, RW, directory))
    assert Path(directory, "boot/efi/grub.cfg").read_text() == "set timeout=1\n"
    unmount_tree(mapper, directory)


def test_an_iso_is_mounted_by_the_kernel(mapper: Mapper, tmp_path: Path) -> None:
    content = tmp_path / "context"
    content.mkdir()
    (content / "context.sh").write_text("ETH0_IP='192.0.2.1'\n")
    iso = tmp_path / "context.iso"
    disks.run("genisoimage", "-quiet", "-V", "CONTEXT", "-J", "-R", "-o", str(iso), str(content))
    directory = f"{mapper.runtime.mounts}/one-1.1"
    mount_tree(mapper, TreeRequest(Disk(str(iso), "raw"), MapOptions(Access.READ_ONLY), directory))
    assert disks.run("findmnt", "-n", "-o", "FSTYPE", directory).strip() == "iso9660"
    assert Path(directory, "context.sh").read_text() == "ETH0_IP='192.0.2.1'\n"
    unmount_tree(mapper, directory)


@pytest.mark.parametrize(("filesystem", "size"), [("xfs", 320), ("btrfs", 128)])
def test_other_filesystems(mapper: Mapper, tmp_path: Path, filesystem: str, size: int) -> None:
    image = disks.make_filesystem(tmp_path / "disk.raw", Part(filesystem, size))
    qcow2 = disks.convert(image, "qcow2", tmp_path / "disk.qcow2")
    directory = f"{mapper.runtime.mounts}/one-1.2"
    mount_tree(mapper, TreeRequest(Disk(str(qcow2), "qcow2"), RW, directory))
    Path(directory, "file").write_text("x")
    assert disks.run("findmnt", "-n", "-o", "FSTYPE", directory).strip() == filesystem
    unmount_tree(mapper, directory)
    assert connected() == []
