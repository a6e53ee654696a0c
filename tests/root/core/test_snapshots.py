"""Snapshots of real disks: mapped and not, named badly, interrupted."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mapper_core import capabilities
from mapper_core.errors import (
    AlreadyExists,
    Busy,
    CorruptImage,
    DeadlineExceeded,
    ImageInUse,
    NotSupported,
    ReadOnlyImage,
    Refused,
    SnapshotMissing,
    UsageError,
)
from mapper_core.linux import filesystems, freeze
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, MapOptions
from mapper_core.reconcile import reconcile
from mapper_core.snapshots import undo_interrupted
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part
from mapper_core.tree import mounted
from mapper_core.tree.look import Purpose
from mapper_core.tree.mounted import TreeRequest

pytestmark = pytest.mark.root

RW = MapOptions()


def _qcow2(path: Path, *options: str, size: int = 16) -> Disk:
    disks.run("qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), f"{size}M")
    return Disk(str(path), "qcow2")


def _names(mapper: Mapper, disk: Disk) -> list[str]:
    return [item.name for item in capabilities.snapshots(mapper, disk)]


@contextmanager
def _device(mapper: Mapper, disk: Disk) -> Iterator[str]:
    mapped = mapper.map(disk, RW, user="t")
    try:
        yield mapped.device
    finally:
        mapper.unmap(mapped.id, user="t")


def _write(device: str, text: bytes, offset: int = 0) -> None:
    with open(device, "r+b", buffering=0) as file:
        file.seek(offset)
        file.write(text.ljust(4096, b"."))
        os.fsync(file)


def _read(device: str, offset: int = 0) -> bytes:
    with open(device, "rb") as file:
        file.seek(offset)
        return file.read(4096).rstrip(b".")


@pytest.mark.parametrize("state", ["unmapped", "mapped"])
@pytest.mark.parametrize("variant", ["plain", "v2", "chain"])
def test_the_old_content_comes_back(mapper: Mapper, tmp_path: Path, variant: str, state: str) -> None:
    if variant == "chain":
        _qcow2(tmp_path / "base")
        disk = _qcow2(tmp_path / "disk", "-b", "base", "-F", "qcow2")
    else:
        disk = _qcow2(tmp_path / "disk", *(("-o", "compat=0.10") if variant == "v2" else ()))
    with _device(mapper, disk) as device:
        _write(device, b"old")
        if state == "mapped":
            capabilities.snapshot_create(mapper, disk, "first")
            _write(device, b"new")
            assert _read(device) == b"new"
    if state == "unmapped":
        capabilities.snapshot_create(mapper, disk, "first")
        with _device(mapper, disk) as device:
            _write(device, b"new")
    (found,) = capabilities.snapshots(mapper, disk)
    assert (found.name, found.size) == ("first", 16 * MIB)
    assert abs(found.created - time.time()) < 60
    capabilities.snapshot_revert(mapper, disk, "first")
    with _device(mapper, disk) as device:
        assert _read(device) == b"old"
    capabilities.snapshot_delete(mapper, disk, "first")
    assert _names(mapper, disk) == []
    disks.run("qemu-img", "check", "-q", "-f", "qcow2", disk.source)


def test_what_was_written_to_a_mounted_filesystem_is_in_it(mapper: Mapper, tmp_path: Path) -> None:
    """Without a sync of the writer; and the filesystem is clean in the snapshot: nothing to replay."""
    raw = disks.make_disk(tmp_path / "raw", (Part("ext4", 24), Part("ext4", 24, ("-L", "second"))))
    disk = Disk(str(disks.convert(raw, "qcow2", tmp_path / "disk")), "qcow2")
    tree = tmp_path / "tree"
    tree.mkdir()
    request = TreeRequest(disk, RW, str(tree), root_hint="2", purpose=Purpose.DATA)
    mounted.mount_tree(mapper, request)
    (tree / "before").write_text("kept")
    capabilities.snapshot_create(mapper, disk, "s")
    (tree / "after").write_text("lost")
    mounted.unmount_tree(mapper, str(tree))
    capabilities.snapshot_revert(mapper, disk, "s")
    piece = tmp_path / "piece"
    disks.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk.source, str(raw))
    start = int(disks.run("partx", "-g", "-o", "START", "-n", "2", str(raw)).strip())
    disks.run("dd", f"if={raw}", f"of={piece}", "bs=512", f"skip={start}", "count=49152", "status=none")
    assert "needs_recovery" not in disks.run("dumpe2fs", "-h", str(piece))
    disks.run("e2fsck", "-f", "-n", str(piece))
    mounted.mount_tree(mapper, request)
    assert (tree / "before").read_text() == "kept"
    assert not (tree / "after").exists()
    mounted.unmount_tree(mapper, str(tree))


def test_names_that_look_like_ids(mapper: Mapper, tmp_path: Path) -> None:
    """qemu-img takes an id where it takes a name, and before it: OpenNebula's snapshots are called 0, 1, 2."""
    disk = _qcow2(tmp_path / "disk")
    for name in ("0", "1", "2"):  # their ids are 1, 2, 3
        with _device(mapper, disk) as device:
            _write(device, name.encode())
            if name == "1":
                capabilities.snapshot_create(mapper, disk, name)
        if name != "1":
            capabilities.snapshot_create(mapper, disk, name)
    for name in ("1", "0", "2", "1"):
        capabilities.snapshot_revert(mapper, disk, name)
        with _device(mapper, disk) as device:
            assert _read(device) == name.encode()
    capabilities.snapshot_delete(mapper, disk, "2")
    assert _names(mapper, disk) == ["0", "1"]
    with _device(mapper, disk):
        capabilities.snapshot_delete(mapper, disk, "1")
    assert _names(mapper, disk) == ["0"]


