"""The transport nbd on a kernel that has it, with udev running, which opens every device that appears."""

import hashlib
import os
import signal
import time
from pathlib import Path

import pytest

from mapper_core.errors import DeviceBusy, ImageInUse, MapperError, ReadOnlyImage, TransportUnavailable
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, MapOptions
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part

from .kernel import connected, load_nbd, partitions_of, read, unload_nbd

pytestmark = pytest.mark.vm

RW = MapOptions()
NBD = MapOptions(transport="nbd")
VMDK = ("monolithicSparse", "twoGbMaxExtentFlat", "streamOptimized")


def test_qcow2_is_on_nbd_without_being_asked(mapper: Mapper, system: Path, qcow2: Path, tmp_path: Path) -> None:
    mapped = mapper.map(Disk(str(qcow2), "qcow2"), RW, user="t")
    assert mapped.transport == "nbd"
    assert connected() == [mapped.device]
    assert mapped.size == system.stat().st_size
    content = system.read_bytes()
    assert [part.number for part in mapped.table.partitions] == [1, 2, 3, 4, 5]
    for part in mapped.table.partitions:
        assert read(part.device, 0, part.size) == content[part.start : part.start + part.size]
    (tmp_path / "m").mkdir()
    disks.run("mount", mapped.table.partitions[3].device, str(tmp_path / "m"))
    (tmp_path / "m/written").write_text("x")
    disks.run("umount", str(tmp_path / "m"))
    mapper.unmap(mapped.device, user="t")
    assert connected() == []
    disks.run("qemu-img", "check", "-f", "qcow2", str(qcow2))


@pytest.mark.parametrize("subformat", VMDK)
def test_vmdk_is_on_nbd(mapper: Mapper, system: Path, subformat: str) -> None:
    image = disks.convert(system, "vmdk", system.with_suffix(".vmdk"), "-o", f"subformat={subformat}")
    access = Access.READ_ONLY if subformat == "streamOptimized" else Access.READ_WRITE
    mapped = mapper.map(Disk(str(image), "vmdk"), MapOptions(access), user="t")
    assert mapped.transport == "nbd"
    assert len(mapped.table.partitions) == 5
    content = system.read_bytes()
    for part in mapped.table.partitions:
        assert read(part.device, 0, MIB) == content[part.start : part.start + MIB]
    mapper.unmap(mapped.device, user="t")


def test_raw_is_on_loop_and_on_nbd_when_asked(mapper: Mapper, system: Path) -> None:
    for options, name in ((RW, "loop"), (NBD, "nbd"), (MapOptions(transport="storage_daemon"), "storage_daemon")):
        mapped = mapper.map(Disk(str(system), "raw"), options, user="t")
        assert mapped.transport == name
        assert len(mapped.table.partitions) == 5
        assert os.path.exists(mapped.table.partitions[4].device)
        mapper.unmap(mapped.device, user="t")


def test_refused_with_reasons_and_done_otherwise(mapper: Mapper, qcow2: Path) -> None:
    """Without the module, nbd is refused with what to do, and left out when nobody asks for it."""
    disk = Disk(str(qcow2), "qcow2")
    with pytest.raises(TransportUnavailable, match="loop cannot carry qcow2"):
        mapper.map(disk, MapOptions(transport="loop"), user="t")
    unload_nbd()
    try:
        with pytest.raises(TransportUnavailable, match=r"module nbd is not loaded.*modprobe nbd"):
            mapper.map(disk, NBD, user="t")
        assert mapper.journal.ids() == ()
        mapped = mapper.map(disk, RW, user="t")
        assert mapped.transport == "storage_daemon"
        mapper.unmap(mapped.device, user="t")
    finally:
        load_nbd()


def test_right_after_the_module_was_loaded(mapper: Mapper, qcow2: Path) -> None:
    """M-10: udev opens all devices when they appear."""
    for _ in range(3):
        load_nbd()
        mapped = mapper.map(Disk(str(qcow2), "qcow2"), NBD, user="t")
        assert len(mapped.table.partitions) == 5
        mapper.unmap(mapped.device, user="t")


