"""Metadata of volume groups, as LVM writes them and as nobody should."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapper_lvm import group, inside, label, text

from mapper_core.errors import BadPartitionTable
from mapper_core.model import PartitionTable

pytestmark = pytest.mark.unit

MIB = 1 << 20
SIZE = 64 * MIB
PV = "aaaaaa-bbbb-cccc-dddd-eeee-ffff-gggggg"
OTHER = "zzzzzz-bbbb-cccc-dddd-eeee-ffff-gggggg"
VG = "VVVVVV-bbbb-cccc-dddd-eeee-ffff-gggggg"
AREA = 4096
AREA_SIZE = MIB - AREA

#: One group: extents of 1 MiB from 1 MiB on.
GROUP = """
vg0 {{
  id = "{vg}"
  seqno = {seqno}
  format = "lvm2"   # informational
  status = [{status}]
  flags = []
  extent_size = 2048
  max_lv = 0
  physical_volumes {{
    pv0 {{ id = "{pv}" device = "/dev/sda2" status = ["ALLOCATABLE"] dev_size = 131072 pe_start = 2048 pe_count = {count} }}
    pv1 {{ id = "{other}" pe_start = 2048 pe_count = 9 }}
  }}
  logical_volumes {{ {volumes} }}
}}
contents = "Text Format Volume Group"
version = 1
description = "Created *after* executing 'lvcreate \\"x\\"'"
creation_time = 1700000000
"""


def lv(name: str, *segments: tuple[int, int, int], pv: str = "pv0", status: str = '"READ", "WRITE", "VISIBLE"') -> str:
    """A linear volume of segments: (start_extent, extent_count, extent on the physical volume)."""
    body = "".join(
        f'segment{number} {{ start_extent = {start} extent_count = {count} type = "striped" stripe_count = 1 '
        f'stripes = ["{pv}", {at}] }}\n'
        for number, (start, count, at) in enumerate(segments, start=1)
    )
    uuid = f"{name[:1] * 6}-bbbb-cccc-dddd-eeee-ffff-gggggg"
    return f'{name} {{ id = "{uuid}" status = [{status}] segment_count = {len(segments)} {body} }}\n'


def special(name: str, kind: str, **values: str) -> str:
    more = " ".join(f'{key} = "{value}"' for key, value in values.items())
    return (
        f'{name} {{ id = "ssssss-bbbb-cccc-dddd-eeee-ffff-gggggg" status = ["READ", "VISIBLE"] segment_count = 1 '
        f'segment1 {{ start_extent = 0 extent_count = 1 type = "{kind}" {more} }} }}\n'
    )


def metadata(*volumes: str, seqno: int = 1, count: int = 60, status: str = '"READ"') -> bytes:
    content = GROUP.format(
        vg=VG, pv=PV, other=OTHER, seqno=seqno, count=count, status=status, volumes="\n".join(volumes)
    )
    return content.encode() + b"\0"


def area(content: bytes, offset: int = 512, *, start: int = AREA, size: int = AREA_SIZE) -> bytes:
    """A metadata area with a text that begins at ``offset`` and may go round its end."""
    head = struct.pack("<16sIQQ", b"\x20LVM2\x20x[5A%r0N*>", 1, start, size)
    head += struct.pack("<QQII", offset, len(content), label.checksum(content), 0)
    head = head.ljust(508, b"\0")
    raw = bytearray(size)
    raw[:512] = struct.pack("<I", label.checksum(head)) + head
    first = min(len(content), size - offset)
    raw[offset : offset + first] = content[:first]
    raw[512 : 512 + len(content) - first] = content[first:]
    return bytes(raw)


def device(*contents: bytes, sector: int = 1, offset: int = 512, size: int = AREA_SIZE) -> bytearray:
    """The beginning of a disk that is a physical volume as a whole, an area for each text; the rest are zeros."""
    header = PV.replace("-", "").encode() + struct.pack("<Q", SIZE) + struct.pack("<QQQQ", MIB, 0, 0, 0)
    starts = [AREA + number * size for number in range(len(contents))]
    header += b"".join(struct.pack("<QQ", start, size) for start in starts) + bytes(16)
    body = (struct.pack("<I8s", 32, b"LVM2 001") + header).ljust(512 - 20, b"\0")
    raw = bytearray(AREA)
    raw[sector * 512 : sector * 512 + 512] = struct.pack("<8sQI", b"LABELONE", sector, label.checksum(body)) + body
    for start, content in zip(starts, contents, strict=True):
        raw += area(content, offset, start=start, size=size)
    return raw


def look(raw: bytearray) -> PartitionTable | None:
    def read(offset: int, length: int) -> bytes:
        length = min(length, SIZE - offset)
        return bytes(raw[offset : offset + length]).ljust(length, b"\0")

    return inside.find(read, SIZE, 512)


def find(raw: bytearray) -> PartitionTable:
    found = look(raw)
    assert found is not None
    return found


@pytest.mark.parametrize("sector", range(4))
@pytest.mark.parametrize("offset", [512, 5120, AREA_SIZE - 100])
def test_a_whole_disk(sector: int, offset: int) -> None:
    """The label may be in four places, and the text may go round the end of its area."""
    table = find(device(metadata(lv("root", (0, 10, 0)), lv("my-home", (0, 5, 20))), sector=sector, offset=offset))
    assert table.scheme == "lvm"
    assert [(item.number, item.label, item.start, item.size) for item in table.partitions] == [
        (1, "vg0/my-home", 21 * MIB, 5 * MIB),
        (2, "vg0/root", 1 * MIB, 10 * MIB),
    ]
    assert table.partitions[0].names[:2] == ("/dev/vg0/my-home", "/dev/mapper/vg0-my--home")
    assert table.partitions[1].uuid == "rrrrrr-bbbb-cccc-dddd-eeee-ffff-gggggg"
    assert not table.warnings


def test_pieces_that_touch_are_one() -> None:
    (partition,) = find(device(metadata(lv("root", (0, 3, 4), (3, 2, 7))))).partitions
    assert (partition.start, partition.size) == (5 * MIB, 5 * MIB)


@pytest.mark.parametrize(
    ("volumes", "reason"),
    [
        (lv("root", (0, 3, 4), (3, 2, 20)), "lies in 2 pieces"),
        (lv("root", (0, 3, 4), pv="pv1"), "a part of it is on another disk"),
        (lv("root", (0, 3, 4)) + special("root_old", "snapshot", origin="root"), "belongs to a snapshot"),
        (special("root", "thin", thin_pool="pool"), "is of the type thin"),
        (special("root", "raid1"), "is of the type raid1"),
        (lv("root", (0, 3, 4)).replace("stripe_count = 1", "stripe_count = 2"), "is striped"),
    ],
)
def test_volumes_that_are_more_than_a_range_are_named(volumes: str, reason: str) -> None:
    table = find(device(metadata(volumes, lv("data", (0, 1, 30)))))
    assert [item.label for item in table.partitions] == ["vg0/data"]
    assert any(f"vg0/root is not used: it {reason}" in warning or reason in warning for warning in table.warnings)


def test_hidden_volumes_and_exported_groups() -> None:
    table = find(device(metadata(lv("pool_tdata", (0, 3, 4), status='"READ"'))))
    assert table.partitions == ()
    assert table.warnings == ()
    table = find(device(metadata(lv("root", (0, 3, 4)), status='"EXPORTED"')))
    assert table.partitions == ()
    assert "exported" in table.warnings[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (metadata(lv("a", (0, 9, 0)), lv("b", (0, 9, 8))), "overlap"),
        (metadata(lv("a", (0, 61, 0))), "do not exist"),
        (metadata(lv("a", (0, 1, -1))), "do not exist"),
        (metadata(lv("a", (0, 1, 0), pv="pv7")), "do not exist"),
        (metadata(lv("a", (0, 2, 0), (3, 2, 5))), "leave gaps"),
        (metadata(lv("a", (0, 2, 0)), count=64), "larger than the partition"),
        (metadata(lv("../../etc", (0, 2, 0))), "not allowed"),
        (metadata(lv("-rf", (0, 2, 0))), "LVM metadata"),
        (metadata(lv("a")), "no segments"),
        (metadata(lv("a", (0, 2, 0))).replace(b"segment_count = 1", b"segment_count = 999999"), "segment_count"),
        (metadata(lv("a", (0, 2, 0))).replace(b"extent_size = 2048", b"extent_size = 0"), "extent_size"),
        (metadata(lv("a", (0, 2, 0))).replace(b"pe_start = 2048", b"pe_start = 99999999999999999999999"), "too long"),
        (metadata(lv("a", (0, 2, 0))).replace(VG.encode(), b"short"), "id is missing"),
        (metadata(lv("a", (0, 2, 0))).replace(b"vg0", b"v/0"), "name of the volume group"),
        (metadata(lv("a", (0, 2, 0)), lv("a", (0, 2, 4))), "is there twice"),
        (metadata("x { " * 50), "nested too deeply"),
        (metadata() + b"\x01 ?", "not understood"),
        (b"vg0 {", "does not end"),
        (b'vg0 { a = [ "x"', "does not end"),
        (b"a = 1", "name of the volume group"),
        (b"", "damaged"),
    ],
)
def test_metadata_that_cannot_be_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(BadPartitionTable, match=message):
        find(device(content))


def test_a_damaged_area_is_not_a_disk_without_volumes() -> None:
    raw = device(metadata(lv("a", (0, 2, 0))))
    raw[AREA + 600] ^= 1
    with pytest.raises(BadPartitionTable, match="are damaged"):
        find(raw)
    raw = device(metadata(lv("a", (0, 2, 0))))
    raw[AREA + 8] ^= 1
    with pytest.raises(BadPartitionTable, match="are damaged"):
        find(raw)


def test_without_a_label_there_is_nothing() -> None:
    raw = device(metadata(lv("a", (0, 2, 0))))
    raw[512 + 100] ^= 1  # its checksum is wrong
    assert look(raw) is None


def test_the_newest_of_two_copies_counts() -> None:
    old = text.parse(metadata(seqno=3).decode().rstrip("\0"))
    new = text.parse(metadata(seqno=4).decode().rstrip("\0"))
    sections = [section for content in (new, old) if isinstance(section := content["vg0"], dict)]
    assert group.newest(sections)["seqno"] == 4


def test_two_groups_cannot_have_the_same_bytes() -> None:
    """It is the image that makes no sense, and not the plugin."""
    one = metadata(lv("root", (0, 10, 0)))
    other = one.replace(VG.encode(), OTHER.encode()).replace(b"vg0", b"vg1")
    with pytest.raises(BadPartitionTable, match="the volume vg0/root and the volume vg1/root overlap"):
        find(device(one, other))


def test_copies_of_one_text_are_read_once_and_too_much_text_not_at_all() -> None:
    """Eight areas with 4 MiB each took 12 s, and a disk can have 128 physical volumes."""
    many = metadata(lv("root", (0, 10, 0))).rstrip(b"\0") + b"#" * MIB + b"\n"
    assert len(find(device(many, many, many, many, many, size=2 * MIB)).partitions) == 1
    texts = [metadata(seqno=number).rstrip(b"\0") + b"#" * MIB + b"\n" for number in range(4)]
    with pytest.raises(BadPartitionTable, match="more than 4 MiB of LVM metadata"):
        find(device(*texts, size=2 * MIB))


def test_a_comment_costs_no_more_than_it_is_long() -> None:
    """Every "#" could have begun a comment of its own: 22 of them took two seconds, 40 as good as for ever."""
    began = time.process_time()
    with pytest.raises(BadPartitionTable, match="not understood"):
        find(device(metadata().rstrip(b"\0") + b"#" * 100_000 + b"\n!"))
    assert time.process_time() - began < 5


@given(st.integers(0, AREA + 3000), st.integers(0, 7))
def test_no_flipped_bit_leads_to_anything_but_an_answer(position: int, bit: int) -> None:
    """Of the label and the header of the area every bit is under a checksum; without one of them it must stay sane."""
    raw = RAW.copy()
    raw[position] ^= 1 << bit
    try:
        found = look(raw)
    except BadPartitionTable:
        return
    assert found is None or all(item.start > 0 and item.start + item.size <= SIZE for item in found.partitions)


RAW = device(metadata(lv("root", (0, 10, 0)), lv("home", (0, 5, 20))))


@given(st.text(alphabet='abc{}[]=", \n#1-.\\"', max_size=60))
def test_any_text_is_parsed_or_refused(content: str) -> None:
    try:
        text.parse(content)
    except BadPartitionTable as error:
        assert "LVM metadata" in error.message
