"""The vmdk inspector on headers and descriptors made of bytes."""

import os
import struct
from pathlib import Path
from typing import Any

import pytest
from mapper_vmdk.header import inspect_image

from mapper_core.errors import (
    BackingFileMissing,
    CorruptImage,
    ForbiddenReference,
    FormatMismatch,
    MapperError,
    TruncatedImage,
    UnsupportedFormat,
)
from mapper_core.model import ImageInfo, ReferenceKind
from mapper_core.testing.images import SECTOR, vmdk_descriptor, vmdk_sparse, vmdk_stream

pytestmark = pytest.mark.unit

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "disk.vmdk"


def inspect(image: Path, content: bytes) -> ImageInfo:
    image.write_bytes(content)
    return inspect_image(str(image), ())


def refusal(image: Path, content: bytes) -> MapperError:
    with pytest.raises(MapperError) as caught:
        inspect(image, content)
    return caught.value


def split(*extents: str, create_type: str = "twoGbMaxExtentSparse") -> bytes:
    return vmdk_descriptor(create_type=create_type, extents=extents)


# --- one file -----------------------------------------------------------------------------------------------


def test_monolithic_sparse(image: Path) -> None:
    info = inspect(image, vmdk_sparse(capacity=4096))
    assert (info.format, info.variant, info.virtual_size) == ("vmdk", "monolithicSparse", 2 * MIB)
    assert info.writable
    assert info.references == ()
    assert info.file_size == image.stat().st_size
    assert dict(info.detail) == {"grain size": "65536", "version": "1", "closed cleanly": "yes"}


def test_a_stream_can_only_be_read(image: Path) -> None:
    info = inspect(image, vmdk_stream())
    assert (info.variant, info.virtual_size, info.writable) == ("streamOptimized", MIB, False)


def test_a_renamed_image_opens(image: Path) -> None:
    """M-24: the descriptor inside still names the old file."""
    old = vmdk_descriptor(extents=['RW 2048 SPARSE "/vmfs/volumes/old/../name.vmdk"'])
    assert inspect(image, vmdk_sparse(descriptor=old)).virtual_size == MIB
    assert inspect(image, vmdk_stream(name="generated-stream.vmdk")).virtual_size == MIB


def test_changed_block_tracking_makes_an_image_read_only(image: Path) -> None:
    """qemu opens version 3 for reading only."""
    assert not inspect(image, vmdk_sparse(version=3)).writable


def test_tables_where_qemu_writes_the_descriptor_make_an_image_read_only(image: Path) -> None:
    """qemu writes 20 sectors when it changes the content id, however small the descriptor is."""
    content = bytearray(vmdk_sparse(descriptor_sectors=2, directory=4))
    content[4 * SECTOR : 4 * SECTOR + 4] = content[21 * SECTOR : 21 * SECTOR + 4]
    assert not inspect(image, bytes(content)).writable


@pytest.mark.parametrize(
    "fields",
    [
        {"capacity_field": 0},
        {"capacity_field": 1 << 63},
        {"capacity_field": (1 << 64) - 1},
        {"grain": 0},
        {"grain": 127},
        {"grain": 1 << 22},
        {"compression": 1},
        {"flags": 0x10001},
        {"directory": 0},
        {"directory": 20},
        {"flags": 3, "redundant": 0},
        {"newlines": 0x0A0A0A0A},
    ],
)
def test_contradictions(image: Path, fields: dict[str, Any]) -> None:
    assert isinstance(refusal(image, vmdk_sparse(**fields)), CorruptImage)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"version": 4}, "version 4"),
        ({"version": 0}, "version 0"),
        ({"entries": 256}, "256 entries"),
        ({"entries": 0}, "0 entries"),
        ({"compression": 2}, "compression method 2"),
        ({"descriptor_field": 40}, "sector 40"),
        ({"descriptor_sectors": 0}, "sector 1"),
        ({"capacity_field": 1 << 50, "grain": 1}, "directory is too large"),
    ],
)
def test_variants_that_are_not_handled(image: Path, fields: dict[str, Any], said: str) -> None:
    error = refusal(image, vmdk_sparse(**fields))
    assert isinstance(error, UnsupportedFormat)
    assert said in str(error)


