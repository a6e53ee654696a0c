"""The note that a machine's disks are being reverted to a snapshot, for as long as they may be of two moments."""

from __future__ import annotations

from mapper_driver import machine_file
from mapper_driver.opennebula import fields
from mapper_driver.opennebula.vm import VmIdentity

_WHAT = "note of an interrupted revert"


def snapshot_of(vm: VmIdentity) -> str:
    """Name of the snapshot to which the disks are being reverted, or were when that was interrupted; empty when not.

    :raises StateCorrupt: the note is damaged.
    """
    found = machine_file.read(_path(vm), _WHAT)
    if found is None:
        return ""
    name = found.get("snapshot")
    if not isinstance(name, str) or not fields.WORD.fullmatch(name):
        raise machine_file.damaged(_path(vm), _WHAT)
    return name


def begin(vm: VmIdentity, snapshot: str) -> None:
    """Write the note; it is on disk when the call returns."""
    machine_file.write(_path(vm), {"snapshot": snapshot}, _WHAT)


def end(vm: VmIdentity) -> None:
    """Remove the note: all disks are of one moment."""
    machine_file.remove(_path(vm))


def _path(vm: VmIdentity) -> str:
    return f"{vm.directory}/mapper-revert"
