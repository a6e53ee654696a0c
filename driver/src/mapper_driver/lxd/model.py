"""What the driver knows of an LXD instance: frozen, typed, without access to the daemon."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from mapper_core.errors import UsageError

#: A device as LXD describes it: ``{"type": "disk", "path": "/", "pool": "default"}``.
Device = Mapping[str, str]

#: Whether the daemon starts the container when it starts itself.
AUTOSTART = "boot.autostart"
#: What daemons take for yes, in any case (LXD shared.IsTrue, Incus util.IsTrue).
_YES = ("true", "1", "yes", "on")

_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


def check_name(name: str) -> str:
    """Return the name of an instance if LXD would accept it (a host name of at most 63 characters).

    It becomes a part of paths, URLs and file names, so nothing else may reach those.

    :raises UsageError: for all other text.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a name of an instance", subject=name)
    return name


class Status(enum.Enum):
    """States of an instance; LXD's transitional states count as ``OTHER``.

    ``FREEZING`` is none of these: a daemon that dies while it freezes a container leaves it so for ever (LXC 5.0).
    """

    RUNNING = "Running"
    STOPPED = "Stopped"
    FREEZING = "Freezing"
    FROZEN = "Frozen"
    ERROR = "Error"
    OTHER = ""

    @classmethod
    def parse(cls, text: object) -> Status:
        """Understand LXD's word; one that is new to us is ``OTHER``."""
        return next((status for status in cls if status.value == text and text), cls.OTHER)


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """An instance as it is to be created.

    :param config: LXD's configuration keys, such as ``limits.memory``; also ``user.*``.
    :param devices: by name.
    :param profiles: applied in this order.
    """

    name: str
    config: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, Device] = field(default_factory=dict)
    profiles: tuple[str, ...] = ("default",)
    description: str = ""


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance as LXD describes it.

    :param config: its own keys, the ``volatile.*`` ones included.
    :param devices: its own devices.
    :param all_config: with those of its profiles.
    :param all_devices: with those of its profiles.
    :param etag: version of the description, for a change that must not overwrite somebody else's.
    :param last_used: when it was started last, as the daemon writes it.
    """

    name: str
    status: Status
    config: Mapping[str, str]
    devices: Mapping[str, Device]
    all_config: Mapping[str, str]
    all_devices: Mapping[str, Device]
    profiles: tuple[str, ...] = ()
    description: str = ""
    architecture: str = ""
    etag: str = ""
    last_used: str = ""

    @property
    def starts_by_itself(self) -> bool:
        """Whether the daemon starts it when it starts itself."""
        return self.all_config.get(AUTOSTART, "").lower() in _YES

    @property
    def root_pool(self) -> str:
        """Name of the storage pool of the root disk; empty when there is none."""
        return root_pool(self.all_devices)


def root_pool(devices: Mapping[str, Device]) -> str:
    """Name of the storage pool of the root disk among some devices; empty when there is none."""
    for device in devices.values():
        if device.get("type") == "disk" and device.get("path") == "/":
            return device.get("pool", "")
    return ""


@dataclass(frozen=True, slots=True)
class InstanceState:
    """What an instance uses now. A counter that LXD does not report is ``None``, never 0 (N-04).

    :param pid: its first process, as the daemon's pid namespace numbers it; 0 when it does not run.
    :param cpu_ns: processor time since its start, nanoseconds.
    :param memory: bytes in use.
    :param received: bytes received on all interfaces except loopback.
    :param sent: bytes sent, the same.
    :param interfaces: addresses (MAC) of its network interfaces, by name inside.
    :param host_ends: names of their other ends on the host, by address; those that have one.
    """

    status: Status
    pid: int = 0
    processes: int | None = None
    cpu_ns: int | None = None
    memory: int | None = None
    received: int | None = None
    sent: int | None = None
    interfaces: Mapping[str, str] = field(default_factory=dict)
    host_ends: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Server:
    """The daemon.

    :param product: ``lxd`` or ``incus``.
    :param pid: process id it reports.
    """

    product: str
    version: str
    pid: int


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a command inside of an instance ended."""

    status: int
    stdout: bytes
    stderr: bytes


#: No counter of a real machine comes here, in bytes or nanoseconds; what a missing file makes of an unsigned number does (N-04).
_BEYOND = 1 << 60


def counter(value: object) -> int | None:
    """A counter of the API: a whole number that is not negative and can be true, or ``None``."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _BEYOND else None