def test_capacity_zero_does_not_turn_the_inside_into_a_descriptor_file(image: Path) -> None:
    """S-04: qemu would then open the extents that the embedded text names."""
    inside = vmdk_descriptor(create_type="monolithicFlat", extents=['RW 1 FLAT "/etc/shadow" 0'])
    assert isinstance(refusal(image, vmdk_sparse(descriptor=inside, capacity_field=0)), CorruptImage)


@pytest.mark.parametrize("length", [3, 4, 100, 511, 512, 5000, 21 * SECTOR, 127 * SECTOR])
def test_a_file_that_ends_before_its_tables_do(image: Path, length: int) -> None:
    error = refusal(image, vmdk_sparse()[:length])
    assert isinstance(error, FormatMismatch if length < 4 else TruncatedImage)


@pytest.mark.parametrize("fields", [{"capacity_field": 1 << 36}, {"directory": 1 << 40}, {"overhead": 1 << 60}])
def test_tables_behind_the_end(image: Path, fields: dict[str, Any]) -> None:
    """The virtual size alone costs nothing: the file would have to be as large as its tables (S-19)."""
    assert isinstance(refusal(image, vmdk_sparse(**fields)), TruncatedImage)


@pytest.mark.parametrize("where", ["table", "grain"])
def test_a_table_or_grain_behind_the_end(image: Path, where: str) -> None:
    content = bytearray(vmdk_sparse())
    (table,) = struct.unpack_from("<I", content, 21 * SECTOR)
    at = 21 * SECTOR if where == "table" else table * SECTOR + 4 * 511
    struct.pack_into("<I", content, at, 10_000)
    assert isinstance(refusal(image, bytes(content)), TruncatedImage)


def test_a_stream_without_its_end(image: Path) -> None:
    content = vmdk_stream()
    for cut in (1, SECTOR, 2 * SECTOR, 3 * SECTOR, len(content) - 600):
        assert isinstance(refusal(image, content[:-cut]), TruncatedImage)


@pytest.mark.parametrize("fields", [{"capacity_field": 4096}, {"grain": 64}, {"directory": (1 << 64) - 1}])
def test_header_and_footer_of_a_stream_must_agree(image: Path, fields: dict[str, Any]) -> None:
    """qemu believes the footer, other readers the header."""
    assert isinstance(refusal(image, vmdk_stream(**fields)), CorruptImage)


def test_types_that_are_not_handled(image: Path) -> None:
    assert isinstance(refusal(image, b"COWD" + bytes(2044)), UnsupportedFormat)
    for name in ("vmfs", "vmfsSparse", "seSparse", "fullDevice", "partitionedDevice", "custom"):
        text = split('RW 2048 FLAT "a" 0', create_type=name)
        assert isinstance(refusal(image, text), UnsupportedFormat)
        assert isinstance(refusal(image, vmdk_sparse(descriptor=text)), UnsupportedFormat)


def test_the_type_must_fit_the_compression(image: Path) -> None:
    text = split('RW 2048 SPARSE "a"', create_type="streamOptimized")
    assert isinstance(refusal(image, vmdk_sparse(descriptor=text)), CorruptImage)


def test_an_embedded_descriptor_with_more_than_this_file(image: Path) -> None:
    text = vmdk_descriptor(extents=['RW 2048 SPARSE "a"', 'RW 2048 SPARSE "b"'])
    assert isinstance(refusal(image, vmdk_sparse(descriptor=text)), CorruptImage)


def test_a_single_extent_of_a_split_image(image: Path) -> None:
    error = refusal(image, vmdk_sparse(descriptor=b""))
    assert isinstance(error, UnsupportedFormat)
    assert "descriptor" in error.hint


# --- several files ------------------------------------------------------------------------------------------


