"""Mapping real images on the real kernel."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from mapper_core.errors import (
    Busy,
    DeviceBusy,
    FormatMismatch,
    ImageInUse,
    ImageNotFound,
    MappedDifferently,
    MapperError,
    NotMapped,
    PluginMissing,
    ReadOnlyImage,
    Refused,
    TransportUnavailable,
    TruncatedImage,
    UsageError,
)
from mapper_core.linux import loop
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Attachment, Disk, MapOptions
from mapper_core.testing import disks

from .conftest import make_system

pytestmark = pytest.mark.root

RW = MapOptions()
RO = MapOptions(Access.READ_ONLY)
TRANSPORTS = ("loop", "storage_daemon")


def _disk(path: Path, kind: str = "raw") -> Disk:
    return Disk(str(path), kind)


def _read(device: str, offset: int, length: int) -> bytes:
    fd = os.open(device, os.O_RDONLY)
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def test_an_image_below_dev_that_is_not_mapped(mapper: Mapper) -> None:
    """/dev/shm has files, too; unmapping one is the success that it is everywhere."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        mapper.unmap(file.name, user="t")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_raw_becomes_a_device_with_the_same_bytes(mapper: Mapper, bare: Path, transport: str) -> None:
    mapped = mapper.map(_disk(bare), MapOptions(transport=transport), user="t")
    assert (mapped.transport, mapped.size) == (transport, bare.stat().st_size)
    assert _read(mapped.device, 0, 1 << 20) == bare.read_bytes()[: 1 << 20]
    mapper.unmap(str(bare), user="t")
    assert mapper.mapped() == ()


@pytest.mark.parametrize(
    ("kind", "transport"), [("raw", "loop"), ("raw", "storage_daemon"), ("qcow2", "storage_daemon")]
)
def test_what_is_read_while_it_is_mapped_is_what_the_device_has(
    mapper: Mapper, system: Path, tmp_path: Path, kind: str, transport: str
) -> None:
    """Of a raw image on a loop device, the file is read."""
    image = system
    if kind == "qcow2":
        image = tmp_path / "image.qcow2"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", system, image], check=True, timeout=60)
    disk = _disk(image, kind)
    with mapper.map_open(disk, mapper.identify(disk), MapOptions(transport=transport), user="t") as opened:
        assert opened.reader.size == opened.disk.size == system.stat().st_size
        for start in (0, 1 << 20, opened.disk.size - 4096):
            found = opened.reader.read(start, 4096)
            assert found == _read(opened.disk.device, start, 4096)
            assert len(found) == 4096
    mapper.unmap(str(image), user="t")


def test_partitions_have_nodes_at_once(mapper: Mapper, system: Path) -> None:
    """M-09: no race with udev or the kernel's own scan."""
    mapped = mapper.map(_disk(system), RW, user="t")
    assert [partition.device for partition in mapped.table.partitions] == [f"{mapped.device}p{n}" for n in range(1, 6)]
    for partition in mapped.table.partitions:
        assert _read(partition.device, 0, 4096) == _read(mapped.device, partition.start, 4096)
    mapper.unmap(mapped.device, user="t")
    assert not os.path.exists(f"{mapped.device}p1")


def test_a_reused_device_shows_the_new_image_only(mapper: Mapper, system: Path, bare: Path) -> None:
    """M-04, M-11."""
    for _ in range(20):
        first = mapper.map(_disk(system), RW, user="t")
        assert len(first.table.partitions) == 5
        mapper.unmap(first.device, user="t")
        second = mapper.map(_disk(bare), RW, user="t")
        assert second.table.scheme == "none"
        assert not os.path.exists(f"{second.device}p1")
        mapper.unmap(second.device, user="t")