def test_a_disk_that_has_grown_since_has_its_old_size_again(mapper: Mapper, tmp_path: Path) -> None:
    disk = _qcow2(tmp_path / "disk")
    capabilities.snapshot_create(mapper, disk, "small")
    capabilities.resize(mapper, disk, 32 * MIB)
    with _device(mapper, disk):
        capabilities.resize(mapper, disk, 48 * MIB)
        capabilities.snapshot_create(mapper, disk, "large")
    assert [item.size for item in capabilities.snapshots(mapper, disk)] == [16 * MIB, 48 * MIB]
    capabilities.snapshot_revert(mapper, disk, "small")
    assert capabilities.size_of(mapper, disk) == 16 * MIB
    capabilities.snapshot_revert(mapper, disk, "large")
    assert capabilities.size_of(mapper, disk) == 48 * MIB


@pytest.mark.parametrize("name", ["", "-a", ".", "..", "a/b", "a b", "a\n", "ä", "x" * 129, "a,b", "$(id)"])
def test_names_that_are_none(mapper: Mapper, tmp_path: Path, name: str) -> None:
    disk = _qcow2(tmp_path / "disk")
    before = Path(disk.source).read_bytes()
    for act in (capabilities.snapshot_create, capabilities.snapshot_revert, capabilities.snapshot_delete):
        with pytest.raises(UsageError):
            act(mapper, disk, name)
    assert Path(disk.source).read_bytes() == before


def test_requests_that_make_no_sense(mapper: Mapper, tmp_path: Path) -> None:
    disk = _qcow2(tmp_path / "disk")
    capabilities.snapshot_create(mapper, disk, "x" * 128)
    capabilities.snapshot_create(mapper, disk, "s")
    with pytest.raises(AlreadyExists):
        capabilities.snapshot_create(mapper, disk, "s")
    with pytest.raises(SnapshotMissing) as caught:
        capabilities.snapshot_revert(mapper, disk, "t")
    assert caught.value.hint.endswith(", s")
    with _device(mapper, disk) as device:
        with pytest.raises(ImageInUse, match=device):
            capabilities.snapshot_revert(mapper, disk, "s")
        with pytest.raises(AlreadyExists):
            capabilities.snapshot_create(mapper, disk, "s")
        with pytest.raises(SnapshotMissing):
            capabilities.snapshot_delete(mapper, disk, "t")
    mapper.map(disk, MapOptions(Access.READ_ONLY), user="t")
    with pytest.raises(ReadOnlyImage):
        capabilities.snapshot_create(mapper, disk, "u")
    mapper.unmap(disk.source, user="t")
    with mapper.lock(mapper.identify(disk).id), pytest.raises(Busy):
        capabilities.snapshot_delete(mapper, disk, "s")
    data = _qcow2(tmp_path / "external", "-o", f"data_file={tmp_path}/data")
    with pytest.raises(NotSupported, match="external data"):
        capabilities.snapshot_create(mapper, data, "s")
    raw = disks.make_filesystem(tmp_path / "raw", Part("", 1))
    with pytest.raises(NotSupported):
        capabilities.snapshot_create(mapper, Disk(str(raw), "raw"), "s")


