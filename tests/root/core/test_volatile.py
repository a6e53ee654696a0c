"""The filesystem of a volatile disk: made once, also when that was interrupted, and never again (C-10)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mapper_driver import machine_file, volatile

from mapper_core.errors import CorruptImage, MapperError
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.testing import disks
from mapper_core.testing.disks import Part
from mapper_core.tree.mounted import TreeRequest

pytestmark = pytest.mark.root

MIB = 1 << 20


def _request(image: Path) -> TreeRequest:
    return TreeRequest(Disk(str(image), "raw"), MapOptions(), directory=f"{image}.tree")


def _empty(image: Path) -> Path:
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    return image


def test_an_interrupted_mkfs_is_repeated_wherever_the_disk_is_then(
    mapper: Mapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on another node: what a node had kept for itself has formatted a disk that a machine had used on another since."""
    image, note = _empty(tmp_path / "disk.2"), str(tmp_path / "mapper-making-2")

    def half(argv: tuple[str, ...], **_: object) -> str:
        with open(argv[-1], "r+b") as device:
            device.write(b"half of a filesystem")
        raise MapperError("mkfs was killed")

    with monkeypatch.context() as patch:
        patch.setattr(volatile, "run", half)
        with pytest.raises(MapperError, match="was killed"):
            volatile.ensure_filesystem(mapper, _request(image), "ext4", note)
    assert not list(Path(mapper.runtime.root).rglob("making-*")), "nothing stays on this node"
    with pytest.raises(CorruptImage, match="neither empty nor has a known filesystem"):
        volatile.ensure_filesystem(mapper, _request(image), "ext4", f"{note}0")
    assert volatile.ensure_filesystem(mapper, _request(image), "ext4", note) == "ext4"
    assert os.listdir(tmp_path) == ["disk.2"]
    # and this node does not format what was written since
    disks.make_filesystem(image, Part("ext4", 32, (), (("/kept", "yes"),)))
    before = image.read_bytes()
    assert volatile.ensure_filesystem(mapper, _request(image), "ext4", note) == ""
    assert image.read_bytes() == before


def test_a_directory_that_cannot_be_written_is_no_reason_to_do_without_a_filesystem(
    mapper: Mapper, tmp_path: Path
) -> None:
    image = _empty(tmp_path / "disk.2")
    assert volatile.ensure_filesystem(mapper, _request(image), "ext4", "/no/such/note") == "ext4"
    assert machine_file.read("/no/such/note", "note") is None
