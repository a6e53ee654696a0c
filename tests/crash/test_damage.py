"""What a host does to us besides ending us: full and read-only filesystems, damaged records, clocks that jump, boots."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mapper_core import capabilities
from mapper_core.errors import CommandFailed, DeviceBusy, ImageInUse, KernelError, MapperError, StateCorrupt
from mapper_core.linux import mountinfo
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.reconcile import reconcile
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB, Part
from mapper_core.tree import mounted
from mapper_core.tree.mounted import TreeRequest, mount_tree, unmount_tree

from . import scenes
from .scenes import OPTIONS, Image

if TYPE_CHECKING:
    from tests.security.conftest import Report

pytestmark = pytest.mark.crash

PAGE = 4096


# --- a full or read-only runtime directory ------------------------------------------------------------------


@pytest.fixture
def small(runtime_dir: Path) -> Iterator[Mapper]:
    """A mapper whose runtime directory is a filesystem of 40 pages."""
    disks.run("mount", "-t", "tmpfs", "-o", f"size={40 * PAGE},mode=700", "tmpfs", str(runtime_dir))
    yield Mapper.open()
    disks.run("umount", str(runtime_dir))


def _fill(directory: str, pages: int) -> Path:
    """Leave so many pages free."""
    path = Path(directory, "ballast")
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    os.truncate(path, path.stat().st_size - pages * PAGE)
    return path


def _nothing_happened(mapper: Mapper, image: Image, digest: str) -> None:
    assert mapper.journal.ids() == () and mounted.records(mapper) == ()
    assert str(image.path) not in disks.run("losetup", "--list", "--noheadings", "--output", "BACK-FILE")
    assert image.digest() == digest


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_full_filesystem_of_records(small: Mapper, tmp_path: Path, kind: str, report: Report) -> None:
    """However many pages are left: it is done, or refused and undone; and what is mapped can always be released."""
    image = scenes.table(tmp_path, kind)
    image.fresh()
    directory = f"{small.runtime.mounts}/tree"
    request = TreeRequest(image.disk, OPTIONS, directory)
    refused = done = 0
    for pages in range(12):
        digest = image.digest()
        ballast = _fill(small.runtime.root, pages)
        try:
            mount_tree(small, request)
        except MapperError as error:
            refused += 1
            assert isinstance(error, (KernelError, CommandFailed)), error
            _nothing_happened(small, image, digest)
        else:
            done += 1
            unmount_tree(small, directory)
        ballast.unlink()
    report.count(f"full /run, {kind}", cases=12, runs=12, refused=refused)
    assert refused and done
    mount_tree(small, request)
    ballast = _fill(small.runtime.root, 0)
    unmount_tree(small, directory)
    ballast.unlink()
    image.check()


def test_a_filesystem_of_records_that_became_read_only(small: Mapper, tmp_path: Path) -> None:
    image, other = scenes.bare(tmp_path, "raw"), scenes.table(tmp_path, "qcow2")
    image.fresh()
    other.fresh()
    digest = other.digest()
    small.map(image.disk, OPTIONS, user="cli")
    disks.run("mount", "-o", "remount,ro", small.runtime.root)
    for act in (
        lambda: small.map(other.disk, OPTIONS, user="cli"),
        lambda: mount_tree(small, TreeRequest(other.disk, OPTIONS, f"{small.runtime.mounts}/tree")),
        lambda: small.unmap(str(image.path), user="cli"),
        lambda: capabilities.resize(small, image.disk, 24 * MIB),
    ):
        with pytest.raises(KernelError, match="EROFS"):
            act()
    assert [item.disk.source for item in small.mapped()] == [str(image.path)]
    assert image.path.stat().st_size == 6 * MIB
    disks.run("mount", "-o", "remount,rw", small.runtime.root)
    small.unmap(str(image.path), user="cli")
    _nothing_happened(small, other, digest)


def test_a_datastore_without_room(mapper: Mapper, tmp_path: Path) -> None:
    """What a guest writes fails, and the disk can be released all the same; a new disk is there or is not."""
    store = tmp_path / "store"
    store.mkdir()
    disks.run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(store))
    try:
        disk = Disk(f"{store}/disk", "qcow2")
        capabilities.create(mapper, disk, 64 * MIB)
        mapped = mapper.map(disk, OPTIONS, user="cli")
        fd = os.open(mapped.device, os.O_WRONLY)
        try:
            with pytest.raises(OSError):
                for _ in range(32):
                    os.write(fd, os.urandom(MIB))
                    os.fsync(fd)
        finally:
            os.close(fd)
        with pytest.raises(MapperError):
            capabilities.create(mapper, Disk(f"{store}/another", "qcow2"), 64 * MIB)
        assert os.listdir(store) == ["disk"]
        mapper.unmap(disk.source, user="cli")
        disks.run("qemu-img", "check", "-q", "-f", "qcow2", disk.source)
    finally:
        disks.run("umount", str(store))


# --- damaged records ----------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "garbage": lambda data: os.urandom(300),
    "a list": lambda data: b"[1, 2]",
    "a field is missing": lambda data: data.replace(b'"boot"', b'"foot"').replace(b'"disk_id"', b'"x"'),
    "of a newer version": lambda data: re.sub(rb'"version":\d+', b'"version":99', data),
    "deep": lambda data: b"[" * 100000,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_records_stop_nobody_and_nothing_is_guessed(mapper: Mapper, tmp_path: Path, damage: str) -> None:
    image, other = scenes.bare(tmp_path, "raw"), scenes.table(tmp_path, "raw")
    image.fresh()
    other.path = other.path.with_name("other")
    other.fresh()
    directory = f"{mapper.runtime.mounts}/tree"
    mount_tree(mapper, TreeRequest(image.disk, OPTIONS, directory))
    (key,) = mapper.journal.ids()
    (tree,) = os.listdir(mapper.runtime.trees)
    for path in (Path(mapper.runtime.disks, f"{key}.json"), Path(mapper.runtime.trees, tree)):
        whole = path.read_bytes()
        path.write_bytes(DAMAGE[damage](whole))
        damaged = path.read_bytes()
        with pytest.raises(StateCorrupt) as error:
            unmount_tree(mapper, directory)
        assert error.value.hint
        with pytest.raises((StateCorrupt, DeviceBusy, ImageInUse)):
            mount_tree(mapper, TreeRequest(image.disk, OPTIONS, directory))
        problems = reconcile(mapper, settle_seconds=0).problems
        assert len(problems) == 1 and path.stem in (problems[0].subject, Path(problems[0].subject).stem), problems
        # everybody else goes on
        mapper.map(other.disk, OPTIONS, user="cli")
        assert str(other.path) in [item.disk.source for item in mapper.mapped()]
        mapper.unmap(str(other.path), user="cli")
        assert path.read_bytes() == damaged and mountinfo.at(directory)
        path.write_bytes(whole)
    unmount_tree(mapper, directory)
    image.check()


# --- clocks and boots ---------------------------------------------------------------------------------------


def test_a_clock_that_jumps(mapper: Mapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock shows another year; no wait is longer or shorter for it."""
    jumps = random.Random(1)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(0, 4e9))
    image = scenes.table(tmp_path, "qcow2")
    image.fresh()
    directory = f"{mapper.runtime.mounts}/tree"
    began = time.monotonic()
    mount_tree(mapper, TreeRequest(image.disk, OPTIONS, directory))
    capabilities.snapshot_create(mapper, image.disk, "now")
    capabilities.resize(mapper, image.disk, 24 * MIB)
    assert reconcile(mapper).actions == ()
    unmount_tree(mapper, directory)
    assert time.monotonic() - began < 30
    image.check()