def test_partitions_also_where_the_kernel_looks_for_none(mapper: Mapper, qcow2: Path) -> None:
    load_nbd(max_part=0)
    try:
        mapped = mapper.map(Disk(str(qcow2), "qcow2"), NBD, user="t")
        assert [read(part.device, 0, 512) for part in mapped.table.partitions]
        mapper.unmap(mapped.device, user="t")
        assert partitions_of(mapped.device) == []
    finally:
        load_nbd()


def test_a_reused_device_shows_the_new_image_only(mapper: Mapper, qcow2: Path, bare: Path) -> None:
    """M-04, M-06, M-09, M-11: the nodes are there at once, those of the image before are gone."""
    for _ in range(4):
        first = mapper.map(Disk(str(qcow2), "qcow2"), NBD, user="t")
        assert partitions_of(first.device) == [1, 2, 3, 4, 5]
        for part in first.table.partitions:
            assert read(part.device, 0, 4096) == read(first.device, part.start, 4096)
        mapper.unmap(first.device, user="t")
        second = mapper.map(Disk(str(bare), "raw"), NBD, user="t")
        assert second.device == first.device
        assert second.table.scheme == "none"
        assert partitions_of(second.device) == []
        mapper.unmap(second.device, user="t")


def test_nodes_stay(mapper: Mapper, qcow2: Path) -> None:
    """M-09, M-27: udev reads the table again when a writer closes the device, and qemu-nbd is such a writer."""
    for _ in range(4):
        mapped = mapper.map(Disk(str(qcow2), "qcow2"), NBD, user="t")
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert partitions_of(mapped.device) == [1, 2, 3, 4, 5]
        mapper.unmap(mapped.device, user="t")


def test_a_mounted_partition_keeps_the_device_and_is_named(mapper: Mapper, qcow2: Path, tmp_path: Path) -> None:
    """M-08: qemu-nbd --disconnect says nothing about it, and succeeds."""
    mapped = mapper.map(Disk(str(qcow2), "qcow2"), RW, user="t")
    (tmp_path / "m").mkdir()
    disks.run("mount", mapped.table.partitions[3].device, str(tmp_path / "m"))
    try:
        with pytest.raises(DeviceBusy, match=f"p4 is mounted on {tmp_path}/m"):
            mapper.unmap(mapped.device, user="t")
        assert connected() == [mapped.device]
        (tmp_path / "m/still").write_text("works")
    finally:
        disks.run("umount", str(tmp_path / "m"))
    mapper.unmap(mapped.device, user="t")
    assert connected() == []


