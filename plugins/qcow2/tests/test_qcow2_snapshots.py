"""The table of internal snapshots, made of bytes."""

import struct
from contextlib import suppress
from pathlib import Path
from typing import cast

import mapper_qcow2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mapper_qcow2.snapshot_table import Entry, read_snapshots, snapshot_id

from mapper_core import Attachment, Disk, Transports
from mapper_core.errors import (
    CorruptImage,
    MapperError,
    NotSupported,
    SnapshotMissing,
    TruncatedImage,
    UnsupportedFormat,
)
from mapper_core.testing.images import qcow2

pytestmark = pytest.mark.unit

CLUSTER = 1 << 16
AT = 4 * CLUSTER


def entry(identifier: bytes, name: bytes, *, extra: bytes = b"", seconds: int = 7) -> bytes:
    """An entry as qemu writes it."""
    fixed = struct.pack(">QIHHIIQII", 0, 1, len(identifier), len(name), seconds, 0, 0, 0, len(extra))
    raw = fixed + extra + identifier + name
    return raw.ljust(-(-len(raw) // 8) * 8, b"\0")


def image(tmp_path: Path, table: bytes, count: int) -> str:
    path = tmp_path / "disk"
    content = qcow2(size=1 << 20, snapshots=count, snapshots_offset=AT)
    path.write_bytes(content.ljust(AT, b"\0") + table)
    return str(path)


def test_none(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(qcow2())
    assert read_snapshots(f"{tmp_path}/disk") == ()


@pytest.mark.parametrize("attachment", [None, Attachment("/dev/loop0", "storage_daemon")])
def test_an_image_whose_data_is_elsewhere_has_none(tmp_path: Path, attachment: Attachment | None) -> None:
    """Said before any program is asked, also while it is mapped: qemu says nothing that a person understands."""
    (tmp_path / "disk").write_bytes(qcow2(data_file=b"data"))
    (tmp_path / "data").write_bytes(bytes(1 << 20))
    nobody = cast(Transports, None)
    with pytest.raises(NotSupported, match="external data file"):
        mapper_qcow2.snapshot_create(Disk(f"{tmp_path}/disk", "qcow2"), "s", attachment, nobody)


def test_entries_with_and_without_extra_data(tmp_path: Path) -> None:
    table = entry(b"1", b"old") + entry(b"7", b"new", extra=struct.pack(">QQQ", 0, (1 << 30) + 100, 9), seconds=8)
    path = image(tmp_path, table, 2)
    assert read_snapshots(path) == (Entry("1", "old", 1 << 20, 7), Entry("7", "new", 1 << 30, 8))
    assert snapshot_id(path, "new") == "7"
    with pytest.raises(SnapshotMissing):
        snapshot_id(path, "7")


def test_a_name_cannot_steer_a_terminal(tmp_path: Path) -> None:
    path = image(tmp_path, entry(b"1", b"\x1b[2J\xff\n"), 1)
    assert read_snapshots(path)[0].name == "\\x1b[2J\\xff\\x0a"


@pytest.mark.parametrize(
    ("table", "count", "kind"),
    [
        (entry(b"1", b"a") + entry(b"1", b"b"), 2, CorruptImage),
        (entry(b"1", b"a", extra=bytes(1025)), 1, CorruptImage),
        (entry(b"1", b"a")[:41], 1, TruncatedImage),
        (entry(b"1", b"a"), 2, TruncatedImage),
        (b"", 65537, CorruptImage),
        (b"".join(entry(b"%d" % number, b"x" * 65535) for number in range(70)), 70, UnsupportedFormat),
    ],
    ids=["two ids", "extra data", "half an entry", "one too few", "too many", "too large"],
)
def test_tables_that_are_none(tmp_path: Path, table: bytes, count: int, kind: type[MapperError]) -> None:
    with pytest.raises(kind):
        read_snapshots(image(tmp_path, table, count))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.binary(max_size=400),
    count=st.integers(0, 1 << 32) | st.integers(0, 8),
    offset=st.sampled_from([AT, 0, CLUSTER, AT + 8, 1 << 62, AT * 2]),
)
def test_whatever_it_says(tmp_path: Path, table: bytes, count: int, offset: int) -> None:
    path = image(tmp_path, table, count & 0xFFFFFFFF)
    raw = bytearray(Path(path).read_bytes())
    struct.pack_into(">Q", raw, 64, offset)
    Path(path).write_bytes(raw)
    with suppress(MapperError):
        assert len(read_snapshots(path)) == count & 0xFFFFFFFF
