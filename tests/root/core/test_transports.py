"""Data integrity on every transport that runs here: random writes, 16 in flight, read back and compared (fio crc32c).

The FUSE export of qemu 7.2 corrupts data with two writes in flight unless it is limited to one request: this is the test
that notices when the limit is lost.
"""

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


def test_every_transport_says_whether_it_works_here_and_why_not() -> None:
    for name in NAMES:
        availability = transport_named(name).availability()
        assert availability.works or (availability.reason and availability.hint), name
    assert transport_named("loop").availability().works
    assert transport_named("storage_daemon").availability().works