def test_records_that_were_wiped_while_devices_remain(mapper: Mapper, tmp_path: Path) -> None:
    """Nobody guesses that the device is ours: the disk is refused, naming it, until somebody has released it (M-15)."""
    from mapper_core.doctor import leftovers

    image = scenes.bare(tmp_path, "raw")
    image.fresh()
    mapped = mapper.map(image.disk, OPTIONS, user="cli")
    for entry in os.scandir(mapper.runtime.root):
        shutil.rmtree(entry)
    again = Mapper.open()
    with pytest.raises(ImageInUse, match=mapped.device):
        again.map(image.disk, OPTIONS, user="cli")
    assert any(check.name == f"loop device {mapped.device}" for check in leftovers.examine(again))
    disks.run("losetup", "--detach", mapped.device)
    again.map(image.disk, OPTIONS, user="cli")
    again.unmap(str(image.path), user="cli")


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_devices_that_went_while_records_remain(mapper: Mapper, tmp_path: Path, kind: str) -> None:
    """By a boot with a /run that stays, or by a command of the administrator's. The number may belong to another disk by now."""
    image, other = scenes.bare(tmp_path, kind), scenes.table(tmp_path, "raw")
    image.fresh()
    other.path = other.path.with_name("other")
    other.fresh()
    mapped = mapper.map(image.disk, OPTIONS, user="cli")
    record = mapper.journal.read(mapped.id)
    assert record is not None
    for boot in (mapper.boot, "another"):
        mapper.map(image.disk, OPTIONS, user="cli")
        record = mapper.journal.read(mapped.id)
        assert record is not None and record.attachment is not None
        device = record.attachment.device
        if boot == mapper.boot:
            disks.run("losetup", "--detach", device)
        else:
            mapper.unmap(mapped.id, user="cli")
            mapper.journal.write(dataclasses.replace(record, boot=boot))
        disks.run("losetup", device, str(other.path))
        try:
            assert mapper.find(str(image.path)) is None
            report = reconcile(mapper)
            assert (len(report.actions), report.problems) == (1, ())
            assert disks.run("losetup", "-n", "-O", "BACK-FILE", device).strip() == str(other.path)
        finally:
            disks.run("losetup", "--detach", device)
    mapper.map(image.disk, OPTIONS, user="cli")
    mapper.unmap(str(image.path), user="cli")
    image.check()


