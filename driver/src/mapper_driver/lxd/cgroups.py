"""The control groups of a container, seen from the host (:manpage:`cgroups(7)`).

LXC gives each container a group ``lxc.payload.NAME``. What is inside of it belongs to the guest (systemd moves itself
further down), so limits are read and written at that group, found by the container's first process.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass

from mapper_core.errors import NotSupported
from mapper_core.linux import mountinfo
from mapper_core.linux.syscalls import kernel_error

_PAYLOAD = "lxc.payload"

#: Keys of ``memory.stat`` that count what the kernel cannot take back without swapping or killing.
_KEPT_V1 = ("total_rss", "total_shmem")
_KEPT_V2 = ("anon", "shmem", "kernel")


class Version(enum.Enum):
    """Which interface a controller has."""

    V1 = "cgroup"
    V2 = "cgroup2"


@dataclass(frozen=True, slots=True)
class Group:
    """The group of a container under one controller.

    :param path: its directory.
    """

    version: Version
    path: str

    def read(self, name: str) -> str:
        """Content of one of its files.

        :raises KernelError: it cannot be read.
        """
        try:
            with open(f"{self.path}/{name}", encoding="ascii") as file:
                return file.read()
        except OSError as error:
            raise kernel_error(error, "cannot be read", subject=f"{self.path}/{name}") from error

    def write(self, name: str, value: str) -> None:
        """Write one of its files, in one write as the kernel wants it.

        :raises KernelError: the kernel refuses the value.
        """
        try:
            fd = os.open(f"{self.path}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise kernel_error(error, f"the kernel refuses {value!r}", subject=f"{self.path}/{name}") from error


@dataclass(frozen=True, slots=True)
class Controller:
    """A controller, as this host has it.

    :param mount: directory of its hierarchy.
    :param key: its name in ``/proc/PID/cgroup``.
    """

    version: Version
    mount: str
    key: str

    def group(self, pid: int) -> Group:
        """The group of the container whose first process is ``pid``."""
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return Group(self.version, self.mount + own_paths(file.read())[self.key])


def controller(name: str) -> Controller:
    """Look a controller up.

    :param name: as version 2 calls it: ``io``, ``memory``, ``cpuset``.
    :raises NotSupported: this kernel has no such controller.
    """
    old = _old_name(name)
    mount = _hierarchy(old)
    if mount:
        return Controller(Version.V1, mount, old)
    version, mount = _unified(name)
    return Controller(version, mount, "")


def version_of(name: str) -> Version:
    """Which interface a controller has on this host; see :func:`controller`."""
    return controller(name).version


def group_of(name: str, pid: int) -> Group:
    """The group of the container whose first process is ``pid``; see :func:`controller`."""
    return controller(name).group(pid)


def own_paths(text: str) -> dict[str, str]:
    """``/proc/PID/cgroup``: the path of the container's group by controller; the empty name is that of version 2."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        parts = path.split("/")
        ours = next((number for number, part in enumerate(parts) if part.startswith(_PAYLOAD)), len(parts))
        for name in controllers.split(","):
            found[name] = "/".join(parts[: ours + 1])
    return found


def memory_limit(group: Group) -> int | None:
    """The limit of memory, bytes; ``None``: none."""
    text = group.read("memory.max" if group.version is Version.V2 else "memory.limit_in_bytes").strip()
    return None if text == "max" else int(text)


def memory_kept(group: Group) -> int:
    """Memory that the kernel cannot take back from the container, bytes: no cache of files."""
    names = _KEPT_V2 if group.version is Version.V2 else _KEPT_V1
    pairs = (line.split(" ", 1) for line in group.read("memory.stat").splitlines())
    return sum(int(value) for name, value in pairs if name in names)


def _old_name(controller: str) -> str:
    return "blkio" if controller == "io" else controller


def _hierarchy(controller: str) -> str:
    """Where a controller of version 1 is mounted; empty when it is not."""
    for entry in mountinfo.entries():
        if entry.fstype == "cgroup" and controller in entry.super_options:
            return entry.target
    return ""


def _unified(controller: str) -> tuple[Version, str]:
    for entry in mountinfo.entries():
        if entry.fstype == "cgroup2":
            with open(f"{entry.target}/cgroup.controllers", encoding="ascii") as file:
                if controller in file.read().split():
                    return Version.V2, entry.target
    raise NotSupported(f"this host has no control group for {controller}", subject=controller)
