"""What a file is, by its first bytes."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest

from mapper_core.errors import FormatMismatch, TruncatedImage, UnsupportedFormat
from mapper_core.formats import HEADER_SIZE, identify, is_packed, refusal
from mapper_core.testing.images import qcow2, vmdk_descriptor, vmdk_sparse

pytestmark = pytest.mark.unit


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("disk.raw"))
    return buffer.getvalue()


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("disk.raw", b"")
    return buffer.getvalue()


PACKED = {
    "gzip": gzip.compress(b"disk"),
    "xz": lzma.compress(b"disk"),
    "bzip2": bz2.compress(b"disk"),
    "zstd": b"\x28\xb5\x2f\xfd\x04\x00",
    "zip": _zip(),
    "tar": _tar(),
}


@pytest.mark.parametrize(("name", "data"), PACKED.items())
def test_names_packed_files(name: str, data: bytes) -> None:
    assert identify(data[:HEADER_SIZE]) == name
    assert is_packed(name)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("qcow2", qcow2()),
        ("qcow", qcow2(version_field=1)),
        ("vmdk", vmdk_sparse()),
        ("vmdk", vmdk_descriptor()),
        ("vmdk", b"COWD" + bytes(508)),
        ("vdi", b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe"),
        ("vhdx", b"vhdxfile"),
        ("vpc", b"conectix"),
        ("luks", b"LUKS\xba\xbe\x00\x02"),
        ("raw", bytes(4096)),
        ("raw", b"\xeb\x63\x90".ljust(510, b"\0") + b"\x55\xaa"),
        ("raw", b"QFI"),
        ("raw", b""),
    ],
)
def test_names_disk_formats(name: str, data: bytes) -> None:
    assert identify(data[:HEADER_SIZE]) == name
    assert not is_packed(name)


def test_a_packed_image_is_unsupported_and_the_answer_says_how_to_unpack_it() -> None:
    """M-22: the image of a market place was compressed, and was mapped all the same."""
    error = refusal("qcow2", PACKED["xz"], "/images/a")
    assert isinstance(error, UnsupportedFormat)
    assert "xz" in str(error)
    assert "unxz" in error.hint


def test_another_format_is_a_mismatch_that_names_both() -> None:
    error = refusal("vmdk", qcow2(), "/images/a")
    assert isinstance(error, FormatMismatch)
    assert "vmdk" in str(error)
    assert "qcow2" in str(error)


def test_nothing_known_is_a_mismatch_and_an_empty_file_is_truncated() -> None:
    assert isinstance(refusal("qcow2", bytes(512), "/images/a"), FormatMismatch)
    assert isinstance(refusal("qcow2", b"", "/images/a"), TruncatedImage)