def test_read_only_is_read_only(mapper: Mapper, qcow2: Path) -> None:
    before = hashlib.sha256(qcow2.read_bytes()).digest()
    mapped = mapper.map(Disk(str(qcow2), "qcow2"), MapOptions(Access.READ_ONLY), user="t")
    assert mapped.transport == "nbd"
    with pytest.raises(OSError, match=r"Operation not permitted|Read-only|Permission denied"):
        fd = os.open(mapped.device, os.O_WRONLY)
        try:
            os.pwrite(fd, b"x" * 4096, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
    mapper.unmap(mapped.device, user="t")
    assert hashlib.sha256(qcow2.read_bytes()).digest() == before


def test_write_access_is_never_downgraded_in_silence(mapper: Mapper, qcow2: Path, tmp_path: Path) -> None:
    """U-06."""
    (tmp_path / "ro").mkdir()
    disks.run("mount", "--bind", str(tmp_path), str(tmp_path / "ro"))
    try:
        disks.run("mount", "-o", "remount,bind,ro", str(tmp_path / "ro"))
        with pytest.raises(ReadOnlyImage):
            mapper.map(Disk(f"{tmp_path}/ro/{qcow2.name}", "qcow2"), NBD, user="t")
    finally:
        disks.run("umount", str(tmp_path / "ro"))
    assert connected() == []


def test_an_image_on_a_filesystem_without_direct_io(mapper: Mapper, tmp_path: Path) -> None:
    """tmpfs of Linux 6.1 has no O_DIRECT, and neither have some FUSE filesystems."""
    (tmp_path / "t").mkdir()
    disks.run("mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "t"))
    try:
        raw = disks.make_filesystem(tmp_path / "t/raw", Part("ext4", 16))
        image = disks.convert(raw, "qcow2", tmp_path / "t/qcow2")
        mapped = mapper.map(Disk(str(image), "qcow2"), NBD, user="t")
        assert read(mapped.device, 0, MIB) == raw.read_bytes()[:MIB]
        mapper.unmap(mapped.device, user="t")
    finally:
        disks.run("umount", str(tmp_path / "t"))


def test_a_virtual_machine_that_uses_the_image_is_noticed(mapper: Mapper, qcow2: Path, short_dir: Path) -> None:
    """The lock of the images is qemu's, and the message says whose work is in the way."""
    argv = ["qemu-nbd", "--fork", "--persistent", "-f", "qcow2", "-k", f"{short_dir}/s", f"--pid-file={short_dir}/pid"]
    disks.run(*argv, str(qcow2))
    try:
        with pytest.raises(ImageInUse, match="locked"):
            mapper.map(Disk(str(qcow2), "qcow2"), RW, user="t")
    finally:
        os.kill(int((short_dir / "pid").read_text()), signal.SIGTERM)
    assert connected() == []
    assert mapper.journal.ids() == ()


def test_a_device_of_somebody_else_is_left_alone(mapper: Mapper, qcow2: Path, bare: Path) -> None:
    """Whoever uses nbd beside us keeps its devices, also when it takes one without asking our locks."""
    disks.run("qemu-nbd", "--connect=/dev/nbd0", "-f", "raw", str(bare))
    try:
        mapped = mapper.map(Disk(str(qcow2), "qcow2"), RW, user="t")
        assert mapped.device == "/dev/nbd1"
        with pytest.raises(MapperError, match="not mapped by Mapper"):
            mapper.unmap("/dev/nbd0", user="t")
        mapper.unmap(mapped.device, user="t")
        assert connected() == ["/dev/nbd0"]
    finally:
        disks.run("qemu-nbd", "--disconnect", "/dev/nbd0")


def test_what_is_written_is_in_the_image_after_unmap(mapper: Mapper, qcow2: Path, system: Path) -> None:
    mapped = mapper.map(Disk(str(qcow2), "qcow2"), RW, user="t")
    pattern = os.urandom(MIB)
    fd = os.open(mapped.device, os.O_WRONLY)
    os.pwrite(fd, pattern, 8 * MIB)
    os.close(fd)  # no fsync
    mapper.unmap(mapped.device, user="t")
    disks.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(qcow2), str(system))
    assert system.read_bytes()[8 * MIB : 9 * MIB] == pattern


@pytest.mark.parametrize("kind", ["qcow2", "vmdk"])
def test_nothing_that_is_written_is_lost_or_changed(mapper: Mapper, tmp_path: Path, kind: str) -> None:
    """Random writes, 16 in flight, read back and compared."""
    image = tmp_path / "disk"
    disks.run("qemu-img", "create", "-q", "-f", kind, str(image), "64M")
    mapped = mapper.map(Disk(str(image), kind), NBD, user="t")
    disks.run(
        "fio", "--name=verify", f"--filename={mapped.device}", "--rw=randwrite", "--bsrange=4k-64k", "--size=12M",
        "--ioengine=libaio", "--iodepth=16", "--direct=1", "--verify=crc32c", "--do_verify=1",
        "--verify_fatal=1", "--verify_state_save=0", "--randseed=7", "--output-format=terse",
    )  # fmt: skip
    mapper.unmap(mapped.device, user="t")
    if kind == "qcow2":
        disks.run("qemu-img", "check", "-f", kind, str(image))
