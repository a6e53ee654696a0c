"""Which disks a system snapshot is of, what it is called, and the note that a revert is under way."""

from __future__ import annotations

from pathlib import Path

import pytest
from mapper_driver import reverting, snapshots
from mapper_driver.opennebula.config import Config
from mapper_driver.opennebula.vm import DiskKind, VirtualMachine, VmDisk

from mapper_core.errors import NotFound, NotSupported, Refused, StateCorrupt

pytestmark = pytest.mark.unit


def machine(directory: str = "/ds/0", *disks: VmDisk, deploy_id: str = "one-42") -> VirtualMachine:
    return VirtualMachine(42, "web", deploy_id, 0, directory, memory_mib=128, cpu=1.0, disks=disks)


def disk(number: int, kind: DiskKind, *, read_only: bool = False) -> VmDisk:
    return VmDisk(number, kind, "FILE", "x", f"/ds/0/42/disk.{number}", read_only=read_only)


def test_what_can_be_written_and_is_used_is_the_state_of_a_machine() -> None:
    vm = machine(
        "/ds/0",
        disk(0, DiskKind.IMAGE),
        disk(1, DiskKind.IMAGE, read_only=True),
        disk(2, DiskKind.VOLATILE_FS),
        disk(3, DiskKind.SWAP),
        disk(4, DiskKind.CDROM, read_only=True),
        disk(10, DiskKind.IMAGE),
    )
    found = snapshots.disks_of(vm, Config())
    assert [(item.id, item.disk.source) for item in found] == [(n, f"/ds/0/42/disk.{n}") for n in (0, 2, 10)]


def test_a_machine_without_state_and_one_made_by_hand() -> None:
    with pytest.raises(NotSupported, match="no disk"):
        snapshots.disks_of(machine("/ds/0", disk(1, DiskKind.SWAP)), Config())
    with pytest.raises(NotSupported, match="by hand"):
        snapshots.disks_of(machine("/ds/0", disk(0, DiskKind.IMAGE), deploy_id="web"), Config())


def test_the_name_says_whose_it_is() -> None:
    assert snapshots.name_of(machine(), 7) == "mapper-42-7"
    assert snapshots.undo_name("mapper-42-7") == "mapper-42-7-undo"


def test_the_note_of_a_revert(tmp_path: Path) -> None:
    vm = machine(str(tmp_path))
    with pytest.raises(NotFound):
        reverting.begin(vm, "mapper-42-0")
    (tmp_path / "42").mkdir()
    assert reverting.snapshot_of(vm) == ""
    reverting.end(vm)
    reverting.begin(vm, "mapper-42-0")
    reverting.begin(vm, "mapper-42-1")
    assert reverting.snapshot_of(vm) == "mapper-42-1"
    reverting.end(vm)
    assert reverting.snapshot_of(vm) == ""
    assert list((tmp_path / "42").iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b"x" * 5000, b'{"format": "mapper", "version": 1}',
     b'{"format": "mapper", "version": 1, "snapshot": "-a"}', b'{"format": "mapper", "version": 2, "snapshot": "a"}'],
)  # fmt: skip
def test_a_damaged_note_is_no_licence_to_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "42").mkdir()
    (tmp_path / "42" / "mapper-revert").write_bytes(content)
    with pytest.raises(StateCorrupt, match="damaged"):
        reverting.snapshot_of(machine(str(tmp_path)))


def test_a_note_that_is_no_file(tmp_path: Path) -> None:
    """The machine's directory belongs to OpenNebula's user."""
    (tmp_path / "42").mkdir()
    (tmp_path / "42" / "mapper-revert").symlink_to("/etc/hostname")
    vm = machine(str(tmp_path))
    with pytest.raises(StateCorrupt):
        reverting.snapshot_of(vm)
    with pytest.raises(Refused):
        reverting.begin(vm, "mapper-42-0")
