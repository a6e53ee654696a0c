"""qcow2 disks mapped for real: what the block device has, and what arrives in the image."""

import os
import subprocess
from pathlib import Path

import pytest

from mapper_core import Access, Disk, MapOptions
from mapper_core.errors import ForbiddenReference, ImageInUse, MapperError
from mapper_core.mapping import Mapper
from mapper_core.testing.images import qcow2

pytestmark = pytest.mark.root

MIB = 1 << 20
READ_WRITE = MapOptions(Access.READ_WRITE)


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=60)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    data = os.urandom(MIB) + bytes(2 * MIB) + os.urandom(MIB)
    (tmp_path / "raw").write_bytes(data)
    return data


def test_a_chain_reached_through_a_link(tmp_path: Path, content: bytes) -> None:
    """M-01. What is written goes to the top; the layers below stay as they were."""
    directory = tmp_path / "disk.0.snap"
    directory.mkdir()
    (directory / "disk.0.snap").symlink_to(".")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", f"{tmp_path}/raw", "-F", "raw", f"{directory}/0")
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "disk.0.snap/0", "-F", "qcow2", f"{directory}/1", "4M")
    (tmp_path / "disk.0").symlink_to("disk.0.snap/1")
    below = (directory / "0").read_bytes()
    mapper = Mapper.open()
    disk = Disk(f"{tmp_path}/disk.0", "qcow2", (str(tmp_path),))
    for written in (content, content[:MIB] + b"x" * 4096 + content[MIB + 4096 :]):
        mapped = mapper.map(disk, READ_WRITE, user="test")
        assert Path(mapped.device).read_bytes() == written
        with open(mapped.device, "r+b", buffering=0) as device:
            device.seek(MIB)
            device.write(b"x" * 4096)
            os.fsync(device)
        mapper.unmap(disk.source, user="test")
    assert (tmp_path / "raw").read_bytes() == content
    assert (directory / "0").read_bytes() == below


def test_an_image_of_a_running_machine(tmp_path: Path) -> None:
    """qemu's own lock tells that somebody writes to the image."""
    path = f"{tmp_path}/disk"
    (tmp_path / "disk").write_bytes(qcow2())
    with subprocess.Popen(("qemu-io", "-f", "qcow2", path), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as machine:
        assert machine.stdin is not None
        assert machine.stdout is not None
        machine.stdin.write(b"write 0 64k\n")
        machine.stdin.flush()
        while b"wrote" not in machine.stdout.readline():
            pass
        mapper = Mapper.open()
        with pytest.raises(ImageInUse):
            mapper.map(Disk(path, "qcow2"), READ_WRITE, user="test")
        machine.stdin.close()
    mapper.map(Disk(path, "qcow2"), READ_WRITE, user="test")
    mapper.unmap(path, user="test")


@pytest.mark.parametrize("name", ["/etc/passwd", "json:{}", "gone"])
def test_a_hostile_image_is_refused_before_any_program_runs(tmp_path: Path, name: str) -> None:
    """S-02: nothing is mapped, and nothing is left in the journal."""
    (tmp_path / "disk").write_bytes(qcow2(backing=name.encode(), backing_format=b"raw"))
    mapper = Mapper.open()
    with pytest.raises(MapperError) as caught:
        mapper.map(Disk(f"{tmp_path}/disk", "qcow2"), READ_WRITE, user="test")
    assert isinstance(caught.value, ForbiddenReference) or name == "gone"
    assert mapper.mapped() == ()
    assert os.listdir(mapper.runtime.disks) == []
