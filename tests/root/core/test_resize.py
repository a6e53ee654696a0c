"""Disks that are made larger: unmapped, mapped, under load, refused, interrupted."""

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mapper_core import capabilities
from mapper_core.errors import (
    AlreadyExists,
    Busy,
    DaemonRefused,
    DeadlineExceeded,
    ForbiddenReference,
    FormatMismatch,
    ImageInUse,
    MappedDifferently,
    NotSupported,
    Refused,
    UsageError,
)
from mapper_core.linux import block
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.reconcile import Mode, reconcile
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part
from mapper_core.transports import storage_daemon
from mapper_core.tree import mounted
from mapper_core.tree.look import Purpose
from mapper_core.tree.mounted import TreeRequest

pytestmark = pytest.mark.root

RW = MapOptions()
WAYS = [("raw", "loop"), ("raw", "storage_daemon"), ("qcow2", "storage_daemon")]


def _image(path: Path, kind: str, size: int = 64) -> Disk:
    disks.run("qemu-img", "create", "-q", "-f", kind, str(path), f"{size}M")
    return Disk(str(path), kind)


def _size(device: str) -> int:
    with open(device, "rb") as file:
        return block.size(file.fileno())


def _image_size(disk: Disk) -> int:
    found = json.loads(disks.run("qemu-img", "info", "-U", "--output=json", "-f", disk.format, disk.source))
    return int(found["virtual-size"])


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_an_image_that_is_not_mapped(mapper: Mapper, tmp_path: Path, kind: str) -> None:
    disk = _image(tmp_path / "disk", kind)
    capabilities.resize(mapper, disk, 100 * MIB)
    assert _image_size(disk) == capabilities.size_of(mapper, disk) == 100 * MIB
    capabilities.resize(mapper, disk, 100 * MIB)
    with pytest.raises(Refused, match="never made smaller"):
        capabilities.resize(mapper, disk, 99 * MIB)
    assert os.listdir(mapper.runtime.disks) == os.listdir(mapper.runtime.locks) == []


@pytest.mark.parametrize(("kind", "transport"), WAYS)
def test_a_device_grows_at_once_with_its_image(mapper: Mapper, tmp_path: Path, kind: str, transport: str) -> None:
    disk = _image(tmp_path / "disk", kind)
    mapped = mapper.map(disk, MapOptions(transport=transport), user="t")
    data = os.urandom(MIB)
    with open(mapped.device, "r+b", buffering=0) as device:
        device.seek(63 * MIB)
        device.write(data)
    for size in (65 * MIB, 65 * MIB + 512, 3 << 30):
        capabilities.resize(mapper, disk, size)
        assert _size(mapped.device) == _image_size(disk) == size
        found = mapper.find(mapped.id)
        assert found is not None
        assert (found.size, found.table.partitions[0].size) == (size, size)
    with open(mapped.device, "r+b", buffering=0) as device:
        device.seek((3 << 30) - MIB)
        device.write(data)
        os.fsync(device)
    with pytest.raises(Refused):
        capabilities.resize(mapper, disk, 2 << 30)
    assert _size(mapped.device) == 3 << 30
    mapper.unmap(mapped.id, user="t")
    again = mapper.map(disk, MapOptions(transport=transport), user="t")
    with open(again.device, "rb") as device:
        device.seek(63 * MIB)
        assert device.read(MIB) == data
        assert not any(device.read(MIB))
        device.seek((3 << 30) - MIB)
        assert device.read(MIB) == data
    mapper.unmap(again.id, user="t")
    if kind == "qcow2":
        disks.run("qemu-img", "check", "-q", "-f", "qcow2", disk.source)


