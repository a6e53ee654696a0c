"""Tables of partitions that grow: what is written, in which order, and what is read after each write."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapper_core.errors import BadPartitionTable, NoRoomToGrow, NotFound, NotSupported
from mapper_core.grow import plan
from mapper_core.grow.extent import Growth
from mapper_core.model import PartitionTable
from mapper_core.partitions.discover import discover
from mapper_core.testing.tables import Gpt, Mbr, gpt_image, logical_chain, mbr_image, reader, sign

pytestmark = pytest.mark.unit

MIB = 1 << 20


def _grown(image: bytearray, by: int) -> bytearray:
    return image + bytes(by)


def _plan(image: bytearray, number: int, sector_size: int = 512) -> Growth:
    read = reader(image)
    table = discover(read, len(image), sector_size)
    return plan(read, len(image), table, number)


def _after(image: bytearray, growth: Growth) -> list[bytearray]:
    """The disk after each write."""
    states = [bytearray(image)]
    for write in growth.writes:
        state = bytearray(states[-1])
        state[write.offset : write.offset + len(write.data)] = write.data
        assert len(state) == len(image)
        states.append(state)
    return states


def _sizes(image: bytearray, sector_size: int = 512) -> dict[int, int]:
    return {item.number: item.size for item in discover(reader(image), len(image), sector_size).partitions}


def _table(image: bytearray, sector_size: int = 512) -> PartitionTable:
    return discover(reader(image), len(image), sector_size)


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("by", [512 * 8, MIB, 9 * MIB])
def test_gpt(sector_size: int, by: int) -> None:
    per = MIB // sector_size
    first, second = Gpt(1, per, 2 * per - 1, name="boot"), Gpt(3, 2 * per, 6 * per - 1, name="root")
    old = gpt_image(8 * MIB, (first, second), sector_size=sector_size)
    image = _grown(old, by)
    before = _table(image, sector_size)
    growth = _plan(image, 3, sector_size)
    states = _after(image, growth)
    end = (8 * MIB + by - 40 * sector_size if sector_size == 4096 else 8 * MIB + by - 33 * 512) // MIB * MIB
    for state in states:
        found = _sizes(state, sector_size)
        assert found[1] == MIB
        assert found[3] in (4 * MIB, end - 2 * MIB)
    after = _table(states[-1], sector_size)
    assert after.warnings == ()
    assert (after.uuid, [item.uuid for item in after.partitions]) == (
        before.uuid,
        [item.uuid for item in before.partitions],
    )
    assert [item.label for item in after.partitions] == ["boot", "root"]
    assert after.partitions[1].size == growth.partition.size == end - 2 * MIB
    assert struct.unpack_from("<I", states[-1], 446 + 12)[0] == len(image) // sector_size - 1
    assert _plan(states[-1], 3, sector_size).writes == ()
    assert states[-1][2 * MIB : 6 * MIB] == image[2 * MIB : 6 * MIB]


def test_gpt_a_crash_between_any_two_writes_is_finished() -> None:
    image = _grown(gpt_image(4 * MIB, (Gpt(1, 2048, 4095),)), 4 * MIB)
    growth = _plan(image, 1)
    states = _after(image, growth)
    for state in states:
        again = _plan(state, 1)
        assert again.partition == growth.partition
        assert _after(state, again)[-1] == states[-1]


def test_gpt_the_old_end_is_found_by_nobody() -> None:
    """Even when the primary is lost later."""
    image = _grown(gpt_image(4 * MIB, (Gpt(1, 2048, 4095),)), 4 * MIB)
    final = _after(image, _plan(image, 1))[-1]
    final[512:1024] = bytes(512)
    table = _table(final)
    assert table.partitions[0].size == 6 * MIB
    assert "primary GPT is damaged" in table.warnings[0]


def test_gpt_without_a_primary_is_left_alone() -> None:
    image = gpt_image(4 * MIB, (Gpt(1, 2048, 4095),))
    image[512 + 20] ^= 1
    with pytest.raises(BadPartitionTable, match="primary GPT is damaged"):
        _plan(image, 1)


def test_gpt_with_a_hybrid_mbr_is_left_alone() -> None:
    image = gpt_image(4 * MIB, (Gpt(1, 2048, 4095),), hybrid=(Mbr(2, 0x83, 2048, 2048),))
    with pytest.raises(NotSupported, match="hybrid"):
        _plan(image, 1)


def test_gpt_entries_elsewhere() -> None:
    """The array of the primary need not stand in sector 2."""
    image = _grown(gpt_image(4 * MIB, (Gpt(1, 2048, 4095),)), MIB)
    image[40 * 512 : 72 * 512] = image[2 * 512 : 34 * 512]
    image[2 * 512 : 34 * 512] = bytes(32 * 512)
    struct.pack_into("<Q", image, 512 + 72, 40)
    sign(image, 1)
    growth = _plan(image, 1)
    for state in _after(image, growth):
        assert _sizes(state)[1] in (MIB, growth.partition.size)
        assert _after(state, _plan(state, 1))[-1] == _after(image, growth)[-1]


@pytest.mark.parametrize("grows", [1, 2])
def test_gpt_the_backup_is_not_written_over_a_partition(grows: int) -> None:
    """An image that was cut off behind its last partition has no room for the backup, whichever partition is to grow."""
    whole = gpt_image(8 * MIB, (Gpt(1, 2048, 4095), Gpt(2, 6144, 8191)))
    for size in (4 * MIB, 4 * MIB + 32 * 512):
        with pytest.raises(NoRoomToGrow, match="no room for the backup GPT behind partition 2") as caught:
            _plan(whole[:size], grows)
        assert f"{4 * MIB + 33 * 512} bytes" in caught.value.hint
    image = whole[: 4 * MIB + 33 * 512]
    final = _after(image, _plan(image, grows))[-1]
    assert final[3 * MIB : 4 * MIB] == image[3 * MIB : 4 * MIB]
    assert _table(final).warnings == ()


def test_gpt_an_entry_that_protects_what_is_not_there() -> None:
    """Anything can stand there: only its type is looked at."""
    image = _grown(gpt_image(4 * MIB, (Gpt(1, 2048, 4095),)), MIB)
    struct.pack_into("<II", image, 446 + 8, 0xFFFF0000, 1)
    with pytest.raises(BadPartitionTable, match="protective MBR"):
        _plan(image, 1)


@pytest.mark.parametrize("make", ["gpt", "dos"])
def test_what_is_in_the_way_is_named(make: str) -> None:
    if make == "gpt":
        image = _grown(gpt_image(8 * MIB, (Gpt(1, 2048, 4095), Gpt(2, 4096, 6143))), 4 * MIB)
    else:
        image = _grown(mbr_image(8 * MIB, (Mbr(1, 0x83, 2048, 2048), Mbr(2, 0x83, 4096, 2048))), 4 * MIB)
    with pytest.raises(NoRoomToGrow, match="partition 1 cannot grow: partition 2 follows"):
        _plan(image, 1)
    assert _sizes(_after(image, _plan(image, 2))[-1])[2] > 4 * MIB


def test_into_a_gap() -> None:
    image = gpt_image(16 * MIB, (Gpt(1, 2048, 4095), Gpt(2, 20480, 22527)))
    assert _sizes(_after(image, _plan(image, 1))[-1]) == {1: 9 * MIB, 2: MIB}


def test_a_full_partition_is_a_success() -> None:
    image = mbr_image(4 * MIB, (Mbr(1, 0x83, 2048, 6144),))
    assert _plan(image, 1) == Growth(_table(image).partitions[0], ())


def test_no_such_partition() -> None:
    image = mbr_image(4 * MIB, (Mbr(1, 0x83, 2048, 6144),))
    with pytest.raises(NotFound, match="no partition 2"):
        _plan(image, 2)


def test_a_whole_disk() -> None:
    assert _plan(bytearray(4 * MIB), 0).partition.size == 4 * MIB


def test_mbr_primary() -> None:
    image = _grown(mbr_image(4 * MIB, (Mbr(1, 0x83, 2048, 2048, flag=0x80), Mbr(3, 0x82, 4096, 2048))), 5 * MIB)
    growth = _plan(image, 3)
    assert [write.offset for write in growth.writes] == [0]
    final = _after(image, growth)[-1]
    assert _sizes(final) == {1: MIB, 3: 7 * MIB}
    assert final[:440] == image[:440] and final[446:462] == image[446:462]
    assert _table(final).uuid == _table(image).uuid


def test_mbr_logical_and_all_around_it() -> None:
    container = 4096
    logicals = ((0x83, 6144, 2048), (0x83, 10240, 2048))
    image = mbr_image(
        8 * MIB, (Mbr(1, 0x83, 2048, 2048), Mbr(2, 0x0F, container, 10240)), logical_chain(container, logicals)
    )
    image = _grown(image, 8 * MIB)
    growth = _plan(image, 6)
    assert [write.offset for write in growth.writes] == [0, container * 512, 10239 * 512]
    for state in _after(image, growth):
        found = _sizes(state)
        assert (found[1], found[5]) == (MIB, MIB)
        assert found[6] in (MIB, 11 * MIB)
        assert _after(state, _plan(state, 6))[-1] == _after(image, growth)[-1]
    final = _after(image, growth)[-1]
    assert _sizes(final)[6] == 11 * MIB
    assert struct.unpack_from("<II", final, 446 + 16 + 8) == (container, 32768 - container)
    with pytest.raises(NoRoomToGrow, match="the extended partition follows"):
        _plan(final, 1)


def test_mbr_a_logical_one_grows_up_to_the_next_link() -> None:
    container = 2048
    logicals = ((0x83, 4096, 2048), (0x83, 12288, 2048))  # the EBR of the second one stands in 12287
    image = mbr_image(8 * MIB, (Mbr(1, 0x05, container, 14336),), logical_chain(container, logicals))
    assert _sizes(_after(image, _plan(image, 5))[-1]) == {5: 3 * MIB, 6: MIB}


def test_mbr_a_primary_behind_the_container_limits_it() -> None:
    container = 2048
    image = mbr_image(
        16 * MIB,
        (Mbr(1, 0x05, container, 4096), Mbr(2, 0x83, 16384, 2048)),
        logical_chain(container, ((0x83, 4096, 1024),)),
    )
    assert _sizes(_after(image, _plan(image, 5))[-1]) == {2: MIB, 5: 6 * MIB}


def test_mbr_ends_at_two_tebibytes() -> None:
    """Sectors are counted in 32 bits."""
    image = mbr_image(4 * MIB, (Mbr(1, 0x83, 2048, 2048),))
    size = 3 << 40
    read = reader(image)
    growth = plan(read, size, discover(read, size, 512), 1)
    assert growth.partition.start + growth.partition.size == 2 << 40
    assert struct.unpack_from("<I", growth.writes[0].data, 446 + 12)[0] == (1 << 32) - 2048
    assert growth.writes[0].data[446 + 5 : 446 + 8] == b"\xfe\xff\xff"


@settings(max_examples=150)
@given(
    parts=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 9000)), min_size=1, max_size=5),
    by=st.integers(0, 20000),
    data=st.data(),
)
def test_whatever_the_layout_nothing_is_lost(parts: list[tuple[int, int]], by: int, data: st.DataObject) -> None:
    """After each write the table is valid; no partition moves, shrinks, or touches another."""
    at, entries = 34, []
    for slot, (gap, length) in enumerate(parts, start=1):
        entries.append(Gpt(slot, at + gap, at + gap + length - 1))
        at += gap + length
    image = _grown(gpt_image((at + 34) * 512, tuple(entries)), by * 512)
    number = data.draw(st.integers(1, len(parts)))
    before = _table(image)
    try:
        growth = _plan(image, number)
    except NoRoomToGrow:
        assert number < len(parts)
        return
    for state in _after(image, growth):
        after = _table(state)  # refuses overlaps, and whatever lies outside of the device
        for old, new in zip(before.partitions, after.partitions, strict=True):
            assert old.start == new.start
            assert new.size == old.size or (new.number == number and new.size >= old.size)
