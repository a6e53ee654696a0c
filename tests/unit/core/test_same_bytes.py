"""When the bytes of a device may be read from the image instead."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from mapper_core.identity import identify
from mapper_core.journal import Record
from mapper_core.model import Disk, MapOptions
from mapper_core.resources import DaemonResource, LoopResource, PluginResource, Resource
from mapper_core.verify import same_bytes

pytestmark = pytest.mark.unit

LOOP = LoopResource("mapper:x")


def _record(image: Path, *resources: Resource) -> Record:
    disk = Disk(str(image), "raw")
    return Record(identify(disk).id, disk, "raw", MapOptions(), "boot", resources=resources)


def test_only_of_the_very_file_that_is_bound(tmp_path: Path) -> None:
    image, other = tmp_path / "image", tmp_path / "other"
    image.write_bytes(b"mine")
    other.write_bytes(b"theirs")
    record = _record(image, LOOP)
    with contextlib.ExitStack() as closing:
        fd = same_bytes(record, closing)
        assert fd is not None
        assert os.pread(fd, 10, 0) == b"mine"
        os.rename(image, tmp_path / "moved")
        assert same_bytes(record, closing) is None, "the name is gone"
        os.rename(other, image)
        assert same_bytes(record, closing) is None, "another file has the name"
        image.unlink()
        os.symlink(tmp_path / "moved", image)
        assert same_bytes(record, closing) is None, "a link is not followed"
    with pytest.raises(OSError):
        os.fstat(fd)


@pytest.mark.parametrize(
    "resources",
    [
        (),
        (DaemonResource("/run/x"), LOOP),
        (PluginResource("lvm-activation", ()), LOOP),
        (PluginResource("krbd", ()),),
    ],
)
def test_not_when_something_is_between_them(tmp_path: Path, resources: tuple[Resource, ...]) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"qcow2 perhaps")
    with contextlib.ExitStack() as closing:
        assert same_bytes(_record(image, *resources), closing) is None
