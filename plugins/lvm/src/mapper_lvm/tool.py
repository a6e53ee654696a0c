"""LVM's commands, as far as they are about volumes of the host.

They are asked about one volume at a time, by name, and answer in JSON (lvmreport(7)). Numbers are bytes.
"""

from __future__ import annotations

import json

from mapper_core.errors import CommandFailed, ImageNotFound, KernelError
from mapper_core.frozen import dataclass
from mapper_core.linux import confine
from mapper_core.process import Output, run
from mapper_lvm.names import VolumeName

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

_FIELDS = "lv_name,lv_uuid,vg_uuid,lv_size,lv_active,lv_device_open,lv_layout,origin,pool_lv,vg_extent_size,lv_time"


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
    :param created: seconds since the epoch.
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


def lvm(command: str, *arguments: str, subject: str, timeout: float = SECONDS) -> Output:
    """Run a command of LVM.

    :raises ToolMissing, CommandFailed, DeadlineExceeded: as for every program.
    """
    return run(("lvm", command, *arguments), timeout=timeout, subject=subject, capabilities=_CAPABILITIES)


def show(name: VolumeName) -> LogicalVolume:
    """Look at one volume.

    :raises ImageNotFound: there is none of that name.
    """
    try:
        volumes = _report(str(name))
    except CommandFailed as error:
        if "Failed to find logical volume" in error.stderr or "not found" in error.stderr:
            raise ImageNotFound("there is no such logical volume", subject=str(name), hint="lvs shows them") from error
        raise
    if len(volumes) != 1:
        raise ImageNotFound("there is no such logical volume", subject=str(name), hint="lvs shows them")
    return volumes[0]


def snapshots_of(name: VolumeName) -> tuple[LogicalVolume, ...]:
    """List the volumes of its group that are snapshots of a volume, the oldest first."""
    found = [volume for volume in _report(name.group) if volume.origin == name.volume]
    return tuple(sorted(found, key=lambda volume: (volume.created, volume.name)))


def _report(target: str) -> tuple[LogicalVolume, ...]:
    output = lvm(
        *("lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "--binary"),
        *("-o", _FIELDS, "--config", 'report { time_format="%s" }', target),
        subject=target,
    )
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
        created=int(row["lv_time"] or 0),
    )
