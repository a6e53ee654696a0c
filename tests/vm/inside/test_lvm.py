"""Logical volumes of the host as disks, and those inside of images beside a host that has a group of the same name."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mapper_lvm import tool

from mapper_core import capabilities
from mapper_core.errors import AlreadyExists, ImageInUse, ImageNotFound, NotSupported, UsageError
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, MapOptions
from mapper_core.process import Output
from mapper_core.reconcile import reconcile
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part

from .groups import lvm, volume_group
from .kernel import read

pytestmark = pytest.mark.vm

RW = MapOptions()
GROUP = "vg-one-100"
SNAPSHOT = "lv-one-7-0_snap_before"


@pytest.fixture
def group(tmp_path: Path) -> Iterator[str]:
    with volume_group(tmp_path / "group", GROUP):
        lvm("lvcreate", "--type", "thin-pool", "-L", "64M", "-n", "pool", GROUP)
        yield GROUP


def active(volume: str) -> bool:
    return lvm("lvs", "--noheadings", "-o", "lv_active", volume).strip() == "active"


def killed_before(command: str, option: str, work: Callable[[], object]) -> None:
    """Let a process do the work and die when it would run a command of LVM with this option."""
    if (pid := os.fork()) == 0:
        run = tool.lvm

        def deadly(name: str, *arguments: str, **keywords: Any) -> Output:
            if name == command and option in arguments:
                os._exit(9)
            return run(name, *arguments, **keywords)

        setattr(tool, "lvm", deadly)  # noqa: B010
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def test_the_life_of_a_thin_volume(mapper: Mapper, group: str, system: Path) -> None:
    """It is made, gets a partition table, grows while it is mapped, keeps a snapshot and comes back to it.

    Killed when the snapshot is dissolved in it, and not yet made anew: there is one all the same, and the disk cannot be
    changed before it is made.
    """
    disk = Disk(f"{group}/lv-one-7-0", "lvm", settings=(("thinpool", "pool"),))
    size = system.stat().st_size // (4 * MIB) * 4 * MIB + 4 * MIB
    capabilities.create(mapper, disk, size)
    mapped = mapper.map(disk, RW, user="t")
    assert (mapped.transport, mapped.size) == ("lvm", size)
    assert mapper.map(disk, RW, user="t").device == mapped.device
    disks.run("dd", f"if={system}", f"of={mapped.device}", "bs=1M", "conv=fsync")
    mapper.unmap(disk.source, user="t")
    assert not active(disk.source)

    capabilities.snapshot_create(mapper, disk, "before")
    mapped = mapper.map(disk, RW, user="t")
    assert [part.number for part in mapped.table.partitions] == [1, 2, 3, 4, 5]
    disks.run("dd", "if=/dev/urandom", f"of={mapped.table.partitions[3].device}", "bs=1M", "count=2", "conv=fsync")
    with pytest.raises(ImageInUse):
        capabilities.snapshot_revert(mapper, disk, "before")
    capabilities.resize(mapper, disk, size + 8 * MIB)
    found = mapper.find(disk.source)
    assert found is not None
    assert found.size == size + 8 * MIB
    mapper.unmap(mapped.device, user="t")

    killed_before("lvcreate", "--snapshot", lambda: capabilities.snapshot_revert(mapper, disk, "before"))
    assert [snapshot.name for snapshot in capabilities.snapshots(mapper, disk)] == ["before"]
    mapped = mapper.map(disk, MapOptions(Access.READ_ONLY), user="t")
    assert lvm("lvs", "--noheadings", "-o", "lv_name,lv_tags", f"{disk.source}_snap_before").split() == [SNAPSHOT]
    assert read(mapped.device, 0, system.stat().st_size) == system.read_bytes()
    assert disks.run("blockdev", "--getro", mapped.device).strip() == "1"
    mapper.unmap(mapped.device, user="t")
    assert [snapshot.name for snapshot in capabilities.snapshots(mapper, disk)] == ["before"]
    capabilities.snapshot_delete(mapper, disk, "before")
    assert not active(disk.source)


def test_a_volume_that_is_not_thin(mapper: Mapper, group: str) -> None:
    """It reads as zeros, keeps a snapshot with room for all that can change, and LVM's limit of those is explained.

    Killed before LVM could begin to dissolve the snapshot: the same command again finishes it.
    """
    disk = Disk(f"{group}/thick", "lvm")
    lvm("lvcreate", "--wipesignatures", "n", "-L", "16M", "-n", "old", group)
    disks.run("dd", "if=/dev/urandom", f"of=/dev/{group}/old", "bs=1M", "count=16", "conv=fsync")
    lvm("lvremove", f"{group}/old")
    capabilities.create(mapper, disk, 16 * MIB)
    with pytest.raises(AlreadyExists):
        capabilities.create(mapper, disk, 16 * MIB)
    capabilities.snapshot_create(mapper, disk, "before")
    assert not active(disk.source)
    mapped = mapper.map(disk, RW, user="t")
    assert not any(read(mapped.device, 0, 16 * MIB))
    with pytest.raises(NotSupported, match="only while nobody uses it"):
        capabilities.resize(mapper, disk, 24 * MIB)
    disks.run("dd", "if=/dev/urandom", f"of={mapped.device}", "bs=1M", "count=2", "conv=fsync")
    mapper.unmap(mapped.device, user="t")
    assert not active(disk.source)
    killed_before("lvchange", "y", lambda: capabilities.snapshot_revert(mapper, disk, "before"))
    capabilities.snapshot_revert(mapper, disk, "before")
    assert lvm("lvs", "--noheadings", "-o", "lv_tags", disk.source).strip() == ""
    assert not active(disk.source)
    mapped = mapper.map(disk, RW, user="t")
    assert not any(read(mapped.device, 0, 16 * MIB))
    mapper.unmap(mapped.device, user="t")


def test_what_is_no_disk_is_refused(mapper: Mapper, group: str, tmp_path: Path) -> None:
    lvm("lvcreate", "-L", "8M", "-n", "used", group)
    disks.run("mkfs.ext4", "-q", f"/dev/{group}/used")
    (tmp_path / "m").mkdir()
    disks.run("mount", f"/dev/{group}/used", str(tmp_path / "m"))
    try:
        with pytest.raises(ImageInUse, match="somebody uses it"):
            mapper.map(Disk(f"{group}/used", "lvm"), RW, user="t")
    finally:
        disks.run("umount", str(tmp_path / "m"))
    mapper.map(Disk(f"{group}/used", "lvm"), RW, user="t")
    mapper.unmap(f"{group}/used", user="t")
    assert active(f"{group}/used")  # as it was before
    for source, error in (
        (f"{group}/missing", ImageNotFound),
        ("nogroup/missing", ImageNotFound),
        (f"{group}/pool", NotSupported),
        (group, UsageError),
        ("a/b/c", UsageError),
        ("-vg/lv", UsageError),
    ):
        with pytest.raises(error):
            mapper.map(Disk(source, "lvm"), RW, user="t")
    with pytest.raises(UsageError, match=f"{5 * MIB} bytes are no multiple of {4 * MIB}") as caught:
        capabilities.create(mapper, Disk(f"{group}/odd", "lvm"), 5 * MIB)
    assert caught.value.hint == f"take {8 * MIB} bytes"
    with pytest.raises(ImageNotFound):
        capabilities.size_of(mapper, Disk(f"{group}/odd", "lvm"))
    assert mapper.journal.ids() == ()


def test_a_crash_between_activation_and_device(mapper: Mapper, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was activated is in the journal before it is; reconcile deactivates it."""
    from mapper_core.transports.loop import LoopTransport

    lvm("lvcreate", "-an", "--setautoactivation", "n", "-L", "8M", "-n", "one", group)
    monkeypatch.setattr(LoopTransport, "bind", lambda *_: os._exit(9))
    if (pid := os.fork()) == 0:
        mapper.map(Disk(f"{group}/one", "lvm"), RW, user=f"pid:{os.getpid()}")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert active(f"{group}/one")
    monkeypatch.undo()
    reconcile(mapper)
    assert not active(f"{group}/one")
    assert mapper.journal.ids() == ()


