"""What on a disk may grow."""

from __future__ import annotations

import pytest
from mapper_driver import growth
from mapper_driver.opennebula.vm import DiskKind, VmDisk

from mapper_core.errors import NoRoomToGrow, NotSupported
from mapper_core.grow import Grown
from mapper_core.model import Filesystem, Partition, Volume

pytestmark = pytest.mark.unit

MIB = growth.MIB


def volume(number: int, start: int, kind: str) -> Volume:
    return Volume(Partition(number, start * MIB, 10 * MIB), Filesystem(kind))


def test_the_last_one_on_the_disk_grows_whatever_its_number_is() -> None:
    """Images of Debian have the root at the end and number 1."""
    found = (volume(1, 100, "ext4"), volume(14, 1, ""), volume(15, 4, "vfat"))
    assert growth.choose(found, {1}) == 1
    assert growth.choose((volume(0, 0, "xfs"),), {0}) == 0
    assert growth.choose((volume(1, 1, "ext4"), volume(5, 50, "btrfs")), {1, 5}) == 5


def test_what_the_container_does_not_have_does_not_grow_nor_what_is_before_it() -> None:
    found = (volume(1, 1, "ext4"), volume(2, 50, "swap"))
    with pytest.raises(NoRoomToGrow, match=r"partition 2 \(swap\)"):
        growth.choose(found, {1})
    with pytest.raises(NoRoomToGrow, match="nothing that is known"):
        growth.choose((volume(1, 1, "ext4"), volume(2, 50, "")), {1})
    with pytest.raises(NoRoomToGrow, match="no partition"):
        growth.choose((), ())


def test_a_filesystem_that_cannot_grow() -> None:
    with pytest.raises(NotSupported, match="vfat"):
        growth.choose((volume(1, 1, "vfat"),), {1})


@pytest.mark.parametrize(
    ("size", "original", "wanted"),
    [(20, 10, True), (10, 10, False), (10, 20, False), (None, 10, False), (20, None, False), (None, None, False)],
)
def test_only_a_disk_that_was_enlarged_grows(size: int | None, original: int | None, wanted: bool) -> None:
    """P-13."""
    disk = VmDisk(0, DiskKind.IMAGE, "FILE", "raw", "/disk.0", size_mib=size, original_size_mib=original)
    assert disk.is_enlarged is wanted


def test_the_log_says_what_has_grown() -> None:
    partition, kind = Partition(3, 0, 90 * MIB), Filesystem("ext4")
    text = growth.describe(Grown(partition, 50 * MIB, kind, 80 * MIB, 45 * MIB))
    assert text == "partition 3 has 90 MiB instead of 50, the ext4 on it room for 80 MiB instead of 45"
    assert growth.describe(Grown(partition, 90 * MIB, kind, 80 * MIB, 80 * MIB)) == ""
