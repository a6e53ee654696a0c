"""The control group of what outlives a command: the servers of disks and of consoles (:manpage:`cgroups(7)`).

A process stays in the group of who has started it: of an ssh session, or of the daemon whose hook it was. systemd ends the
processes of a service, and of a session if so configured, with it (``KillMode=`` in :manpage:`systemd.kill(5)`,
``KillUserProcesses=`` in :manpage:`logind.conf(5)`), and those of all sessions when the host is shut down, while containers still
run on their disks. A group that it has not made it leaves alone until all is unmounted. LXC keeps its monitors in such groups,
too.
"""

from __future__ import annotations

import contextlib
import os

NAME = "mapper"

#: Where systemd may keep its groups: cgroup2 alone, cgroup2 beside controllers of version 1, and version 1 alone.
HIERARCHIES = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")

_PROCESSES = "cgroup.procs"


def enter() -> None:
    """Move the calling process there. Where there are no groups, or it is not allowed to, it stays where it is."""
    for hierarchy in HIERARCHIES:
        if not os.path.exists(f"{hierarchy}/{_PROCESSES}"):
            continue  # not a hierarchy, but perhaps the directory in which they are
        with contextlib.suppress(OSError):
            _enter(f"{hierarchy}/{NAME}")


def _enter(group: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(group, 0o755)
    fd = os.open(f"{group}/{_PROCESSES}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"0")  # who writes it
    finally:
        os.close(fd)
