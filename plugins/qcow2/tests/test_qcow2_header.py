"""The qcow2 inspector on headers made of bytes."""

import struct
from pathlib import Path
from typing import Any

import pytest
from mapper_qcow2.header import inspect_image

from mapper_core.errors import (
    BackingFileMissing,
    CorruptImage,
    FormatMismatch,
    ImageNotFound,
    MapperError,
    TruncatedImage,
    UnsupportedFormat,
)
from mapper_core.model import ReferenceKind
from mapper_core.testing.images import BACKING_FORMAT, DATA_FILE, FEATURE_NAMES, qcow2

pytestmark = pytest.mark.unit

TIB = 1 << 40


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "disk.qcow2"


def refusal(image: Path, content: bytes) -> MapperError:
    image.write_bytes(content)
    with pytest.raises(MapperError) as caught:
        inspect_image(str(image), ())
    return caught.value


def test_version_3(image: Path) -> None:
    image.write_bytes(qcow2(size=10 << 30))
    info = inspect_image(str(image), ())
    assert (info.format, info.variant, info.virtual_size) == ("qcow2", "v3", 10 << 30)
    assert info.path == str(image)
    assert info.file_size == image.stat().st_size
    assert info.writable
    assert info.backing is None
    assert dict(info.detail) == {"cluster size": "65536", "compression": "zlib", "refcount bits": "16"}


def test_version_2(image: Path) -> None:
    image.write_bytes(qcow2(version=2, cluster_bits=12))
    info = inspect_image(str(image), ())
    assert (info.variant, info.virtual_size) == ("v2", 1 << 20)
    assert dict(info.detail)["cluster size"] == "4096"


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"incompatible": 1}, "refcounts", "out of date, qemu repairs them when it opens the image for writing"),
        ({"incompatible": 8, "compression": 1}, "compression", "zstd"),
        ({"incompatible": 16}, "extended L2", "yes"),
        ({"compatible": 1}, "lazy refcounts", "yes"),
        ({"snapshots": 3, "snapshots_offset": 1 << 17}, "internal snapshots", "3"),
    ],
)
def test_features_are_told(image: Path, fields: dict[str, Any], name: str, value: str) -> None:
    # the snapshot table lies where nothing else does: the refcount block is not checked for overlaps
    image.write_bytes(qcow2(**fields))
    assert dict(inspect_image(str(image), ()).detail)[name] == value


def test_what_is_left_of_a_sector_is_cut_off(image: Path) -> None:
    """As qemu does; the size must be that of the block device."""
    image.write_bytes(qcow2(size=(1 << 20) - 100))
    assert inspect_image(str(image), ()).virtual_size == (1 << 20) - 512


@pytest.mark.parametrize(
    "fields",
    [
        {"cluster_bits_field": 8},
        {"cluster_bits_field": 22},
        {"cluster_bits_field": 0xFFFFFFFF},
        {"l1_entries": 0},
        {"size_field": 1 << 63},
        {"size_field": (1 << 64) - 1},
        {"l1_offset": 3 * 65536 + 8},
        {"l1_offset": 0},
        {"l1_offset": 65536},
        {"refcount_offset": 0},
        {"refcount_offset": 65536 + 512},
        {"refcount_clusters": 0},
        {"refcount_clusters": 129},
        {"refcount_clusters": 0xFFFFFFFF},
        {"refcount_order": 7},
        {"header_length": 96},
        {"header_length": 0},
        {"header_length": 108},
        {"header_length": 1 << 17},
        {"snapshots": 65537, "snapshots_offset": 1 << 17},
        {"snapshots": 1},
        {"snapshots": 1, "snapshots_offset": (1 << 17) + 8},
        {"backing_offset": 80, "backing_size": 4},
        {"backing_offset": 512, "backing_size": 1024},
        {"incompatible": 2},
        {"incompatible": 4},
        {"incompatible": 8},
        {"compression": 1},
        {"autoclear": 2},
    ],
)
def test_contradictions(image: Path, fields: dict[str, Any]) -> None:
    assert isinstance(refusal(image, qcow2(**fields)), CorruptImage)


def test_extended_l2_entries_need_large_clusters(image: Path) -> None:
    assert isinstance(refusal(image, qcow2(cluster_bits=13, incompatible=16)), CorruptImage)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"version_field": 1}, "version 1"),
        ({"version_field": 4}, "version 4"),
        ({"encryption": 1}, "encrypted"),
        ({"encryption": 2}, "encrypted"),
        ({"incompatible": 8, "compression": 2}, "compression type 2"),
        ({"incompatible": 1 << 5}, "bit 5"),
        ({"incompatible": 1 << 63}, "bit 63"),
        ({"size_field": 1 << 62, "l1_entries": 0xFFFFFFFF}, "L1 table is larger"),
        ({"l1_entries": (32 << 20) // 8 + 1}, "L1 table is larger"),
    ],
)
def test_variants_that_are_not_handled(image: Path, fields: dict[str, Any], said: str) -> None:
    error = refusal(image, qcow2(**fields))
    assert isinstance(error, UnsupportedFormat)
    assert said in str(error)


