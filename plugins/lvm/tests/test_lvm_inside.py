"""Images with LVM inside, made by LVM's own commands: read as LVM reads them, and mounted without it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, MapOptions
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part
from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree

pytestmark = pytest.mark.root

RW = MapOptions()
FSTAB = """\
/dev/mapper/my--vg-root /     ext4 defaults 0 1
UUID=6e1c9a5e-0000-4000-8000-00000000b007 /boot ext4 defaults 0 2
/dev/my-vg/home         /home ext4 defaults 0 2
/dev/disk/by-id/dm-name-my--vg-srv /srv ext4 defaults 0 2
/dev/mapper/my--vg-swap none  swap sw 0 0
"""


@pytest.fixture
def mapper() -> Mapper:
    return Mapper.open()


def lvm(device: str, command: str, *arguments: str) -> str:
    """A command that sees one device only, and changes metadata only: this kernel need not have device-mapper."""
    config = (
        f'devices {{ filter=["a|^{device}$|","r|.*|"] use_devicesfile=0 }} backup {{ backup=0 archive=0 }} '
        "activation { monitoring=0 udev_sync=0 udev_rules=0 } global { event_activation=0 }"
    )
    return disks.run("lvm", command, "--driverloaded", "n", "--yes", "--config", config, *arguments)


@contextlib.contextmanager
def loop(path: Path, *options: str) -> Iterator[str]:
    device = disks.run("losetup", "--find", "--show", *options, str(path)).strip()
    try:
        yield device
    finally:
        disks.run("losetup", "--detach", device)


def volume(device: str, group: str, name: str, mib: int) -> None:
    lvm(device, "lvcreate", "--activate", "n", "--zero", "n", "--wipesignatures", "n", f"-L{mib}M", "-n", name, group)


def put(path: Path, part: Part, start: int) -> None:
    """Write a filesystem to a place of a disk."""
    piece = disks.make_filesystem(path.with_name(f"piece-{start}"), part)
    disks.run("dd", f"if={piece}", f"of={path}", "bs=1M", f"seek={start}", "oflag=seek_bytes", "conv=notrunc,sparse")
    piece.unlink()


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A disk as installers make it: /boot in a partition, everything else in a volume group in another one."""
    boot = ("-U", "6e1c9a5e-0000-4000-8000-00000000b007")
    path = disks.make_disk(tmp_path / "disk.raw", (Part("ext4", 16, boot, (("/vmlinuz", "kernel"),)), Part("", 120)))
    start, sectors = disks.run("partx", "-g", "-o", "START,SECTORS", "-n", "2", str(path)).split()
    where = ("--offset", str(int(start) * 512), "--sizelimit", str(int(sectors) * 512))
    with loop(path, *where) as device:
        lvm(device, "pvcreate", device)
        lvm(device, "vgcreate", "my-vg", device)
        for name, mib in (("root", 24), ("swap", 8), ("home", 16), ("srv", 16)):
            volume(device, "my-vg", name, mib)
        report = lvm(
            device,
            "lvs",
            "--reportformat",
            "json",
            "--units=b",
            "--nosuffix",
            "-o",
            "lv_name,seg_start_pe,seg_pe_ranges,lv_uuid",
        )
    rows = {row["lv_name"]: row for row in json.loads(report)["report"][0]["lv"]}
    first = int(start) * 512 + MIB
    for name, part in (
        ("root", Part("ext4", 24, files=(("/etc/fstab", FSTAB), ("/sbin/init", "#!/bin/sh\n"), ("/where", "root")))),
        ("home", Part("ext4", 16, files=(("/where", "home"),))),
        ("srv", Part("ext4", 16, files=(("/where", "srv"),))),
        ("swap", Part("swap", 8)),
    ):
        extent = int(rows[name]["seg_pe_ranges"].split(":")[1].split("-")[0])
        put(path, part, first + extent * 4 * MIB)
    return path


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_system_on_logical_volumes_is_mounted_by_its_own_fstab(mapper: Mapper, system: Path, kind: str) -> None:
    """P-05: the partition that is no filesystem does not keep the others from being found; M-21: every name leads to it."""
    image = system if kind == "raw" else disks.convert(system, kind, system.with_suffix(f".{kind}"))
    directory = f"{mapper.runtime.mounts}/one-1.0"
    mount_tree(mapper, TreeRequest(Disk(str(image), kind), RW, directory))
    try:
        found = {path: Path(directory, path, "where").read_text() for path in ("", "home", "srv")}
        assert found == {"": "root", "home": "home", "srv": "srv"}
        assert Path(directory, "boot/vmlinuz").read_text() == "kernel"
        Path(directory, "srv/written").write_text("here")
        assert not os.path.exists("/dev/mapper/my--vg-root")
    finally:
        unmount_tree(mapper, directory)
    assert mapper.mapped() == ()
    mount_tree(mapper, TreeRequest(Disk(str(image), kind), MapOptions(Access.READ_ONLY), directory))
    assert Path(directory, "srv/written").read_text() == "here"
    unmount_tree(mapper, directory)


def test_what_lvm_says_is_what_we_read(mapper: Mapper, tmp_path: Path) -> None:
    """A disk that is a physical volume as a whole, and a volume that was enlarged when there was no room behind it."""
    path = tmp_path / "pv.raw"
    with path.open("wb") as file:
        file.truncate(120 * MIB)
    with loop(path) as device:
        lvm(device, "pvcreate", device)
        lvm(device, "vgcreate", "data", device)
        for name, mib in (("one", 16), ("two-3", 20), ("four", 8)):
            volume(device, "data", name, mib)
        lvm(device, "lvextend", "-L24M", "data/one")
        fields = "lv_name,lv_uuid,lv_size"
        report = lvm(device, "lvs", "--reportformat", "json", "--units=b", "--nosuffix", "-o", fields, "data")
    wanted = {
        f"data/{row['lv_name']}": (row["lv_uuid"], int(row["lv_size"]))
        for row in json.loads(report)["report"][0]["lv"]
        if row["lv_name"] != "one"
    }
    disk = Disk(str(path), "raw")
    mapped = mapper.map(disk, RW, user="t")
    try:
        assert mapped.table.scheme == "lvm"
        assert {item.label: (item.uuid, item.size) for item in mapped.table.partitions} == wanted
        assert mapped.table.warnings == ("the logical volume data/one is not used: it lies in 2 pieces",)
        assert all(os.path.exists(item.device) for item in mapped.table.partitions)
        assert mapper.find(mapped.table.partitions[1].device) == mapped
    finally:
        mapper.unmap(str(path), user="t")