def test_snapshots_of_other_programs(mapper: Mapper, tmp_path: Path) -> None:
    """Two with one name, and names that are none: they are listed so that they cannot steer a terminal, and not touched."""
    disk = _qcow2(tmp_path / "disk")
    for name in ("same", "same", "\x1b[2Jhello"):
        disks.run("qemu-img", "snapshot", "-c", name, disk.source)
    assert _names(mapper, disk) == ["same", "same", "\\x1b[2Jhello"]
    with pytest.raises(Refused, match="2 snapshots"):
        capabilities.snapshot_revert(mapper, disk, "same")


def test_a_table_that_makes_no_sense(mapper: Mapper, tmp_path: Path) -> None:
    """Ids that are there twice: nobody could say which one qemu would take."""
    disk = _qcow2(tmp_path / "disk")
    for name in ("a", "b"):
        capabilities.snapshot_create(mapper, disk, name)
    image = bytearray(Path(disk.source).read_bytes())
    at = int.from_bytes(image[64:72], "big")
    length = 40 + int.from_bytes(image[at + 36 : at + 40], "big")
    second = at + -(-(length + 2) // 8) * 8
    assert image[second + length : second + length + 1] == b"2"
    image[second + length] = ord("1")
    Path(disk.source).write_bytes(image)
    with pytest.raises(CorruptImage, match="two snapshots"):
        capabilities.snapshot_revert(mapper, disk, "a")
    assert Path(disk.source).read_bytes() == image


# --- filesystems that stand still -----------------------------------------------------------------------------


@contextmanager
def _tree(mapper: Mapper, tmp_path: Path) -> Iterator[tuple[Disk, Path]]:
    raw = disks.make_filesystem(tmp_path / "raw", Part("ext4", 24))
    disk = Disk(str(disks.convert(raw, "qcow2", tmp_path / "disk")), "qcow2")
    tree = tmp_path / "tree"
    tree.mkdir()
    device = mounted.mount_tree(mapper, TreeRequest(disk, RW, str(tree), purpose=Purpose.DATA)).disk.device
    try:
        yield disk, tree
    finally:
        with filesystems.of_device(device) as found:
            freeze.thaw(found)  # else a failure would leave processes that nobody can kill
        mounted.unmount_tree(mapper, str(tree))


@contextmanager
def _writer(tree: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes a file, when it can; at the end of the block it can."""
    writer = subprocess.Popen(("touch", f"{tree}/late"))
    yield writer
    assert writer.wait(10) == 0
    assert (tree / "late").exists()


def _is_stuck(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        return True
    return False


def test_nobody_writes_while_it_is_frozen(mapper: Mapper, tmp_path: Path) -> None:
    with _tree(mapper, tmp_path) as (disk, tree):
        mapped = mapper.find(disk.source)
        assert mapped is not None
        with (
            filesystems.of_device(mapped.device) as found,
            _writer_of_frozen(found, tree),
            pytest.raises(Busy, match="frozen"),
            freeze.frozen(found, seconds=20),
        ):
            pass
        capabilities.snapshot_create(mapper, disk, "s")
        with _writer(tree):
            pass


@contextmanager
def _writer_of_frozen(found: tuple[filesystems.OpenFilesystem, ...], tree: Path) -> Iterator[None]:
    with ExitStack() as stack, freeze.frozen(found, seconds=20):
        assert [item.type for item in found] == ["ext4"]
        assert _is_stuck(stack.enter_context(_writer(tree)))
        assert not (tree / "late").exists()
        yield


def test_the_time_is_limited(mapper: Mapper, tmp_path: Path) -> None:
    with _tree(mapper, tmp_path) as (disk, tree):
        mapped = mapper.find(disk.source)
        assert mapped is not None
        with (
            filesystems.of_device(mapped.device) as found,
            pytest.raises(DeadlineExceeded),
            freeze.frozen(found, seconds=0.3),
            _writer(tree),
        ):
            pass


KILLED = """
import os, signal, sys
from mapper_core import capabilities
from mapper_core.mapping import Mapper
from mapper_core.model import Disk
from mapper_core.transports import Transports
def killed(*arguments):
    if sys.argv[2] == "both":
        for line in os.popen(f"pgrep -P {os.getpid()} python"):
            os.kill(int(line), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
Transports.snapshot_create = killed
capabilities.snapshot_create(Mapper.open(), Disk(sys.argv[1], "qcow2"), "s")
"""


@pytest.mark.parametrize("finisher", ["reconcile", "repeat"])
@pytest.mark.parametrize("who", ["one", "both"])
def test_killed_while_it_is_frozen(mapper: Mapper, tmp_path: Path, who: str, finisher: str) -> None:
    """The guard thaws; when it is killed too, reconcile and the next snapshot do."""
    with _tree(mapper, tmp_path) as (disk, tree):
        argv = (sys.executable, "-c", KILLED, disk.source, who)
        done = subprocess.run(argv, check=False, capture_output=True, timeout=60)
        assert done.returncode == -signal.SIGKILL, done.stderr
        with _writer(tree) as writer:
            assert _is_stuck(writer) == (who == "both")
            if finisher == "reconcile":
                assert len(reconcile(mapper).actions) == 1
            capabilities.snapshot_create(mapper, disk, "s")
        assert reconcile(mapper).actions == ()
        assert _names(mapper, disk) == ["s"]


@contextmanager
def _told_by_the_dead(mapper: Mapper, command: str, **arguments: str) -> Iterator[None]:
    """A process tells the daemon of the one mapped disk something and is gone when that has done it, half a second later."""
    directory = Path(mapper.runtime.exports, mapper.journal.ids()[0])
    daemon = int((directory / "pid").read_text())
    killed = socket.socket(socket.AF_UNIX)
    killed.settimeout(20)
    killed.connect(str(directory / "qmp.sock"))
    answers = killed.makefile("rb")

    def tell(execute: str, **arguments: str) -> None:
        killed.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode() + b"\n")

    def done() -> None:
        assert any(b"return" in line for line in answers)

    def go_on() -> None:
        os.kill(daemon, signal.SIGCONT)
        with answers, killed:
            done()

    assert b"QMP" in answers.readline()
    tell("qmp_capabilities")
    done()
    os.kill(daemon, signal.SIGSTOP)
    began = time.monotonic()
    later = threading.Timer(0.5, go_on)
    later.start()
    try:
        tell(command, device="disk", **arguments)
        yield
        assert time.monotonic() - began >= 0.5, "what the daemon was told was not waited for"
    finally:
        later.join()


def test_killed_before_the_daemon_has_made_it(mapper: Mapper, tmp_path: Path) -> None:
    """Who undoes it waits until the daemon has: it would appear when nobody knows of it any more."""
    disk = _qcow2(tmp_path / "disk.qcow2")
    with _device(mapper, disk):
        (record,) = mapper.journal.records()
        mapper.journal.write(dataclasses.replace(record, snapshot="late"))
        with _told_by_the_dead(mapper, "blockdev-snapshot-internal-sync", name="late"):
            assert undo_interrupted(mapper, record.id)
        assert _names(mapper, disk) == []
        assert mapper.journal.records() == (record,)
        capabilities.snapshot_create(mapper, disk, "late")
        assert _names(mapper, disk) == ["late"]


def test_killed_before_the_daemon_has_deleted_it(mapper: Mapper, tmp_path: Path) -> None:
    """Whoever does the same again is told that it is gone, and not by the daemon that it cannot be."""
    disk = _qcow2(tmp_path / "disk.qcow2")
    with _device(mapper, disk):
        capabilities.snapshot_create(mapper, disk, "old")
        told = _told_by_the_dead(mapper, "blockdev-snapshot-delete-internal-sync", name="old")
        with told, pytest.raises(SnapshotMissing):
            capabilities.snapshot_delete(mapper, disk, "old")
        assert _names(mapper, disk) == []