def test_a_flat_image(image: Path, tmp_path: Path) -> None:
    (tmp_path / "a-flat.vmdk").write_bytes(bytes(3 * MIB))
    info = inspect(image, split('RW 4096 FLAT "a-flat.vmdk" 2048', create_type="monolithicFlat"))
    assert (info.variant, info.virtual_size, info.writable) == ("monolithicFlat", 2 * MIB, True)
    assert info.file_size == image.stat().st_size + 3 * MIB
    assert [(r.kind, r.written, r.path, r.format) for r in info.references] == [
        (ReferenceKind.EXTENT, "a-flat.vmdk", str(tmp_path / "a-flat.vmdk"), "raw")
    ]


def test_a_split_sparse_image(image: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"a-s00{number}.vmdk").write_bytes(vmdk_sparse(capacity=2048 * number, descriptor=b""))
    info = inspect(image, split('RW 2048 SPARSE "a-s001.vmdk"', 'RW 4096 SPARSE "a-s002.vmdk"'))
    assert (info.variant, info.virtual_size, len(info.references)) == ("twoGbMaxExtentSparse", 3 * MIB, 2)
    assert info.writable


def test_a_missing_extent_is_named(image: Path, tmp_path: Path) -> None:
    """M-24."""
    (tmp_path / "a-s001.vmdk").write_bytes(vmdk_sparse(descriptor=b""))
    error = refusal(image, split('RW 2048 SPARSE "a-s001.vmdk"', 'RW 2048 SPARSE "a-s002.vmdk"'))
    assert isinstance(error, BackingFileMissing)
    assert "'a-s002.vmdk'" in str(error)


def test_an_extent_that_is_too_short(image: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(MIB - 1))
    error = refusal(image, split('RW 2048 FLAT "a" 0', create_type="monolithicFlat"))
    assert isinstance(error, TruncatedImage)
    assert error.subject == str(tmp_path / "a")


def test_an_extent_that_is_something_else(image: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(MIB))
    assert isinstance(refusal(image, split('RW 2048 SPARSE "a"')), FormatMismatch)
    (tmp_path / "a").write_bytes(b"COWD" + bytes(MIB))
    assert isinstance(refusal(image, split('RW 2048 SPARSE "a"')), FormatMismatch)
    (tmp_path / "a").write_bytes(vmdk_stream())
    assert isinstance(refusal(image, split('RW 2048 SPARSE "a"')), UnsupportedFormat)
    (tmp_path / "a").write_bytes(vmdk_sparse(capacity=4096, descriptor=b""))
    assert isinstance(refusal(image, split('RW 2048 SPARSE "a"')), CorruptImage)


def test_the_same_file_twice(image: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(2 * MIB))
    text = split('RW 2048 FLAT "a" 0', 'RW 2048 FLAT "a" 2048', create_type="twoGbMaxExtentFlat")
    assert isinstance(refusal(image, text), CorruptImage)
    assert isinstance(refusal(image, split(f'RW 1 FLAT "{image.name}" 0', create_type="monolithicFlat")), CorruptImage)


@pytest.mark.parametrize(
    "extent",
    [
        'RW 2048 FLAT "a"',
        'RW 0 FLAT "a" 0',
        'RW -5 FLAT "a" 0',
        'RW 2048 FLAT "a" -1',
        'RW 2048 FLAT "a" 0 junk',
        "RW 2048 FLAT a 0",
        'RW 2048 FLAT "a',
        "RW",
        'RW\t"a"',
        'rw 2048 FLAT "a" 0',
        'RW 99999999999999999999 FLAT "a" 0',
        'RW 2048 FLAT "' + "a" * 300 + '" 0',
        'RW 2048\x0bFLAT "a" 0',
    ],
)
def test_lines_that_could_be_extents_and_are_not(image: Path, tmp_path: Path, extent: str) -> None:
    (tmp_path / "a").write_bytes(bytes(MIB))
    assert isinstance(refusal(image, split(extent, create_type="monolithicFlat")), CorruptImage)