def test_unknown_features_are_called_by_the_names_in_the_image(image: Path) -> None:
    table = b"".join(
        bytes([kind, bit]) + name.ljust(46, b"\0") for kind, bit, name in [(0, 9, b"time travel"), (1, 10, b"wrong")]
    )
    names = [(FEATURE_NAMES, table)]
    error = refusal(image, qcow2(extensions=names, incompatible=(1 << 9) | (1 << 10)))
    assert "bit 9 (time travel), bit 10" in str(error)
    assert "wrong" not in str(error)


def test_the_name_of_a_feature_cannot_write_to_the_terminal(image: Path) -> None:
    table = bytes([0, 9]) + b"\x1b[2J".ljust(46, b"\0")
    assert "\x1b" not in str(refusal(image, qcow2(extensions=[(FEATURE_NAMES, table)], incompatible=1 << 9)))


@pytest.mark.parametrize(
    "length", [0, 3, 4, 71, 72, 103, 104, 111, 112, 65536, 2 * 65536 - 1, 3 * 65536, 3 * 65536 + 7]
)
def test_a_file_that_ends_before_its_tables_do(image: Path, length: int) -> None:
    error = refusal(image, qcow2()[:length])
    assert isinstance(error, FormatMismatch if 0 < length < 4 else TruncatedImage)
    assert str(image) in str(error)


def test_the_last_table_need_not_fill_its_cluster(image: Path) -> None:
    """qemu-img writes the L1 table of an empty image without the rest of its cluster."""
    content = qcow2()
    assert len(content) % 65536 == 8
    image.write_bytes(content)
    inspect_image(str(image), ())


def test_an_l2_table_behind_the_end(image: Path) -> None:
    content = bytearray(qcow2())
    struct.pack_into(">Q", content, 3 * 65536, (1 << 63) | 4 * 65536)
    assert isinstance(refusal(image, bytes(content)), TruncatedImage)


@pytest.mark.parametrize("entry", [(1 << 63) | 9 * 65536, (1 << 62) | 9 * 65536 + 77])
def test_a_cluster_behind_the_end(image: Path, entry: int) -> None:
    """qemu would read zeros there. Plain and compressed."""
    content = bytearray(qcow2())
    struct.pack_into(">Q", content, 3 * 65536, (1 << 63) | 4 * 65536)
    content = content.ljust(5 * 65536, b"\0")
    struct.pack_into(">Q", content, 4 * 65536, entry)
    struct.pack_into(">10H", content, 2 * 65536, *([1] * 10))
    assert isinstance(refusal(image, bytes(content)), TruncatedImage)


def test_an_l2_table_that_is_cut(image: Path) -> None:
    """Its entries are missing, and with them all that shows that clusters are."""
    content = bytearray(qcow2().ljust(4 * 65536, b"\0") + bytes(4096))
    struct.pack_into(">Q", content, 3 * 65536, 4 * 65536)
    struct.pack_into(">10H", content, 2 * 65536, *([1] * 10))
    assert isinstance(refusal(image, bytes(content)), TruncatedImage)


def test_a_leaked_cluster_behind_the_end_is_no_damage(image: Path) -> None:
    """A crash between the refcount and the data leaves one; nothing refers to it."""
    content = bytearray(qcow2())
    struct.pack_into(">10H", content, 2 * 65536, *([1] * 10))
    image.write_bytes(content)
    inspect_image(str(image), ())


# --- extensions ---------------------------------------------------------------------------------------------


def test_an_extension_that_leaves_its_place(image: Path) -> None:
    for length in (0xFFFFFFFF, 65536):
        content = bytearray(qcow2(extensions=[(0x12345678, b"x" * 8)]))
        struct.pack_into(">I", content, 116, length)
        assert isinstance(refusal(image, bytes(content)), CorruptImage)


def test_extensions_of_others_are_skipped(image: Path) -> None:
    image.write_bytes(qcow2(extensions=[(0x23852875, b"b" * 24), (0x12345678, b"x" * 5000)]))
    assert inspect_image(str(image), ()).virtual_size == 1 << 20


def test_too_many_extensions(image: Path) -> None:
    assert isinstance(refusal(image, qcow2(extensions=[(0x12345678, b"")] * 65)), CorruptImage)


@pytest.mark.parametrize("kind", [BACKING_FORMAT, DATA_FILE])
def test_a_name_that_is_there_twice(image: Path, kind: int) -> None:
    """Which of the two counts is a matter of taste, and must not be."""
    content = qcow2(extensions=[(kind, b"raw"), (kind, b"qcow2")], incompatible=4)
    assert isinstance(refusal(image, content), CorruptImage)


# --- what it refers to --------------------------------------------------------------------------------------


def test_a_chain_of_three(image: Path, tmp_path: Path) -> None:
    image.write_bytes(qcow2(size=4 << 20, backing=b"middle", backing_format=b"qcow2"))
    (tmp_path / "middle").write_bytes(qcow2(size=2 << 20, backing=b"base", backing_format=b"raw"))
    (tmp_path / "base").write_bytes(b"x" * 1000)
    info = inspect_image(str(image), ())
    assert [(layer.format, layer.virtual_size) for layer in info.chain()] == [
        ("qcow2", 4 << 20),
        ("qcow2", 2 << 20),
        ("raw", 1024),
    ]
    assert [(r.kind, r.written, r.path, r.format) for r in info.references] == [
        (ReferenceKind.BACKING, "middle", str(tmp_path / "middle"), "qcow2")
    ]


