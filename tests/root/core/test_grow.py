"""Partitions and filesystems that grow with their disk: what other tools say about them afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mapper_core import capabilities
from mapper_core.errors import (
    BadPartitionTable,
    NeedsRoot,
    NoRoomToGrow,
    NotFound,
    NotSupported,
    ReadOnlyImage,
    Refused,
)
from mapper_core.grow import Grown, grow
from mapper_core.linux import block
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, MapOptions
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part
from mapper_core.testing.tables import Mbr, mbr_image, table_sector
from mapper_core.tree import mounted
from mapper_core.tree.look import Purpose
from mapper_core.tree.mounted import TreeRequest

from .conftest import make_system

pytestmark = pytest.mark.root

RW = MapOptions()
SYSTEM = (("/sbin/init", "#!/bin/sh\n"), ("/etc/fstab", "# nothing\n"), ("/hello", "world\n"))
#: What says that a filesystem is sound, without changing it.
CHECKS = {
    "ext2": ("e2fsck", "-f", "-n"),
    "ext3": ("e2fsck", "-f", "-n"),
    "ext4": ("e2fsck", "-f", "-n"),
    "xfs": ("xfs_repair", "-n"),
    "btrfs": ("btrfs", "check", "--readonly"),
}
SIZES = {"xfs": 320, "btrfs": 128}


def _disk(path: Path, kind: str = "raw") -> Disk:
    return Disk(str(path), kind)


def _verify(path: Path) -> None:
    """sfdisk finds nothing wrong with the table."""
    text = disks.run("sfdisk", "--verify", str(path))
    assert "No errors detected" in text, text


def _check(path: Path, number: int, kind: str) -> None:
    """The filesystem's own checker finds nothing wrong in a partition (0: the whole file)."""
    piece = path
    if number:
        start, count = disks.run("partx", "-g", "-o", "START,SECTORS", "-n", str(number), str(path)).split()
        piece = path.with_name("piece")
        disks.run(
            "dd", f"if={path}", f"of={piece}", "bs=1M", f"skip={int(start) * 512}", f"count={int(count) * 512}",
            "iflag=skip_bytes,count_bytes", "conv=sparse", "status=none",
        )  # fmt: skip
    disks.run(*CHECKS[kind], str(piece))


def _enlarged(mapper: Mapper, disk: Disk, by: int, number: int | None = None) -> Grown:
    capabilities.resize(mapper, disk, capabilities.size_of(mapper, disk) + by)
    return grow(mapper, disk, number)


def _make(path: Path, kind: str, label: str = "gpt") -> Path:
    """A disk with an ESP-sized partition and, behind it, a filesystem."""
    size = SIZES.get(kind, 24)
    files = SYSTEM if kind == "ext4" else ()
    make = {"ext2": ("ext4", ("-t", "ext2")), "ext3": ("ext4", ("-t", "ext3"))}.get(kind, (kind, ()))
    return disks.make_disk(path, (Part("", 4), Part(make[0], size, make[1], files)), label=label)


@pytest.mark.parametrize("label", ["gpt", "dos"])
@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4", "xfs", "btrfs"])
def test_the_last_partition_and_its_filesystem_grow(mapper: Mapper, tmp_path: Path, kind: str, label: str) -> None:
    path = _make(tmp_path / "disk", kind, label)
    by = 320 * MIB if kind == "xfs" else 128 * MIB
    grown = _enlarged(mapper, _disk(path), by, 2)
    assert grown.filesystem.type == kind
    assert by - MIB <= grown.partition.size - grown.partition_before <= by + 4 * MIB
    assert grown.capacity - grown.capacity_before > by * 0.8
    _verify(path)
    _check(path, 2, kind)
    again = grow(mapper, _disk(path), 2)
    assert (again.partition.size, again.partition_before) == (grown.partition.size, grown.partition.size)
    assert again.capacity == again.capacity_before == grown.capacity


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_disk_without_a_table_grows_while_it_is_mounted(mapper: Mapper, tmp_path: Path, kind: str) -> None:
    path = disks.make_filesystem(tmp_path / "disk", Part(kind, SIZES[kind]))
    tree = tmp_path / "tree"
    tree.mkdir()
    mounted.mount_tree(mapper, TreeRequest(_disk(path), RW, str(tree), purpose=Purpose.DATA))
    before = os.statvfs(tree)
    grown = _enlarged(mapper, _disk(path), 384 * MIB)
    after = os.statvfs(tree)
    assert (after.f_blocks - before.f_blocks) * after.f_frsize > 300 * MIB
    assert grown.capacity == after.f_blocks * after.f_frsize
    mounted.unmount_tree(mapper, str(tree))
    _check(path, 0, kind)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_the_root_of_a_mounted_system_grows_by_itself(mapper: Mapper, tmp_path: Path, kind: str) -> None:
    """The whole way, live: image, device, table, kernel's partition, filesystem."""
    for name, text in SYSTEM:
        (tmp_path / "content" / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "content" / name[1:]).write_text(text)
    root = Part("btrfs", 128, ("--rootdir", f"{tmp_path}/content"))
    raw = disks.make_disk(tmp_path / "raw", (Part("ext4", 8), root))
    path = raw if kind == "raw" else disks.convert(raw, "qcow2", tmp_path / "qcow2")
    tree = tmp_path / "tree"
    tree.mkdir()
    mapped = mounted.mount_tree(mapper, TreeRequest(_disk(path, kind), RW, str(tree))).disk
    grown = _enlarged(mapper, _disk(path, kind), 200 * MIB)
    assert (grown.partition.number, grown.filesystem.type) == (2, "btrfs")
    assert grown.partition.start + grown.partition.size > capabilities.size_of(mapper, _disk(path, kind)) - 2 * MIB
    known = {item.number: item.size for item in block.kernel_partitions(mapped.device)}
    assert known[2] == grown.partition.size
    found = mapper.find(mapped.id)
    assert found is not None
    assert [item.size for item in found.table.partitions] == [8 * MIB, grown.partition.size]
    assert found.table.warnings == ()
    data = os.urandom(150 * MIB)  # more than there was room for
    (tree / "large").write_bytes(data)
    mounted.unmount_tree(mapper, str(tree))
    if kind == "qcow2":
        disks.run("qemu-img", "check", "-q", "-f", "qcow2", str(path))
        path = _to_raw(path)
    _verify(path)
    _check(path, 2, "btrfs")