@pytest.mark.parametrize("extent", ["RW 2048 ZERO", 'RDONLY 2048 FLAT "a" 0', "NOACCESS 63", 'RW 2048 VMFS "a"'])
def test_extents_that_qemu_leaves_out(image: Path, tmp_path: Path, extent: str) -> None:
    (tmp_path / "a").write_bytes(bytes(MIB))
    assert isinstance(refusal(image, split(extent, create_type="twoGbMaxExtentFlat")), UnsupportedFormat)


def test_a_blank_line_before_an_extent(image: Path, tmp_path: Path) -> None:
    """qemu 7.2 finds the extent in the blank line, and again in its own: the disk has twice its size."""
    (tmp_path / "a").write_bytes(bytes(MIB))
    for blank in ("\n", " \n", "\t\r\n", "\n\n"):
        text = split(blank + 'RW 2048 FLAT "a" 0', create_type="monolithicFlat")
        assert isinstance(refusal(image, text), CorruptImage)


@pytest.mark.parametrize("number", ["7", "+7", "-7", "\n 0x10"])
def test_a_number_after_an_extent(image: Path, tmp_path: Path, number: str) -> None:
    """qemu takes it for the offset of the extent, whatever line it is in."""
    (tmp_path / "a").write_bytes(vmdk_sparse(descriptor=b""))
    assert isinstance(refusal(image, split('RW 2048 SPARSE "a"', number)), CorruptImage)


def test_no_extents(image: Path) -> None:
    """qemu 7.2 aborts on it."""
    assert isinstance(refusal(image, split(create_type="twoGbMaxExtentFlat")), CorruptImage)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"createType=", b"x createType="),
        (b"createType=", b"createType ="),
        (b'"monolithicFlat"', b"monolithicFlat"),
        (b"# Extent description", b'createType="vmfs"'),
        (b"version=1", b'# createType="vmfs"'),
        (b"CID=1", b"CID=x1"),
        (b"CID=12345678\n", b""),
        (b"CID=12345678\n", b"CID=1\nCID=2\n"),
        (b"parentCID=ffffffff\n", b""),
        (b"parentCID=ffffffff\n", b"parentCID=ffffffff\nparentCID=00000001\n"),
        (b"version=1", b"parentCID=1 CID=2"),
        (b"# Extent description", b'parentFileNameHint="base"'),
        (b"parentCID=ffffffff", b"parentCID=00000001"),
        (b"# Disk", b"# disk"),
        (b"RW", b"\0RW"),
        (b"# Extent", b"\0# Extent"),
    ],
)
def test_keys_that_qemu_could_read_differently(image: Path, tmp_path: Path, old: bytes, new: bytes) -> None:
    (tmp_path / "a").write_bytes(bytes(MIB))
    text = split('RW 2048 FLAT "a" 0', create_type="monolithicFlat")
    assert inspect(image, text).virtual_size == MIB
    assert isinstance(refusal(image, text.replace(old, new, 1)), CorruptImage | FormatMismatch)


def test_windows_line_ends_and_padding(image: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(MIB))
    text = vmdk_descriptor(create_type="monolithicFlat", extents=['RW 2048 FLAT "a" 0'], newline="\r\n")
    assert inspect(image, text + bytes(10240 - len(text))).virtual_size == MIB


def test_what_qemu_leaves_behind_the_end_of_the_text(image: Path, tmp_path: Path) -> None:
    """It writes the content id without leading zeros, moves the text, and leaves the old end where it was."""
    (tmp_path / "a").write_bytes(bytes(MIB))
    text = split('RW 2048 FLAT "a" 0', create_type="monolithicFlat")
    assert inspect(image, text.replace(b"CID=12345678", b"CID=5678") + b'\0e"\n\0\0').virtual_size == MIB