def test_mapping_twice_is_one_mapping_and_it_lives_while_it_has_users(mapper: Mapper, bare: Path) -> None:
    """L-17, U-10."""
    first = mapper.map(_disk(bare), RW, user="a")
    (bare.parent / "alias").symlink_to(bare)
    second = mapper.map(_disk(bare.parent / "alias"), RW, user="b")
    assert second.device == first.device
    assert second.users == ("a", "b")
    assert mapper.map(_disk(bare), RW, user="b").users == ("a", "b")
    mapper.unmap(str(bare), user="a")
    assert mapper.find(first.device) is not None
    with pytest.raises(ImageInUse, match="held by b"):
        mapper.unmap(str(bare), user="stranger")
    mapper.unmap(str(bare), user="b")
    assert mapper.find(str(bare)) is None


def test_a_device_is_open_for_the_block_and_not_longer(mapper: Mapper, bare: Path) -> None:
    """A program that maps and lives on must not keep others from unmapping."""
    disk = _disk(bare)
    for _ in range(2):  # a new mapping, then one that exists
        with mapper.map_open(disk, mapper.identify(disk), RW, user="a") as opened:
            device = opened.disk.device
            assert opened.reader.read(1024 + 56, 2) == b"\x53\xef"
            assert opened.reader.size == opened.disk.size == bare.stat().st_size
            assert _is_open_here(device)
        assert not _is_open_here(device)
    assert mapper.map(disk, RW, user="a").device == device
    assert not _is_open_here(device)
    Mapper.open().unmap(device, user="a")
    assert loop.status(device) is None


def _is_open_here(device: str) -> bool:
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return any(os.readlink(link) == device for link in links if os.path.lexists(link))


def test_a_device_of_somebody_else_is_left_alone(mapper: Mapper, bare: Path) -> None:
    device = disks.run("losetup", "--find", "--show", str(bare)).strip()
    try:
        with pytest.raises(NotMapped, match="not mapped by Mapper"):
            mapper.unmap(device, user="t")
        with pytest.raises(ImageInUse, match=device):
            mapper.map(_disk(bare), RW, user="t")
        assert loop.status(device) is not None
    finally:
        disks.run("losetup", "-d", device)


def test_a_device_whose_number_was_given_out_anew(mapper: Mapper, bare: Path, tmp_path: Path) -> None:
    """Somebody has detached it, and it is another disk's now: that is the one that is meant by its name."""
    other = tmp_path / "other.raw"
    shutil.copyfile(bare, other)
    old, new = sorted((mapper.map(_disk(path), RW, user="t") for path in (bare, other)), key=lambda disk: disk.id)
    loop.detach(old.device, tag=f"mapper:{old.id}")
    record = mapper.journal.read(old.id)
    assert record is not None
    mapper.journal.write(dataclasses.replace(record, attachment=Attachment(new.device, "loop")))
    assert mapper.find(new.device) == new
    mapper.unmap(new.device, user="t")
    assert mapper.find(new.id) is None
    mapper.unmap(old.id, user="t")


def test_another_process_with_the_same_journal_can_unmap(mapper: Mapper, bare: Path) -> None:
    """Y-04."""
    mapped = mapper.map(_disk(bare), RW, user="t")
    Mapper.open().unmap(mapped.device, user="t")
    assert mapper.mapped() == ()


@pytest.mark.parametrize(
    ("options", "problem"),
    [(RO, "access rw instead of ro"), (MapOptions(transport="storage_daemon"), "transport loop")],
)
def test_other_options_are_an_error_and_not_a_surprise(
    mapper: Mapper, bare: Path, options: MapOptions, problem: str
) -> None:
    mapper.map(_disk(bare), RW, user="t")
    with pytest.raises(MappedDifferently, match=problem):
        mapper.map(_disk(bare), options, user="t")
    mapper.unmap(str(bare), user="t")


