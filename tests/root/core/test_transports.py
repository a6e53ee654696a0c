"""Data integrity on every transport that runs here: random writes, 16 in flight, read back and compared (fio crc32c).

The FUSE export of qemu 7.2 corrupts data with two writes in flight unless it is limited to one request: this is the test
that notices when the limit is lost.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapper_core.linux import fuse
from mapper_core.mapping import Mapper
from mapper_core.model import Disk, MapOptions
from mapper_core.testing import disks
from mapper_core.testing.disks import MIB
from mapper_core.transports import NAMES, transport_named

pytestmark = pytest.mark.root

IMAGES = [
    ("raw", "loop", ()),
    ("raw", "storage_daemon", ()),
    ("qcow2", "storage_daemon", ()),
    ("vmdk", "storage_daemon", ("-o", "subformat=monolithicSparse")),
    ("vmdk", "storage_daemon", ("-o", "subformat=monolithicFlat")),
    ("vmdk", "storage_daemon", ("-o", "subformat=twoGbMaxExtentSparse")),
]


def _empty(path: Path, kind: str, options: tuple[str, ...]) -> Path:
    disks.run("qemu-img", "create", "-q", "-f", kind, *options, str(path), "128M")
    return path


def verify(device: str, *, direct: int, size: int = 96 * MIB, loops: int = 1) -> None:
    """Write randomly with a checksum in each block, read everything back."""
    disks.run(
        "fio", "--name=verify", f"--filename={device}", "--rw=randwrite", "--bsrange=4k-64k", f"--size={size}",
        "--ioengine=libaio", "--iodepth=16", f"--direct={direct}", "--verify=crc32c", "--do_verify=1",
        "--verify_fatal=1", "--verify_state_save=0", f"--loops={loops}", "--randseed=7", "--output-format=terse",
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "transport", "options"), IMAGES)
def test_nothing_that_is_written_is_lost_or_changed(
    mapper: Mapper, tmp_path: Path, kind: str, transport: str, options: tuple[str, ...]
) -> None:
    image = _empty(tmp_path / "disk", kind, options)
    mapped = mapper.map(Disk(str(image), kind), MapOptions(transport=transport), user="t")
    for direct in (1, 0):
        verify(mapped.device, direct=direct)
    if transport == "storage_daemon":
        assert fuse.max_background(f"{mapper.runtime.exports}/{mapped.id}/disk") == 1
    mapper.unmap(mapped.device, user="t")
    if kind == "qcow2":
        disks.run("qemu-img", "check", "-f", kind, str(image))


def test_a_chain_keeps_its_bases(mapper: Mapper, tmp_path: Path) -> None:
    """M-01: three levels, relative names, reached through a symbolic link; the lower ones are never written."""
    (tmp_path / "snap").mkdir()
    base = _empty(tmp_path / "snap" / "0", "qcow2", ())
    for number in (1, 2):
        disks.run(
            "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(number - 1), str(tmp_path / f"snap/{number}")
        )  # fmt: skip
    before = base.read_bytes()
    (tmp_path / "disk.0").symlink_to("snap/2")
    mapped = mapper.map(Disk(str(tmp_path / "disk.0"), "qcow2"), MapOptions(), user="t")
    verify(mapped.device, direct=1, size=32 * MIB)
    mapper.unmap(mapped.device, user="t")
    assert base.read_bytes() == before
    disks.run("qemu-img", "check", "-f", "qcow2", str(tmp_path / "snap/2"))


@pytest.mark.parametrize("kind", ["qcow2", "vmdk"])
def test_what_a_filesystem_wants_to_be_zero_is_zero(mapper: Mapper, tmp_path: Path, kind: str) -> None:
    """A loop device has holes punched for that, which the export of qemu 7.2 takes for discards of whole clusters, or of none."""
    image, top = _empty(tmp_path / "disk", kind, ()), tmp_path / "top"
    top.mkdir()
    device = mapper.map(Disk(str(image), kind), MapOptions(transport="storage_daemon"), user="t").device
    with open(device, "r+b", buffering=0) as disk:
        for _ in range(128):
            disk.write(b"!" * MIB)
    # what was there stays, and the kernel (6.18) zeroes the rest of an extent at once when a part of it is written
    disks.run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", device)
    zeroes, block = bytes(8 * 4096), b"new".ljust(4096)
    with _mounted(device, top):
        for number in range(16):
            with open(top / str(number), "wb", buffering=0) as file:
                os.posix_fallocate(file.fileno(), 0, len(zeroes))
                os.pwrite(file.fileno(), block, 4096)
                os.fsync(file.fileno())
    with _mounted(device, top):
        found = [(top / str(number)).read_bytes() for number in range(16)]
    assert [content.count(b"!") for content in found] == [0] * 16
    assert set(found) == {zeroes[:4096] + block + zeroes[8192:]}
    mapper.unmap(device, user="t")


@contextlib.contextmanager
def _mounted(device: str, directory: Path) -> Iterator[None]:
    disks.run("mount", "-o", "nodioread_nolock", device, str(directory))
    try:
        yield
    finally:
        disks.run("umount", str(directory))


def test_every_transport_says_whether_it_works_here_and_why_not() -> None:
    for name in NAMES:
        availability = transport_named(name).availability()
        assert availability.works or (availability.reason and availability.hint), name
    assert transport_named("loop").availability().works
    assert transport_named("storage_daemon").availability().works