def test_ext4_grows_while_it_is_mounted_if_the_kernel_lets_us(mapper: Mapper, tmp_path: Path) -> None:
    """Its driver wants CAP_SYS_RESOURCE. Without it that is said, and the rest is done; nothing is lost."""
    path = disks.make_disk(tmp_path / "disk", (Part("ext4", 24, (), SYSTEM),))
    disk, tree = _disk(path), tmp_path / "tree"
    tree.mkdir()
    mounted.mount_tree(mapper, TreeRequest(disk, RW, str(tree)))
    capabilities.resize(mapper, disk, capabilities.size_of(mapper, disk) + 100 * MIB)
    status = Path("/proc/self/status").read_text()
    privileged = int(status.split("CapEff:")[1].split()[0], 16) >> 24 & 1
    if privileged:
        assert grow(mapper, disk).capacity > 100 * MIB
        (tree / "large").write_bytes(os.urandom(90 * MIB))
    else:
        with pytest.raises(NeedsRoot, match="CAP_SYS_RESOURCE"):
            grow(mapper, disk)
    assert (tree / "hello").read_text() == "world\n"
    mounted.unmount_tree(mapper, str(tree))
    assert grow(mapper, disk).capacity > 100 * MIB
    _verify(path)
    _check(path, 1, "ext4")


def _to_raw(path: Path) -> Path:
    target = path.with_name("back")
    disks.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(target))
    return target


def test_a_partition_in_the_way_is_named_and_nothing_is_changed(mapper: Mapper, tmp_path: Path) -> None:
    """P-14."""
    path = make_system(tmp_path / "disk")
    disk = _disk(path)
    capabilities.resize(mapper, disk, capabilities.size_of(mapper, disk) + 64 * MIB)
    before = path.read_bytes()
    with pytest.raises(NoRoomToGrow, match="partition 4 follows") as caught:
        grow(mapper, disk)
    assert (caught.value.subject, "bytes behind the last partition" in caught.value.hint) == (str(path), True)
    assert path.read_bytes() == before
    with pytest.raises(NotSupported, match="swap"):
        grow(mapper, disk, 5)
    with pytest.raises(NotFound, match="no partition 6"):
        grow(mapper, disk, 6)
    assert path.read_bytes() == before


def test_a_partition_grows_into_a_gap(mapper: Mapper, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"")
    os.truncate(path, 64 * MIB)
    disks.run("sfdisk", "-q", str(path), stdin="label: gpt\nstart=1M,size=8M\nstart=32M,size=8M\n")
    grown = grow(mapper, _disk(path), 1)
    assert (grown.partition.size, grown.filesystem.type) == (31 * MIB, "")
    _verify(path)


def test_a_logical_partition_grows_with_what_holds_it(mapper: Mapper, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"")
    os.truncate(path, 64 * MIB)
    script = "label: dos\nstart=1M,size=8M\nstart=9M,size=40M,type=5\nstart=10M,size=8M\nstart=20M,size=24M\n"
    disks.run("sfdisk", "-q", str(path), stdin=script)
    piece = disks.make_filesystem(tmp_path / "part", Part("ext4", 24))
    disks.run("dd", f"if={piece}", f"of={path}", "bs=1M", "seek=20", "conv=notrunc,sparse", "status=none")
    grown = _enlarged(mapper, _disk(path), 64 * MIB, 6)
    assert grown.partition.start + grown.partition.size == 128 * MIB
    assert grow(mapper, _disk(path), 5).partition.size < 10 * MIB
    _verify(path)
    _check(path, 6, "ext4")
    listed = disks.run("partx", "-g", "-o", "NR,START,SECTORS", str(path)).split("\n")
    assert [line.split() for line in listed if line.startswith("6")] == []  # partx prints it with a blank in front
    assert any(line.split() == ["6", str(20 * 2048), str(108 * 2048)] for line in listed)