def test_a_limit_of_the_size_holds_for_a_disk_that_is_mapped_already(mapper: Mapper, bare: Path) -> None:
    """S-19."""
    disk = Disk(str(bare), "raw")
    mapped = mapper.map(disk, MapOptions(), user="a")
    with pytest.raises(Refused, match=f"has {mapped.size} bytes, more than the allowed 4096"):
        mapper.map(disk, MapOptions(max_virtual_size=4096), user="b")
    assert mapper.map(disk, MapOptions(max_virtual_size=mapped.size), user="b").users == ("a", "b")
    for user in ("a", "b"):
        mapper.unmap(mapped.id, user=user)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_read_only_is_read_only(mapper: Mapper, bare: Path, transport: str) -> None:
    before = hashlib.sha256(bare.read_bytes()).digest()
    bare.chmod(0o400)
    mapped = mapper.map(_disk(bare), MapOptions(Access.READ_ONLY, transport), user="t")
    with pytest.raises(OSError, match=r"Operation not permitted|Read-only|Permission denied"):
        fd = os.open(mapped.device, os.O_WRONLY)
        try:
            os.pwrite(fd, b"x" * 4096, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
    mapper.unmap(mapped.device, user="t")
    assert hashlib.sha256(bare.read_bytes()).digest() == before


def test_write_access_is_never_downgraded_in_silence(mapper: Mapper, tmp_path: Path, bare: Path) -> None:
    """U-06: a datastore that is mounted read-only."""
    (tmp_path / "ro").mkdir()
    disks.run("mount", "--bind", str(tmp_path), str(tmp_path / "ro"))
    try:
        disks.run("mount", "-o", "remount,bind,ro", str(tmp_path / "ro"))
        with pytest.raises(ReadOnlyImage, match="cannot be opened for writing"):
            mapper.map(_disk(tmp_path / "ro/bare.raw"), RW, user="t")
        mapped = mapper.map(_disk(tmp_path / "ro/bare.raw"), RO, user="t")
        mapper.unmap(mapped.device, user="t")
    finally:
        disks.run("umount", str(tmp_path / "ro"))
    assert mapper.journal.ids() == ()


def test_a_mounted_device_is_not_unmapped_and_the_holder_is_named(mapper: Mapper, bare: Path, tmp_path: Path) -> None:
    """M-08, M-12: never a success while the device is held."""
    mapped = mapper.map(_disk(bare), RW, user="t")
    (tmp_path / "m").mkdir()
    disks.run("mount", mapped.device, str(tmp_path / "m"))
    try:
        with pytest.raises(DeviceBusy, match=str(tmp_path / "m")):
            mapper.unmap(mapped.device, user="t")
        assert mapper.find(mapped.device) == mapped
    finally:
        disks.run("umount", str(tmp_path / "m"))
    mapper.unmap(mapped.device, user="t")


@pytest.mark.parametrize("transport", [None, "storage_daemon"])
def test_a_device_of_the_host_that_is_mounted_is_not_written_beside_that(
    mapper: Mapper, bare: Path, tmp_path: Path, transport: str | None
) -> None:
    """Two filesystem drivers on the same bytes destroy them. To look at them is possible."""
    device = disks.run("losetup", "--find", "--show", str(bare)).strip()
    (tmp_path / "mnt").mkdir()
    try:
        disks.run("mount", device, str(tmp_path / "mnt"))
        try:
            with pytest.raises(DeviceBusy, match=f"is mounted on {tmp_path}/mnt"):
                mapper.map(_disk(Path(device)), MapOptions(transport=transport), user="t")
            assert mapper.journal.ids() == ()
            mapper.map(_disk(Path(device)), MapOptions(Access.READ_ONLY, transport), user="t")
            mapper.unmap(device, user="t")
        finally:
            disks.run("umount", str(tmp_path / "mnt"))
        mapper.map(_disk(Path(device)), MapOptions(transport=transport), user="t")
        mapper.unmap(device, user="t")
    finally:
        disks.run("losetup", "--detach", device)


def test_a_virtual_machine_that_uses_the_image_is_noticed(mapper: Mapper, bare: Path, tmp_path: Path) -> None:
    socket = tmp_path / "nbd.sock"
    server = subprocess.Popen(["qemu-nbd", "--persistent", "-f", "raw", "-k", str(socket), str(bare)])
    try:
        deadline = time.monotonic() + 10
        while not socket.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        # it has its socket before it has the image, and answers when it has both (qemu 7.2)
        disks.run("qemu-nbd", "--list", "-k", str(socket))
        for transport in TRANSPORTS:
            with pytest.raises(ImageInUse, match="locked"):
                mapper.map(_disk(bare), MapOptions(transport=transport), user="t")
    finally:
        server.terminate()
        server.wait()
    assert mapper.journal.ids() == ()


@pytest.mark.parametrize(
    ("name", "content", "kind", "error"),
    [
        ("missing", None, "raw", ImageNotFound),
        ("empty", b"", "raw", TruncatedImage),
        ("short", b"x" * 100, "raw", TruncatedImage),
        ("zeros", bytes(4096), "qcow2", FormatMismatch),
        ("vhdx", bytes(4096), "vhdx", MapperError),
        ("qcow2", b"QFI\xfb\0\0\0\3" + bytes(4088), "raw", FormatMismatch),
        ("gz", b"\x1f\x8b" + bytes(4094), "raw", MapperError),
        ("beyond", None, "raw", MapperError),
    ],
)
def test_bad_images_are_refused_and_nothing_is_left(
    mapper: Mapper, tmp_path: Path, name: str, content: bytes | None, kind: str, error: type[MapperError]
) -> None:
    """M-14, P-15; the leak oracle looks afterwards."""
    image = tmp_path / name
    if content is not None:
        image.write_bytes(content)
    if name == "beyond":
        make_system(image)
        os.truncate(image, 20 << 20)
    with pytest.raises(error, match=name):
        mapper.map(Disk(str(image), kind), RW, user="t")
    assert mapper.journal.ids() == ()
    assert os.listdir(mapper.runtime.locks) == []


def test_an_unknown_transport_and_one_that_does_not_work_here(mapper: Mapper, bare: Path) -> None:
    with pytest.raises(UsageError, match="carrier-pigeon"):
        mapper.map(_disk(bare), MapOptions(transport="carrier-pigeon"), user="t")
    qcow2 = disks.convert(bare, "qcow2", bare.with_suffix(".qcow2"))
    with pytest.raises(TransportUnavailable, match="loop cannot carry qcow2"):
        mapper.map(_disk(qcow2, "qcow2"), MapOptions(transport="loop"), user="t")
    with pytest.raises(PluginMissing, match="vhdx"):
        mapper.map(_disk(bare, "vhdx"), RW, user="t")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qcow2", ()),
        ("qcow2", ("-c",)),
        ("vmdk", ("-o", "subformat=monolithicSparse")),
        ("vmdk", ("-o", "subformat=monolithicFlat")),
        ("vmdk", ("-o", "subformat=twoGbMaxExtentSparse")),
        ("vmdk", ("-o", "subformat=twoGbMaxExtentFlat")),
    ],
)
def test_formats_with_a_partition_table(mapper: Mapper, system: Path, kind: str, options: tuple[str, ...]) -> None:
    image = disks.convert(system, kind, system.with_suffix(f".{kind}"), *options)
    mapped = mapper.map(_disk(image, kind), RW, user="t")
    assert [partition.number for partition in mapped.table.partitions] == [1, 2, 3, 4, 5]
    content = system.read_bytes()
    for partition in mapped.table.partitions:
        assert _read(partition.device, 0, partition.size) == content[partition.start : partition.start + partition.size]
    mapper.unmap(mapped.device, user="t")


