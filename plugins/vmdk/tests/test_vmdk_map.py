"""vmdk disks mapped for real: what the block device has, and what arrives in the image."""

import os
import subprocess
from pathlib import Path

import pytest

from mapper_core import Access, Disk, MapOptions
from mapper_core.errors import ForbiddenReference, ReadOnlyImage
from mapper_core.mapping import Mapper
from mapper_core.testing.images import vmdk_descriptor

pytestmark = pytest.mark.root

MIB = 1 << 20
READ_ONLY, READ_WRITE = MapOptions(Access.READ_ONLY), MapOptions(Access.READ_WRITE)


@pytest.fixture
def content() -> bytes:
    return os.urandom(MIB) + bytes(2 * MIB) + os.urandom(MIB)


def convert(directory: Path, subformat: str, content: bytes) -> str:
    (directory / "raw").write_bytes(content)
    path = f"{directory}/disk.vmdk"
    argv = ("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", f"{directory}/raw", path)
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    return path


def test_a_stream_is_read_and_not_written(tmp_path: Path, content: bytes) -> None:
    path = convert(tmp_path, "streamOptimized", content)
    mapper = Mapper.open()
    with pytest.raises(ReadOnlyImage) as caught:
        mapper.map(Disk(path, "vmdk"), READ_WRITE, user="test")
    assert "read-only" in caught.value.hint
    assert mapper.mapped() == ()
    device = mapper.map(Disk(path, "vmdk"), READ_ONLY, user="test").device
    assert Path(device).read_bytes() == content
    mapper.unmap(path, user="test")


def test_a_descriptor_that_names_a_host_file(tmp_path: Path) -> None:
    """S-04 (CVE-2022-47951)."""
    text = vmdk_descriptor(create_type="monolithicFlat", extents=['RW 1 FLAT "/etc/passwd" 0'])
    (tmp_path / "disk.vmdk").write_bytes(text)
    mapper = Mapper.open()
    with pytest.raises(ForbiddenReference):
        mapper.map(Disk(f"{tmp_path}/disk.vmdk", "vmdk"), READ_WRITE, user="test")
    assert mapper.mapped() == ()
