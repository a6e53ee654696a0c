"""GUID partition tables, intact and not."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper_core.errors import BadPartitionTable, PartitionBeyondDevice
from mapper_core.model import Partition, PartitionTable
from mapper_core.partitions import gpt
from mapper_core.partitions.discover import discover
from mapper_core.testing.tables import DISK_GUID, LINUX, Gpt, gpt_image, reader, sign

pytestmark = pytest.mark.unit

SIZE = 1 << 20
LAST = SIZE // 512 - 1
DAMAGED = ("the primary GPT is damaged; the backup at the end of the disk is used",)


def found(image: bytes | bytearray, sector_size: int = 512) -> PartitionTable:
    return discover(reader(image), len(image), sector_size)


def change(image: bytearray, offset: int, layout: str, value: int, *, lba: int = 1) -> bytearray:
    """Change a number of a header, and make its checksum right again."""
    struct.pack_into(layout, image, lba * 512 + offset, value)
    sign(image, lba)
    return image


def change_both(image: bytearray, offset: int, layout: str, value: int) -> bytearray:
    return change(change(image, offset, layout, value), offset, layout, value, lba=len(image) // 512 - 1)


def test_one_partition() -> None:
    unique = "0A1B2C3D-4E5F-6071-8293-A4B5C6D7E8F9"
    table = found(gpt_image(SIZE, (Gpt(1, 64, 127, unique=unique, name="Größe"),)))
    partition = Partition(1, 64 * 512, 64 * 512, type=LINUX, uuid=unique.lower(), label="Größe")
    assert table == PartitionTable("gpt", 512, (partition,), uuid=DISK_GUID)


def test_unused_slots_do_not_end_the_table() -> None:
    """P-17: the number of a partition is its slot, whatever its place on the disk."""
    table = found(gpt_image(SIZE, (Gpt(1, 900, 999), Gpt(3, 500, 599), Gpt(7, 100, 199), Gpt(128, 300, 300))))
    assert [(item.number, item.start // 512) for item in table.partitions] == [(1, 900), (3, 500), (7, 100), (128, 300)]


def test_empty_table() -> None:
    assert found(gpt_image(SIZE, ())).partitions == ()


def test_neighbours_touch() -> None:
    assert len(found(gpt_image(SIZE, (Gpt(1, 64, 127), Gpt(2, 128, 128), Gpt(3, 129, 200)))).partitions) == 3


@pytest.mark.parametrize("claimed", [512, 4096])
@pytest.mark.parametrize("real", [512, 4096])
def test_sector_size_of_the_table_counts(real: int, claimed: int) -> None:
    """S-14: an image of a 4Kn disk seen through a device with 512, and the other way round."""
    table = found(gpt_image(SIZE, (Gpt(1, 64, 127),), sector_size=real), claimed)
    assert (table.sector_size, table.partitions[0].start, table.partitions[0].size) == (real, 64 * real, 64 * real)


def test_large_entries() -> None:
    assert len(found(gpt_image(SIZE, (Gpt(2, 200, 300),), entry_size=512)).partitions) == 1


@pytest.mark.parametrize("offset", [512, 512 + 16, 512 + 40, 1024, 1024 + 20])
def test_damaged_primary(offset: int) -> None:
    image = gpt_image(SIZE, (Gpt(1, 64, 127),))
    intact = found(image)
    image[offset] ^= 1
    damaged = found(image)
    assert damaged.partitions == intact.partitions
    assert damaged.warnings == DAMAGED


def test_damaged_backup() -> None:
    image = gpt_image(SIZE, (Gpt(1, 64, 127),))
    image[-512] ^= 1
    assert found(image).warnings == ("the backup GPT is damaged",)


def test_headers_disagree() -> None:
    image = gpt_image(SIZE, (Gpt(1, 64, 127),))
    image[(LAST - 32) * 512 + 40] ^= 1  # the last sector of the partition
    sign(image, LAST)
    assert found(image).partitions[0].size == 64 * 512
    assert found(image).warnings == ("the backup GPT differs from the primary one, which is used",)


def test_both_damaged() -> None:
    image = gpt_image(SIZE, (Gpt(1, 64, 127),))
    image[512] ^= 1
    image[-512] ^= 1
    with pytest.raises(BadPartitionTable, match="neither of its two GPT headers"):
        found(image)


def test_without_a_protective_mbr() -> None:
    """P-16: what looks like a GPT is a leftover then."""
    image = gpt_image(SIZE, (Gpt(1, 64, 127),))
    image[:512] = bytes(512)
    assert found(image).scheme == "none"


def test_grown_disk() -> None:
    image = gpt_image(SIZE, (Gpt(1, 64, 127),)) + bytearray(SIZE)
    assert found(image).warnings == ("the disk is larger than its GPT says: the backup GPT is not at the end",)


def test_shrunk_disk_whose_partitions_still_fit() -> None:
    image = gpt_image(SIZE, (Gpt(1, 64, 127),))[: SIZE // 2]
    assert found(image).warnings == ("the disk is smaller than its GPT says: the backup GPT is cut off",)


def test_truncated_image() -> None:
    """P-15."""
    image = gpt_image(SIZE, (Gpt(1, 64, 127), Gpt(2, 128, 1500)))
    with pytest.raises(PartitionBeyondDevice, match=r"partition 2 ends at byte 768512, .*524288") as caught:
        found(image[: SIZE // 2])
    assert "shorter" in caught.value.hint


@pytest.mark.parametrize("last", [LAST + 1, 2**32, 2**63, 2**64 - 2])
def test_partition_behind_the_end(last: int) -> None:
    with pytest.raises(PartitionBeyondDevice):
        found(gpt_image(SIZE, (Gpt(1, 64, last),)))


@pytest.mark.parametrize(("first", "last"), [(64, 63), (2**64 - 1, 0), (100, 0)])
def test_end_before_start(first: int, last: int) -> None:
    """S-14: an end before the start must not underflow."""
    with pytest.raises(BadPartitionTable, match="before its start"):
        found(gpt_image(SIZE, (Gpt(1, first, last),)))


@pytest.mark.parametrize("first", [0, 1, 2, 33, LAST - 32, LAST])
def test_partition_over_the_table(first: int) -> None:
    """S-15: no partition may cover sector 0, a header, or the entries in use."""
    image = gpt_image(SIZE, (Gpt(1, first, first),))
    if first > 40:  # the table at the end counts only when it is the one in use
        image[512] ^= 1
    with pytest.raises(BadPartitionTable):
        found(image)


@pytest.mark.parametrize("second", [(64, 127), (127, 200), (10 + 50, 64), (70, 80), (60, 300)])
def test_overlap(second: tuple[int, int]) -> None:
    """S-15."""
    with pytest.raises(BadPartitionTable, match="overlap"):
        found(gpt_image(SIZE, (Gpt(1, 64, 127), Gpt(2, *second))))


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (0, "<Q", 0),  # signature
        (12, "<I", 91),  # header size
        (12, "<I", 513),
        (12, "<I", 2**32 - 1),
        (24, "<Q", 2),  # own LBA
        (72, "<Q", 0),  # LBA of the entries
        (72, "<Q", 1),
        (72, "<Q", LAST),
        (72, "<Q", 2**64 - 1),
        (80, "<I", 0),  # number of entries
        (80, "<I", 2**32 - 1),
        (84, "<I", 0),  # size of an entry
        (84, "<I", 1),
        (84, "<I", 64),
        (84, "<I", 127),
        (84, "<I", 129),
        (84, "<I", 384),
        (84, "<I", 2**31),
        (88, "<I", 12345),  # checksum of the entries; signing repairs it, so it is set below
    ],
)
def test_absurd_header(offset: int, layout: str, value: int) -> None:
    """S-14: a header with a right checksum and numbers out of all bounds is no header."""
    image = gpt_image(SIZE, (Gpt(1, 64, 127),))
    change(image, offset, layout, value)
    if offset == 88:
        image[2 * 512] ^= 1
    assert found(image).warnings == DAMAGED
    assert gpt.read_header(reader(image), SIZE, 512, 1) is None


def test_a_table_is_read_up_to_one_mebibyte() -> None:
    """S-14: 8192 entries of 128 bytes are accepted, one more is not."""
    size = 4 << 20
    image = gpt_image(size, (Gpt(1, 3000, 3100),), count=8192)
    assert found(image).warnings == ()
    change_both(image, 80, "<I", 8193)
    with pytest.raises(BadPartitionTable, match="neither"):
        found(image)


def test_too_many_partitions() -> None:
    """S-13, S-14: 128 are handled."""
    entries = tuple(Gpt(slot, 200 + slot, 200 + slot) for slot in range(1, 130))
    assert len(found(gpt_image(SIZE, entries[:128], count=256)).partitions) == 128
    with pytest.raises(BadPartitionTable, match="more partitions than the 128"):
        found(gpt_image(SIZE, entries, count=256))


def test_number_that_the_kernel_cannot_make() -> None:
    assert found(gpt_image(SIZE, (Gpt(255, 300, 300),), count=256)).partitions[0].number == 255
    with pytest.raises(BadPartitionTable, match="number above 255"):
        found(gpt_image(SIZE, (Gpt(256, 300, 300),), count=256))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"\x00\xd8a\x00", "\ufffda"),
        (b"\x1b\x00c\x00", "\\x1bc"),
        (b"a\x00\x00\x00b\x00", "a"),
        (b"b\x00" * 36, "b" * 36),
    ],
)
def test_hostile_names(raw: bytes, expected: str) -> None:
    """S-12: a lone surrogate, an escape sequence, a NUL, no NUL at all."""
    image = gpt_image(SIZE, (Gpt(1, 64, 127),))
    image[1024 + 56 : 1024 + 56 + len(raw)] = raw
    sign(image, 1)
    assert found(image).partitions[0].label == expected


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Gpt, ...]:
    """Partitions that do not overlap, in slots of any order."""
    ends = draw(st.lists(st.integers(40, 2000), unique=True, max_size=24).map(sorted))
    pairs = list(zip(ends[::2], ends[1::2], strict=False))
    slots = draw(st.lists(st.integers(1, 128), unique=True, min_size=len(pairs), max_size=len(pairs)))
    return tuple(Gpt(slot, first, last - 1) for slot, (first, last) in zip(slots, pairs, strict=True))


@settings(max_examples=60)
@given(layouts())
def test_any_sane_layout_is_read_back(entries: tuple[Gpt, ...]) -> None:
    table = found(gpt_image(SIZE, entries))
    expected = [(entry.slot, entry.first * 512, (entry.last - entry.first + 1) * 512) for entry in entries]
    assert [(item.number, item.start, item.size) for item in table.partitions] == sorted(expected)