def test_a_stream_optimized_vmdk_is_read_only(mapper: Mapper, system: Path) -> None:
    image = disks.convert(system, "vmdk", system.with_suffix(".vmdk"), "-o", "subformat=streamOptimized")
    with pytest.raises(ReadOnlyImage, match="streamOptimized"):
        mapper.map(_disk(image, "vmdk"), RW, user="t")
    mapped = mapper.map(_disk(image, "vmdk"), RO, user="t")
    assert len(mapped.table.partitions) == 5
    mapper.unmap(mapped.device, user="t")


def test_what_is_written_to_the_device_is_in_the_image_after_unmap(mapper: Mapper, bare: Path) -> None:
    """M-03: with a daemon between, unmap returns when its caches are written back."""
    image = disks.convert(bare, "qcow2", bare.with_suffix(".qcow2"))
    mapped = mapper.map(_disk(image, "qcow2"), RW, user="t")
    pattern = os.urandom(1 << 20)
    fd = os.open(mapped.device, os.O_WRONLY)
    os.pwrite(fd, pattern, 8 << 20)
    os.close(fd)  # no fsync
    mapper.unmap(mapped.device, user="t")
    disks.run("qemu-img", "check", "-f", "qcow2", str(image))
    disks.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(bare))
    assert bare.read_bytes()[8 << 20 : 9 << 20] == pattern


