"""Volume groups of the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mapper_core.testing import disks
from mapper_core.testing.disks import MIB


def lvm(command: str, *arguments: str) -> str:
    """Run a command of LVM. The machine has no other groups than those of the tests."""
    return disks.run("lvm", command, "--yes", *arguments)


@contextlib.contextmanager
def volume_group(path: Path, name: str, *options: str) -> Iterator[str]:
    """A group of the host on a loop device; all that is in it goes with it."""
    with path.open("wb") as file:
        file.truncate(600 * MIB)  # takes no room until it is written
    device = disks.run("losetup", "--find", "--show", str(path)).strip()
    try:
        lvm("vgcreate", *options, name, device)
        try:
            yield device
        finally:
            lvm("vgremove", "--force", name)
    finally:
        disks.run("losetup", "--detach", device)


def active_volumes(group: str) -> list[str]:
    """Names of the devices of a group that device-mapper has."""
    names = [path.read_text().strip() for path in Path("/sys/block").glob("dm-*/dm/name")]
    return sorted(name for name in names if name.startswith(f"{group.replace('-', '--')}-"))
