"""The mounted filesystems of a device, wherever in the system they are mounted, opened without being walked to by name.

A filesystem that only a container has mounted is reached through a process of its mount namespace; every path is
resolved inside of that process' root, and what is opened counts only when it is the very mount that was looked for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from mapper_core.errors import DeviceBusy, MapperError
from mapper_core.frozen import dataclass
from mapper_core.linux import beneath, block, holders
from mapper_core.linux.mountinfo import MountEntry


@dataclass(frozen=True, slots=True)
class OpenFilesystem:
    """A mounted filesystem.

    :param device: kernel name of the device or partition, such as ``loop0p1``.
    :param type: kernel name.
    :param fd: its root, or another directory or file of it, open for reading.
    :param writable: whether this mount of it can be written through.
    """

    device: str
    type: str
    fd: int
    writable: bool


@contextmanager
def of_device(device: str) -> Iterator[tuple[OpenFilesystem, ...]]:
    """Open every mounted filesystem of a device and of its partitions once, through a writable mount if there is one.

    :param device: device node of a whole disk or of a partition.
    :raises DeviceBusy: a filesystem is in use, but no mount that can be opened shows it.
    :raises NotFound: there is no such device.
    """
    with ExitStack() as stack:
        opened: dict[str, OpenFilesystem] = {}
        found = holders.mounts(device)
        for pid, name, entry in sorted(found, key=lambda item: "ro" in item[2].options):
            if name in opened:
                continue
            fd = _open(pid, entry)
            if fd is not None:
                stack.callback(os.close, fd)
                opened[name] = OpenFilesystem(name, entry.fstype, fd, "ro" not in entry.options)
        for name, kind in holders.filesystems(device):
            if name not in opened:
                raise DeviceBusy(
                    f"{name} has an open {kind} filesystem, but no mount of it can be reached",
                    subject=device,
                    hint="a lazily unmounted filesystem lives until its last user ends",
                )
        yield tuple(opened.values())


def _open(pid: int, entry: MountEntry) -> int | None:
    """Open a mount that a process sees; ``None`` when another one covers it, or it has gone."""
    with suppress(OSError, MapperError), ExitStack() as stack:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        looked = beneath.open_in_root(root, entry.target, os.O_PATH)
        stack.callback(os.close, looked)
        mode = os.fstat(looked).st_mode
        if _mount_id(looked) == entry.id and (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            return os.open(f"/proc/self/fd/{looked}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return None


def _mount_id(fd: int) -> int:
    for line in block.read_attribute(f"/proc/self/fdinfo/{fd}").splitlines():
        if line.startswith("mnt_id:"):
            return int(line[7:])
    return -1