def test_two_processes_at_once_one_works_and_the_other_is_told_busy(mapper: Mapper, bare: Path) -> None:
    """Y-05."""
    held = mapper.map(_disk(bare), RW, user="t").id
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with Mapper.open().lock(held):
                os.write(tell, b"x")
                time.sleep(30)
        finally:
            os._exit(0)
    try:
        assert os.read(ready, 1) == b"x"
        for call in (lambda: mapper.map(_disk(bare), RW, user="x"), lambda: mapper.unmap(str(bare), user="t")):
            with pytest.raises(Busy, match=str(pid)):
                call()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(tell)
    mapper.unmap(str(bare), user="t")
    assert mapper.mapped() == ()


def _race(path: str, number: int, answers: "multiprocessing.Queue[tuple[int, str]]") -> None:
    try:
        answers.put((number, Mapper.open().map(Disk(path, "raw"), RW, user="t").device))
    except MapperError as error:
        answers.put((number, f"{type(error).__name__}: {error}"))


def test_eight_processes_map_eight_disks_and_get_eight_devices(mapper: Mapper, tmp_path: Path) -> None:
    """M-05, M-06."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    images = []
    for number in range(8):
        image = tmp_path / f"disk.{number}"
        image.write_bytes(bytes([number]) * 65536)
        images.append(image)
    workers = [context.Process(target=_race, args=(str(image), n, answers)) for n, image in enumerate(images)]
    for worker in workers:
        worker.start()
    found = dict(answers.get(timeout=30) for _ in workers)
    for worker in workers:
        worker.join(30)
    assert len(set(found.values())) == 8, found
    for number, device in found.items():
        assert _read(device, 0, 512) == bytes([number]) * 512
        mapper.unmap(device, user="t")


def test_a_crash_between_the_steps_is_undone_by_the_next_map(mapper: Mapper, bare: Path) -> None:
    """U-01, U-08: the journal has the intent, the device is found by its tag."""
    image = disks.convert(bare, "qcow2", bare.with_suffix(".qcow2"))
    mapped = mapper.map(_disk(image, "qcow2"), RW, user="t")
    path = Path(mapper.runtime.disks) / f"{mapped.id}.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "state": "mapping", "attachment": None, "table": None, "users": ["t"]}))
    again = mapper.map(_disk(image, "qcow2"), RW, user="u")
    assert again.users == ("u",)
    mapper.unmap(again.device, user="u")


def test_a_daemon_that_was_killed_does_not_keep_the_disk(mapper: Mapper, bare: Path) -> None:
    """L-11, M-17: everything ends, and in bounded time."""
    image = disks.convert(bare, "qcow2", bare.with_suffix(".qcow2"))
    mapped = mapper.map(_disk(image, "qcow2"), RW, user="t")
    pid = int((Path(mapper.runtime.exports) / mapped.id / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    mapper.unmap(mapped.device, user="t")
    assert time.monotonic() - started < 20
    assert mapper.map(_disk(image, "qcow2"), RW, user="t").size == mapped.size
    mapper.unmap(str(image), user="t")


def test_many_cycles_leave_nothing(mapper: Mapper, system: Path) -> None:
    """M-06: the count of partitions is right every time."""
    image = disks.convert(system, "qcow2", system.with_suffix(".qcow2"))
    for _ in range(15):
        for path, kind in ((system, "raw"), (image, "qcow2")):
            mapped = mapper.map(_disk(path, kind), RW, user="t")
            assert len(mapped.table.partitions) == 5
            mapper.unmap(mapped.device, user="t")
    assert os.listdir(mapper.runtime.exports) == []
