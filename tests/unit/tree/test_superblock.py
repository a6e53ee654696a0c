"""Recognising filesystems; ``tests/root`` compares the same images with blkid."""

from __future__ import annotations

import struct

import pytest

from mapper_core.model import Filesystem
from mapper_core.testing import superblocks
from mapper_core.testing.superblocks import LABEL, SIZE, UUID, place
from mapper_core.testing.tables import reader
from mapper_core.tree.superblock import probe
from mapper_core.tree.superblock_native import crc32c

pytestmark = pytest.mark.unit

#: UUID and label where they are not the usual ones.
NAMES = {
    "squashfs": ("", ""),
    "fat16": ("1234-ABCD", "A LABEL"),
    "fat32": ("1234-ABCD", "A LABEL"),
    "exfat": ("1234-ABCD", LABEL),
    "ntfs": ("3D2C1B0A3D2C1B0A", LABEL),
    "iso9660": ("2025-01-02-03-04-05-06", "A LABEL"),
    "joliet": ("2025-01-02-03-04-05-06", LABEL),
    "joliet with another label": ("2025-01-02-03-04-05-06", "täglich"),
    "old swap": ("", ""),
    "luks1": (UUID, ""),
    "lvm": ("abcdef-ghij-klmn-opqr-stuv-wxyz-012345", ""),
    "raid 0.90": (UUID, ""),
    "zfs": ("", ""),
}


def found(image: bytes | bytearray) -> Filesystem:
    return probe(reader(image), len(image))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name, _ in superblocks.CORPUS])
def test_corpus(kind: str, name: str) -> None:
    image = next(build for _, other, build in superblocks.CORPUS if other == name)()
    assert found(image) == Filesystem(kind, *NAMES.get(name, (UUID, LABEL)))


