"""What the core checks for every plugin."""

import gzip
import os
from pathlib import Path

import pytest

from mapper_core import policy
from mapper_core.errors import (
    BackingFileMissing,
    CorruptImage,
    ForbiddenReference,
    FormatMismatch,
    ImageNotFound,
    ReadOnlyImage,
    Refused,
    UnsafePath,
    UnsupportedFormat,
)
from mapper_core.identity import identify, identify_volume
from mapper_core.model import Access, Disk, ImageInfo, MapOptions, Reference, ReferenceKind

pytestmark = pytest.mark.unit


def _info(path: Path, **values: object) -> ImageInfo:
    return ImageInfo(**{"path": str(path), "format": "raw", "virtual_size": 512, "file_size": 512, **values})  # type: ignore[arg-type]


def _reference(path: Path) -> Reference:
    return Reference(ReferenceKind.BACKING, "as written", str(path))


def test_a_raw_disk_with_a_qcow2_header_is_not_reinterpreted(tmp_path: Path) -> None:
    """S-01: the guest of a raw disk wrote the header."""
    image = tmp_path / "disk.0"
    image.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(4096))
    with pytest.raises(FormatMismatch, match="qcow2"):
        policy.check_declared_format(Disk(str(image), "raw"))


def test_raw_declared_as_qcow2_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk.0"
    image.write_bytes(bytes(4096))
    with pytest.raises(FormatMismatch):
        policy.check_declared_format(Disk(str(image), "qcow2"))


def test_a_compressed_image_says_how_to_unpack_it(tmp_path: Path) -> None:
    """M-22."""
    image = tmp_path / "disk.0"
    image.write_bytes(gzip.compress(bytes(4096)))
    for declared in ("raw", "qcow2"):
        with pytest.raises(UnsupportedFormat, match="gzip") as caught:
            policy.check_declared_format(Disk(str(image), declared))
        assert "gunzip" in caught.value.hint


def test_a_format_of_a_third_party_without_a_known_magic_is_believed(tmp_path: Path) -> None:
    image = tmp_path / "disk.0"
    image.write_bytes(bytes(4096))
    policy.check_declared_format(Disk(str(image), "newformat"))


def test_references_are_followed_by_components_and_not_by_prefix(tmp_path: Path) -> None:
    """S-02: /x/base-secret is not below /x/base."""
    for name in ("vm/disk.0", "base/file", "base-secret/file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(512))
    disk = Disk(str(tmp_path / "vm/disk.0"), "qcow2", (str(tmp_path / "base"),))
    policy.check_image(
        disk, _info(tmp_path / "vm/disk.0", references=(_reference(tmp_path / "base/file"),)), MapOptions()
    )
    bad = _info(tmp_path / "vm/disk.0", references=(_reference(tmp_path / "base-secret/file"),))
    with pytest.raises(ForbiddenReference, match="base-secret"):
        policy.check_image(disk, bad, MapOptions())


def test_a_link_out_of_the_directory_is_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm/disk.0").write_bytes(bytes(512))
    (tmp_path / "secret").write_bytes(bytes(512))
    (tmp_path / "vm/link").symlink_to(tmp_path / "secret")
    info = _info(tmp_path / "vm/disk.0", references=(_reference(tmp_path / "vm/link"),))
    with pytest.raises(ForbiddenReference):
        policy.check_image(Disk(str(tmp_path / "vm/disk.0"), "qcow2"), info, MapOptions())


def test_the_whole_chain_is_checked(tmp_path: Path) -> None:
    (tmp_path / "disk.0").write_bytes(bytes(512))
    lower = _info(tmp_path / "disk.0", references=(_reference(Path("/etc/shadow")),))
    with pytest.raises(ForbiddenReference, match="/etc/shadow"):
        policy.check_image(
            Disk(str(tmp_path / "disk.0"), "qcow2"), _info(tmp_path / "disk.0", backing=lower), MapOptions()
        )


def test_a_missing_reference_is_named(tmp_path: Path) -> None:
    (tmp_path / "disk.0").write_bytes(bytes(512))
    info = _info(tmp_path / "disk.0", references=(_reference(tmp_path / "gone"),))
    with pytest.raises(BackingFileMissing, match="as written"):
        policy.check_image(Disk(str(tmp_path / "disk.0"), "qcow2"), info, MapOptions())


def test_limits_of_the_caller(tmp_path: Path) -> None:
    """S-19."""
    disk = Disk(str(tmp_path), "raw")
    with pytest.raises(Refused, match="more than the allowed"):
        policy.check_image(disk, _info(tmp_path, virtual_size=1 << 62), MapOptions(max_virtual_size=1 << 40))
    with pytest.raises(ReadOnlyImage, match="streamOptimized"):
        policy.check_image(disk, _info(tmp_path, writable=False, variant="streamOptimized"), MapOptions())
    policy.check_image(disk, _info(tmp_path, writable=False), MapOptions(Access.READ_ONLY))
    with pytest.raises(CorruptImage):
        policy.check_image(disk, _info(tmp_path, virtual_size=0), MapOptions())


def test_one_file_is_one_disk_whatever_its_name(tmp_path: Path) -> None:
    """Y-06: the key of a mapping is stable."""
    image = tmp_path / "disk.0"
    image.write_bytes(bytes(512))
    (tmp_path / "link").symlink_to(image)
    os.link(image, tmp_path / "hard")
    ids = {identify(Disk(str(tmp_path / name), "raw")).id for name in ("disk.0", "link", "hard", "./disk.0")}
    assert len(ids) == 1
    (tmp_path / "other").write_bytes(bytes(512))
    assert identify(Disk(str(tmp_path / "other"), "raw")).id not in ids


def test_volumes_are_told_apart_by_format_and_whole_name() -> None:
    """C-11: poolA/img is not poolB/img."""
    names = [("rbd", "a/img"), ("rbd", "b/img"), ("other", "a/img")]
    found = [identify_volume(Disk(name, kind), name) for kind, name in names]
    assert len({item.id for item in found}) == 3
    assert all(len(item.id) <= 40 and not item.is_file for item in found)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/proc", "/"])
def test_only_files_and_block_devices_are_images(path: str) -> None:
    """S-26: an endless 'file'."""
    with pytest.raises(UnsafePath):
        identify(Disk(path, "raw"))


def test_a_fifo_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UnsafePath):
        identify(Disk(str(tmp_path / "fifo"), "raw"))


@pytest.mark.parametrize("path", ["/nonexistent/disk", "/etc/passwd/disk"])
def test_a_missing_image(path: str) -> None:
    with pytest.raises((ImageNotFound, UnsafePath), match=path):
        identify(Disk(path, "raw"))


def test_a_path_with_a_nul() -> None:
    with pytest.raises(UnsafePath):
        identify(Disk("/tmp/a\0b", "raw"))


def test_fetching_ahead_never_fails(tmp_path: Path) -> None:
    """Not even when the image has become something else since it was identified: who reads it then says so."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    (tmp_path / "empty").touch()
    for name in ("fifo", "link", "empty", "none", "."):
        policy.fetch_ahead("raw", str(tmp_path / name))