@pytest.mark.parametrize(("kind", "transport"), [("raw", "loop"), ("qcow2", "storage_daemon")])
def test_nothing_is_lost_under_load(mapper: Mapper, tmp_path: Path, kind: str, transport: str) -> None:
    """fio writes with checksums on a mounted filesystem, and reads all of it back, while the disk grows six times."""
    raw = disks.make_filesystem(tmp_path / "raw", Part("ext4", 96))
    disk = Disk(str(raw), "raw") if kind == "raw" else Disk(str(disks.convert(raw, kind, tmp_path / "disk")), kind)
    tree = tmp_path / "tree"
    tree.mkdir()
    request = TreeRequest(disk, MapOptions(transport=transport), str(tree), purpose=Purpose.DATA)
    mapped = mounted.mount_tree(mapper, request).disk
    job = (
        "fio", "--name=load", "--verify_state_save=0", f"--filename={tree}/file", "--size=48M",
        "--rw=randwrite", "--bs=4k", "--iodepth=16", "--ioengine=libaio", "--direct=1", "--time_based", "--runtime=3",
        "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_backlog=512",
    )  # fmt: skip
    with subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as load:
        while not (tree / "file").exists() and load.poll() is None:
            pass
        for step in range(1, 7):
            capabilities.resize(mapper, disk, (96 + 32 * step) * MIB)
            assert load.poll() is None, "the load ended before"
        text, _ = load.communicate(timeout=60)
    assert load.returncode == 0, text
    assert _size(mapped.device) == 288 * MIB
    mounted.unmount_tree(mapper, str(tree))
    if kind == "qcow2":
        disks.run("qemu-img", "check", "-q", "-f", "qcow2", disk.source)
        disks.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk.source, str(raw))
    disks.run("e2fsck", "-f", "-n", str(raw))


@pytest.mark.parametrize("state", ["unmapped", "mapped"])
def test_a_chain_grows_at_its_top_only(mapper: Mapper, tmp_path: Path, state: str) -> None:
    """What is new reads as zeros, even where the layer below is longer."""
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(b"x" * (64 * MIB))
    disks.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", str(top), "32M")
    disk = Disk(str(top), "qcow2")
    before = base.stat().st_mtime_ns
    if state == "mapped":
        device = mapper.map(disk, RW, user="t").device
        capabilities.resize(mapper, disk, 48 * MIB)
    else:
        capabilities.resize(mapper, disk, 48 * MIB)
        device = mapper.map(disk, RW, user="t").device
    with open(device, "rb") as file:
        assert file.read(32 * MIB) == b"x" * (32 * MIB)
        assert not any(file.read(16 * MIB))
    mapper.unmap(device, user="t")
    assert base.stat().st_mtime_ns == before


def test_what_cannot_grow_says_why(mapper: Mapper, tmp_path: Path) -> None:
    vmdk = _image(tmp_path / "disk.vmdk", "vmdk")
    before = Path(vmdk.source).read_bytes()
    with pytest.raises(NotSupported, match="no hook resize"):
        capabilities.resize(mapper, vmdk, 128 * MIB)
    assert Path(vmdk.source).read_bytes() == before
    old = tmp_path / "old"
    disks.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", str(old), "64M")
    capabilities.snapshot_create(mapper, Disk(str(old), "qcow2"), "s")
    with pytest.raises(NotSupported, match="version 2"):
        capabilities.resize(mapper, Disk(str(old), "qcow2"), 128 * MIB)
    device = mapper.map(_image(tmp_path / "raw", "raw"), RW, user="t").device
    with pytest.raises(NotSupported, match="block device of 67108864 bytes"):
        capabilities.resize(mapper, Disk(device, "raw"), 128 * MIB)
    mapper.unmap(device, user="t")


@pytest.mark.parametrize("size", [0, -512, 1000, 1 << 63])
def test_sizes_that_no_disk_has(mapper: Mapper, tmp_path: Path, size: int) -> None:
    disk = _image(tmp_path / "disk", "raw")
    with pytest.raises(UsageError):
        capabilities.resize(mapper, disk, size)
    with pytest.raises(UsageError):
        capabilities.create(mapper, Disk(f"{tmp_path}/new", "raw"), size)
    assert os.listdir(tmp_path) == ["disk"]


