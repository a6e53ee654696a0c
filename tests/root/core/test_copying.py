"""Disks that are copied to others, and what may happen meanwhile."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mapper_core.copying import convert, mapped
from mapper_core.errors import AlreadyExists, KernelError
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, MapOptions
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB

pytestmark = pytest.mark.root


def test_somebody_looks_at_the_source_when_the_copy_is_done(mapper: Mapper, bare: Path, tmp_path: Path) -> None:
    """All was copied; a moment's work of another process on the source does not make that a failure."""
    source, target = Disk(str(bare), "raw"), Disk(str(tmp_path / "copy"), "raw")
    key = mapper.identify(source).id
    is_locked, release = threading.Event(), threading.Event()

    def look() -> None:
        with mapper.lock(key):
            is_locked.set()
            release.wait(10)

    other = threading.Thread(target=look)

    def progress(done: int, whole: int) -> None:
        if done == whole:
            other.start()
            is_locked.wait(10)
            threading.Timer(0.2, release.set).start()

    convert(mapper, source, target, progress)
    other.join()
    assert Path(target.source).read_bytes() == bare.read_bytes()
    assert mapper.mapped() == ()


def test_a_copy_of_itself(mapper: Mapper, bare: Path, tmp_path: Path) -> None:
    """Nobody is advised to remove the source."""
    before, link = bare.read_bytes(), tmp_path / "link"
    link.symlink_to(bare)
    for target in (bare, link):
        with pytest.raises(AlreadyExists, match="is the source itself") as caught:
            convert(mapper, Disk(str(bare), "raw"), Disk(str(target), "qcow2"), lambda *_: None)
        assert "remove" not in caught.value.hint
    assert bare.read_bytes() == before


def test_a_source_that_cannot_be_written(mapper: Mapper, bare: Path, tmp_path: Path) -> None:
    """Nor need it be: its size is asked for, and then it is read."""
    source, target = tmp_path / "source", tmp_path / "copy"
    options = ("-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized")
    disks.run("qemu-img", "convert", *options, str(bare), str(source))
    convert(mapper, Disk(str(source), "vmdk"), Disk(str(target), "raw"), lambda _done, _whole: None)
    assert target.read_bytes() == bare.read_bytes()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_no_room_for_the_copy(mapper: Mapper, tmp_path: Path, kind: str) -> None:
    """The device says no more than that it could not write."""
    source, full = tmp_path / "source", tmp_path / "full"
    source.write_bytes(os.urandom(8 * MIB))
    full.mkdir()
    disks.run("mount", "-t", "tmpfs", "-o", "size=4M", "none", str(full))
    try:
        with pytest.raises(KernelError, match="copy: cannot be written") as caught:
            convert(mapper, Disk(str(source), "raw"), Disk(str(full / "copy"), kind), lambda _done, _whole: None)
        assert "df" in caught.value.hint
        assert os.listdir(full) == []
    finally:
        disks.run("umount", str(full))
    assert mapper.mapped() == ()


def test_a_new_disk_that_somebody_else_has_removed(mapper: Mapper, bare: Path, tmp_path: Path) -> None:
    """The failure that is told is the one that came first."""
    target = Disk(str(tmp_path / "copy"), "raw")
    with (
        mapped(mapper, Disk(str(bare), "raw"), MapOptions(Access.READ_ONLY)),
        pytest.raises(RuntimeError, match="first"),
    ):

        def progress(_done: int, _whole: int) -> None:
            Path(target.source).unlink()
            raise RuntimeError("first")

        convert(mapper, Disk(str(bare), "raw"), target, progress)
