"""Reading fstab, whatever is in it."""

from __future__ import annotations

import dataclasses
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapper_core.errors import BadFstab
from mapper_core.tree.fstab import MAX_ENTRIES, MAX_SIZE, FstabEntry, FstabTable, parse, render

pytestmark = pytest.mark.unit


def only(content: bytes) -> FstabEntry:
    (entry,) = parse(content).entries
    return entry


def test_six_fields() -> None:
    entry = only(b"UUID=0a1b\t/home  ext4 \t noatime,errors=remount-ro  1\t2  \n")
    assert entry == FstabEntry(
        1, "UUID=0a1b", "/home", "ext4", ("noatime", "errors=remount-ro"), 1, 2,
        "UUID=0a1b\\x09/home  ext4 \\x09 noatime,errors=remount-ro  1\\x092",
    )  # fmt: skip


@pytest.mark.parametrize("line", [b"/dev/vda1 / ext4", b"/dev/vda1 / ext4 defaults", b"/dev/vda1 / ext4 defaults 0"])
def test_short_lines(line: bytes) -> None:
    entry = only(line)
    assert (entry.options, entry.freq, entry.passno) == (("defaults",), 0, 0)


@pytest.mark.parametrize(
    "line", [b"LABEL=x / ext4 # root", b"LABEL=x / ext4 defaults 0 0 # root", b"LABEL=x / ext4 ro 0 1 #"]
)
def test_comment_at_the_end(line: bytes) -> None:
    assert only(line).spec == "LABEL=x"


def test_lines_that_do_not_count() -> None:
    """P-07: comments, blank lines, CRLF, a byte order mark, no newline at the end; numbers of lines stay right."""
    content = b"\xef\xbb\xbf# comment\r\n\r\n \t \r\n  #LABEL=a / ext4\r\nLABEL=b / ext4 ro\r\nLABEL=c /home xfs"
    assert [(entry.line, entry.spec, entry.options) for entry in parse(content).entries] == [
        (5, "LABEL=b", ("ro",)),
        (6, "LABEL=c", ("defaults",)),
    ]
    assert parse(b"") == FstabTable()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (rb"/a\040b", "/a b"),
        (rb"/a\011b", "/a\tb"),
        (rb"/a\012b", "/a\nb"),
        (rb"/a\134b", "/a\\b"),
        (rb"/a\043b", "/a#b"),
        (rb"/\303\244", "/ä"),
        (rb"/a\04", "/a\\04"),
        (rb"/a\999", "/a\\999"),
        (rb"/a\400", "/a\\400"),
        (rb"/a\x20b", "/a\\x20b"),
        (rb"/a\134040", "/a\\040"),
        (rb"/a\\040", "/a\\ "),
        ("/größe".encode(), "/größe"),
        (b"/\xff\xfe", "/\udcff\udcfe"),
    ],
)
def test_escapes(written: bytes, meant: str) -> None:
    """P-07."""
    assert only(b"LABEL=x " + written + b" ext4").target == meant


def test_options() -> None:
    assert only(b"a /b ext4 ,ro,,noatime,").options == ("ro", "noatime")
    assert only(b"a /b ext4 ,").options == ("defaults",)
    quoted = only(b'a /b ext4 ro,context="system_u:object_r:tmp_t:s0:c1,c2",nosuid').options
    assert quoted == ("ro", 'context="system_u:object_r:tmp_t:s0:c1,c2"', "nosuid")
    assert only(b'a /b ext4 a"b,c').options == ('a"b', "c")


def test_quotes_are_kept() -> None:
    assert only(b'UUID="0a1b" / ext4').spec == 'UUID="0a1b"'


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"LABEL=x / ext4\ngarbage\n", 2, "1 fields"),
        (b"/dev/vda1 /\n", 1, "2 fields"),
        (b"a b c d 0 0 extra", 1, "7 fields"),
        (b"a /b ext4 ro one 0", 1, "'one' should be a number"),
        (b"a /b ext4 ro 0 -1", 1, "'-1' should be a number"),
        (b"a /b ext4 ro 0 99999999999", 1, "should be a number"),
        ("a /b ext4 ro ² 0".encode(), 1, "should be a number"),
        (b"\n\na /b\0c ext4", 3, "NUL"),
        (rb"a /b\000c ext4", 1, "NUL"),
        (b"\x7fELF\x02\x01\x01\0\0\0", 1, "fields"),
    ],
)
def test_garbage(content: bytes, line: int, message: str) -> None:
    with pytest.raises(BadFstab, match=message) as caught:
        parse(content)
    assert caught.value.subject == f"/etc/fstab line {line}"


def test_limits() -> None:
    """S-14."""
    line = b"tmpfs /tmp tmpfs\n"
    assert len(parse(line * MAX_ENTRIES).entries) == MAX_ENTRIES
    with pytest.raises(BadFstab, match="more than 1024 entries"):
        parse(line * (MAX_ENTRIES + 1))
    parse(b"#" * MAX_SIZE)
    with pytest.raises(BadFstab, match="1048577 bytes"):
        parse(b"#" * (MAX_SIZE + 1))


def test_raw_line_can_be_printed() -> None:
    assert only(b"a /\x1b[2J ext4\r\n").raw == "a /\\x1b[2J ext4"


#: Any bytes but NUL, which no field can hold; fields are never empty.
fields = st.binary(min_size=1, max_size=40).filter(lambda raw: b"\0" not in raw).map(os.fsdecode)
options = st.binary(min_size=1, max_size=20).filter(lambda raw: not set(raw) & set(b'\0,"')).map(os.fsdecode)
quoted_options = st.sampled_from(['context="a,b"', '"a"', '"x,y"z'])


@given(
    st.lists(
        st.builds(
            FstabEntry,
            line=st.just(0),
            spec=fields,
            target=fields,
            fstype=fields,
            options=st.lists(options | quoted_options, max_size=5).map(tuple),
            freq=st.integers(0, 999999999),
            passno=st.integers(0, 999999999),
        ),
        max_size=8,
    )
)
def test_round_trip(entries: list[FstabEntry]) -> None:
    """P-07: what is written is read back, whatever bytes are in it."""
    parsed = parse(render(FstabTable(tuple(entries)))).entries
    expected = [
        dataclasses.replace(entry, line=number, options=entry.options or ("defaults",))
        for number, entry in enumerate(entries, start=1)
    ]
    assert [dataclasses.replace(entry, raw="") for entry in parsed] == expected


@given(
    st.binary(max_size=400)
    | st.lists(
        st.sampled_from([b" ", b"\t", b"\n", b"\\", b"0", b"4", b"#", b"/", b"a", b'"', b",", b"\r", b"\xff"])
    ).map(b"".join)
)
def test_any_bytes(content: bytes) -> None:
    """The only failure is the one that names the line; what was read survives a round trip."""
    try:
        table = parse(content)
    except BadFstab as error:
        assert error.subject.startswith("/etc/fstab line ")
        return
    again = parse(render(table))
    plain = [[dataclasses.replace(entry, line=0, raw="") for entry in item.entries] for item in (table, again)]
    assert plain[0] == plain[1]