def test_a_wrong_format_is_refused_and_nothing_is_written(mapper: Mapper, tmp_path: Path) -> None:
    """S-05: an image of another format, or with a reference to a file of the host, is not touched by any program."""
    disk = _image(tmp_path / "disk", "qcow2")
    hostile = tmp_path / "hostile"
    disks.run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", str(hostile), "1M")
    before = (Path(disk.source).read_bytes(), hostile.read_bytes(), Path("/etc/passwd").read_bytes())
    with pytest.raises(FormatMismatch):
        capabilities.resize(mapper, Disk(disk.source, "raw"), 128 * MIB)
    with pytest.raises(ForbiddenReference):
        capabilities.resize(mapper, Disk(str(hostile), "qcow2"), 2 * MIB)
    with pytest.raises(ForbiddenReference):
        capabilities.snapshot_create(mapper, Disk(str(hostile), "qcow2"), "s")
    assert (Path(disk.source).read_bytes(), hostile.read_bytes(), Path("/etc/passwd").read_bytes()) == before
    mapper.map(disk, RW, user="t")
    with pytest.raises(MappedDifferently):
        capabilities.resize(mapper, Disk(disk.source, "raw"), 128 * MIB)
    mapper.unmap(disk.source, user="t")


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_the_disk_of_a_running_machine(mapper: Mapper, tmp_path: Path, kind: str) -> None:
    disk = _image(tmp_path / "disk", kind)
    with subprocess.Popen(
        ("qemu-io", "-f", kind, disk.source), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as machine:
        assert machine.stdin is not None
        assert machine.stdout is not None
        machine.stdin.write(b"write 0 64k\n")
        machine.stdin.flush()
        while b"wrote" not in machine.stdout.readline():
            pass
        with pytest.raises(ImageInUse):
            capabilities.resize(mapper, disk, 128 * MIB)
        machine.stdin.close()
    assert _image_size(disk) == 64 * MIB


def test_somebody_else_has_the_lock(mapper: Mapper, tmp_path: Path) -> None:
    disk = _image(tmp_path / "disk", "raw")
    with mapper.lock(mapper.identify(disk).id), pytest.raises(Busy):
        capabilities.resize(mapper, disk, 128 * MIB)


def test_a_limit_of_the_mapping_holds(mapper: Mapper, tmp_path: Path) -> None:
    disk = _image(tmp_path / "disk", "raw")
    mapper.map(disk, MapOptions(max_virtual_size=100 * MIB), user="t")
    with pytest.raises(Refused, match="at most 104857600"):
        capabilities.resize(mapper, disk, 128 * MIB)
    capabilities.resize(mapper, disk, 100 * MIB)
    mapper.unmap(disk.source, user="t")


def test_a_failure_leaves_no_mark(mapper: Mapper, tmp_path: Path) -> None:
    """A size that qemu cannot make: the mapping is as before, and the next resize works."""
    disk = _image(tmp_path / "disk", "qcow2")
    mapped = mapper.map(disk, RW, user="t")
    with pytest.raises(DaemonRefused, match="L1 table"):
        capabilities.resize(mapper, disk, 1 << 60)
    record = mapper.journal.read(mapped.id)
    assert record is not None
    assert (record.resize_to, record.size) == (0, 64 * MIB)
    capabilities.resize(mapper, disk, 96 * MIB)
    assert _size(mapped.device) == 96 * MIB
    mapper.unmap(mapped.id, user="t")


def _limit_size(device: str, size: int) -> None:
    """Let a loop device show no more of its file (``lo_sizelimit`` of ``struct loop_info64``, include/uapi/linux/loop.h)."""
    get_status, set_status, offset = 0x4C05, 0x4C04, 32
    with open(device, "rb") as file:
        info = bytearray(232)
        fcntl.ioctl(file, get_status, info)
        struct.pack_into("=Q", info, offset, size)
        fcntl.ioctl(file, set_status, info)


def test_a_device_that_does_not_follow_its_export(
    mapper: Mapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, and is no fault of the plugin's; the image has grown by then, and the same call goes on there."""
    monkeypatch.setattr("mapper_core.transports.storage_daemon.SIZE_SECONDS", 0.3)
    disk = _image(tmp_path / "disk", "qcow2")
    mapped = mapper.map(disk, RW, user="t")
    _limit_size(mapped.device, 64 * MIB)
    asked, follow = 0, storage_daemon._follow

    def counted(export: str, device: str) -> int:
        nonlocal asked
        asked += 1
        return follow(export, device)

    monkeypatch.setattr(storage_daemon, "_follow", counted)
    with pytest.raises(DeadlineExceeded, match=r"100663296 bytes now, and its device 67108864 after 0\.3 s"):
        capabilities.resize(mapper, disk, 96 * MIB)
    assert asked < 10, "it waits, and does not ask all the time: the kernel tells of each time it looks at a size"
    record = mapper.journal.read(mapped.id)
    assert record is not None
    assert (record.resize_to, record.size, _image_size(disk)) == (0, 64 * MIB, 96 * MIB)
    _limit_size(mapped.device, 0)
    capabilities.resize(mapper, disk, 96 * MIB)
    assert _size(mapped.device) == 96 * MIB
    mapper.unmap(mapped.id, user="t")


KILLED = """
import os, signal, sys
from mapper_core import capabilities
from mapper_core.journal import Journal
from mapper_core.linux import loop
from mapper_core.mapping import Mapper
from mapper_core.model import Disk
from mapper_core.transports.qmp import Monitor
place = sys.argv[3]
owner, name = {"image": (os, "ftruncate"), "daemon": (Monitor, "execute"), "device": (loop, "set_capacity"),
               "table": (Mapper, "read_table")}[place]
def killed(*arguments, **named):
    if arguments[1:2] != ("qmp_capabilities",):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)
real = getattr(owner, name)
setattr(owner, name, killed)
capabilities.resize(Mapper.open(), Disk(sys.argv[1], sys.argv[2]), 128 << 20)
"""


@pytest.mark.parametrize("finisher", ["repeat", "reconcile"])
@pytest.mark.parametrize(
    ("kind", "place"), [("raw", "image"), ("raw", "device"), ("raw", "table"), ("qcow2", "daemon"), ("qcow2", "device")]
)
def test_killed_at_any_point_it_is_finished(
    mapper: Mapper, tmp_path: Path, kind: str, place: str, finisher: str
) -> None:
    disk = _image(tmp_path / "disk", kind)
    mapped = mapper.map(disk, RW, user="t")
    argv = (sys.executable, "-c", KILLED, disk.source, kind, place)
    done = subprocess.run(argv, check=False, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert mapper.find(mapped.id) is not None, "the mapping is as good as before"
    with pytest.raises(Refused):
        capabilities.resize(mapper, disk, 96 * MIB)  # smaller than what was begun
    if finisher == "repeat":
        capabilities.resize(mapper, disk, 128 * MIB)
    else:
        assert "would be finished" in reconcile(mapper, Mode.DRY_RUN).actions[0].outcome
        report = reconcile(mapper)
        assert [action.outcome.split(":")[0] for action in report.actions] == ["finished"]
        assert report.problems == ()
    assert _size(mapped.device) == _image_size(disk) == 128 * MIB
    record = mapper.journal.read(mapped.id)
    assert record is not None
    assert (record.size, record.resize_to) == (128 * MIB, 0)
    assert reconcile(mapper).actions == ()
    mapper.unmap(mapped.id, user="t")


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vmdk"])
def test_creating_is_exclusive(mapper: Mapper, tmp_path: Path, kind: str) -> None:
    disk = Disk(f"{tmp_path}/disk", kind)
    capabilities.create(mapper, disk, 64 * MIB)
    before = Path(disk.source).read_bytes()
    with pytest.raises(AlreadyExists):
        capabilities.create(mapper, disk, 128 * MIB)
    assert Path(disk.source).read_bytes() == before
    mapped = mapper.map(disk, RW, user="t")
    with open(mapped.device, "rb") as file:
        assert not any(file.read())
    mapper.unmap(mapped.id, user="t")
    assert os.listdir(mapper.runtime.locks) == []


@pytest.mark.parametrize("name", ["a,b.raw", "json:{}", "-o.raw", "a b\n.raw", "nbd:x"])
def test_names_mean_nothing_to_programs(mapper: Mapper, tmp_path: Path, name: str) -> None:
    """Commas, colons and options in the name of an image, through every program that gets it."""
    disk = Disk(f"{tmp_path}/{name}", "qcow2")
    capabilities.create(mapper, disk, 8 * MIB)
    capabilities.resize(mapper, disk, 16 * MIB)
    capabilities.snapshot_create(mapper, disk, "s")
    capabilities.snapshot_revert(mapper, disk, "s")
    mapped = mapper.map(disk, RW, user="t")
    capabilities.resize(mapper, disk, 32 * MIB)
    capabilities.snapshot_delete(mapper, disk, "s")
    mapper.unmap(mapped.id, user="t")
    assert os.listdir(tmp_path) == [name]