@pytest.mark.parametrize("image", [b"", b"\0", bytes(511), bytes(SIZE), b"\xff" * SIZE, b"\x55\xaa" * (SIZE // 2)])
def test_nothing(image: bytes) -> None:
    assert found(image) == Filesystem()


@pytest.mark.parametrize(
    ("compat", "incompat", "ro_compat", "kind"),
    [
        (0x0, 0x2, 0x3, "ext2"),
        (0x4, 0x2, 0x3, "ext3"),
        (0x4, 0x6, 0x3, "ext3"),  # needs its journal replayed
        (0x4, 0x42, 0x3, "ext4"),  # extents
        (0x0, 0x42, 0x3, "ext4"),  # no journal
        (0x4, 0x2, 0x13, "ext4"),  # gdt_csum
        (0x0, 0x10002, 0x3, "ext4"),  # encrypt
        (0x0, 0xA, 0x0, "jbd"),
        (0x0, 0x6, 0x0, ""),  # a journal to be replayed, but none there
    ],
)
def test_ext_by_features(compat: int, incompat: int, ro_compat: int, kind: str) -> None:
    assert found(superblocks.ext(compat=compat, incompat=incompat, ro_compat=ro_compat)).type == kind


def test_ext_with_a_checksum() -> None:
    image = bytearray(superblocks.ext(compat=0x4, incompat=0x42, ro_compat=0x400))
    assert found(image).type == ""
    struct.pack_into("<I", image, 2044, crc32c(bytes(image[1024:2044])) ^ 0xFFFFFFFF)
    assert found(image).type == "ext4"
    image[1024 + 120] ^= 1
    assert found(image).type == ""


def test_crc32c() -> None:
    """RFC 3720, appendix B.4."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("length", [*range(14), 1020, 1021])
def test_crc32c_of_any_length_is_a_division_bit_by_bit(length: int) -> None:
    data = bytes(index * 37 + 11 & 0xFF for index in range(length))
    rest = 0xFFFFFFFF
    for byte in data:
        rest ^= byte
        for _ in range(8):
            rest = (rest >> 1) ^ (0x82F63B78 if rest & 1 else 0)
    assert crc32c(data) == rest ^ 0xFFFFFFFF


def test_labels_may_fill_their_field() -> None:
    image = bytearray(superblocks.ext())
    image[1024 + 120 : 1024 + 136] = b"sixteen letters!"
    assert found(image).label == "sixteen letters!"
    image[1024 + 120 : 1024 + 136] = b"blanks at end   "
    assert found(image).label == "blanks at end"


def test_hostile_label() -> None:
    """S-12: it is data, and it can be printed."""
    image = bytearray(superblocks.ext())
    image[1024 + 120 : 1024 + 136] = b";$(id)\x1b[2J\n\xff`x`"
    assert found(image).label == ";$(id)\\x1b[2J\\x0a\\xff`x`"


@pytest.mark.parametrize("name", ["raid 1.0", "raid 0.90"])
def test_raid_member_is_not_the_filesystem_in_it(name: str) -> None:
    image = bytearray(next(build for _, other, build in superblocks.CORPUS if other == name)())
    image[1024:2048] = superblocks.ext()[1024:2048]
    assert found(image).type == "linux_raid_member"


def test_raid_metadata_of_another_device() -> None:
    """The metadata at the end of a disk is not that of the partition which ends there."""
    assert found(superblocks.raid(SIZE - 8192)[:SIZE]).type == "linux_raid_member"
    assert found(superblocks.raid(SIZE - 8192)[4096:]).type == ""


def test_lvm_with_a_wrong_checksum_or_sector() -> None:
    image = superblocks.lvm()
    assert found(image[:540] + b"x" + image[541:]).type == ""
    assert found(image[:8] + bytes(504) + bytes(512) + image[512:1024] + bytes(SIZE)).type == ""


def test_btrfs_elsewhere() -> None:
    """A superblock says where it is."""
    assert found(bytes(4096) + superblocks.btrfs()[: SIZE // 2]).type == ""
    image = bytearray(superblocks.btrfs())
    image[65536 + 48] ^= 1
    assert found(image).type == ""


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (4, ">I", 0),  # block size
        (4, ">I", 4097),
        (4, ">I", 2**31),
        (8, ">Q", 0),  # number of blocks
        (84, ">I", 0),
        (88, ">I", 0),
        (102, ">H", 0),
        (102, ">H", 511),
    ],
)
def test_xfs_out_of_bounds(offset: int, layout: str, value: int) -> None:
    image = bytearray(superblocks.xfs())
    struct.pack_into(layout, image, offset, value)
    assert found(image).type == ""


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (11, "<H", 0),  # bytes per sector
        (11, "<H", 513),
        (11, "<H", 32768),
        (13, "<B", 0),  # sectors per cluster
        (13, "<B", 3),
        (14, "<H", 0),  # reserved sectors
        (16, "<B", 0),  # number of FATs
        (21, "<B", 0x12),  # media
        (32, "<I", 0),  # sectors
        (32, "<I", 100),  # fewer than the FATs need
        (32, "<I", 2**32 - 1),  # more than the FAT can count
    ],
)
def test_fat_out_of_bounds(offset: int, layout: str, value: int) -> None:
    image = bytearray(superblocks.fat16())
    struct.pack_into(layout, image, offset, value)
    assert found(image).type == ""


def test_fat_without_its_name() -> None:
    """The name in the boot sector is no more than a hint; the signature will do."""
    image = bytearray(superblocks.fat16())
    image[54:62] = bytes(8)
    assert found(image).type == "vfat"
    image[510:512] = bytes(2)
    assert found(image).type == ""


@pytest.mark.parametrize("name", [b"JFS     ", b"HPFS    "])
def test_boot_sectors_that_only_resemble_fat(name: bytes) -> None:
    image = bytearray(superblocks.fat16())
    image[54:62] = name
    assert found(image).type == ""


def test_fat_serial_of_zero_is_no_uuid() -> None:
    image = bytearray(superblocks.fat16())
    image[39:43] = bytes(4)
    assert found(image).uuid == ""


def test_fat_label_that_begins_with_e5() -> None:
    """Stored as 0x05, since 0xE5 means a deleted file. The code page is not known, so the byte is shown as one."""
    assert found(superblocks.fat16(b"\x05 LABEL    ")).label == "\\xe5 LABEL"


@pytest.mark.parametrize("next_cluster", [2, 3, 0, 1, 0x0FFFFFF7])
def test_fat_chain_that_loops_or_leads_nowhere(next_cluster: int) -> None:
    """S-14: a directory full of other things, whose next cluster is itself."""
    image = bytearray(superblocks.fat32(next_cluster=next_cluster))
    at = (32 + 2 * 32) * 512
    image[at : at + 512] = (b"FILE    TXT\x20" + bytes(14) + b"\x07" + bytes(5)) * 16
    assert found(image) == Filesystem("vfat", "1234-ABCD", "")


def test_fat_label_in_the_second_cluster() -> None:
    image = bytearray(superblocks.fat32(next_cluster=9))
    at = (32 + 2 * 32) * 512
    image[at : at + 512] = (b"FILE    TXT\x20" + bytes(14) + b"\x07" + bytes(5)) * 16
    image[at + 7 * 512 : at + 7 * 512 + 12] = b"LATER      \x08"
    assert found(image).label == "LATER"


def test_fat32_with_a_wrong_fsinfo() -> None:
    image = bytearray(superblocks.fat32())
    image[512] ^= 1
    assert found(image).type == ""


@pytest.mark.parametrize(
    ("offset", "value"),
    [(108, 8), (108, 13), (109, 17), (20, 1), (80, 0), (88, 0)],
    ids=["small sectors", "large sectors", "large clusters", "a FAT parameter", "no FAT", "no clusters"],
)
def test_exfat_out_of_bounds(offset: int, value: int) -> None:
    image = bytearray(superblocks.exfat())
    image[offset] = value
    assert found(image).type == ""


@pytest.mark.parametrize("root", [0, 1, 3, 2**32 - 1])
def test_exfat_without_a_root_directory(root: int) -> None:
    image = bytearray(superblocks.exfat())
    struct.pack_into("<I", image, 96, root)
    assert found(image) == Filesystem("exfat", "1234-ABCD", "")


def test_ntfs_table_out_of_the_device() -> None:
    for cluster in (SIZE // 4096, SIZE, 2**60, 2**64 - 1):
        image = bytearray(superblocks.ntfs())
        struct.pack_into("<Q", image, 48, cluster)
        assert found(image).type != "ntfs"


@pytest.mark.parametrize("length", [0, 1, 23, 2**16, 2**32 - 1])
def test_ntfs_attribute_of_absurd_length(length: int) -> None:
    """S-14: neither an endless loop nor anything beyond the record."""
    image = bytearray(superblocks.ntfs())
    struct.pack_into("<I", image, 16384 + 3 * 1024 + 56 + 4, length)
    assert found(image).label in ("", LABEL)


def test_iso_times() -> None:
    image = bytearray(superblocks.iso9660())
    image[32768 + 830 : 32768 + 846] = b"0" * 16  # never modified
    assert found(image).uuid == "2024-01-02-03-04-05-06"
    image[32768 + 813 : 32768 + 829] = b"garbage!garbage!"
    assert found(image).uuid == ""


def test_iso_label_longer_than_joliet_can_say() -> None:
    image = bytearray(superblocks.iso9660(joliet="Sixteen letters,"))
    image[32768 + 40 : 32768 + 72] = b"SIXTEEN LETTERS, AND SOME MORE".ljust(32)
    assert found(image).label == "Sixteen letters, AND SOME MORE"


def test_iso_of_another_standard() -> None:
    image = bytearray(superblocks.iso9660())
    image[32768 + 6] = 2
    assert found(image).type == ""


def test_swap_of_another_version() -> None:
    image = bytearray(superblocks.swap())
    struct.pack_into("<I", image, 1024, 2)
    assert found(image).type == ""
    struct.pack_into(">II", image, 1024, 1, 100)  # written by a machine of the other byte order
    assert found(image).type == "swap"


def test_few_uberblocks_are_an_accident() -> None:
    block = struct.pack("<QQ", 0x00BAB10C, 5000)
    assert found(place(*((131072 + 1024 * index, block) for index in range(3)))).type == ""


def test_reads_at_the_end_of_a_small_device() -> None:
    """Every probe copes with any length that cuts its superblock."""
    for _, _, build in superblocks.CORPUS:
        image = build()
        for length in (0, 3, 512, 520, 1024, 1100, 2047, 4090, 32775, 34000, 65600, 66000):
            found(image[:length])