# --- the host's own disks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
def test_a_guest_with_the_identity_of_a_host_disk(mapper: Mapper, tmp_path: Path, kind: str) -> None:
    """S-21: the host has a disk mounted of which the guest's is a copy, with every UUID and label; each stays itself."""
    host, guest = tmp_path / "host", tmp_path / "guest"
    fstab = f"LABEL=twin / {kind} defaults 0 1\nUUID=@ /home {kind} defaults 0 2\n"
    content = tmp_path / "content"
    for name in ("sbin", "etc", "home"):
        (content / name).mkdir(parents=True)
    (content / "sbin/init").write_text("")
    home = "11111111-2222-3333-4444-666666666666"
    (content / "etc/fstab").write_text(fstab.replace("@", home))
    fill, label, uuid = ("-d", "-L", "-U") if kind == "ext4" else ("--rootdir", "-L", "-U")
    size = 8 if kind == "ext4" else 110
    parts = (Part(kind, size, (fill, str(content), label, "twin")), Part(kind, size, (uuid, home)))
    disks.make_disk(host, parts)
    shutil.copyfile(host, guest)
    device = disks.run("losetup", "--find", "--show", str(host)).strip()
    places = []
    try:
        for number in (1, 2):
            start, sectors = disks.run("partx", "-g", "-o", "START,SECTORS", "-n", str(number), str(host)).split()
            disks.run("addpart", device, str(number), start, sectors)
            place = tmp_path / f"mounted{number}"
            place.mkdir()
            disks.run("mount", f"{device}p{number}", str(place))
            places.append(place)
        directory = f"{mapper.runtime.mounts}/tree"
        tree = mount_tree(mapper, TreeRequest(Disk(str(guest), "raw"), MapOptions(), directory))
        assert tree.disk.device != device
        sources = {entry.target: entry.source for entry in mountinfo.under(directory)}
        assert sources == {directory: f"{tree.disk.device}p1", f"{directory}/home": f"{tree.disk.device}p2"}
        Path(directory, "of-the-guest").write_text("x")
        Path(directory, "home", "of-the-guest").write_text("x")
        (places[0] / "of-the-host").write_text("x")
        assert not any((place / "of-the-guest").exists() for place in places)
        assert not Path(directory, "of-the-host").exists()
        unmount_tree(mapper, directory)
        assert [entry.source for entry in mountinfo.entries() if entry.target == str(places[0])] == [f"{device}p1"]
        (places[1] / "of-the-host").write_text("x")
    finally:
        for place in reversed(places):
            disks.run("umount", str(place))
        for number in (2, 1):
            with suppress(RuntimeError):
                disks.run("delpart", device, str(number))
        disks.run("losetup", "--detach", device)
    mount_tree(mapper, TreeRequest(Disk(str(guest), "raw"), MapOptions(), directory))
    assert Path(directory, "of-the-guest").exists() and Path(directory, "home", "of-the-guest").exists()
    unmount_tree(mapper, directory)


# --- many at once -------------------------------------------------------------------------------------------


def test_many_processes_on_a_few_disks(tmp_path: Path, runtime_dir: Path, report: Report) -> None:
    """In full size: python -m tests.crash.stress."""
    from . import stress

    Mapper.open()
    figures = stress.run(tmp_path, workers=12, operations=60, count=8, seed=1)
    assert figures.operations == 12 * 60
    report.count("12 processes on 8 disks", cases=8, runs=figures.operations, refused=figures.refused)
