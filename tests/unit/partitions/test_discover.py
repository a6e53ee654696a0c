"""What counts when a device could be several things at once."""

from __future__ import annotations

import pytest

from mapper_core.errors import BadPartitionTable
from mapper_core.model import Partition, PartitionTable
from mapper_core.partitions.discover import discover
from mapper_core.testing import superblocks
from mapper_core.testing.tables import Gpt, Mbr, gpt_image, mbr_image, reader, table_sector

pytestmark = pytest.mark.unit

SIZE = 2 << 20


def found(image: bytes | bytearray, sector_size: int = 512) -> PartitionTable:
    return discover(reader(image), len(image), sector_size)


def with_mbr(image: bytes, *entries: Mbr) -> bytes:
    """Put the entries and the signature of an MBR into the first sector, and keep the rest of it."""
    sector = table_sector(entries)
    return image[:446] + sector[446:] + image[512:]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4096, SIZE])
def test_empty_device(size: int) -> None:
    assert found(bytes(size)) == PartitionTable("none", 512, (Partition(0, 0, size),))


def test_sector_size_of_the_device_is_kept() -> None:
    assert found(bytes(SIZE), 4096).sector_size == 4096


@pytest.mark.parametrize("name", [name for _, name, _ in superblocks.CORPUS])
def test_bare_filesystem(name: str) -> None:
    image = next(build for _, other, build in superblocks.CORPUS if other == name)()
    assert found(image) == PartitionTable("none", 512, (Partition(0, 0, len(image)),))


@pytest.mark.parametrize(
    "name", ["ext4 with a journal", "btrfs", "xfs", "squashfs", "fat16", "fat32", "iso9660", "luks2", "lvm", "swap"]
)
@pytest.mark.parametrize(
    "entries",
    [(), (Mbr(1, 0x83, 0, 100),), (Mbr(1, 0x83, 64, 2**32 - 1),), (Mbr(1, 0x83, 64, 64), Mbr(2, 0x83, 64, 64))],
    ids=["empty", "covers sector 0", "behind the end", "overlap"],
)
def test_superblock_beats_a_table_that_makes_no_sense(name: str, entries: tuple[Mbr, ...]) -> None:
    """P-16: boot sectors of filesystems end in the signature of an MBR too."""
    image = next(build for _, other, build in superblocks.CORPUS if other == name)()
    assert found(with_mbr(image, *entries)).scheme == "none"


def test_boot_code_where_the_table_would_be() -> None:
    image = bytearray(superblocks.fat16())
    image[446:510] = b"This is not a bootable disk.  Please insert a bootable floppy!!!"
    assert found(image).scheme == "none"


def test_the_table_of_no_filesystem_is_an_error_when_it_makes_no_sense() -> None:
    with pytest.raises(BadPartitionTable):
        found(mbr_image(SIZE, (Mbr(1, 0x83, 0, 100),)))


def test_empty_table_of_no_filesystem() -> None:
    assert found(mbr_image(SIZE, ())) == PartitionTable("dos", 512, (), uuid="1234abcd")


@pytest.mark.parametrize("name", ["ext4 with a journal", "btrfs", "fat16", "lvm", "swap", "raid 1.0", "raid 0.90"])
def test_a_sane_table_beats_a_leftover(name: str) -> None:
    """A boot loader copies parts of a FAT boot sector into the MBR; old superblocks survive a new table."""
    image = next(build for _, other, build in superblocks.CORPUS if other == name)()
    assert [item.number for item in found(with_mbr(image, Mbr(2, 0x83, 2048, 1024))).partitions] == [2]


@pytest.mark.parametrize("name", ["btrfs", "iso9660"])
def test_an_empty_gpt_beats_a_leftover(name: str) -> None:
    image = gpt_image(SIZE, ())
    old = next(build for _, other, build in superblocks.CORPUS if other == name)()
    image[32768:70000] = old[32768:70000]
    assert (found(image).scheme, found(image).partitions) == ("gpt", ())


@pytest.mark.parametrize("name", ["raid 1.0", "raid 0.90"])
def test_raid_metadata_at_the_end_says_nothing_about_a_broken_table(name: str) -> None:
    """It may belong to the last partition."""
    image = next(build for _, other, build in superblocks.CORPUS if other == name)()
    with pytest.raises(BadPartitionTable):
        found(with_mbr(image, Mbr(1, 0x83, 64, 2**32 - 1)))
    assert found(with_mbr(image)).scheme == "dos"


@pytest.mark.parametrize("name", ["xfs", "squashfs", "luks2"])
def test_magic_in_the_very_first_bytes_beats_any_table(name: str) -> None:
    image = next(build for _, other, build in superblocks.CORPUS if other == name)()
    assert found(with_mbr(image, Mbr(2, 0x83, 2048, 1024))).scheme == "none"


def test_first_bytes_alone_are_no_superblock() -> None:
    image = b"XFSB" + bytes(mbr_image(SIZE, (Mbr(1, 0x83, 64, 64),)))[4:]
    assert found(image).scheme == "dos"


@pytest.mark.parametrize(
    "entries",
    [
        (Mbr(1, 0x17, 0, 4096, flag=0x80),),
        (Mbr(1, 0x00, 0, 4096, flag=0x80), Mbr(2, 0xEF, 400, 100)),
        (Mbr(1, 0x17, 64, 4000),),
    ],
)
def test_hybrid_iso_image_with_an_mbr(entries: tuple[Mbr, ...]) -> None:
    """P-16: as isohybrid, Debian and Ubuntu make them; the partitions are inside of the CD."""
    assert found(with_mbr(superblocks.iso9660(), *entries)).scheme == "none"


def test_hybrid_iso_image_with_a_gpt() -> None:
    """P-16: 122 nonsense partitions are none."""
    image = gpt_image(SIZE, (Gpt(1, 64, 3000), Gpt(2, 3001, 3100)))
    image[32768 : 32768 + 4096] = superblocks.iso9660()[32768 : 32768 + 4096]
    assert found(image).scheme == "none"


def test_hybrid_iso_image_with_a_broken_gpt() -> None:
    """P-16: a protective MBR, no intact header, but a CD."""
    image = with_mbr(superblocks.iso9660(), Mbr(1, 0xEE, 1, 4095))
    assert found(image).scheme == "none"


def test_iso_descriptor_between_table_and_partitions_is_a_leftover() -> None:
    """A USB stick that was an installation medium, partitioned anew."""
    image = with_mbr(superblocks.iso9660(), Mbr(1, 0x83, 2048, 1024))
    assert [item.number for item in found(image).partitions] == [1]


def test_hybrid_mbr() -> None:
    """The GPT counts, whatever else the MBR shows."""
    image = gpt_image(SIZE, (Gpt(1, 64, 127), Gpt(2, 200, 299)), hybrid=(Mbr(2, 0x83, 200, 100), Mbr(3, 0x83, 1, 9)))
    assert (found(image).scheme, len(found(image).partitions)) == ("gpt", 2)


def test_protective_entry_in_any_slot() -> None:
    image = gpt_image(SIZE, (Gpt(1, 64, 127),))
    image[:512] = table_sector((Mbr(1, 0x83, 64, 64), Mbr(4, 0xEE, 1, 63)))
    assert found(image).scheme == "gpt"