def test_a_group_inside_of_an_image_that_is_called_like_the_hosts(mapper: Mapper, tmp_path: Path) -> None:
    """M-16: both groups are called vg, have the same uuids, and are used at the same time; LVM sees only the host's."""
    raw = disks.make_disk(tmp_path / "image.raw", (Part("", 80),))
    mapped = mapper.map(Disk(str(raw), "raw"), RW, user="t")
    part = mapped.table.partitions[0].device
    lvm("vgcreate", "vg", part)
    lvm("lvcreate", "-L", "16M", "-n", "data", "vg")
    disks.run("mkfs.ext4", "-q", "-L", "inside", "/dev/vg/data")
    lvm("vgchange", "--activate", "n", "vg")
    mapper.unmap(str(raw), user="t")
    disks.run("cp", str(raw), str(tmp_path / "host.raw"))
    start = mapped.table.partitions[0].start
    host = disks.run("losetup", "--find", "--show", "--offset", str(start), str(tmp_path / "host.raw")).strip()
    image = disks.convert(raw, "qcow2", tmp_path / "image.qcow2")
    try:
        lvm("vgchange", "--activate", "y", "vg")
        try:
            for disk, transport in ((Disk(str(raw), "raw"), "loop"), (Disk(str(image), "qcow2"), "nbd")):
                mapped = mapper.map(disk, RW, user="t")
                assert mapped.transport == transport
                (volume,) = mapped.table.partitions
                assert volume.label == "vg/data"
                label = disks.run("blkid", "-p", "-o", "value", "-s", "LABEL", volume.device).strip()
                assert label == "inside"
                disks.run("dd", "if=/dev/urandom", f"of={volume.device}", "bs=1M", "count=1", "conv=fsync")
                assert lvm("lvs", "--noheadings", "-o", "devices,lv_active", "vg").split() == [f"{host}(0)", "active"]
                mapper.unmap(mapped.device, user="t")
            assert disks.run("blkid", "-p", "-o", "value", "-s", "LABEL", "/dev/vg/data").strip() == "inside"
        finally:
            lvm("vgchange", "--activate", "n", "vg")
    finally:
        disks.run("losetup", "--detach", host)