def test_a_name_of_no_length_is_no_backing_file(image: Path) -> None:
    image.write_bytes(qcow2(backing_offset=200, backing_size=0))
    assert inspect_image(str(image), ()).backing is None
    image.write_bytes(qcow2(backing_offset=0, backing_size=20))
    assert inspect_image(str(image), ()).backing is None


def test_a_backing_file_of_a_format_that_is_not_said(image: Path, tmp_path: Path) -> None:
    """CVE-2013-1922: qemu would look at its first bytes. The remedy is a command that can be pasted."""
    (tmp_path / "my base").write_bytes(b"")
    error = refusal(image, qcow2(backing=b"my base", backing_format=b""))
    assert isinstance(error, UnsupportedFormat)
    assert f"qemu-img rebase -u -f qcow2 -F FORMAT -b 'my base' {image}" in error.hint


@pytest.mark.parametrize("declared", [b"vmdk", b"file", b"QCOW2", b"raw\0", b"\xff"])
def test_a_backing_file_of_a_format_that_is_not_handled(image: Path, tmp_path: Path, declared: bytes) -> None:
    (tmp_path / "base").write_bytes(b"")
    assert isinstance(refusal(image, qcow2(backing=b"base", backing_format=declared)), UnsupportedFormat)


def test_a_backing_file_that_is_not_what_was_declared(image: Path, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"x" * 4096)
    error = refusal(image, qcow2(backing=b"base", backing_format=b"qcow2"))
    assert isinstance(error, FormatMismatch)
    assert str(tmp_path / "base") in str(error)


def test_a_raw_backing_file_stays_raw(image: Path, tmp_path: Path) -> None:
    """S-01: its guest wrote a qcow2 header into its first bytes, with a backing file."""
    (tmp_path / "base").write_bytes(qcow2(backing=b"/etc/shadow"))
    image.write_bytes(qcow2(backing=b"base", backing_format=b"raw"))
    base = inspect_image(str(image), ()).backing
    assert base is not None
    assert (base.format, base.references, base.backing) == ("raw", (), None)


def test_a_missing_backing_file(image: Path) -> None:
    error = refusal(image, qcow2(backing=b"gone", backing_format=b"raw"))
    assert isinstance(error, BackingFileMissing)
    assert "'gone'" in str(error)


def test_a_truncated_backing_file(image: Path, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(qcow2()[:70000])
    error = refusal(image, qcow2(backing=b"base", backing_format=b"qcow2"))
    assert isinstance(error, TruncatedImage)
    assert error.subject == str(tmp_path / "base")


def test_a_chain_in_a_circle(image: Path, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(qcow2(backing=image.name.encode(), backing_format=b"qcow2"))
    assert isinstance(refusal(image, qcow2(backing=b"b", backing_format=b"qcow2")), CorruptImage)
    assert isinstance(refusal(image, qcow2(backing=image.name.encode(), backing_format=b"qcow2")), CorruptImage)


@pytest.mark.parametrize(("images", "works"), [(64, True), (65, False)])
def test_the_depth_of_a_chain(tmp_path: Path, images: int, works: bool) -> None:
    for number in range(images):
        backing = b"%d" % (number + 1) if number < images - 1 else b""
        (tmp_path / f"{number}").write_bytes(qcow2(backing=backing, backing_format=b"qcow2"))
    if works:
        assert len(inspect_image(str(tmp_path / "0"), ()).chain()) == images
    else:
        with pytest.raises(UnsupportedFormat):
            inspect_image(str(tmp_path / "0"), ())


def test_a_data_file(image: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(1 << 20))
    image.write_bytes(qcow2(data_file=b"data", autoclear=2))
    info = inspect_image(str(image), ())
    assert [(r.kind, r.path, r.format) for r in info.references] == [
        (ReferenceKind.DATA, str(tmp_path / "data"), "raw")
    ]
    assert info.file_size == image.stat().st_size + (1 << 20)
    assert dict(info.detail)["data file"] == "raw"


def test_a_raw_data_file_that_is_too_short(image: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(1000))
    assert isinstance(refusal(image, qcow2(data_file=b"data", autoclear=2)), TruncatedImage)


def test_the_image_is_not_its_own_data_file(image: Path) -> None:
    assert isinstance(refusal(image, qcow2(data_file=image.name.encode())), CorruptImage)


def test_a_missing_image(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound):
        inspect_image(str(tmp_path / "gone"), ())


def test_recognize() -> None:
    import mapper_qcow2

    assert mapper_qcow2.recognize(qcow2()[:4096])
    assert mapper_qcow2.recognize(qcow2(version=2)[:4096])
    for other in (qcow2(version_field=1)[:4096], b"", b"QFI\xfb", bytes(4096)):
        assert not mapper_qcow2.recognize(other)