def test_a_read_only_mapping_is_left_alone(mapper: Mapper, tmp_path: Path) -> None:
    path = _make(tmp_path / "disk", "ext4")
    mapper.map(_disk(path), MapOptions(Access.READ_ONLY), user="t")
    before = path.read_bytes()
    with pytest.raises(ReadOnlyImage):
        grow(mapper, _disk(path), 2)
    with pytest.raises(ReadOnlyImage):
        capabilities.resize(mapper, _disk(path), 1 << 30)
    mapper.unmap(str(path), user="t")
    assert path.read_bytes() == before


def test_a_damaged_primary_table_is_not_written(mapper: Mapper, tmp_path: Path) -> None:
    path = _make(tmp_path / "disk", "ext4")
    with path.open("r+b") as file:
        file.seek(512 + 60)  # in the random id of the disk
        [byte] = file.read(1)
        file.seek(512 + 60)
        file.write(bytes((byte ^ 0xFF,)))
    before = path.read_bytes()
    with pytest.raises(BadPartitionTable, match="primary GPT is damaged"):
        grow(mapper, _disk(path), 2)
    assert path.read_bytes() == before
    mapper.map(_disk(path), RW, user="t")
    with pytest.raises(Refused, match="primary GPT is damaged"):
        capabilities.resize(mapper, _disk(path), capabilities.size_of(mapper, _disk(path)) + MIB)
    mapper.unmap(str(path), user="t")
    assert path.read_bytes() == before


def test_a_partition_in_use_that_is_elsewhere_in_the_table_stays(mapper: Mapper, tmp_path: Path) -> None:
    """Somebody has changed the table under a mounted filesystem: the disk becomes larger, and the partitions wait."""
    path = tmp_path / "disk"
    path.write_bytes(mbr_image(16 * MIB, tuple(Mbr(number, 0x83, 2048 * number, 2048) for number in (1, 2, 3))))
    mapped = mapper.map(_disk(path), RW, user="t")
    in_use = os.open(mapped.table.partitions[1].device, os.O_RDONLY)
    with open(mapped.device, "r+b", buffering=0) as device:
        device.write(table_sector((Mbr(1, 0x83, 10240, 2048), Mbr(2, 0x83, 12288, 2048), Mbr(3, 0x83, 6144, 2048))))
    try:
        capabilities.resize(mapper, _disk(path), 32 * MIB)
        after = mapper.find(mapped.id)
        assert after is not None
        assert "is in use" in after.table.warnings[0]
        assert after.table.partitions == mapped.table.partitions
        assert [start for _, start, _ in block.kernel_partitions(mapped.device)] == [MIB, 2 * MIB, 3 * MIB]
        record = mapper.journal.read(mapped.id)
        assert record is not None
        assert (record.size, record.resize_to) == (32 * MIB, 0)
    finally:
        os.close(in_use)
    capabilities.resize(mapper, _disk(path), 33 * MIB)
    assert [start for _, start, _ in block.kernel_partitions(mapped.device)] == [5 * MIB, 6 * MIB, 3 * MIB]
    mapper.unmap(mapped.id, user="t")


KILLED = """
import os, signal, sys
from mapper_core.grow import grow
from mapper_core.linux import blkpg, direct, filesystem_size
from mapper_core.mapping import Mapper
from mapper_core.model import Disk
place, count = sys.argv[2], int(sys.argv[3])
module = {"write": direct, "resize": blkpg, "grow": filesystem_size}[place]
real = getattr(module, place)
def killed(*arguments, **named):
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)
setattr(module, place, killed)
grow(Mapper.open(), Disk(sys.argv[1], "raw"), 2)
"""


@pytest.mark.parametrize(("place", "count"), [*(("write", n) for n in range(5)), ("resize", 0), ("grow", 0)])
@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_killed_at_any_point_the_table_is_valid_and_a_repeat_finishes(
    mapper: Mapper, tmp_path: Path, place: str, count: int, label: str
) -> None:
    path = _make(tmp_path / "disk", "ext4", label)
    disk = _disk(path)
    mapped = mapper.map(disk, RW, user="t")
    capabilities.resize(mapper, disk, capabilities.size_of(mapper, disk) + 64 * MIB)
    argv = (sys.executable, "-c", KILLED, str(path), place, str(count))
    done = subprocess.run(argv, check=False, capture_output=True, timeout=60)
    writes = 4 if label == "gpt" else 1
    assert done.returncode == (0 if place == "write" and count >= writes else -9), done.stderr
    table = mapper.read_table(mapped.device, str(path))  # as whoever maps it after the crash
    assert table.partitions[1].size in (24 * MIB, grow(mapper, disk, 2).partition.size)
    assert mapper.read_table(mapped.device, str(path)).warnings == ()
    for user in _users(mapper, mapped.id):
        mapper.unmap(mapped.id, user=user)
    _verify(path)
    _check(path, 2, "ext4")


def _users(mapper: Mapper, key: str) -> tuple[str, ...]:
    """Who holds it: the process that was killed, too, if it has come that far."""
    found = mapper.find(key)
    assert found is not None
    return found.users
