"""Limits of input and output of disks, as the kernel's control groups take them. Pure.

LXD's own ``limits.read`` and ``limits.write`` are not used: LXD 5.0 looks for the device of every disk of the container,
refuses when one lies on a partition (``Block device doesn't support quotas``), takes the storage pool's device for the root,
and knows one limit for each direction where OpenNebula has two. So a hook of LXC (:mod:`mapper_driver.lxd.limits`) sets
them at every start, and actions set them in a container that runs.

In the hook's command a disk is a word, ``1:rbps=1048576,wiops=50``: the number that OpenNebula gave it, since that of its
device changes when the host is booted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .lxd.cgroups import Version
from .opennebula.vm import IoLimits

#: Limits of one disk by the kernel's names for them; empty: none.
Limits = Mapping[str, int]

_NAMES = {"rbps": "read_bps", "wbps": "write_bps", "riops": "read_iops", "wiops": "write_iops"}
_WORD = re.compile(r"([0-9]{1,4}):([a-z]+=[0-9]{1,19}(?:,[a-z]+=[0-9]{1,19})*)")


@dataclass(frozen=True, slots=True)
class Setting:
    """A value for a file of a control group, of one device, with which the value begins."""

    file: str
    value: str


def of_disk(limits: IoLimits) -> Limits:
    """What limits a disk. A limit of both directions together applies to each of them, there is nothing closer."""
    wanted = {
        "rbps": _least(limits.total_bytes, limits.read_bytes),
        "wbps": _least(limits.total_bytes, limits.write_bytes),
        "riops": _least(limits.total_iops, limits.read_iops),
        "wiops": _least(limits.total_iops, limits.write_iops),
    }
    return {name: value for name, value in wanted.items() if value is not None}


def settings(limits: Limits, device: tuple[int, int], version: Version) -> tuple[Setting, ...]:
    """What has to be written so that a device has these limits and no others: the next disk must not inherit any.

    :param device: (major, minor) of the whole disk; the kernel limits no partitions.
    """
    number = f"{device[0]}:{device[1]}"
    if version is Version.V2:
        return (Setting("io.max", " ".join((number, *(f"{name}={limits.get(name) or 'max'}" for name in _NAMES)))),)
    return tuple(
        Setting(f"blkio.throttle.{long}_device", f"{number} {limits.get(name, 0)}") for name, long in _NAMES.items()
    )


def words(limits: Mapping[int, Limits]) -> tuple[str, ...]:
    """Limits of several disks as arguments of the hook."""
    return tuple(
        f"{disk_id}:{','.join(f'{name}={value}' for name, value in sorted(limited.items()))}"
        for disk_id, limited in sorted(limits.items())
        if limited
    )


def parse_words(given: tuple[str, ...]) -> dict[int, Limits]:
    """The reverse of :func:`words`; what is no such word is left out."""
    found: dict[int, Limits] = {}
    for match in filter(None, map(_WORD.fullmatch, given)):
        pairs = (part.split("=") for part in match.group(2).split(","))
        found[int(match.group(1))] = {name: int(value) for name, value in pairs if name in _NAMES}
    return found


def with_disk(lines: str, hook: str, disk_id: int, limits: Limits) -> str:
    """``raw.lxc`` with the limits of one disk changed.

    :param hook: command of the hook, without disks.
    :param limits: empty to take the disk out.
    """
    kept = [line for line in lines.splitlines() if not line.startswith(_prefix(hook))]
    found: dict[int, Limits] = {}
    for line in lines.splitlines():
        if line.startswith(_prefix(hook)):
            found |= parse_words(tuple(line.removeprefix(_prefix(hook)).split()))
    found[disk_id] = limits
    return "\n".join((*hook_lines(hook, found), *kept))


def hook_lines(hook: str, limits: Mapping[int, Limits]) -> tuple[str, ...]:
    """The line for LXC; none without limits."""
    given = words(limits)
    return (f"{_prefix(hook)}{' '.join(given)}",) if given and hook else ()


def _prefix(hook: str) -> str:
    return f"lxc.hook.start-host = {hook} "


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
