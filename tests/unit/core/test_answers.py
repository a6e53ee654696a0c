"""What plugins return is checked before anything works with it (S-13)."""

from collections.abc import Callable
from typing import Any

import pytest

from mapper_core import answers
from mapper_core.errors import PluginFault
from mapper_core.model import Disk, ImageInfo, Partition, PartitionTable, Reference, ReferenceKind, Snapshot

pytestmark = pytest.mark.unit

DISK = Disk("/srv/disk", "aa")
MIB = 1 << 20


def _image(**fields: Any) -> ImageInfo:
    return ImageInfo(**{"path": "/srv/disk", "format": "aa", "virtual_size": MIB, "file_size": MIB, **fields})


def _table(*partitions: Partition, scheme: Any = "gpt", sector_size: int = 512) -> PartitionTable:
    return PartitionTable(scheme, sector_size, partitions)


def _circle() -> ImageInfo:
    image = _image()
    object.__setattr__(image, "backing", image)
    return image


GOOD: tuple[tuple[Callable[[Any], Any], Any], ...] = (
    (lambda value: answers.image(DISK, value), _image(backing=_image(), references=(Reference(ReferenceKind.DATA, "a", "/a"),))),
    (lambda value: answers.table("/dev/x", MIB, value), _table(Partition(1, 4096, 4096), Partition(2, 8192, 4096))),
    (lambda value: answers.table("/dev/x", MIB, value), _table(Partition(0, 0, MIB), scheme="none")),
    (lambda value: answers.table("/dev/sr0", MIB, value), _table(Partition(0, 0, MIB), scheme="none", sector_size=2048)),
    (lambda value: answers.table("/dev/x", MIB, value), _table(Partition(7, 4096, 4096, names=("/dev/vg/lv",)), scheme="lvm")),
    (lambda value: answers.snapshots(DISK, value), (Snapshot("a", 1), Snapshot("b", 1))),
    (lambda value: answers.snapshots(DISK, value), (Snapshot("same", 1), Snapshot("same", 1))),
    (lambda value: answers.snapshots(DISK, value), ()),
)  # fmt: skip


@pytest.mark.parametrize(("check", "value"), GOOD)
def test_sense(check: Callable[[Any], Any], value: object) -> None:
    assert check(value) is value


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        "1 MiB",
        _image(virtual_size="1"),
        _image(virtual_size=-1),
        _image(virtual_size=True),
        _image(path=None),
        _image(references=None),
        _image(references=("/etc/shadow",)),
        _image(references=(Reference(ReferenceKind.DATA, "a", ""),)),
        _image(writable="no"),
        _image(backing="base"),
        _image(backing=_image(virtual_size=None)),
        _circle(),
    ],
)
def test_images_that_are_none(value: object) -> None:
    with pytest.raises(PluginFault, match="the plugin aa returned from inspect"):
        answers.image(DISK, value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        (),
        _table(scheme=None),
        _table(sector_size=0),
        _table(sector_size=513),
        _table(*("p1",)),  # type: ignore[arg-type]
        _table(Partition("1", 4096, 4096)),  # type: ignore[arg-type]
        _table(Partition(1, -4096, 4096)),
        _table(Partition(0, 4096, 4096)),
        _table(Partition(256, 4096, 4096)),
        _table(Partition(1, 4096, 0)),
        _table(Partition(1, 0, 4096)),
        _table(Partition(1, 4096, MIB)),
        _table(Partition(1, 4096, 4096), Partition(1, 8192, 4096)),
        _table(Partition(1, 4096, 8192), Partition(2, 8192, 4096)),
        _table(Partition(1, 0, 9 * MIB), scheme="of a plugin"),
        _table(Partition(1, 4096, 4096, names=["/dev/vg/lv"])),  # type: ignore[arg-type]
        _table(Partition(1, 4096, 4096, names=(7,))),  # type: ignore[arg-type]
    ],
)
def test_tables_that_are_none(value: object) -> None:
    with pytest.raises(PluginFault, match="discover_partitions"):
        answers.table("/dev/x", MIB, value)


@pytest.mark.parametrize(
    "value", [None, [], "s", ("s",), (Snapshot("a", -1),), (Snapshot(7, 1),)]  # type: ignore[arg-type]
)  # fmt: skip
def test_snapshots_that_are_none(value: object) -> None:
    with pytest.raises(PluginFault, match="snapshots"):
        answers.snapshots(DISK, value)


@pytest.mark.parametrize("value", [None, 1, "yes", b""])
def test_neither_yes_nor_no(value: object) -> None:
    with pytest.raises(PluginFault, match="owns"):
        answers.truth("aa", "owns", value)


@pytest.mark.parametrize("value", [None, "", 7])
def test_no_identity(value: object) -> None:
    with pytest.raises(PluginFault, match="identify"):
        answers.identity(DISK, value)
