"""MBR tables: primary and logical partitions, intact and hostile."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper_core.errors import BadPartitionTable, PartitionBeyondDevice
from mapper_core.model import Partition, PartitionTable
from mapper_core.partitions import mbr
from mapper_core.partitions.discover import discover
from mapper_core.testing.tables import Mbr, logical_chain, mbr_image, reader, table_sector

pytestmark = pytest.mark.unit

SIZE = 4 << 20
SECTORS = SIZE // 512


def found(image: bytes | bytearray, sector_size: int = 512) -> PartitionTable:
    return discover(reader(image), len(image), sector_size)


def numbers(table: PartitionTable) -> list[tuple[int, int, int]]:
    return [(item.number, item.start // 512, item.size // 512) for item in table.partitions]


def test_one_partition() -> None:
    table = found(mbr_image(SIZE, (Mbr(2, 0x83, 64, 100, flag=0x80),), signature=0x0000BEEF))
    partition = Partition(2, 64 * 512, 100 * 512, type="0x83", uuid="0000beef-02")
    assert table == PartitionTable("dos", 512, (partition,), uuid="0000beef")


def test_without_a_signature_there_is_no_partuuid() -> None:
    table = found(mbr_image(SIZE, (Mbr(1, 0x83, 64, 100),), signature=0))
    assert (table.uuid, table.partitions[0].uuid) == ("", "")


def test_slots_keep_their_number() -> None:
    """P-17."""
    table = found(mbr_image(SIZE, (Mbr(1, 0x83, 500, 10), Mbr(4, 0x82, 100, 10))))
    assert numbers(table) == [(1, 500, 10), (4, 100, 10)]


def test_type_zero_with_a_length_is_a_partition() -> None:
    """As in Linux, which goes by the length alone."""
    assert numbers(found(mbr_image(SIZE, (Mbr(1, 0, 100, 10),)))) == [(1, 100, 10)]


@pytest.mark.parametrize("kind", [0x05, 0x0F, 0x85])
def test_logical_partitions(kind: int) -> None:
    chain = logical_chain(1000, ((0x83, 1001, 99), (0x82, 1200, 100), (0x07, 2000, 500)))
    table = found(mbr_image(SIZE, (Mbr(1, 0x83, 64, 100), Mbr(3, kind, 1000, 4000)), chain))
    assert numbers(table) == [(1, 64, 100), (5, 1001, 99), (6, 1200, 100), (7, 2000, 500)]
    assert [item.uuid for item in table.partitions] == ["1234abcd-01", "1234abcd-05", "1234abcd-06", "1234abcd-07"]


def test_links_may_lead_backwards() -> None:
    """Deleting and adding logical partitions leaves such a chain; the order of the chain gives the numbers."""
    chain = (
        (1000, (Mbr(1, 0x83, 1, 10), Mbr(2, 5, 2000, 100))),
        (3000, (Mbr(1, 0x83, 1, 10), Mbr(2, 5, 500, 100))),
        (1500, (Mbr(1, 0x83, 1, 10),)),
    )
    assert numbers(found(mbr_image(SIZE, (Mbr(1, 5, 1000, 4000),), chain))) == [
        (5, 1001, 10),
        (6, 3001, 10),
        (7, 1501, 10),
    ]


def test_an_ebr_without_a_partition_takes_no_number() -> None:
    chain = ((1000, (Mbr(2, 5, 100, 50),)), (1100, (Mbr(1, 0x83, 1, 10),)))
    assert numbers(found(mbr_image(SIZE, (Mbr(1, 5, 1000, 4000),), chain))) == [(5, 1101, 10)]


def test_extended_partition_without_an_ebr() -> None:
    table = found(mbr_image(SIZE, (Mbr(1, 0x83, 64, 100), Mbr(2, 5, 1000, 4000))))
    assert numbers(table) == [(1, 64, 100)]


def test_two_extended_partitions() -> None:
    chain = logical_chain(1000, ((0x83, 1001, 10),)) + logical_chain(3000, ((0x83, 3001, 10),))
    table = found(mbr_image(SIZE, (Mbr(1, 5, 1000, 1000), Mbr(2, 15, 3000, 1000)), chain))
    assert numbers(table) == [(5, 1001, 10), (6, 3001, 10)]


def test_garbage_in_the_last_entries_of_an_ebr() -> None:
    chain = ((1000, (Mbr(1, 0x83, 1, 10), Mbr(3, 0x83, 4000000, 77), Mbr(4, 0x55, 1, 1))),)
    assert numbers(found(mbr_image(SIZE, (Mbr(1, 5, 1000, 4000),), chain))) == [(5, 1001, 10)]


def test_large_sectors() -> None:
    image = mbr_image(SIZE, (Mbr(1, 5, 100, 800),), logical_chain(100, ((0x83, 101, 10),)), sector_size=4096)
    table = found(image, 4096)
    assert (table.partitions[0].start, table.partitions[0].size) == (101 * 4096, 10 * 4096)


@pytest.mark.parametrize(
    "chain",
    [
        ((1000, (Mbr(1, 0x83, 1, 10), Mbr(2, 5, 0, 10))),),
        ((1000, (Mbr(1, 0x83, 1, 10), Mbr(2, 5, 100, 50))), (1100, (Mbr(1, 0x83, 1, 10), Mbr(2, 5, 100, 50)))),
        ((1000, (Mbr(2, 5, 100, 50),)), (1100, (Mbr(2, 5, 200, 50),)), (1200, (Mbr(2, 5, 100, 50),))),
    ],
    ids=["to itself at the start", "to itself", "of two"],
)
def test_loop(chain: tuple[tuple[int, tuple[Mbr, ...]], ...]) -> None:
    """S-15."""
    with pytest.raises(BadPartitionTable, match="loop"):
        found(mbr_image(SIZE, (Mbr(1, 5, 1000, 4000),), chain))


def test_endless_chain() -> None:
    """S-14: EBRs without partitions are counted too."""
    chain = tuple((1000 + 2 * index, (Mbr(2, 5, 2 * index + 2, 1),)) for index in range(200))
    with pytest.raises(BadPartitionTable, match="more than 128"):
        found(mbr_image(SIZE, (Mbr(1, 5, 1000, 4000),), chain))


def test_too_many_logical_partitions() -> None:
    logicals = tuple((0x83, 1001 + 3 * index, 1) for index in range(128))
    image = mbr_image(SIZE, (Mbr(1, 5, 1000, 4000),), logical_chain(1000, logicals))
    assert found(image).partitions[-1].number == 132
    with pytest.raises(BadPartitionTable, match="128"):
        found(mbr_image(SIZE, (Mbr(1, 5, 1000, 4000), Mbr(2, 0x83, 64, 1)), logical_chain(1000, logicals)))


@pytest.mark.parametrize("start", [5000, 4294960000])
def test_link_that_leaves_the_container(start: int) -> None:
    with pytest.raises(BadPartitionTable, match="leaves the extended partition 1"):
        found(mbr_image(SIZE, (Mbr(1, 5, 1000, 4000),), ((1000, (Mbr(2, 5, start, 50),)),)))


def test_logical_partition_that_leaves_the_container() -> None:
    with pytest.raises(BadPartitionTable, match="partition 5 lies outside of the extended partition 1"):
        found(mbr_image(SIZE, (Mbr(1, 5, 1000, 1000),), ((1000, (Mbr(1, 0x83, 500, 501),)),)))


def test_truncated_image() -> None:
    """P-15."""
    image = mbr_image(SIZE, (Mbr(1, 0x83, 64, 100), Mbr(2, 0x83, 164, SECTORS - 164)))
    assert len(found(image).partitions) == 2
    with pytest.raises(PartitionBeyondDevice, match="partition 2 ends at byte 4194304"):
        found(image[:-512])
    chained = mbr_image(SIZE, (Mbr(1, 5, 1000, SECTORS - 1000),), logical_chain(1000, ((0x83, 1001, SECTORS - 1001),)))
    with pytest.raises(PartitionBeyondDevice):
        found(chained[:-512])


@pytest.mark.parametrize("start", [0, 2**32 - 1])
@pytest.mark.parametrize("kind", [0x83, 0x05])
def test_partition_over_the_table_or_behind_the_end(start: int, kind: int) -> None:
    """S-15: no partition covers sector 0."""
    with pytest.raises(BadPartitionTable):
        found(mbr_image(SIZE, (Mbr(1, kind, start, 2**32 - 1),)))


@pytest.mark.parametrize(
    ("entries", "logicals"),
    [
        ((Mbr(1, 0x83, 64, 100), Mbr(2, 0x83, 163, 10)), ()),
        ((Mbr(1, 0x83, 64, 100), Mbr(2, 0x83, 64, 100)), ()),
        ((Mbr(1, 0x83, 900, 101), Mbr(2, 5, 1000, 1000)), ()),
        ((Mbr(1, 5, 1000, 1000), Mbr(2, 5, 1500, 1000)), ()),
        ((Mbr(1, 0x83, 1200, 10), Mbr(2, 5, 1000, 1000)), ((0x83, 1001, 10),)),
        ((Mbr(1, 5, 1000, 1000),), ((0x83, 1001, 200), (0x83, 1150, 200))),
        ((Mbr(1, 5, 1000, 1000),), ((0x83, 1001, 200), (0x83, 1200, 200))),  # the EBR is in the first one
    ],
)
def test_overlap(entries: tuple[Mbr, ...], logicals: tuple[tuple[int, int, int], ...]) -> None:
    """S-15: overlaps of any two, also with an EBR."""
    with pytest.raises(BadPartitionTable, match="overlap"):
        found(mbr_image(SIZE, entries, logical_chain(1000, logicals) if logicals else ()))


def test_boot_flags_of_logical_partitions_do_not_matter() -> None:
    """As in Linux, which looks for the signature only."""
    chain = ((1000, (Mbr(1, 0x83, 1, 10, flag=0x42), Mbr(2, 5, 100, 50, flag=1))), (1100, (Mbr(1, 0x83, 1, 10),)))
    assert numbers(found(mbr_image(SIZE, (Mbr(1, 5, 1000, 4000),), chain))) == [(5, 1001, 10), (6, 1101, 10)]


@pytest.mark.parametrize("flag", [1, 0x7F, 0x81, 0xFF])
def test_a_wrong_boot_flag_is_no_table(flag: int) -> None:
    assert mbr.read_slots(table_sector((Mbr(1, 0x83, 64, 100, flag=flag),))) is None


def test_short_or_unsigned_sector_is_no_table() -> None:
    sector = table_sector((Mbr(1, 0x83, 64, 100),))
    assert mbr.read_slots(sector) is not None
    assert mbr.read_slots(sector[:511]) is None
    assert mbr.read_slots(sector[:510] + b"\xaa\x55") is None


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Primary and logical partitions: first sector and length of each."""

    def pieces(first: int, last: int, most: int) -> tuple[tuple[int, int], ...]:
        ends = draw(st.lists(st.integers(first, last), unique=True, max_size=2 * most).map(sorted))
        return tuple((start, end - start) for start, end in zip(ends[::2], ends[1::2], strict=False))

    return pieces(1, 999, 3), tuple((start + 1, count - 1) for start, count in pieces(1001, 4999, 40) if count > 1)


@settings(max_examples=60)
@given(layouts())
def test_any_sane_layout_is_read_back(layout: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]) -> None:
    primaries, logicals = layout
    entries = [Mbr(index, 0x83, *piece) for index, piece in enumerate(primaries, start=1)]
    chain = logical_chain(1000, tuple((0x83, *piece) for piece in logicals)) if logicals else ()
    table = found(mbr_image(SIZE, (*entries, Mbr(4, 5, 1000, 4000)), chain))
    expected = [(index, *piece) for index, piece in enumerate(primaries, start=1)]
    assert numbers(table) == expected + [(index, *piece) for index, piece in enumerate(logicals, start=5)]
