"""LVM's commands, as far as they are about volumes of the host.

They are asked about one volume at a time, by name, and answer in JSON (lvmreport(7)). Numbers are bytes.
"""

from __future__ import annotations

import json
import re

from mapper_core.errors import CommandFailed, ImageInUse, ImageNotFound, KernelError, NotSupported
from mapper_core.frozen import dataclass
from mapper_core.linux import confine
from mapper_core.process import Output, run
from mapper_lvm.names import VolumeName, is_name

#: A command waits for its lock, for udev, and for the devices that it scans.
SECONDS = 60

#: device-mapper asks for the first; LVM loads modules for snapshots and thin volumes itself, makes device nodes where udev does
#: not do it, and locks itself in memory while devices stand still.
_CAPABILITIES = (
    confine.CAP_SYS_ADMIN,
    confine.CAP_SYS_MODULE,
    confine.CAP_MKNOD,
    confine.CAP_IPC_LOCK,
    confine.CAP_CHOWN,
    confine.CAP_FOWNER,
    confine.CAP_SYS_NICE,
)

#: A tag: a volume is being brought back to the snapshot whose name follows.
REVERTING = "mapper.revert="

_FIELDS = "lv_name,lv_uuid,vg_uuid,lv_size,lv_active,lv_device_open,lv_layout,origin,pool_lv,vg_extent_size,lv_tags"

_MISSING = re.compile(r'Volume group "[^"]*" not found|Failed to find logical volume')


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """A volume as LVM reports it.

    :param identity: uuid of the group and of the volume.
    :param size: bytes.
    :param active: it has a device.
    :param open: somebody uses that.
    :param layout: ``linear``, ``thin,sparse``, ``raid,raid1`` and others.
    :param origin: name of the volume whose snapshot it is; empty for others.
    :param pool: name of the thin pool that it is in; empty for others.
    :param extent: unit of sizes in its group, bytes.
    :param created: seconds since the epoch; 0 when that was not asked for, which takes longer.
    :param reverting: name of the snapshot it is being brought back to; empty for others.
    """

    name: str
    identity: str
    size: int
    active: bool
    open: bool
    layout: str
    origin: str
    pool: str
    extent: int
    created: int
    reverting: str


def lvm(command: str, *arguments: str, subject: str, timeout: float = SECONDS) -> Output:
    """Run a command of LVM.

    :raises ToolMissing, CommandFailed, DeadlineExceeded: as for every program.
    """
    return run(("lvm", command, *arguments), timeout=timeout, subject=subject, capabilities=_CAPABILITIES)


def show(name: VolumeName) -> LogicalVolume:
    """Look at one volume.

    :raises ImageNotFound: there is none of that name.
    """
    volumes = _report(name, str(name))
    if len(volumes) != 1:
        raise _missing(name)
    return volumes[0]


def family(name: VolumeName) -> tuple[LogicalVolume, tuple[LogicalVolume, ...]]:
    """Look at one volume and those that are snapshots of it, the oldest first, by one command.

    :raises ImageNotFound: there is none of that name.
    """
    times = ("-o", "+lv_time", "--config", 'report { time_format="%s" }')
    volumes = _report(name, *times, "--select", f'lv_name="{name.volume}" || origin="{name.volume}"', name.group)
    found = [volume for volume in volumes if volume.name == name.volume]
    if not found:
        raise _missing(name)
    own = [volume for volume in volumes if volume.origin == name.volume]
    return found[0], tuple(sorted(own, key=lambda volume: (volume.created, volume.name)))


def usable(name: VolumeName) -> LogicalVolume:
    """Look at a volume that shall be a disk.

    :raises NotSupported: it is none.
    """
    volume = show(name)
    if "pool" in volume.layout.split(","):
        raise NotSupported("is a pool for other volumes, and no disk", subject=str(name))
    return volume


def refuse_open(volume: LogicalVolume, name: VolumeName) -> None:
    """Refuse to go on with a volume that somebody uses.

    :raises ImageInUse: its device is open.
    """
    if volume.open:
        raise ImageInUse("somebody uses it", subject=str(name), hint=f"look at it with: lsblk {name.device}")


def is_missing(error: CommandFailed) -> bool:
    """Whether a command failed because there is no such group or volume."""
    return _MISSING.search(error.stderr) is not None


def _missing(name: VolumeName) -> ImageNotFound:
    return ImageNotFound("there is no such logical volume", subject=str(name), hint="lvs shows them")


def _report(name: VolumeName, *arguments: str) -> tuple[LogicalVolume, ...]:
    options = ("--reportformat", "json", "--units", "b", "--nosuffix", "--binary", "-o", _FIELDS)
    try:
        output = lvm("lvs", *options, *arguments, subject=str(name))
    except CommandFailed as error:
        if is_missing(error):
            raise _missing(name) from error
        raise
    return parse(output.stdout)


def parse(report: bytes) -> tuple[LogicalVolume, ...]:
    """Understand what ``lvs --reportformat json --units b --nosuffix --binary`` writes.

    :raises KernelError: it is something else.
    """
    try:
        rows = json.loads(report)["report"][0]["lv"]
        return tuple(_volume(row) for row in rows)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise KernelError(f"lvs answered in a way that is not understood: {error!r}", subject="lvs") from error


def _volume(row: dict[str, str]) -> LogicalVolume:
    return LogicalVolume(
        name=row["lv_name"].strip("[]"),
        identity=f"{row['vg_uuid']}/{row['lv_uuid']}",
        size=int(row["lv_size"]),
        active=row["lv_active"] not in ("", "0"),
        open=row["lv_device_open"] == "1",
        layout=row["lv_layout"],
        origin=row["origin"].strip("[]"),
        pool=row["pool_lv"].strip("[]"),
        extent=int(row["vg_extent_size"]),
        created=int(row.get("lv_time", 0)),
        reverting=_reverting(row["lv_tags"]),
    )


def _reverting(tags: str) -> str:
    """The snapshot that a tag names, if that could be one of ours."""
    names = (tag.removeprefix(REVERTING) for tag in tags.split(",") if tag.startswith(REVERTING))
    return next(filter(is_name, names), "")