def test_extents_that_were_cut_off(image: Path, tmp_path: Path) -> None:
    """What older qemu made of a long descriptor at the first write."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(MIB))
    text = split('RW 2048 FLAT "a" 0', 'RW 2048 FLAT "b" 0', create_type="twoGbMaxExtentFlat")
    assert inspect(image, text).virtual_size == 2 * MIB
    assert isinstance(refusal(image, text.replace(b"0\nRW", b"\0\nRW")), CorruptImage)


def test_a_long_descriptor_makes_an_image_read_only(image: Path, tmp_path: Path) -> None:
    """Older qemu damages it at the first write."""
    (tmp_path / "a").write_bytes(bytes(MIB))
    text = split('RW 2048 FLAT "a" 0', create_type="monolithicFlat")
    assert inspect(image, text.ljust(10239, b"#")).writable
    assert not inspect(image, text.ljust(10240, b"#")).writable
    assert isinstance(refusal(image, text.ljust((256 << 10) + 1, b"#")), UnsupportedFormat)


# --- parents ------------------------------------------------------------------------------------------------


def child(parent: str = "base.vmdk", parent_cid: int = 0x1000) -> bytes:
    return vmdk_sparse(descriptor=vmdk_descriptor(parent=parent, parent_cid=parent_cid))


def test_a_parent(image: Path, tmp_path: Path) -> None:
    (tmp_path / "base.vmdk").write_bytes(vmdk_sparse(descriptor=vmdk_descriptor(cid=0x1000)))
    info = inspect(image, child())
    assert info.backing is not None
    assert info.backing.path == str(tmp_path / "base.vmdk")
    assert [(r.kind, r.written) for r in info.references] == [(ReferenceKind.BACKING, "base.vmdk")]


def test_a_parent_that_was_changed(image: Path, tmp_path: Path) -> None:
    (tmp_path / "base.vmdk").write_bytes(vmdk_sparse(descriptor=vmdk_descriptor(cid=0x1001)))
    error = refusal(image, child())
    assert isinstance(error, CorruptImage)
    assert "content ids" in str(error)


def test_a_parent_of_another_format(image: Path, tmp_path: Path) -> None:
    (tmp_path / "base.vmdk").write_bytes(bytes(MIB))
    assert isinstance(refusal(image, child()), FormatMismatch)


def test_a_missing_parent(image: Path) -> None:
    assert isinstance(refusal(image, child()), BackingFileMissing)


def test_parents_in_a_circle(image: Path) -> None:
    own = vmdk_descriptor(parent=image.name, parent_cid=0x1000, cid=0x1000)
    assert isinstance(refusal(image, vmdk_sparse(descriptor=own)), CorruptImage)


def test_a_flat_image_has_no_parent(image: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(MIB))
    text = vmdk_descriptor(
        create_type="monolithicFlat", extents=['RW 2048 FLAT "a" 0'], parent="base.vmdk", parent_cid=0x1000
    )
    assert isinstance(refusal(image, text), CorruptImage)


@pytest.mark.parametrize("name", ["../a", "sub/a", "/etc/shadow", "..", ".", "nbd:x", "a\x07"])
def test_extents_lie_beside_the_descriptor(image: Path, tmp_path: Path, name: str) -> None:
    """S-04. Also what would lie in an allowed directory: qemu opens the name itself."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(bytes(MIB))
    image.write_bytes(split(f'RW 2048 FLAT "{name}" 0', create_type="monolithicFlat"))
    with pytest.raises(ForbiddenReference):
        inspect_image(str(image), ("/",))


def test_an_extent_that_is_a_link(image: Path, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_bytes(bytes(MIB))
    try:
        os.symlink(outside, tmp_path / "a")
        assert isinstance(refusal(image, split('RW 2048 FLAT "a" 0', create_type="monolithicFlat")), ForbiddenReference)
    finally:
        outside.unlink()


def test_recognize() -> None:
    import mapper_vmdk

    assert mapper_vmdk.recognize(vmdk_sparse()[:4096])
    assert mapper_vmdk.recognize(vmdk_descriptor())
    for other in (b"COWD", b"", bytes(4096), b"# comment"):
        assert not mapper_vmdk.recognize(other)
