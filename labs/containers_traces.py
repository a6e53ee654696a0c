"""What a container daemon leaves outside of its lab: mounts, cgroups, directories of liblxc, the bridge's ports."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator

from common import LabError, run
from containers_model import Lab

CGROUP_ROOT = "/sys/fs/cgroup"
REMOVE_SECONDS = 2.0


def mounts_below(directory: str) -> list[str]:
    """Mount points at or below a directory in this mount namespace, the newest first."""
    points = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            point = line.split(" ")[4]
            for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
                point = point.replace(code, char)
            if point == directory or point.startswith(f"{directory}/"):
                points.append(point)
    return points[::-1]


def unmount_below(directory: str) -> None:
    """Unmount all at or below a directory, in this mount namespace."""
    for point in mounts_below(directory):
        with contextlib.suppress(LabError):
            run("umount", "--no-canonicalize", point)
    for point in mounts_below(directory):  # busy: take it out of sight, the kernel frees it with its last user
        with contextlib.suppress(LabError):
            run("umount", "--no-canonicalize", "--lazy", point)


def cgroup_mounts() -> list[str]:
    """Mount points of all cgroup hierarchies, version 1 and 2."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return [line.split(" ")[4] for line in file if line.partition(" - ")[2].split(" ")[0] in ("cgroup", "cgroup2")]


def of_liblxc(lab: Lab) -> Iterator[str]:
    """Directories that liblxc makes outside of the lab and leaves behind, deepest first."""
    path = f"/run/lxc/lock{lab.home}/containers"
    while path != "/run":
        yield path
        path = os.path.dirname(path)
    for mount in cgroup_mounts():
        yield f"{mount}/lxc.pivot"


def remove_cgroups(containers: list[str]) -> None:
    """Remove cgroups of containers whose monitor was killed before it could do so.

    LXC appends a number when a cgroup of the wanted name is there already.
    """
    names = "|".join(re.escape(name) for name in containers)
    ours = re.compile(rf"lxc\.(?:payload|monitor)\.(?:{names})(?:-\d+)?")
    until = time.monotonic() + REMOVE_SECONDS
    for mount in cgroup_mounts():
        for top in filter(ours.fullmatch, os.listdir(mount)):
            for path, _, _ in os.walk(f"{mount}/{top}", topdown=False):
                _remove_cgroup(path, until)


def _remove_cgroup(path: str, until: float) -> None:
    """Remove one that has no process; one of a container of another lab stays.

    A process that has ended is in its cgroup until it is off its processor (Linux 6.18). Version 1 has no event for that.
    """
    while True:
        try:
            return os.rmdir(path)
        except FileNotFoundError:
            return None
        except OSError:
            with contextlib.suppress(OSError), open(f"{path}/cgroup.procs", encoding="ascii") as file:
                if file.read() or time.monotonic() > until:
                    return None
        time.sleep(0.01)
