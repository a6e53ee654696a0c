"""LXC's monitors: each container has one as long as it runs, the parent of its first process."""

from __future__ import annotations

import contextlib
import os

from mapper_core.linux import process_info
from mapper_core.linux.process_info import ProcessInfo


def of_init(init_pid: int) -> ProcessInfo | None:
    """The monitor of a running container, the parent of its first process; ``None`` when it is not to be seen."""
    if init_pid <= 0:
        return None
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{init_pid}/stat", "rb") as file:
            parent = int(file.read().rpartition(b") ")[2].split()[1])
        with open(f"/proc/{parent}/cmdline", "rb") as file:
            if file.read(64).startswith(b"[lxc monitor]"):
                return process_info.info(parent)
    return None


def of_container(containers: str, name: str) -> tuple[ProcessInfo, ...]:
    """The monitors of a container, also while it has no first process yet or no more.

    :param containers: the daemon's directory with the configurations of its containers, which LXC calls the lxcpath.
    """
    wanted = f"[lxc monitor] {containers} {name}".encode()
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            ours = os.fstat(file.fileno()).st_uid == os.geteuid()  # anybody can give a process any name
            if ours and file.read(len(wanted) + 1).rstrip(b"\0") == wanted:
                found.append(process_info.info(int(pid)))
    return tuple(item for item in found if item is not None and not item.gone)
