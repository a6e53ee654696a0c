"""What has gone through the disks of containers: the API does not tell.

A device that was made for one container tells itself (``/sys/block/NAME/stat``). For others, such as the host's disk below a
container that was made by hand, the container's control group does (:manpage:`cgroups(7)`). A group alone would not do: version 1
does not know who has caused what is written later, from the cache; and the loop driver lets a container pay for its image file as
well, so that ``/dev/loop0`` and the host's disk count the same bytes. So only devices count that the container itself has mounted.
"""

from __future__ import annotations

import contextlib
import enum
import os
from dataclasses import dataclass, field

from mapper_core.errors import MapperError
from mapper_core.linux import block
from mapper_core.linux.mountinfo import parse_line
from mapper_driver.lxd import cgroups
from mapper_driver.lxd.cgroups import Controller, Version
from mapper_driver.lxd.model import counter

_SECTOR = 512

_MAX_MOUNTINFO = 256 * 1024  # bytes; a hundred bytes a mount


class Whose(enum.Enum):
    """Who has made a container: only disks of OpenNebula's machines have devices of their own."""

    OPENNEBULA = "opennebula"
    HAND = "hand"


@dataclass(frozen=True, slots=True)
class Transfers:
    """What has gone through disks since the start of a container."""

    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0

    def __add__(self, other: Transfers) -> Transfers:
        """Of both together."""
        return Transfers(
            self.read_bytes + other.read_bytes,
            self.written_bytes + other.written_bytes,
            self.reads + other.reads,
            self.writes + other.writes,
        )


@dataclass(slots=True)
class BlockIo:
    """Reads the counters of many containers; what is the same for all is looked up once.

    :param controller: ``None`` when this kernel counts nothing.
    """

    controller: Controller | None
    _disks: dict[str, str] = field(default_factory=dict)
    _is_made: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def find(cls) -> BlockIo:
        """Look where this host counts."""
        try:
            return cls(cgroups.controller("io"))
        except MapperError:
            return cls(None)

    def of(self, pid: int, whose: Whose) -> Transfers | None:
        """What the container with this first process has transferred; ``None`` when it has ended or nothing is known (N-01)."""
        if pid <= 0:
            return None
        try:
            mounted = {self._disk(device) for device in devices_of(_mounts(pid))} - {""}
            own = {number for number in mounted if whose is Whose.OPENNEBULA and self._made_for_one(number)}
            found = [self._of_device(number) for number in own]
            if mounted - own:
                counted = self._counted(pid)
                found += [counted[number] for number in mounted - own if number in counted]
        except (MapperError, OSError, ValueError, IndexError):
            return None
        return sum(found, Transfers()) if found else None

    def _counted(self, pid: int) -> dict[str, Transfers]:
        """What the control group has counted, by number of the disk."""
        if self.controller is None:
            return {}
        group = self.controller.group(pid)
        if group.version is Version.V2:
            return parse_v2(group.read("io.stat"))
        moved = group.read("blkio.throttle.io_service_bytes_recursive")
        return parse_v1(moved, group.read("blkio.throttle.io_serviced_recursive"))

    def _of_device(self, number: str) -> Transfers:
        with open(f"/sys/dev/block/{number}/stat", encoding="ascii") as file:
            return parse_device(file.read())

    def _made_for_one(self, number: str) -> bool:
        if number not in self._is_made:
            self._is_made[number] = block.is_made_for_an_image(number)
        return self._is_made[number]

    def _disk(self, device: str) -> str:
        """``major:minor`` of the whole disk of a device; empty when there is none."""
        if device not in self._disks:
            self._disks[device] = _disk_of_node(device) if device.startswith("/") else _whole_disk(device)
        return self._disks[device]


def _mounts(pid: int) -> bytes:
    """What a container has mounted. It can mount a hundred thousand times, and may not hold up the others.

    :raises ValueError: it has mounted that much.
    """
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        text = file.read(_MAX_MOUNTINFO + 1)
    if len(text) > _MAX_MOUNTINFO:
        raise ValueError("too many mounts")
    return text


def devices_of(mountinfo: bytes) -> set[str]:
    """Devices of mounts: ``major:minor``, of btrfs the path of the node. Of thousands of lines a few have any, so no line is parsed
    that has none.
    """
    found = set()
    for line in mountinfo.splitlines():
        number = line.split(b" ", 3)[2]
        if not number.startswith(b"0:"):
            found.add(number.decode("ascii"))
        elif b" - btrfs " in line:
            found.add(parse_line(line).source)
    return found


def _disk_of_node(source: str) -> str:
    """Of btrfs, whose mounts have no device number. The text is the guest's: it is only compared, nothing is opened."""
    name = source.removeprefix("/dev/")
    if name == source or not name or "/" in name or name.startswith("."):
        return ""
    with contextlib.suppress(OSError), open(f"/sys/class/block/{name}/dev", encoding="ascii") as file:
        return _whole_disk(file.read().strip())
    return ""


def _whole_disk(number: str) -> str:
    link = f"/sys/dev/block/{number}"
    if not os.path.exists(f"{link}/partition"):
        return number
    with contextlib.suppress(OSError), open(f"{link}/../dev", encoding="ascii") as file:
        return file.read().strip()
    return number


def parse_device(text: str) -> Transfers:
    """``/sys/block/NAME/stat``, see Documentation/block/stat.rst.

    :raises ValueError: it is none.
    """
    numbers = [int(word) for word in text.split()[:7]]
    if len(numbers) < 7:
        raise ValueError("too short")
    return Transfers(numbers[2] * _SECTOR, numbers[6] * _SECTOR, numbers[0], numbers[4])


def parse_v2(text: str) -> dict[str, Transfers]:
    """``io.stat``: ``8:0 rbytes=1 wbytes=2 rios=3 wios=4 ...`` for each disk."""
    found = {}
    for line in text.splitlines():
        device, _, rest = line.partition(" ")
        pairs = (word.partition("=") for word in rest.split())
        values = {name: number for name, _, value in pairs if (number := _number(value)) is not None}
        if values:
            found[device] = Transfers(*(values.get(name, 0) for name in ("rbytes", "wbytes", "rios", "wios")))
    return found


def parse_v1(moved: str, operations: str) -> dict[str, Transfers]:
    """``blkio.throttle.io_service_bytes`` and ``io_serviced``: ``8:0 Read 1`` in a line."""
    size, count = _by_direction(moved), _by_direction(operations)
    return {
        device: Transfers(
            size.get((device, "Read"), 0),
            size.get((device, "Write"), 0),
            count.get((device, "Read"), 0),
            count.get((device, "Write"), 0),
        )
        for device, _ in size
    }


def _by_direction(text: str) -> dict[tuple[str, str], int]:
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and (value := _number(words[2])) is not None:
            found[words[0], words[1]] = value
    return found


def _number(text: str) -> int | None:
    return counter(int(text)) if text.isascii() and text.isdigit() and len(text) < 20 else None
